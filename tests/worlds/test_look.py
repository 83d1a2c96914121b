"""What both worlds look like and what they call it."""

import numpy as np
import pytest

from futurel1.errors import ConfigError
from futurel1.worlds import look
from futurel1.worlds.look import check_frame_size, direction, palette, signed_distance, zones_of


def test_splits_share_no_combination_but_every_colour_and_form():
    train, test = set(palette("train")), set(palette("test"))
    assert not train & test
    assert len(train) == 12
    assert len(test) == 6
    for part in (train, test):  # each colour and each form is seen in both, only not together
        assert {colour for colour, _ in part} == set(look.COLOURS)
        assert {form for _, form in part} == set(look.FORMS)
    assert palette("rl") == palette("pretrain") == palette("train")


@pytest.mark.parametrize("form", look.FORMS)
def test_every_form_fills_its_box_and_no_more(form):
    across, down = np.meshgrid(np.linspace(-12, 12, 241), np.linspace(-12, 12, 241))
    inside = signed_distance(form, across, down, 10.0) <= 1e-9
    for axis in (across, down):
        assert (axis[inside].min(), axis[inside].max()) == pytest.approx((-10, 10))
    assert signed_distance(form, np.array(0.0), np.array(0.0), 10.0) < -4


def test_directions_are_eight():
    told = [direction(np.array([np.cos(turn), np.sin(turn)])) for turn in np.arange(8) * np.pi / 4]
    assert told == ["right", "down and right", "down", "down and left", "left", "up and left", "up", "up and right"]


def test_zones_are_quarters_of_an_arena_of_any_side():
    places = np.array([[0.1, 0.2], [0.9, 0.2], [0.1, 0.8], [0.5, 0.5]])
    assert zones_of(places).tolist() == zones_of(places * 96, 96).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [0, -32, 33, 100])
def test_frames_of_other_sizes_are_refused(size):
    with pytest.raises(ConfigError, match=f"size={size}: frames need a side that is a positive multiple of 32"):
        check_frame_size(size)
