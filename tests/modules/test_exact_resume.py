"""Chains of stops and resumes end at the weights of a run that was never stopped, bit for bit."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from chains import Chain, StopAt, StopError, assert_equal, weights
from command_checks import metrics
from la_dapo_options import nested
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from torch import Tensor
from toy_rewards import rare

from futurel1.cli import main
from futurel1.datamodules import RolloutPromptDataModule, SceneFramesDataModule, VideoHintDataModule
from futurel1.errors import CheckpointError
from futurel1.modules import LADAPOModule, LatentSFTModule, TowerPretrainModule
from futurel1.modules.checkpointing import ResumedFiles
from futurel1.modules.loggers import ResumableCSVLogger
from futurel1.rewards import CompositeReward
from processes import Command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Lightning's on every resume: loaders, folders that are not empty
]

Make = Callable[..., Chain]
ADAM: Any = import_module("torch.optim.adam")  # `torch.optim` does not show it


@pytest.fixture
def sft(world: Path, tmp_path: Path) -> Make:
    """Chains of two epochs of five micro-batches: dropout, and rows that depend on epoch and step."""

    def make(name: str = "chain", **options: Any) -> Chain:
        def module() -> LatentSFTModule:
            torch.manual_seed(3)
            return LatentSFTModule(
                backbone="tiny@random", lr_schedule="linear", warmup_ratio=0.2, learning_rate=1e-3, lora_rank=2,
                latent_feedback="mixed", feedback_share=0.5, feedback_ramp=4, lora_dropout=0.2,
            )  # fmt: skip

        def data() -> VideoHintDataModule:
            return VideoHintDataModule(
                train=str(world / "train.jsonl"), val=str(world / "test.jsonl"), batch_size=2, num_workers=0,
                system_prompt=str(world / "prompt.txt"), cache_dir=str(world / "cache"),
            )  # fmt: skip

        folder = tmp_path / name
        folder.mkdir()
        defaults = {"max_epochs": 2, "limit_train_batches": 5, "limit_val_batches": 1}
        return Chain(folder, module, data, {**defaults, **options})

    return make


WHOLE: dict[tuple[str, int], dict[str, Tensor]] = {}
"""Weights of runs that were not stopped, by module and accumulation."""


def whole(make: Make, accumulate: int) -> dict[str, Tensor]:
    name = (make.__qualname__.split(".")[0], accumulate)
    if name not in WHOLE:
        WHOLE[name] = weights(make("whole", accumulate_grad_batches=accumulate).run())
    return WHOLE[name]


EVERY_STEP = {"every_n_train_steps": 1}
EVERY_EPOCH = {"every_n_epochs": 1}
ON_EXCEPTION = {"save_on_exception": True, "every_n_train_steps": 1000}


@pytest.mark.parametrize(("accumulate", "saves", "stops", "options"), [
    pytest.param(1, EVERY_EPOCH, [("batch_start", 6), ("batch_start", 7), ("backward", 10)], {},
                 marks=pytest.mark.campaign),
    pytest.param(1, EVERY_STEP, [("validation", 5), ("batch_start", 6), ("epoch_end", 10)], {"max_steps": 100},
                 marks=pytest.mark.campaign),
    (2, EVERY_STEP, [("backward", 3), ("backward", 5), ("batch_start", 6), ("batch_start", 7), ("validated", 8)],
     {"val_check_interval": 2, "check_val_every_n_epoch": None}),
    (2, ON_EXCEPTION, [("backward", 1), ("step", 4), ("validation", 5), ("epoch_end", 5), ("backward", 8)], {}),
    pytest.param(4, ON_EXCEPTION, [("backward", 3), ("batch_end", 4), ("validated", 5), ("batch_start", 6),
                                   ("backward", 10), ("validation", 10)], {"max_steps": 100},
                 marks=pytest.mark.campaign),
    pytest.param(4, EVERY_STEP, [("backward", 5), ("batch_end", 6), ("backward", 9)], {"check_val_every_n_epoch": 2},
                 marks=pytest.mark.campaign),
], ids=["epochs", "steps", "windows", "inside-windows", "inside-long-windows", "after-windows"])  # fmt: skip
def test_a_chain_of_sft(
    sft: Make, accumulate: int, saves: Mapping[str, Any], stops: list[tuple[str, int]], options: dict[str, Any]
) -> None:
    chain = sft(accumulate_grad_batches=accumulate, **options)
    assert_equal(chain.finish(stops, saves), whole(sft, accumulate))
    assert chain.trainer.current_epoch == 2
    assert chain.trainer.global_step == 2 * -(-5 // accumulate)


@pytest.fixture
def rl(rl_world: Path, opening: str, tmp_path: Path) -> Make:
    """Chains of three epochs of eight micro-batches: two rollout batches of two minibatches of two micro-batches."""

    def make(name: str = "chain", **options: Any) -> Chain:
        def module() -> LADAPOModule:
            torch.manual_seed(3)
            settings = {
                "num_rollouts": 4, "batch_size": 4, "generation_batch_size": 4, "filter_key": "toy", "filter_low": 0.05,
                "max_new_tokens": 6, "span_budget": "loose", "span_latents": 2, "num_minibatches": 2,
            }  # fmt: skip
            reward = CompositeReward({"toy": rare}, {"toy": 1.0})
            return LADAPOModule(
                backbone=opening, reward=reward, learning_rate=1e-3, lr_schedule="linear", lora_rank=2,
                lora_dropout=0.1, **nested(settings),
            )  # fmt: skip

        def data() -> RolloutPromptDataModule:
            prompt = str(rl_world / "prompt.txt")
            files = {"train": str(rl_world / "rl.jsonl"), "val": str(rl_world / "test.jsonl")}
            return RolloutPromptDataModule(**files, num_workers=0, system_prompt=prompt)

        folder = tmp_path / name
        folder.mkdir()
        defaults = {"max_epochs": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0}
        return Chain(folder, module, data, {**defaults, **options})

    return make


@pytest.mark.parametrize(("saves", "stops", "options"), [
    pytest.param(EVERY_STEP, [("backward", 3), ("batch_start", 9), ("batch_start", 10), ("backward", 13)], {},
                 marks=pytest.mark.campaign),
    (ON_EXCEPTION, [("backward", 1), ("backward", 6), ("validation", 8), ("epoch_end", 8), ("step", 14)],
     {"max_steps": 100}),
], ids=["steps", "inside-windows"])  # fmt: skip
def test_a_chain_of_la_dapo(
    rl: Make, saves: Mapping[str, Any], stops: list[tuple[str, int]], options: dict[str, Any]
) -> None:
    assert_equal(rl(accumulate_grad_batches=2, **options).finish(stops, saves), whole(rl, 2))


@pytest.fixture
def tower(tmp_path: Path) -> Make:
    def make(name: str = "chain", **options: Any) -> Chain:
        def module() -> TowerPretrainModule:
            return TowerPretrainModule(vision_depth=1, vision_width=64, text_depth=1)

        def data() -> SceneFramesDataModule:
            return SceneFramesDataModule(
                num_batches=5, num_val_batches=1, batch_size=4, frame_sizes=[32], num_workers=0
            )

        folder = tmp_path / name
        folder.mkdir()
        return Chain(folder, module, data, {"max_epochs": 2, **options})

    return make


def test_a_chain_of_tower_pretraining(tower: Make) -> None:
    stops = [("backward", 2), ("batch_start", 6), ("batch_start", 7), ("validation", 10)]
    assert_equal(tower(accumulate_grad_batches=2).finish(stops, ON_EXCEPTION), whole(tower, 2))


# ------------------------------------------------------------------ finished runs


def test_a_finished_run_resumed_twice_stays_as_it_is(tower: Make) -> None:
    for limits in ({"max_epochs": 2}, {"max_epochs": -1, "max_steps": 4}):
        chain = tower(f"by-{len(limits)}", accumulate_grad_batches=2, **limits)
        done = weights(chain.run(saves={"every_n_train_steps": 3}))
        steps = chain.trainer.global_step
        assert_equal(weights(chain.run(saves={"every_n_train_steps": 3})), done)
        written = chain.last.stat().st_mtime_ns
        for _ in range(2):
            assert_equal(weights(chain.run(saves={"every_n_train_steps": 3})), done)
            assert chain.trainer.global_step == steps
        assert chain.last.stat().st_mtime_ns == written


@pytest.mark.campaign
@pytest.mark.parametrize(("first", "more"), [
    ({"max_steps": 2}, {"max_steps": 6}),  # inside an epoch
    ({"max_steps": 3}, {"max_steps": 6}),  # at its end
    ({"max_epochs": 1}, {"max_epochs": 2}),
    ({"max_steps": 4, "max_epochs": 1}, {"max_steps": 4, "max_epochs": 2}),
], ids=["inside-an-epoch", "end-of-an-epoch", "epochs", "both"])  # fmt: skip
def test_a_finished_run_is_extended(tower: Make, first: dict[str, int], more: dict[str, int]) -> None:
    """As if the limit had been the larger one from the start, but for the schedule."""

    def constant(chain: Chain) -> Chain:
        make = chain._module
        chain._module = lambda: TowerPretrainModule(**{**make().hparams, "lr_schedule": "constant"})
        return chain

    chain = constant(tower(accumulate_grad_batches=2, **first))
    chain.run(saves={"every_n_train_steps": 100})
    extended = constant(chain)
    extended._options |= more
    found = weights(extended.run())
    assert_equal(found, weights(constant(tower("whole", accumulate_grad_batches=2, **more)).run()))


@pytest.mark.parametrize(("limits", "steps"), [
    ({"max_epochs": 2}, 6), ({"max_steps": 4}, 4),
    *(pytest.param(limits, steps, marks=pytest.mark.campaign) for limits, steps in (
        ({"max_steps": 4, "max_epochs": 1}, 3), ({"max_epochs": 2, "limit_train_batches": 0.5}, 2),
    )),
], ids=["epochs", "steps", "both", "half"])  # fmt: skip
@pytest.mark.parametrize("saves", [
    {"every_n_train_steps": 5}, {"every_n_train_steps": 100}, {"every_n_train_steps": 1}, {"every_n_epochs": 10},
    {"every_n_train_steps": 5, "monitor": "val/loss", "save_last": "link"},
    {"every_n_train_steps": 5, "monitor": "train/loss"},
], ids=["five", "hundred", "one", "epochs", "link", "monitor"])  # fmt: skip
def test_the_last_checkpoint_is_of_the_last_step(
    tower: Make, limits: dict[str, Any], steps: int, saves: dict[str, Any]
) -> None:
    chain = tower(accumulate_grad_batches=2, **limits)
    module = chain.run(saves=saves)
    assert chain.trainer.global_step == steps
    last = torch.load(chain.folder / "last.ckpt", weights_only=True)
    assert last["global_step"] == steps
    assert_equal({name: last["state_dict"][f"reasoner.{name}"] for name in weights(module)}, weights(module))


# ------------------------------------------------------------------ what a resumed run does once, and once more


class Watched(Callback):
    """Notes the steps whose validation was done, and logged steps."""

    def __init__(self) -> None:
        self.validated: list[int] = []
        self.epochs: list[int] = []
        self.logged: list[int] = []

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)
            self.logged.append(trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        assert trainer.fit_loop.epoch_loop._batches_that_stepped == trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        self.epochs.append(trainer.current_epoch)


@pytest.mark.parametrize(("stop", "expected", "epochs"), [
    (("validation", 5), [3, 6], [0, 1]),  # again, from its first batch
    (("validated", 5), [6], [0, 1]),  # was done
    (("epoch_end", 5), [6], [1]),
    (("batch_start", 6), [6], [1]),
], ids=["inside", "done", "epoch-end", "next-epoch"])  # fmt: skip
@pytest.mark.parametrize("max_steps", [-1, 100])
def test_a_validation_that_was_cut_is_done_again(
    tower: Make, stop: tuple[str, int], expected: list[int], epochs: list[int], max_steps: int
) -> None:
    chain = tower(accumulate_grad_batches=2, max_steps=max_steps)
    chain.run(StopAt(*stop), saves=ON_EXCEPTION)
    watched = Watched()
    chain.run(watched, saves=ON_EXCEPTION)
    assert watched.validated == expected
    assert watched.epochs == epochs
    assert watched.logged == [step - 1 for step in expected]  # Lightning's name for a step in logs


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_validations_that_kills_cut_are_done_even_after_the_last_step(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    """Each kill comes after the checkpoint of a step and before the end of the validation that is due at it."""
    options = {
        "accumulate_grad_batches": 2, "max_steps": 4, "limit_train_batches": 8, "max_epochs": -1,
        "val_check_interval": 4, "check_val_every_n_epoch": None, "log_every_n_steps": 1,
    }  # fmt: skip
    make: Make = request.getfixturevalue(kind)

    def run(chain: Chain, *callbacks: Callback) -> tuple[list[int], list[dict[str, str]], dict[str, Tensor]]:
        watched, folder = Watched(), tmp_path / f"logs-{chain.folder.name}"
        saves = {"every_n_train_steps": 2, "save_top_k": -1}
        logger = ResumableCSVLogger(str(folder))
        module = chain.run(watched, *callbacks, ResumedFiles(), saves=saves, logger=logger)
        assert chain.trainer.max_steps == 4
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as stream:
            rows = [{name: row[name] for name in row if "second" not in name} for row in csv.DictReader(stream)]
        names = [name for name in rows[0] if name.startswith("val/")]
        return watched.validated, [row for row in rows if any(row[name] for name in names)], weights(module)

    undisturbed, killed = make("undisturbed", **options), make("killed", **options)
    validated, rows, trained = run(undisturbed)
    assert (validated, [row["step"] for row in rows]) == ([2, 4], ["1", "3"])
    for step, before in ((2, []), (4, [2])):
        validated, found, _ = run(killed, StopAt("validation", 2 * step))
        assert (validated, found) == (before, rows[: len(before)])
    for expected in ([4], []):  # once
        validated, found, weights_found = run(killed)
        assert (validated, found) == (expected, rows)
        assert_equal(weights_found, trained)
    files = sorted(file.name for file in undisturbed.folder.iterdir())
    assert sorted(file.name for file in killed.folder.iterdir()) == files


def test_a_step_is_saved_once(sft: Make) -> None:
    chain = sft(accumulate_grad_batches=4)
    chain.run(StopAt("backward", 5), saves=EVERY_STEP)
    written = chain.last.stat().st_mtime_ns
    chain.run(StopAt("batch_end", 5), saves=EVERY_STEP)
    assert chain.last.stat().st_mtime_ns == written


# ------------------------------------------------------------------ inside an optimizer's update


def test_a_signal_waits_until_all_weights_are_updated(tower: Make) -> None:
    """As SLURM's signal to requeue: its handler saves a checkpoint, at whatever line the process is."""
    chain = tower(accumulate_grad_batches=2)
    saved, adam = chain.folder / "hpc_ckpt_1.ckpt", ADAM.adam

    def interrupted(*args: Any, **kwargs: Any) -> None:
        if chain.trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert not saved.exists()
        adam(*args, **kwargs)

    before = signal.signal(signal.SIGUSR1, lambda *_: chain.trainer.save_checkpoint(saved))
    try:
        with patch.object(ADAM, "adam", interrupted):
            chain.run(StopAt("backward", 5))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert torch.load(saved, weights_only=True)["global_step"] == 2
    assert_equal(weights(chain.run()), whole(tower, 2))


