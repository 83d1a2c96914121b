"""A reasoner that the caller loaded, and one that is not loaded yet."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from futurel1 import LADAPOModule, LatentPredictor, LatentReasoner, LatentSFTModule
from futurel1.datamodules import VideoHintDataModule
from futurel1.errors import ConfigError


@pytest.fixture
def loaded() -> LatentReasoner:
    return LatentReasoner.from_pretrained("tiny@random")


@pytest.mark.parametrize("kind", [LatentSFTModule, LADAPOModule, LatentPredictor])
def test_before_a_trainer_loads_it_the_reasoner_says_how(kind: type) -> None:
    module = kind("tiny@random")
    assert not hasattr(module, "reasoner")
    with pytest.raises(AttributeError, match=rf"{kind.__name__} has no reasoner yet.* call configure_model\(\)"):
        _ = module.reasoner
    with pytest.raises(AttributeError, match="no attribute 'reasoners'"):
        _ = module.reasoners
    module.configure_model()
    assert isinstance(module.reasoner, LatentReasoner)


@pytest.mark.parametrize("kind", [LatentSFTModule, LADAPOModule, LatentPredictor])
def test_a_loaded_reasoner_is_used_as_it_is(kind: type, loaded: LatentReasoner) -> None:
    module = kind(loaded)
    assert module.processor is loaded.processor
    assert not list(module.parameters())  # it becomes a submodule when the strategy is ready
    module.configure_model()
    assert module.reasoner is loaded
    assert module.hparams["backbone"] == "tiny@random"  # checkpoints hold plain values


def test_a_loaded_reasoner_trains_like_one_that_is_named(loaded: LatentReasoner, world: Path, tmp_path: Path) -> None:
    results = []
    for backbone in ("tiny@random", loaded):
        module = LatentSFTModule(backbone, learning_rate=1e-3, warmup_ratio=0.0)
        data = VideoHintDataModule(
            str(world / "train.jsonl"), batch_size=2, num_workers=0, system_prompt=str(world / "prompt.txt")
        )
        Trainer(
            default_root_dir=tmp_path, accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(module, data)  # fmt: skip
        results.append(module.reasoner.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert loaded.backbone.lm_head.weight.requires_grad


def test_settings_that_only_loading_can_follow_are_refused(loaded: LatentReasoner) -> None:
    with pytest.raises(ConfigError, match=r"keeps its weights and head: leave out \['projection_head'\]"):
        LatentSFTModule(loaded, projection_head="linear").configure_model()
    with pytest.raises(ConfigError, match=r"leave out \['init_from'\]"):
        LADAPOModule(loaded, init_from="runs/first").configure_model()
    with pytest.raises(ConfigError, match=r"leave out \['init_from'\]"):
        LatentPredictor(loaded, init_from="runs/first").configure_model()
    assert LatentSFTModule(loaded, dtype="bfloat16").given_reasoner().dtype == torch.bfloat16  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [LatentSFTModule, LADAPOModule])
def test_values_of_an_epoch_are_logged_without_warnings(kind: Any, tmp_path: Path) -> None:
    class Evaluates(kind):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def on_validation_epoch_end(self) -> None:
            self.log_reduced({"val/loss": 0.5}, prog_bar=True)
            self.log_reduced({"val_loss": 0.5}, logger=False)

    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.validate(Evaluates("tiny@random"), DataLoader(torch.ones(2, 1)), verbose=False)
    assert not [str(warning.message) for warning in caught if "self.log" in str(warning.message)]
    assert trainer.callback_metrics == {"val/loss": 0.5, "val_loss": 0.5}
    assert trainer.progress_bar_metrics == {"val/loss": 0.5}
