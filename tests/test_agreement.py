"""Processes of a launch that take over what the first one decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from futurel1.agreement import agree
from futurel1.errors import ConfigError
from futurel1.launch import Launch


def ranks(number: int, name: str = "srun-7-0") -> list[Launch]:
    return [Launch("srun", rank=rank, local_rank=rank, world_size=number, id=name) for rank in range(number)]


def decide(
    folder: Path, launches: list[Launch], decision: Callable[[], dict[str, Any]], seconds: float = 30
) -> list[Any]:
    """What each process gets, or its error."""

    def one(launch: Launch) -> Any:
        try:
            return agree(folder, launch, decision, seconds)
        except ConfigError as error:
            return error

    with ThreadPoolExecutor(len(launches)) as pool:
        return list(pool.map(one, launches))


def test_all_ranks_get_the_first_ones_decision(tmp_path: Path) -> None:
    calls: list[int] = []

    def decision() -> dict[str, Any]:
        calls.append(1)
        return {"folder": "runs/größer"}

    assert decide(tmp_path / "runs", ranks(4), decision) == [{"folder": "runs/größer"}] * 4
    assert calls == [1]
    assert list((tmp_path / "runs").iterdir()) == []


def test_nothing_that_an_earlier_launch_left_is_taken(tmp_path: Path) -> None:
    # A launch with the same id was killed: its first process had answered, rank 2 had asked.
    with pytest.raises(ConfigError, match=r"of 3 processes, ranks \[1, 2\] did not ask"):
        agree(tmp_path, ranks(3)[0], lambda: {"folder": "old"}, seconds=0.2)
    (place,) = tmp_path.iterdir()
    (place / "ask-1-dead").touch()
    (place / "ask-2-dead").touch()
    (place / "answer-dead").write_text(json.dumps({"value": {"folder": "old"}}))
    assert decide(tmp_path, ranks(3), lambda: {"folder": "new"}) == [{"folder": "new"}] * 3
    assert list(tmp_path.iterdir()) == []


def test_launches_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    def both(name: str) -> list[Any]:
        return decide(tmp_path, ranks(2, name), lambda: {"folder": name})

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(both, ("a", "b"))) == [[{"folder": "a"}] * 2, [{"folder": "b"}] * 2]


def test_an_error_of_the_first_process_ends_all(tmp_path: Path) -> None:
    def refuse() -> dict[str, Any]:
        raise ConfigError("--run_name base: runs/base exists")

    assert [str(error) for error in decide(tmp_path, ranks(3), refuse)] == ["--run_name base: runs/base exists"] * 3


def test_a_process_that_does_not_come_is_named(tmp_path: Path) -> None:
    (error,) = decide(tmp_path, ranks(3)[1:2], dict, seconds=0.2)
    assert "rank 0 of 3 has named no run folder to rank 1" in str(error)
    first, second = decide(tmp_path, ranks(3)[:2], dict, seconds=0.5)
    assert "ranks [2] did not ask" in str(first)
    assert second == {}