def test_half_an_update_is_not_saved(tower: Make) -> None:
    chain, adam = tower(accumulate_grad_batches=2), ADAM.adam

    def fails(*args: Any, **kwargs: Any) -> None:
        if chain.trainer.global_step == 2:
            raise StopError("no memory is left for the state of the second half")
        adam(*args, **kwargs)

    with patch.object(ADAM, "adam", fails), pytest.raises(CheckpointError, match="in the middle of step 3"):
        chain.run(saves=ON_EXCEPTION)
    assert not list(chain.folder.iterdir())


# ------------------------------------------------------------------ other checkpoints, other processes


@pytest.mark.parametrize("stop", [
    ("backward", 3), *(pytest.param(stop, marks=pytest.mark.campaign)
                       for stop in (("batch_start", 5), ("epoch_end", 5), ("batch_start", 6))),
])  # fmt: skip
def test_checkpoints_of_version_0_1_are_resumed_exactly(sft: Make, stop: tuple[str, int]) -> None:
    chain = sft(accumulate_grad_batches=2)
    chain.run(StopAt(*stop), saves={**EVERY_EPOCH, **ON_EXCEPTION, "every_n_train_steps": None})
    state = torch.load(chain.last, weights_only=True)
    del state["position"]
    # Version 0.1 saved the random state of the moment, which in the middle of a step is another.
    (state["torch_rng_state"],) = (random["cpu"] for random in state.pop("random_states"))
    torch.save(state, chain.last)
    assert_equal(weights(chain.run()), whole(sft, 2))


