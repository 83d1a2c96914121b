"""The campaign: trials that take minutes, each counted, with one table at the end.

A test counts with `trials(what, tried, held)`, or puts one trial into `with trial(what)`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from campaign_runs import REWARDS, Kind, Trial, curation, la_dapo, predictions, sft

from futurel1.worlds import write_world
from opening import write_opening
from processes import Command

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.campaign)


@pytest.fixture
def trials(record_property: Callable[[str, object], None]) -> Callable[[str, int, int], None]:
    """Count trials of a kind for the table; the test fails by its own assertions."""

    def note(what: str, tried: int, held: int) -> None:
        record_property("trials", [what, tried, held])

    return note


@pytest.fixture
def trial(trials: Callable[[str, int, int], None]) -> Callable[[str], AbstractContextManager[Trial]]:
    """Count a block as trials of a kind, all of which held if it raises nothing."""

    @contextmanager
    def counted(what: str) -> Iterator[Trial]:
        made, held = Trial(), False
        try:
            yield made
            held = True
        finally:
            trials(what, made.number, made.number if held else 0)

    return counted


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    """A run of every kind on small worlds."""
    folder = tmp_path_factory.mktemp("kinds")
    world, prompts = folder / "world", folder / "prompts"
    write_world(world, train=24, test=4, size=64, progress=False)
    write_world(prompts, train=4, test=4, rl=8, size=64, task="next_zone", progress=False)
    for place in (world, prompts):
        (place / "prompt.txt").write_text("Think, then answer.")
    backbone = write_opening(folder / "backbone")
    return {
        "fit (SFT)": sft(world, folder),
        "fit (LA-DAPO)": la_dapo(prompts, folder, backbone),
        "predict": predictions(world, folder, backbone),
        "curate": curation(world, backbone),
    }


@pytest.fixture(scope="session")
def undisturbed(
    kinds: dict[str, Kind], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, float]]:
    """The folder of a run that nobody killed, and its seconds, by kind."""
    made: dict[str, tuple[Path, float]] = {}

    def whole(name: str) -> tuple[Path, float]:
        if name not in made:
            run = tmp_path_factory.mktemp("undisturbed") / "whole"
            began = time.monotonic()
            Command(kinds[name].start(run), run.parent / "log.txt", REWARDS).finish()
            made[name] = run, time.monotonic() - began
        return made[name]

    return whole
