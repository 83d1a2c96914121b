"""Whole runs of every kind that writes as it goes: how to start, continue and compare each with an undisturbed one."""

from __future__ import annotations

import csv
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

REWARDS = [Path(__file__).parents[1] / "modules"]
"""Folders that runs import their reward from."""
TIMES = ("rollout/seconds", "tokens_per_second", "seconds", "records_per_second")
"""Columns that differ between two runs of the same settings."""


@dataclass
class Trial:
    """What a block of a test tries: `number` trials of one kind, such as kills of a chain."""

    number: int = 1


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        start: command line that starts it in a folder.
        again: command line that continues it there.
        same: compares a finished folder with that of an undisturbed run; raises AssertionError.
        begun: whether `again` can continue what a folder holds; otherwise `start` is given once more.
        done: how many steps or records a folder holds.
        total: how many they are in the end, or a few less.
        writing: patterns of paths that it writes whole, and how often at least in a run.
    """

    start: Callable[[Path], Sequence[str]]
    again: Callable[[Path], Sequence[str]]
    same: Callable[[Path, Path], None]
    begun: Callable[[Path], bool]
    done: Callable[[Path], int]
    total: int
    writing: Mapping[str, int]

    def at_random(self, run: Path, seconds: float, generator: random.Random) -> Callable[[], bool]:
        """Whether a random moment of what is left of a run has come; its folder is there, however fast the machine is.

        Args:
            run: its folder.
            seconds: length of an undisturbed run.
            generator: chooses the moment.
        """
        wanted = generator.randint(min(self.done(run), self.total - 1), self.total - 1)
        delay = generator.uniform(0, seconds / self.total)
        reached: list[float] = []

        def ready() -> bool:
            if not reached and run.is_dir() and self.done(run) >= wanted:
                reached.append(time.monotonic())
            return bool(reached) and time.monotonic() >= reached[0] + delay

        return ready

    def next(self, run: Path) -> Sequence[str]:
        """The command line that a person gives next: it continues what can be continued."""
        return self.again(run) if self.begun(run) else self.start(run)


def _config(folder: Path, name: str, config: dict[str, Any]) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def _trainer(**options: Any) -> dict[str, Any]:
    return {
        "accelerator": "cpu", "max_epochs": 1000, "log_every_n_steps": 1, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, **options,
    }  # fmt: skip


def _checkpoints(every: int) -> dict[str, Any]:
    return {
        "class_path": "ModelCheckpoint",
        "init_args": {
            "every_n_train_steps": every,
            "save_last": "link",
            "save_top_k": 2,
            "monitor": "step",
            "mode": "max",
        },
    }


def sft(world: Path, folder: Path) -> Kind:
    """Latent SFT: 24 records in batches of 3, two batches a step, so every second checkpoint lies within an epoch."""
    config = _config(folder, "sft", {
        "seed_everything": 0,
        "model": {"class_path": "LatentSFTModule", "init_args": {"learning_rate": 1e-3}},
        "data": {
            "class_path": "VideoHintDataModule",
            "init_args": {
                "train": str(world / "train.jsonl"), "val": str(world / "test.jsonl"), "batch_size": 3,
                "num_workers": 1, "system_prompt": str(world / "prompt.txt"),
            },
        },
        "trainer": _trainer(
            max_steps=10, accumulate_grad_batches=2, val_check_interval=3, limit_val_batches=1,
            callbacks=[_checkpoints(2)],
        ),
    })  # fmt: skip
    return _training(config)


def la_dapo(world: Path, folder: Path, backbone: str) -> Kind:
    """LA-DAPO: two optimizer steps for a rollout batch, of two micro-batches each."""
    reward = {"rewards": {"toy": "toy_rewards:rare"}, "weights": {"toy": 1.0}}
    config = _config(folder, "la_dapo", {
        "seed_everything": 0,
        "model": {
            "class_path": "LADAPOModule",
            "init_args": {
                "backbone": backbone,
                "reward": {"class_path": "futurel1.rewards.CompositeReward", "init_args": reward},
                "rollout": {"num_rollouts": 4, "batch_size": 4, "generation_batch_size": 4, "filter_key": "toy",
                            "filter_low": 0.05, "num_minibatches": 2},
                "sampling": {"max_new_tokens": 6, "span_budget": "loose", "span_latents": 2},
                "learning_rate": 1e-3, "log_samples_every": 1,
            },
        },
        "data": {
            "class_path": "RolloutPromptDataModule",
            "init_args": {"train": str(world / "rl.jsonl"), "val": str(world / "test.jsonl"), "num_workers": 0,
                          "system_prompt": str(world / "prompt.txt"), "batch_size": 4},
        },
        "trainer": _trainer(max_steps=10, accumulate_grad_batches=2, limit_val_batches=0, callbacks=[_checkpoints(1)]),
    })  # fmt: skip
    return _training(config)


def _training(config: Path) -> Kind:
    def start(run: Path) -> Sequence[str]:
        overwrite = ["--overwrite"] if run.exists() else []
        return ["fit", "--config", str(config), "--runs_dir", str(run.parent), "--run_name", run.name, *overwrite]

    def begun(run: Path) -> bool:
        return (run / "config.yaml").is_file() and bool(list(run.glob("checkpoints/*.ckpt")))

    return Kind(
        start,
        lambda run: ["fit", "--resume", str(run)],
        same_training,
        begun,
        lambda run: _lines(run, "metrics.csv") - 1,
        10,
        {"*/checkpoints/*.ckpt": 3, "*/huggingface": 1, "*/config.yaml": 1},
    )


def _lines(folder: Path, pattern: str) -> int:
    """Number of lines in files of a folder."""
    return sum(file.read_bytes().count(b"\n") for file in folder.glob(pattern))


def same_training(run: Path, whole: Path) -> None:
    """Equal weights bit for bit, equal curves and rollouts, and nothing half written."""
    for file in sorted((whole / "huggingface").glob("*.safetensors")):
        one, two = load_file(run / "huggingface" / file.name), load_file(file)
        assert one.keys() == two.keys()
        assert [key for key in one if not torch.equal(one[key], two[key])] == []
    assert _rows(run) == _rows(whole)
    if (whole / "rollouts.jsonl").is_file():
        assert (run / "rollouts.jsonl").read_bytes() == (whole / "rollouts.jsonl").read_bytes()
    _nothing_half(run)


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [
        {name: value for name, value in row.items() if value and not any(time in name for time in TIMES)}
        for row in rows
    ]


def predictions(world: Path, folder: Path, backbone: str) -> Kind:
    """Predictions with their latents, two records at a time."""
    config = _config(folder, "predict", {
        "seed_everything": 0,
        "model": {
            "class_path": "LatentPredictor",
            "init_args": {"backbone": backbone, "save_latents": True,
                          "sampling": {"max_new_tokens": 8, "span_budget": "fixed", "span_latents": 2}},
        },
        "data": {
            "class_path": "PromptDataModule",
            "init_args": {"predict": str(world / "train.jsonl"), "batch_size": 2, "num_workers": 1,
                          "system_prompt": str(world / "prompt.txt")},
        },
        "trainer": _trainer(logger=False),
    })  # fmt: skip

    def start(run: Path) -> Sequence[str]:
        overwrite = ["--overwrite"] if run.exists() else []
        return ["predict", "--config", str(config), "--runs_dir", str(run.parent), "--run_name", run.name, *overwrite]

    return Kind(
        start,
        lambda run: ["predict", "--resume", str(run)],
        same_predictions,
        lambda run: (run / "config.yaml").is_file(),
        lambda run: _lines(run, "predictions.jsonl"),
        24,
        {"*/latents.parts/*": 3, "*/latents.safetensors": 1, "*/config.yaml": 1},
    )


def same_predictions(run: Path, whole: Path) -> None:
    """One line per record with the same response, and the latents of every record."""
    one, two = (
        {line["id"]: line["response"] for line in map(json.loads, (folder / "predictions.jsonl").open())}
        for folder in (run, whole)
    )
    assert one == two
    assert len((run / "predictions.jsonl").read_bytes().splitlines()) == len(one)
    banks = [load_file(folder / "latents.safetensors") for folder in (run, whole)]
    assert {key: value.shape for key, value in banks[0].items()} == {k: v.shape for k, v in banks[1].items()}
    _nothing_half(run)


def curation(world: Path, backbone: str) -> Kind:
    """Probing and selection of candidates."""
    options = {
        "model": backbone, "prompts.system_prompt": str(world / "prompt.txt"), "rollouts": "2",
        "sampling.max_new_tokens": "12", "batch_size": "1", "prompts.num_workers": "0", "device": "cpu",
        "thresholds.min_gain": "0",
    }  # fmt: skip
    given = [part for name, value in options.items() for part in (f"--{name}", value)]

    def command(out: Path) -> Sequence[str]:
        return ["curate", str(world / "train.jsonl"), "--out", str(out), *given]

    def same(out: Path, whole: Path) -> None:
        for name in ("curated.jsonl", "report.txt", "report.png"):
            assert (out / name).read_bytes() == (whole / name).read_bytes()
        _nothing_half(out)

    return Kind(
        command,
        command,
        same,
        lambda out: True,
        lambda out: _lines(out, "probes-*.jsonl"),
        24,
        {"*/curated.jsonl": 1, "*/report.txt": 1, "*/report.png": 1},
    )


def _nothing_half(folder: Path) -> None:
    suffixes = (".part", ".aside", ".replaced", ".kept", ".old", ".tmp", ".lock", ".owner")
    assert [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith(suffixes)] == []