@pytest.mark.campaign
@pytest.mark.slow
def test_a_run_that_is_killed_three_times(world: Path, tmp_path: Path) -> None:
    """Processes of their own: after an epoch's end, in the middle of a window, in the export."""
    file, runs = tmp_path / "sft.yaml", tmp_path / "runs"
    model = {"class_path": "LatentSFTModule", "init_args": {"backbone": "tiny@random", "learning_rate": 1e-3}}
    records = {"train": str(world / "train.jsonl"), "batch_size": 2, "num_workers": 0}
    records |= {"system_prompt": str(world / "prompt.txt"), "cache_dir": str(tmp_path / "cache")}
    trainer = {
        "accelerator": "cpu", "max_epochs": 4, "accumulate_grad_batches": 4, "limit_train_batches": 10,
        "log_every_n_steps": 1, "enable_progress_bar": False, "enable_model_summary": False,
        "callbacks": [
            {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 3, "save_last": True}},
            {"class_path": "HuggingFaceExport"},
        ],
    }  # fmt: skip
    data = {"class_path": "VideoHintDataModule", "init_args": records}
    file.write_text(yaml.safe_dump({"seed_everything": 0, "model": model, "data": data, "trainer": trainer}))
    options = ["fit", "--config", str(file), "--runs_dir", str(runs)]
    main([*options, "--run_name", "whole"])
    again = ["fit", "--resume", str(runs / "killed")]
    table = runs / "killed" / "metrics.csv"
    for number, (command, steps) in enumerate([([*options, "--run_name", "killed"], 4), (again, 5), (again, 8)]):
        process = Command(command, tmp_path / f"{number}.log")
        process.kill_when(lambda steps=steps: table.is_file() and _steps(table.parent) >= steps)
    assert not (runs / "killed" / "huggingface").exists()
    main(again)
    one, two = (load_file(runs / run / "huggingface" / "model.safetensors") for run in ("whole", "killed"))
    assert_equal(two, one)
    columns = ("epoch", "step", "train/lr", "train/loss")
    assert metrics(runs / "killed", *columns) == metrics(runs / "whole", *columns)


def _steps(run: Path) -> int:
    return len(metrics(run, "train/loss"))
