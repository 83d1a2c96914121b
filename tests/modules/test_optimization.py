from __future__ import annotations

import math

import pytest

from futurel1.errors import ConfigError
from futurel1.models import LatentReasoner
from futurel1.modules.optimization import freeze_parts, parameter_groups, parts_of, schedule_factor


@pytest.fixture
def reasoner() -> LatentReasoner:
    return LatentReasoner.from_pretrained("tiny@random", projection_head="lvr")


def test_parts_cover_every_parameter_exactly_once(reasoner: LatentReasoner) -> None:
    ids = [id(p) for part in parts_of(reasoner).values() for p in part]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in reasoner.parameters()}
    merger = {id(p) for p in reasoner.backbone.vision_tower.merger.parameters()}
    assert merger < {id(p) for p in parts_of(reasoner)["merger"]}
    assert not merger & {id(p) for p in parts_of(reasoner)["vision"]}


@pytest.mark.parametrize("part", ["vision", "merger", "llm", "head"])
def test_freezing_a_part_freezes_it_and_nothing_else(reasoner: LatentReasoner, part: str) -> None:
    freeze_parts(reasoner, [part])
    for name, parameters in parts_of(reasoner).items():
        assert parameters
        assert all(p.requires_grad == (name != part) for p in parameters)


def test_freezing_everything_or_an_unknown_part_is_an_error(reasoner: LatentReasoner) -> None:
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freeze_parts(reasoner, ["vision", "merger", "llm", "head"])
    with pytest.raises(ConfigError, match="'tower'"):
        freeze_parts(reasoner, ["tower"])  # type: ignore[list-item]


def test_groups_decay_matrices_only_and_keep_rates_apart(reasoner: LatentReasoner) -> None:
    freeze_parts(reasoner, ["vision"])
    rates = {"vision": 1.0, "merger": 2.0, "llm": 3.0, "head": 4.0}
    groups = {g["name"]: g for g in parameter_groups(reasoner, learning_rates=rates, weight_decay=0.1)}
    assert set(groups) == {"merger", "merger_no_decay", "llm", "llm_no_decay", "head", "head_no_decay"}
    for name, group in groups.items():
        assert group["lr"] == rates[name.split("_")[0]]
        assert group["weight_decay"] == (0.0 if name.endswith("no_decay") else 0.1)
        assert all((p.ndim < 2) == name.endswith("no_decay") for p in group["params"])
    grouped = sum(p.numel() for g in groups.values() for p in g["params"])
    assert grouped == sum(p.numel() for p in reasoner.parameters() if p.requires_grad)


def test_schedules_warm_up_and_come_down() -> None:
    cosine, linear = schedule_factor("cosine", 100, 0.1), schedule_factor("linear", 100, 0.1)
    constant = schedule_factor("constant", 100, 0.1)
    for factor in (cosine, linear, constant):
        assert [factor(s) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
        assert factor(10) == 1.0
    assert cosine(55) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert linear(55) == pytest.approx(0.5)
    assert cosine(100) == pytest.approx(0)
    assert linear(100) == pytest.approx(0)
    assert linear(500) == 0
    assert constant(99) == 1.0
    assert schedule_factor("cosine", 10, 0.0)(0) == 1.0


def test_schedule_errors() -> None:
    with pytest.raises(ConfigError, match="'step'"):
        schedule_factor("step", 10, 0.1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"1\.5"):
        schedule_factor("cosine", 10, 1.5)
