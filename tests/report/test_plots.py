from __future__ import annotations

import math

import pytest

from futurel1.curves import Curve
from futurel1.report.plots import HEIGHT, MOST_POINTS, WIDTH, panels_of, tick_labels


def points(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, _, y in (pair.partition(",") for pair in text.split())]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.5, 1.0], ["0.5", "1"]),
        ([6.902, 6.905, 6.909], ["6.902", "6.905", "6.909"]),
        ([2950.0, 3010.0], ["2.95e+03", "3.01e+03"]),
        ([0.0, 0.0], ["0", "0"]),  # a flat curve
        ([1.00001, 1.00002], ["1", "1"]),  # no label is longer than four digits
    ],
)
def test_different_ticks_have_different_labels(values: list[float], labels: list[str]) -> None:
    assert tick_labels(values) == labels


def test_a_falling_curve_falls_inside_its_panel() -> None:
    families = {
        "reward": {"train": Curve([0.0, 5.0], [1.0, 2.0])},
        "loss": {"train": Curve([0.0, 10.0, 20.0], [8.0, 4.0, 1.0]), "val": Curve([10.0], [3.0])},
    }
    panels = panels_of(families)
    assert [panel.name for panel in panels] == ["loss", "reward"]  # what says most comes first
    loss = panels[0]
    drawn = points(loss.lines[0].points)
    assert [y for _, y in drawn] == sorted(y for _, y in drawn)  # down is larger
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in drawn)
    assert loss.log
    assert not panels[1].log
    # Steps of both stages share an axis: step 10 is in the middle of 0 to 20.
    assert points(loss.lines[1].points)[0][0] == pytest.approx(drawn[1][0])
    assert [line.last for line in loss.lines] == ["1", "3"]
    assert loss.described == "loss over steps 0 to 20: train from 8 to 1, val from 3 to 3"


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    nothing = Curve([0.0], [math.nan])
    some = Curve([0.0, 1.0, 2.0], [1.0, math.inf, 1.0])
    (panel,) = panels_of({"ce": {"train": some}, "kl": {"train": nothing}})
    assert (panel.name, panel.left_out) == ("ce", 1)
    assert len(points(panel.lines[0].points)) == 2


def test_long_curves_become_means() -> None:
    steps = [float(step) for step in range(4800)]
    (panel,) = panels_of({"entropy": {"train": Curve(steps, [step % 2 for step in steps])}})
    drawn = points(panel.lines[0].points)
    assert len(drawn) == MOST_POINTS
    assert panel.lines[0].last == "0.5"
    assert len(points(panel.lines[0].smooth)) == MOST_POINTS
    assert not panel.lines[0].dots


def test_noisy_training_curves_have_a_running_mean_and_others_do_not() -> None:
    steps = [float(step) for step in range(100)]
    noisy = Curve(steps, [5.0 + (-1) ** step for step in range(100)])
    (panel,) = panels_of({"entropy": {"train": noisy, "val": noisy}})
    train, val = panel.lines

    def reach(text: str) -> float:
        heights = [y for _, y in points(text)]
        return max(heights) - min(heights)

    assert reach(train.smooth) < 0.5 * reach(train.points)
    assert val.smooth == ""
