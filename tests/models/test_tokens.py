"""Latent token ids, span budgets and the latent settings of released configurations."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from futurel1.errors import CheckpointError, ConfigError
from futurel1.models import LATENT, LATENT_END, LATENT_START, LATENT_TOKENS, LatentSettings, LatentTokens, SpanBudget


class Tokenizer:
    def __init__(self, **vocab):
        self.vocab = vocab

    def get_vocab(self):
        return self.vocab


@pytest.mark.parametrize("ids", [(5, 5, 6), (5, 6, 5), (6, 5, 5), (-1, 2, 3), (1, -2, 3), (1, 2, -3)])
def test_ids_must_differ_and_not_be_negative(ids):
    with pytest.raises(ConfigError, match="three different ids"):
        LatentTokens(*ids)


def test_from_config_reads_all_three():
    config = SimpleNamespace(latent_id=310, latent_start_id=311, latent_end_id=312)
    assert LatentTokens.from_config(config) == LatentTokens(start_id=311, latent_id=310, end_id=312)


def test_from_config_zero_is_an_id():
    config = SimpleNamespace(latent_id=0, latent_start_id=1, latent_end_id=2)
    assert LatentTokens.from_config(config) == LatentTokens(start_id=1, latent_id=0, end_id=2)


@pytest.mark.parametrize("config", [SimpleNamespace(), SimpleNamespace(latent_id=None, latent_end_id=None)])
def test_from_config_without_ids(config):
    assert LatentTokens.from_config(config) is None


@pytest.mark.parametrize("missing", ["latent_id", "latent_start_id", "latent_end_id"])
def test_from_config_with_some_ids_names_them_and_the_remedy(missing):
    ids = {"latent_id": 310, "latent_start_id": 311, "latent_end_id": 312, missing: None}
    with pytest.raises(CheckpointError, match=rf"'{missing}': None.*add the missing ones, or remove all three"):
        LatentTokens.from_config(SimpleNamespace(**ids))


def test_from_tokenizer():
    vocab = {"a": 0, LATENT: 7, LATENT_START: 8, LATENT_END: 9}
    assert LatentTokens.from_tokenizer(Tokenizer(**vocab)) == LatentTokens(start_id=8, latent_id=7, end_id=9)
    for token in LATENT_TOKENS:
        fewer = {name: value for name, value in vocab.items() if name != token}
        assert LatentTokens.from_tokenizer(Tokenizer(**fewer)) is None


@pytest.mark.parametrize(("kind", "latents"), [("fixed", -1), ("loose", 0), ("loose", -1)])
def test_budget_needs_a_latent(kind, latents):
    least = {"fixed": "0 latents", "loose": "1 latent"}[kind]  # fixed(0) keeps the markers alone
    with pytest.raises(ConfigError, match=f"{kind} span budget needs at least {least}, got {latents}"):
        SpanBudget(kind, latents)


def test_budget_kind():
    with pytest.raises(ConfigError, match="'fixed' or 'loose', got 'exact'"):
        SpanBudget("exact", 4)
    assert SpanBudget.fixed(4) == SpanBudget("fixed", 4)
    assert SpanBudget.loose(8) == SpanBudget("loose", 8)


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
    assert (settings.max_latent_token, settings.latent_loss, settings.latent_lambda) == (32, "cosine", 0.2)
    assert settings.projection_head_type == "lvr"


def test_head_kind_of_a_configuration():
    assert LatentSettings.from_config(SimpleNamespace()).projection_head_type == "none"
    # A kind without the switch is what SwimBird's default configuration has: no head.
    off = SimpleNamespace(use_projection_head=False, projection_head_type="swiglu")
    assert LatentSettings.from_config(off).projection_head_type == "none"
    assert LatentSettings.from_config(SimpleNamespace(use_projection_head=True)).projection_head_type == "swiglu"


@given(
    st.builds(
        LatentSettings,
        max_latent_token=st.integers(1, 64),
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
