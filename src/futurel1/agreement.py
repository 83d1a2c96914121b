"""A decision of the first process of a launch, told to the others through a folder that all of them see."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from futurel1.errors import ConfigError
from futurel1.files import write_whole
from futurel1.launch import Launch

__all__ = ["agree"]

SECONDS = 600.0
"""Most seconds that processes of a launch may start after each other."""
POLL_SECONDS = 0.05


def agree(
    folder: Path, launch: Launch, decide: Callable[[], dict[str, Any]], seconds: float = SECONDS
) -> dict[str, Any]:
    """Let the first process of a launch decide, and return its decision in all of them.

    Every other process asks under a name of its own and takes only the answer to that name, and the first process waits
    until each has taken its answer. So nothing that an earlier launch left behind is ever taken, even if its id was the
    same.

    Args:
        folder: folder that all processes see; the files in it are removed at the end.
        launch: this process, with an id.
        decide: called in the first process; returns what JSON can hold.
        seconds: how long processes wait for each other.

    Raises:
        ConfigError: the first process could not decide (then in all processes), or a process did not come in time.
    """
    place = folder / f".launch-{hashlib.sha256(launch.id.encode()).hexdigest()[:16]}"
    place.mkdir(parents=True, exist_ok=True)
    if not launch.is_first:
        return _ask(place, launch, time.monotonic() + seconds)
    try:
        decided = {"value": decide()}
    except Exception as error:
        _tell(place, launch, {"error": f"{error}"}, time.monotonic() + seconds)
        raise
    _tell(place, launch, decided, time.monotonic() + seconds)
    value: dict[str, Any] = decided["value"]
    return value


def _ask(place: Path, launch: Launch, deadline: float) -> dict[str, Any]:
    name = uuid.uuid4().hex
    question, answer = place / f"ask-{launch.rank}-{name}", place / f"answer-{name}"
    write_whole(question, "")
    while not answer.is_file():
        if time.monotonic() > deadline:
            question.unlink(missing_ok=True)
            raise ConfigError(
                f"{launch.launcher}: rank 0 of {launch.world_size} has named no run folder to rank {launch.rank} "
                f"through {place.parent}; all processes have to see that folder (--runs_dir), or give --run_dir"
            )
        time.sleep(POLL_SECONDS)
    decided = json.loads(answer.read_text(encoding="utf-8"))
    answer.unlink()
    question.unlink()  # tells the first process that its answer was taken
    if "error" in decided:
        raise ConfigError(decided["error"])
    value: dict[str, Any] = decided["value"]
    return value


def _tell(place: Path, launch: Launch, decided: dict[str, Any], deadline: float) -> None:
    """Answer every question; return when one process of each other rank has taken its answer."""
    answered: dict[Path, int] = {}
    waiting = set(range(1, launch.world_size))
    while waiting:
        for question in place.glob("ask-*"):
            _, rank, name = question.name.split("-")
            if question not in answered:
                write_whole(place / f"answer-{name}", json.dumps(decided))
                answered[question] = int(rank)
        waiting -= {rank for question, rank in answered.items() if not question.exists()}
        if waiting and time.monotonic() > deadline:
            raise ConfigError(
                f"{launch.launcher}: of {launch.world_size} processes, ranks {sorted(waiting)} did not ask for the run "
                f"folder in {place.parent}; all processes have to see that folder (--runs_dir), or give --run_dir"
            )
        time.sleep(POLL_SECONDS)
    with suppress(OSError):  # a file system without locks may still show removed files
        shutil.rmtree(place)
