"""Runs that are killed at random moments, several times, end as an undisturbed one."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
from campaign_runs import REWARDS, Kind, Trial

from processes import Command

CHAINS = 10
KILLS = 2
"""Kills of a chain, so that the second hits a run that was resumed."""


def past(moment: float) -> bool:
    return time.monotonic() > moment


def has(run: Path, pattern: str) -> bool:
    return any(run.glob(pattern))


@pytest.mark.parametrize("chain", range(CHAINS))
@pytest.mark.parametrize("name", ["fit (SFT)", "fit (LA-DAPO)", "predict", "curate"])
def test_killed_runs_end_as_undisturbed_ones(
    name: str,
    chain: int,
    kinds: dict[str, Kind],
    undisturbed: Callable[[str], tuple[Path, float]],
    tmp_path: Path,
    trial: Callable[[str], AbstractContextManager[Trial]],
) -> None:
    kind = kinds[name]
    whole, seconds = undisturbed(name)
    generator = random.Random(f"{name}:{chain}")
    run = tmp_path / "run"
    with trial(f"{name}: killed with SIGKILL, resumed") as tried:
        kills = 0
        for number in range(KILLS):
            process = Command(kind.next(run), tmp_path / f"{number}.log", REWARDS)
            moment = time.monotonic() + generator.uniform(0.1, 0.9) * seconds
            # one in three is hit while it writes a checkpoint, an export, results or its configuration
            aimed = generator.random() < 1 / 3
            ready = partial(has, run, generator.choice(kind.writing)) if aimed else partial(past, moment)
            kills += process.kill_if_alive(ready)
        tried.number = kills
        Command(kind.next(run), tmp_path / "last.log", REWARDS).finish()
        kind.same(run, whole)


@pytest.mark.parametrize("chain", range(5))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("name", ["fit (SFT)", "fit (LA-DAPO)", "predict"])
def test_interrupted_runs_say_how_to_go_on(
    name: str,
    number: signal.Signals,
    chain: int,
    kinds: dict[str, Kind],
    undisturbed: Callable[[str], tuple[Path, float]],
    tmp_path: Path,
    trial: Callable[[str], AbstractContextManager[Trial]],
) -> None:
    kind = kinds[name]
    whole, seconds = undisturbed(name)
    run, log = tmp_path / "run", tmp_path / "first.log"
    share = random.Random(f"{name}:{number}:{chain}").uniform(0.1, 0.9)
    with trial(f"{name}: {number.name}, resumed"):
        status = Command(kind.start(run), log, REWARDS).interrupt_after(share * seconds, number)
        assert status in (0, 128 + number), log.read_text()
        if kind.begun(run) and status:
            assert f"--resume {run}" in log.read_text()
        Command(kind.next(run), tmp_path / "last.log", REWARDS).finish()
        kind.same(run, whole)
