"""Every part of every golden rollout, as the released code computes it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from futurel1.rewards import CompositeReward
from rollouts import golden_inputs

# Score of the golden data, our part, and the factor between them.
COUNTERPARTS = (
    ("accuracy", "accuracy", 1.0),
    ("format", "format", 1.0),
    ("repetition_score", "repetition", 1.0),
    ("latent_ctr_reward", "contrastive", 1.0),
    ("latent_block_cos2", "diversity", -1.0),
    ("accuracy_reward_part", "accuracy", 0.9),
    ("format_reward_part", "format", 0.1),
    ("length_penalty_part", "length", 0.001),
    ("latent_ctr_part", "contrastive", 0.2),
    ("latent_div_part", "diversity", -0.1),
)


@pytest.fixture(scope="module")
def groups(golden: Path) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((golden / "rewards.json").read_text())
    assert len(loaded) == 20
    return loaded


def expected(groups: list[dict[str, Any]], key: str) -> Tensor:
    return torch.tensor([score[key] for group in groups for score in group["scores"]], dtype=torch.float32)


def test_released_preset(groups: list[dict[str, Any]]) -> None:
    output = CompositeReward.preset("released")(golden_inputs(groups))
    assert output.valid.all()
    assert set(output.parts) == {"accuracy", "format", "length", "repetition", "contrastive", "diversity"}
    torch.testing.assert_close(output.total, expected(groups, "overall"), atol=1e-5, rtol=0)
    for key, part, factor in COUNTERPARTS:
        torch.testing.assert_close(factor * output.parts[part], expected(groups, key), atol=1e-5, rtol=0, msg=key)
    repetitive = (output.parts["repetition"] > 0.5).float()
    torch.testing.assert_close(repetitive, expected(groups, "is_repetitive"))


def test_groups_by_themselves_score_the_same(groups: list[dict[str, Any]]) -> None:
    released = CompositeReward.preset("released")
    totals = [released(golden_inputs([group])).total for group in groups if any(i["latents"] for i in group["items"])]
    with_latents = [group for group in groups if any(item["latents"] for item in group["items"])]
    torch.testing.assert_close(torch.cat(totals), expected(with_latents, "overall"), atol=1e-5, rtol=0)


def test_paper_preset_differs_where_the_paper_does(groups: list[dict[str, Any]]) -> None:
    inputs = golden_inputs(groups)
    paper, released = (CompositeReward.preset(name)(inputs).parts for name in ("paper", "released"))
    for part in ("accuracy", "format", "length", "repetition", "diversity"):
        assert torch.equal(paper[part], released[part])
    # 1 / (1 + sum) without positives, s+ / tau without negatives: neither is in Eq. 5.
    case = expected(groups, "latent_ctr_case_id")
    assert (paper["contrastive"][case == 2] == 0).all()
    assert (released["contrastive"][case == 2] > 0).all()
    assert (paper["contrastive"][case == 3] == 1).all()
    assert (released["contrastive"][case == 3] > 1).all()
