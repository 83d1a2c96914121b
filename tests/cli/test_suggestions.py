"""Known names, and which of them is meant."""

from __future__ import annotations

import pytest
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

import futurel1.datamodules  # noqa: F401 (its classes are known once they are loaded)
from futurel1.cli.suggestions import class_names, did_you_mean, find_object, listed, option_names
from futurel1.modules import LADAPOModule, LatentSFTModule
from futurel1.rewards import CompositeReward

OPTIONS = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_time", "run_name", "runs_dir")


@pytest.mark.parametrize(("given", "told"), [
    ("trainer.max_step", "did you mean trainer.max_steps?"),
    ("max_steps", "did you mean trainer.max_steps?"),  # its group was left out
    ("model.max_steps", "did you mean trainer.max_steps?"),
    ("run_nam", "did you mean run_name?"),
    ("trainer.max_epoch", "did you mean trainer.max_epochs?"),
    ("colour", ""),
])  # fmt: skip
def test_only_names_that_are_alike_are_suggested(given: str, told: str) -> None:
    assert did_you_mean(given, OPTIONS) == told


def test_two_that_are_equally_alike() -> None:
    assert did_you_mean("float3", ["float32", "float16", "float64"]) == "did you mean float32?"
    assert did_you_mean("flot", ["flota", "flotb"]) in ("did you mean flota or flotb?", "did you mean flotb or flota?")
    assert did_you_mean("x", []) == ""


def test_few_names_are_listed() -> None:
    assert listed(["b", "a", "b"], "elsewhere") == "known: a, b"
    assert listed(map(str, range(100)), "elsewhere") == "elsewhere"
    assert listed([], "elsewhere") == "elsewhere"


def test_objects_by_their_paths() -> None:
    assert find_object("futurel1.LatentSFTModule") is LatentSFTModule
    assert find_object("futurel1.rewards.CompositeReward.preset") == CompositeReward.preset
    assert find_object("futurel1.modules.Nothing") is None
    assert find_object("no_such_module.Thing") is None


def test_options_of_classes_and_functions() -> None:
    assert {"learning_rate", "sampling.max_new_tokens", "rollout.batch_size"} <= set(option_names(LADAPOModule))
    assert {"name", "weights"} <= set(option_names(CompositeReward.preset))
    assert "save_top_k" in option_names(ModelCheckpoint)


def test_classes_that_users_are_offered() -> None:
    class InAFunction(LatentSFTModule):
        pass

    models = class_names([LightningModule])
    assert {"LatentSFTModule", "LADAPOModule", "LatentPredictor", "TowerPretrainModule"} <= set(models)
    assert {"ReasonerModule", "LazyReasonerModule", InAFunction.__name__}.isdisjoint(models)
    assert "VideoHintDataModule" in class_names([LightningDataModule])
    assert {"ModelCheckpoint", "HuggingFaceExport"} <= set(class_names([Callback]))
    assert "ParsedConfig" not in class_names([Callback])
