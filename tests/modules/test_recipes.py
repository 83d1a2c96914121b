"""Rewards and latent policies come back from a checkpoint as they were trained with, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toy_rewards
import yaml
from lightning import Trainer
from torch import Tensor

from futurel1.cli.trainer import run_trainer
from futurel1.errors import ConfigError
from futurel1.models.policies import GaussianLatents, LatentPolicy, VonMisesFisherLatents
from futurel1.modules import LADAPOModule, LatentPredictor
from futurel1.recipes import keep_recipe, object_of
from futurel1.rewards import AccuracyReward, CompositeReward, FormatReward, RewardInputs


def saved(module: Any, folder: Path) -> Path:
    """A checkpoint of a module that was not trained; its weights are the start's."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=folder)
    module.configure_model()
    trainer.strategy.connect(module)
    module.trainer = trainer
    trainer.save_checkpoint(folder / "saved.ckpt", weights_only=True)
    return folder / "saved.ckpt"


class OwnLatents(GaussianLatents):
    """Of a user."""


def test_objects_of_the_library_come_back(tmp_path: Path) -> None:
    reward = CompositeReward(
        {"toy": toy_rewards.rare, "format": FormatReward(order="reason_first", min_spans=2)},
        {"toy": 0.7, "format": 0.3},
    )
    rollout: Any = {"filter_key": "toy"}
    module = LADAPOModule(
        "tiny@random", reward=reward, latent_policy=VonMisesFisherLatents(0.98), rollout=rollout, freeze=["vision"]
    )
    file = saved(module, tmp_path)
    torch.load(file, weights_only=True)
    found = LADAPOModule.load_from_checkpoint(file)
    assert found.reward.weights == reward.weights
    assert found.reward.rewards["toy"] is toy_rewards.rare
    form: Any = found.reward.rewards["format"]
    assert (form.order, form.min_spans, form.variant) == ("reason_first", 2, "paper")
    assert isinstance(found.latent_policy, VonMisesFisherLatents)
    assert found.latent_policy.cosine == 0.98
    assert found.sampler.reward is found.reward
    # once more, from the module that was loaded
    again = LADAPOModule.load_from_checkpoint(saved(found, tmp_path))
    assert again.reward.weights == reward.weights


def test_the_released_preset_comes_back(tmp_path: Path) -> None:
    module = LADAPOModule("tiny@random", reward=CompositeReward.preset("released"), latent_policy=GaussianLatents(0.3))
    found = LADAPOModule.load_from_checkpoint(saved(module, tmp_path))
    assert found.reward.weights == CompositeReward.preset("released").weights
    assert getattr(found.latent_policy, "std", None) == 0.3
    default = LADAPOModule.load_from_checkpoint(saved(LADAPOModule("tiny@random"), tmp_path))
    assert default.reward.weights == CompositeReward.preset("paper").weights


def test_objects_of_others_are_refused_by_name_until_they_are_given(tmp_path: Path) -> None:
    def own(inputs: RewardInputs) -> Tensor:
        return torch.zeros(len(inputs))

    reward, policy = CompositeReward({"accuracy": own}, {"accuracy": 1.0}), OwnLatents(0.2)
    file = saved(LADAPOModule("tiny@random", reward=reward, latent_policy=policy), tmp_path)
    with pytest.raises(ConfigError, match=r"reward=futurel1\.rewards\.composite\.CompositeReward, an object.*reward="):
        LADAPOModule.load_from_checkpoint(file, latent_policy=policy)
    with pytest.raises(ConfigError, match=r"latent_policy=.*OwnLatents, an object.*Give it again, as latent_policy="):
        LADAPOModule.load_from_checkpoint(file, reward=reward)
    found = LADAPOModule.load_from_checkpoint(file, reward=reward, latent_policy=policy)
    assert found.reward is reward
    assert found.latent_policy is policy


def test_what_the_command_line_gave_comes_back(rl_world: Path, opening: str, tmp_path: Path) -> None:
    reward = {"rewards": {"toy": "toy_rewards:rare"}, "weights": {"toy": 2.0}}
    config = {
        "model": {
            "class_path": "LADAPOModule",
            "init_args": {
                "backbone": opening, "reward": {"class_path": "futurel1.rewards.CompositeReward", "init_args": reward},
                "latent_policy": {
                    "class_path": "futurel1.models.policies.GaussianLatents", "init_args": {"std": 0.25},
                },
                "rollout": {"num_rollouts": 2, "batch_size": 2, "filter_key": "none"},
                "sampling": {"max_new_tokens": 4},
            },
        },
        "data": {
            "class_path": "RolloutPromptDataModule",
            "init_args": {
                "train": str(rl_world / "rl.jsonl"), "num_workers": 0, "system_prompt": str(rl_world / "prompt.txt"),
            },
        },
        "trainer": {
            "accelerator": "cpu", "max_steps": 1, "logger": False, "enable_progress_bar": False,
            "callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"save_last": True}}],
        },
    }  # fmt: skip
    file, run = tmp_path / "rl.yaml", tmp_path / "runs" / "one"
    file.write_text(yaml.safe_dump(config))
    run_trainer("fit", ["--config", str(file), "--run_dir", str(run)], resume=None, own_process=False)
    found = LADAPOModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    assert found.reward.weights == {"toy": 2.0}
    assert found.reward.rewards["toy"] is toy_rewards.rare
    assert getattr(found.latent_policy, "std", None) == 0.25
    run_trainer("fit", ["--trainer.max_steps", "2"], resume=str(run), own_process=False)
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_the_latent_policy_of_a_predictor_comes_back(tmp_path: Path) -> None:
    module = LatentPredictor("tiny@random", latent_policy=VonMisesFisherLatents(0.9))
    found = LatentPredictor.load_from_checkpoint(saved(module, tmp_path))
    assert getattr(found.policy, "cosine", None) == 0.9


def test_recipes_are_plain_values() -> None:
    kept: dict[str, Any] = {}
    keep_recipe(kept, "reward", AccuracyReward())
    assert kept == {
        "reward": {
            "class_path": "futurel1.rewards.accuracy.AccuracyReward",
            "init_args": {"judge": None, "repetition_limit": AccuracyReward().repetition_limit},
        }
    }
    keep_recipe(kept, "none", None)
    keep_recipe(kept, "own", OwnLatents())
    assert kept["none"] is None
    assert kept["own"].endswith(".OwnLatents")
    with pytest.raises(ConfigError, match=r"latent_policy cannot be made of .*Nowhere.*Give it as latent_policy="):
        object_of(LatentPolicy, "latent_policy", {"class_path": "futurel1.models.policies.Nowhere"})
