"""Whether imagined frames follow the video, on latents whose directions are known."""

from __future__ import annotations

import pytest
import torch

from futurel1.diagnosis import Imagined, change_of
from futurel1.diagnosis.imagining import imagined
from futurel1.errors import ConfigError
from futurel1.models import LatentBank

EAST, NORTH, BETWEEN = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])


def asked(*spans: torch.Tensor, true: torch.Tensor = NORTH, other: torch.Tensor = EAST) -> Imagined:
    count = len(spans)
    return Imagined(dict(enumerate(spans)), true.expand(count, 2), other.expand(count, 2))


def test_spans_that_move_to_the_changed_future() -> None:
    unchanged = [asked(EAST, EAST, true=EAST), asked(EAST, true=EAST)]
    changed = [asked(NORTH, EAST), asked(3 * NORTH)]
    change = change_of("moved", unchanged, changed)
    assert (change.questions, change.spans) == (2, 3)
    assert change.nearer == pytest.approx((0.5 + 1) / 2)  # per question, so that long answers do not count more
    assert change.unchanged == 0
    assert change.gain.value == pytest.approx(0.75)
    assert change.distance == pytest.approx(2 / 3)
    assert change.true_distance == pytest.approx(1)
    assert change.per_question == ((0, 0.5, 0.0), (1, 1.0, 0.0))


def test_a_tie_is_not_nearer() -> None:
    assert change_of("moved", [asked(EAST)], [asked(BETWEEN)]).nearer == 0


def test_spans_without_a_frame_or_a_partner_do_not_count() -> None:
    lone = Imagined({0: NORTH, 1: NORTH, 5: NORTH}, NORTH.expand(2, 2), EAST.expand(2, 2))
    change = change_of("moved", [Imagined({}, NORTH[None], EAST[None]), asked(EAST)], [lone, lone])
    assert change.spans == 1
    assert change.per_question == ((1, 1.0, 0.0),)
    with pytest.raises(ConfigError, match="no question has a span"):
        change_of("moved", [Imagined({}, NORTH[None], EAST[None])], [lone])
    with pytest.raises(ConfigError, match="2 changed questions for 1"):
        change_of("moved", [lone], [lone, lone])


def test_latents_are_cut_into_spans() -> None:
    latents = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    bank = LatentBank.from_responses(["b", "a"], [latents[:0], latents])
    lines = [{"id": "a", "spans": [2, 0, 1]}, {"id": "b", "spans": [0]}]
    futures = [(NORTH[None], EAST[None])] * 2
    first, second = imagined(bank, lines, futures)
    assert {number: span.tolist() for number, span in first.spans.items()} == {0: [2.0, 0.0], 2: [0.0, 4.0]}
    assert second.spans == {}
