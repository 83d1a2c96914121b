"""Runs that are killed at random moments, several times, end as an undisturbed one."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from campaign_runs import REWARDS, Kind, Trial

from processes import Command

CHAINS = 10
KILLS = 2
"""Kills of a chain, so that the second hits a run that was resumed."""


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
            command, log = kind.next(run), tmp_path / f"{number}.log"
            if generator.random() < 1 / 3:  # when it has written a checkpoint, an export, results or its settings
                pattern, often = generator.choice(list(kind.writing.items()))
                status = Command(command, log, REWARDS, dies=(pattern, generator.randint(1, often))).wait()
            else:
                moment = kind.at_random(run, seconds, generator)
                status = Command(command, log, REWARDS).signal_when(moment, signal.SIGKILL)
            assert status in (0, -signal.SIGKILL), log.read_text()
            kills += status == -signal.SIGKILL
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
    moment = kind.at_random(run, seconds, random.Random(f"{name}:{number}:{chain}"))
    with trial(f"{name}: {number.name}, resumed"):
        status = Command(kind.start(run), log, REWARDS).signal_when(moment, number)
        assert status in (0, 128 + number), log.read_text()
        if status == 0:  # no step was left
            kind.same(run, whole)
        else:
            go_on = f"--resume {run}" if kind.begun(run) else "start the same command again"
            assert go_on in log.read_text().splitlines()[-1]
        Command(kind.next(run), tmp_path / "last.log", REWARDS).finish()
        kind.same(run, whole)
