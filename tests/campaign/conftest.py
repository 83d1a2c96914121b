"""The campaign: trials that take minutes, each counted, with one table at the end.

A test counts with `trials(what, tried, held)`, or puts one trial into `with trial(what)`.
"""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of all trials, as it stands in docs/reliability.md."""
    counts: dict[str, list[int]] = {}
    for report in _reports(terminalreporter):
        for name, value in report.user_properties:
            if name == "trials":
                what, tried, held = value
                row = counts.setdefault(what, [0, 0])
                row[0] += tried
                row[1] += held
    if not counts:
        return
    write = terminalreporter.write_line
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    terminalreporter.section("campaign")
    write(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip() or 'unknown'}, {_machine()}")
    write("")
    write("| trial | tried | held |")
    write("|---|---:|---:|")
    for what, (tried, held) in sorted(counts.items()):
        write(f"| {what} | {tried} | {held} |")


def _reports(terminalreporter: Any) -> Iterator[Any]:
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            if report.when == "call":
                yield report


def _machine() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


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
