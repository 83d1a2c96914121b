"""Optimizers of a user's choice: by name or as classes, with the module's groups, in checkpoints and on resume."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chains import Chain, StopAt, assert_equal, weights
from lightning import Trainer

from futurel1.cli.trainer import run_trainer
from futurel1.datamodules import VideoHintDataModule
from futurel1.errors import ConfigError
from futurel1.modules import LADAPOModule, LatentSFTModule
from rounding import assert_same_after_training

TRAINER: dict[str, Any] = {"accelerator": "cpu", "max_steps": 2, "logger": False, "enable_progress_bar": False}


class TensorRates(torch.optim.AdamW):
    """Keeps rates as tensors, and takes no other number, as the 8-bit optimizers of torchao do."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.param_groups[-1]["lr"] = torch.tensor(self.param_groups[-1]["lr"], dtype=torch.float32)

    def step(self, closure: Any = None) -> Any:
        assert all(isinstance(group["lr"], torch.Tensor) for group in self.param_groups)
        return super().step(closure)


def make_module(**options: Any) -> LatentSFTModule:
    return LatentSFTModule("tiny@random", **{"learning_rate": 1e-3, "warmup_ratio": 0.5, **options})


def make_data(world: Path, **options: Any) -> VideoHintDataModule:
    prompt = str(world / "prompt.txt")
    return VideoHintDataModule(str(world / "train.jsonl"), num_workers=0, system_prompt=prompt, batch_size=2, **options)


def make_trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"enable_checkpointing": False, "enable_model_summary": False, "default_root_dir": folder}
    return Trainer(**{**TRAINER, **quiet, **options})


def test_the_default_by_name_is_the_default_bit_for_bit(world: Path, tmp_path: Path) -> None:
    runs = []
    for optimizer in (None, torch.optim.AdamW, partial(torch.optim.AdamW, foreach=True), torch.optim.SGD):
        module = make_module(optimizer=optimizer)
        make_trainer(tmp_path).fit(module, make_data(world))
        runs.append(weights(module))
    default, by_class, in_part, other = runs
    assert_equal(by_class, default)
    assert_equal(in_part, default)
    assert any(not torch.equal(other[name], value) for name, value in default.items())


def test_groups_are_those_of_the_module_for_every_optimizer() -> None:
    options = {"freeze": ["vision"], "merger_learning_rate": 3e-4, "weight_decay": 0.2, "lr_schedule": "constant"}
    module = make_module(optimizer=partial(torch.optim.NAdam, momentum_decay=0.5), betas=(0.8, 0.9), **options)
    module.configure_model()
    make_trainer(Path()).strategy.connect(module)
    module.trainer = make_trainer(Path())
    optimizer = module.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.NAdam
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert set(groups) == {"merger", "merger_no_decay", "llm", "llm_no_decay"}
    for name, group in groups.items():
        assert group["initial_lr"] == (3e-4 if name.startswith("merger") else 1e-3)
        assert group["weight_decay"] == (0.0 if name.endswith("no_decay") else 0.2)
        assert (group["betas"], group["momentum_decay"]) == ((0.8, 0.9), 0.5)


@pytest.mark.parametrize(("optimizer", "message"), [
    (partial(torch.optim.SGD, lr=0.3), r"optimizer.lr=0.3 would be replaced by the module's learning_rate=0.001"),
    (partial(torch.optim.Adam, betas=(0.5, 0.9)), r"optimizer.betas=\(0.5, 0.9\) .* set betas"),
    (partial(torch.optim.SGD, weight_decay=0.3), "leave it out, and set weight_decay"),
    (torch.optim.Rprop, "Rprop knows no weight_decay, which is 0.1: set it to 0"),
    (partial(torch.optim.SGD, momentum=-1), "optimizer cannot be made: Invalid momentum value: -1"),
])  # fmt: skip
def test_settings_that_contradict_each_other_are_named(optimizer: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_module(optimizer=optimizer)


def test_weights_that_an_optimizer_cannot_train_are_named(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="optimizer cannot be made: Muon only supports 2D parameters"):
        make_trainer(tmp_path).fit(make_module(optimizer=torch.optim.Muon), make_data(world))


def test_rates_that_are_tensors_follow_the_schedule_over_a_resume(world: Path, tmp_path: Path) -> None:
    def chain(name: str, optimizer: Any) -> Chain:
        options = {"max_steps": 4, "limit_val_batches": 0}
        return Chain(tmp_path / name, lambda: make_module(optimizer=optimizer), lambda: make_data(world), options)

    whole = weights(chain("whole", TensorRates).run())
    assert_same_after_training(whole, weights(chain("numbers", None).run()), learning_rate=1e-3)
    stopped = chain("stopped", TensorRates)
    stopped.run(StopAt("batch_end", 2), saves={"every_n_train_steps": 1})
    assert_equal(weights(stopped.run()), whole)


def test_yaml_names_an_optimizer_that_checkpoints_keep_and_a_resume_cannot_change(world: Path, tmp_path: Path) -> None:
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}
    settings = {"backbone": "tiny@random", "learning_rate": 1e-3, "optimizer": optimizer}
    data = {"train": str(world / "train.jsonl"), "num_workers": 0, "system_prompt": str(world / "prompt.txt")}
    config = {
        "model": {"class_path": "LatentSFTModule", "init_args": settings},
        "data": {"class_path": "VideoHintDataModule", "init_args": data},
        "trainer": {**TRAINER, "callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"save_last": True}}]},
    }
    file, run = tmp_path / "sft.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(config))
    run_trainer("fit", ["--config", str(file), "--run_dir", str(run)], resume=None, own_process=False)
    last = run / "checkpoints" / "last.ckpt"
    (state,) = torch.load(last, weights_only=True)["optimizer_states"]
    assert {group["momentum"] for group in state["param_groups"]} == {0.9}
    assert {group["name"]: group["weight_decay"] for group in state["param_groups"]} == {
        "llm": 0.1, "llm_no_decay": 0.0,
    }  # fmt: skip

    # 1. It comes back, and once more from what came back.
    found = LatentSFTModule.load_from_checkpoint(last)
    described = found.hparams["optimizer"]
    assert (described["class_path"], described["init_args"]["momentum"]) == ("torch.optim.sgd.SGD", 0.9)
    assert LatentSFTModule(**found.hparams).hparams["optimizer"] == described

    # 2. A resume goes on with it, and with no other.
    run_trainer("fit", ["--trainer.max_steps", "3"], resume=str(run), own_process=False)
    other = ["--trainer.max_steps", "4", "--model.init_args.optimizer", "torch.optim.Adam"]
    with pytest.raises(ConfigError, match=r"optimizer is torch.optim.sgd.SGD, and this run's is torch.optim.adam.Adam"):
        run_trainer("fit", other, resume=str(run), own_process=False)
    assert torch.load(last, weights_only=True)["global_step"] == 3


def test_an_optimizer_that_a_function_makes_has_to_be_given_again() -> None:
    module = LADAPOModule("tiny@random", optimizer=lambda groups: torch.optim.SGD(groups, momentum=0.9))
    assert module.hparams["optimizer"] == "torch.optim.sgd.SGD"
    with pytest.raises(ConfigError, match=r"optimizer=torch.optim.sgd.SGD.*Give it again, as optimizer=\.\.\."):
        LADAPOModule(**module.hparams)
