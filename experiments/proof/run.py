"""Run stages in order, each once: a stage's result file records the settings that it was made with."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from experiments.proof.results import Bench, Places, commit, machine, read_results, write_json
from experiments.proof.stages import Stage, config_of, with_needs
from experiments.proof.work import Command, commands, finish, scaled_steps

State = Literal["done", "begun", "stale", "open"]
NOTE = "stage.json"
"""File in a stage's folder with the digest of its settings and whether it is finished."""
TAIL = 30


def states(bench: Bench) -> dict[str, State]:
    """State of each stage: done, begun, stale (made with other settings) or open."""
    current, results = bench.digests, read_results(bench.places)
    found: dict[str, State] = {}
    for name in bench.stages:
        if name in results and results[name]["digest"] == current[name]:
            found[name] = "done"
        elif _note(bench.places.runs / name).get("digest") == current[name]:
            found[name] = "begun"
        else:
            found[name] = "stale" if name in results else "open"
    return found


def _note(folder: Path) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return note


def has_output(name: str, digest: str, places: Places) -> bool:
    """Whether the finished output of a stage is on this machine."""
    note = _note(places.runs / name)
    return note.get("digest") == digest and bool(note.get("finished"))


def chosen(bench: Bench, patterns: Sequence[str], *, again: bool = False) -> list[str]:
    """Stages to run: matching stages without a result, and stages whose output they need and which is not here.

    Args:
        bench: the stages.
        patterns: globs over names; none: all stages.
        again: also matching stages with a result, if their output is not on this machine.

    Raises:
        SystemExit: a pattern matches nothing.
    """
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in bench.stages):
            raise SystemExit(f"--only {pattern}: there is no such stage; --list shows all")
    current, state = bench.digests, states(bench)
    here = {name: has_output(name, current[name], bench.places) for name in bench.stages}

    def missing(name: str) -> bool:
        return state[name] != "done" or (again and not here[name])

    wanted = [name for name in bench.stages if not patterns or any(fnmatch(name, pattern) for pattern in patterns)]
    found: set[str] = set()
    left = [name for name in with_needs(wanted, bench.stages) if name in wanted and missing(name)]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += [need for need in bench.stages[name].needs if missing(need) or not here[need]]
    return [name for name in bench.stages if name in found]


def run_stages(
    bench: Bench,
    patterns: Sequence[str] = (),
    *,
    jobs: int = 1,
    minutes: float | None = None,
    again: bool = False,
) -> bool:
    """Run the stages that are left.

    Args:
        bench: the stages.
        patterns: globs over names; none: all stages.
        jobs: number of concurrent stages, each with its share of the cores.
        minutes: start no new stage after this time.
        again: see :func:`chosen`.

    Returns:
        Whether nothing is left.

    Raises:
        SystemExit: a stage failed; concurrent stages end first.
        ValueError: several jobs in one process.
    """
    if jobs > 1 and bench.in_process:
        raise ValueError(f"{jobs} jobs in one process: their output cannot be told apart")
    began = time.monotonic()
    with _alone(bench.places.runs), ThreadPoolExecutor(jobs) as pool:
        names = chosen(bench, patterns, again=again)
        current = bench.digests
        spent = seconds_by_kind(read_results(bench.places))
        left, running = list(names), dict[Future[float], str]()
        indent = " " * (2 * len(str(len(names))) + 3)
        while left or running:
            late = minutes is not None and time.monotonic() - began > minutes * 60
            unmade = {*left, *running.values()}
            ready = [name for name in left if unmade.isdisjoint(bench.stages[name].needs)]
            for name in [] if late else ready[: jobs - len(running)]:
                left.remove(name)
                expected = clock(spent.get(bench.stages[name].kind))
                print(f"[{len(names) - len(left)}/{len(names)}] {name:<30} expected {expected:>7}", flush=True)
                running[pool.submit(run_stage, bench.stages[name], current[name], bench, jobs)] = name
            if not running:
                print(f"{len(left)} stages are left; the same command goes on")
                return False
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                print(f"{indent} {name:<30} took     {clock(future.result()):>7}", flush=True)
    return True


def seconds_by_kind(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Mean seconds of the stages of each kind."""
    taken: dict[str, list[float]] = {}
    for result in results.values():
        taken.setdefault(result["kind"], []).append(result["seconds"])
    return {kind: sum(seconds) / len(seconds) for kind, seconds in taken.items()}


def clock(seconds: float | None) -> str:
    """Format seconds as minutes and seconds."""
    return "?" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@contextmanager
def _alone(runs: Path) -> Iterator[None]:
    """Wait until no other process works in the folder; the system releases the lock of a process that dies."""
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process works in {runs}: waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_stage(stage: Stage, digest: str, bench: Bench, jobs: int = 1) -> float:
    """Run one stage and write its result; an interrupted stage continues.

    Args:
        stage: the stage.
        digest: digest of everything that determines its result.
        bench: where it runs.
        jobs: number of concurrent stages; each has its share of the cores.

    Returns:
        Duration in seconds.

    Raises:
        SystemExit: a command failed; the end of its log is printed.
    """
    places = bench.places
    folder = places.runs / stage.name
    note = _note(folder)
    # A finished stage starts again from scratch: it only gets here if its result was removed.
    resumed = note.get("digest") == digest and not note.get("finished")
    if not resumed:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(folder / NOTE, {"digest": digest, "finished": False})
    threads = None if jobs == 1 else str(max(1, (os.cpu_count() or 1) // jobs))
    runs_from = commit()  # read before the commands start, because later commits are not what they run
    log = places.log(stage.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    began = time.monotonic()
    with log.open("ab") as stream:
        for module, arguments in commands(stage, places):
            stream.write(f"\n$ python -m {module} {' '.join(arguments)}\n".encode())
            stream.flush()
            command = module, arguments
            output = stream.fileno()
            if not (_run_here(command, output) if bench.in_process else _run_apart(command, output, threads)):
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
                raise SystemExit("\n".join(["", *lines, f"{stage.name} failed; all of it: {log}"]))
    seconds = time.monotonic() - began
    config = {**config_of(stage), "needs": list(stage.needs)}
    if stage.options.get("same_tokens"):
        config["steps"] = scaled_steps(stage, places)
    result = {
        "stage": stage.name, "kind": stage.kind, "seed": stage.seed, "config": config, "digest": digest, **runs_from,
        "machine": machine(threads or os.environ.get("OMP_NUM_THREADS")), "started": started,
        "seconds": round(seconds, 2), "resumed": resumed, "metrics": finish(stage, places),
    }  # fmt: skip
    write_json(places.result(stage.name), result)
    write_json(folder / NOTE, {"digest": digest, "finished": True})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # other stages only need the export
    return seconds


def _run_apart(command: Command, log: int, threads: str | None) -> bool:
    """Run a command in a subprocess that ends with this one; `threads`: number of threads, None for the default."""
    module, arguments = command
    environment = None if threads is None else {**os.environ, "OMP_NUM_THREADS": threads}
    process = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_end_with_parent, env=environment, check=False,
    )  # fmt: skip
    return process.returncode == 0


def _end_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, even by SIGKILL; nothing else would stop its training."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


def _run_here(command: Command, log: int) -> bool:
    """Run a command in this process, with its output in the log."""
    module, arguments = command
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        import_module(module).main(arguments)
    except SystemExit as error:
        return error.code in (None, 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for own, descriptor in zip(kept, (1, 2), strict=True):
            os.dup2(own, descriptor)
            os.close(own)
    return True
