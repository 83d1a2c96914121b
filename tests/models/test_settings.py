"""The latent settings of released configurations, and the budgets that follow from them."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from futurel1.models import LatentSettings, SpanBudget


def test_paper_decodes_with_at_most_eight():
    assert LatentSettings().budget() == SpanBudget.loose(8)


@pytest.mark.parametrize(
    ("keys", "budget"),
    [
        ({"fixed_latent_budget": True}, SpanBudget.fixed(4)),
        ({"fixed_latent_budget": True, "loose_latent_budget": 6}, SpanBudget.fixed(4)),
        ({"loose_latent_budget": 6}, SpanBudget.loose(6)),
        ({"loose_latent_budget": 0}, SpanBudget.loose(8)),
        ({"loose_latent_budget": None}, SpanBudget.loose(8)),
        ({"infer_latent_multiplier": 1.0}, SpanBudget.loose(4)),
        ({"infer_latent_multiplier": 0.01}, SpanBudget.loose(1)),
        ({"max_latent_token": 32}, SpanBudget.loose(64)),
    ],
)
def test_budget_of_a_configuration(keys, budget):
    assert LatentSettings.from_config(SimpleNamespace(**{"max_latent_token": 4, **keys})).budget() == budget


@pytest.mark.parametrize(
    ("architecture", "forced"), [("SwimBird_Qwen3VL", False), ("FutureL1_Qwen3VL", False), ("RICE_Qwen3VL", True)]
)
def test_settings_of_released_configurations(architecture, forced):
    config = SimpleNamespace(
        architectures=[architecture],
        max_latent_token=32,
        latent_loss="cosine",
        latent_lambda=0.2,
        use_projection_head=True,
        projection_head_type="LVR",
    )
    settings = LatentSettings.from_config(config)
    assert settings.force_initial_latent_mode is forced
    assert (settings.max_latent_tokens, settings.latent_loss, settings.latent_lambda) == (32, "cosine", 0.2)
    assert settings.projection_head_type == "lvr"


def test_the_size_of_hints_is_that_of_the_last_training_that_told_it():
    start = LatentSettings.from_config(SimpleNamespace(max_latent_token=1, fixed_latent_budget=True, max_hint_tokens=4))
    pooled = {"max_latent_tokens": 1, "fixed_latents": True, "max_hint_tokens": 16}
    assert start.trained(pooled).hint_options() == pooled
    assert start.trained({"fixed_latents": True, "max_hint_tokens": None}).max_hint_tokens is None
    # training by rewards, and that of earlier versions, tell nothing
    assert (
        start.trained({"learning_rate": 1}).max_hint_tokens
        == start.trained({"fixed_latents": True}).max_hint_tokens
        == 4
    )
    # without a fixed budget a hint has as many latents as tokens
    assert start.trained({"fixed_latents": False}).hint_options()["max_hint_tokens"] is None


def test_head_kind_of_a_configuration():
    assert LatentSettings.from_config(SimpleNamespace()).projection_head_type == "none"
    # A kind without the switch is what SwimBird's default configuration has: no head.
    off = SimpleNamespace(use_projection_head=False, projection_head_type="swiglu")
    assert LatentSettings.from_config(off).projection_head_type == "none"
    assert LatentSettings.from_config(SimpleNamespace(use_projection_head=True)).projection_head_type == "swiglu"


@given(
    st.builds(
        LatentSettings,
        max_latent_tokens=st.integers(1, 64),
        fixed_latent_budget=st.booleans(),
        loose_latent_budget=st.none() | st.integers(1, 64),
        infer_latent_multiplier=st.floats(0.1, 8.0),
        force_initial_latent_mode=st.booleans(),
        projection_head_type=st.sampled_from(["none", "swiglu", "lvr"]),
        projection_hidden_dim=st.integers(1, 4096),
        latent_loss=st.sampled_from(["mse", "cosine"]),
        latent_lambda=st.floats(0.0, 1.0),
    )
)
def test_settings_survive_a_configuration(settings):
    config = SimpleNamespace()
    settings.write_config(config)
    assert LatentSettings.from_config(config) == settings
    assert config.max_latent_token == settings.max_latent_tokens  # the name that released checkpoints have
    assert not hasattr(config, "max_latent_tokens")


def test_a_training_changes_the_settings_that_it_sets():
    before = LatentSettings(max_latent_tokens=4, loose_latent_budget=6, latent_lambda=0.3)
    sft = {"max_latent_tokens": 3, "fixed_latents": None, "alignment": "cosine", "latent_weight": 0.0, "freeze": []}
    after = LatentSettings(max_latent_tokens=3, loose_latent_budget=6, latent_loss="cosine", latent_lambda=0.0)
    assert before.trained(sft) == after
    assert after.trained({"rollout": {}, "objective": {"latent_weight": 0.5}}) == after  # reinforcement learning
