"""Latent token ids and span budgets."""

from types import SimpleNamespace

import pytest

from futurel1.errors import CheckpointError, ConfigError
from futurel1.models import LATENT, LATENT_END, LATENT_START, LATENT_TOKENS, LatentTokens, SpanBudget


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
