"""Result files: their location, their content, and which of them were made with the current settings."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.proof.records import SPLITS
from experiments.proof.stages import Plan, Stage, digests, stages_testing
from futurel1.files import write_whole

Results = Mapping[str, Mapping[str, Any]]
"""Result files by the name of their stage."""


@dataclass(frozen=True)
class Places:
    """Paths of everything that is written.

    Attributes:
        runs: folder with one folder per stage.
        results: folder with one JSON file per stage.
        page: the page.
        figures: folder of its figures.
    """

    runs: Path
    results: Path
    page: Path
    figures: Path

    @classmethod
    def of(cls, plan: Plan) -> Places:
        """Places that a plan names."""
        return cls(*(Path(plan[name]) for name in ("runs", "results", "page", "figures")))

    @classmethod
    def under(cls, root: Path, page: str = "page") -> Places:
        """Places inside one folder."""
        return cls(root / "runs", root / "results", root / "docs" / f"{page}.md", root / "docs" / page)

    def result(self, name: str) -> Path:
        """Result file of a stage."""
        return self.results / f"{name}.json"

    def log(self, name: str) -> Path:
        """Log file of the commands of a stage."""
        return self.runs / "logs" / f"{name}.log"


@dataclass(frozen=True)
class Bench:
    """Stages, their digests, and where they run.

    Attributes:
        stages: all stages, each after those that it needs.
        places: paths of everything that is written.
        in_process: run commands in this process, to import packages only once.
    """

    stages: Mapping[str, Stage]
    places: Places
    in_process: bool = False

    @property
    def digests(self) -> dict[str, str]:
        """Digest of each stage with its current configuration."""
        return digests(self.stages)


def read_results(places: Places) -> dict[str, dict[str, Any]]:
    """Read all result files, whatever settings they were made with.

    Raises:
        SystemExit: a file is incomplete, or is not a result of its stage.
    """
    found = {}
    for file in sorted(places.results.glob("*.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SystemExit(f"{file} is damaged ({error}); remove it, and its stage is run again") from None
        if not isinstance(result, dict) or result.get("stage") != file.stem or "digest" not in result:
            raise SystemExit(f"{file} is no result of a stage {file.stem!r}; remove it, and that stage is run again")
        found[file.stem] = result
    return found


def current_results(bench: Bench) -> dict[str, dict[str, Any]]:
    """Results that were made with the current settings."""
    digests = bench.digests
    return {
        name: result
        for name, result in read_results(bench.places).items()
        if name in digests and result["digest"] == digests[name]
    }


def metrics_of_tests(results: Results, plan: Plan, run: str) -> list[Mapping[str, Any]]:
    """Test metrics of a run, one per seed that has been tested."""
    return [results[name]["metrics"] for name in stages_testing(run, plan) if name in results]


def splits_asked(results: Results, plan: Plan) -> list[str]:
    """Splits that the tests of a plan's rows have questions of; all of them where nothing is tested yet."""
    tests = [test for run in plan["rows"] for test in metrics_of_tests(results, plan, run)]
    return [name for name in SPLITS if not tests or any(test["accuracy"][name] is not None for test in tests)]


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(content, indent=1) + "\n")


def commit() -> dict[str, Any]:
    """The current commit, and whether the code differs from it; None without git."""
    code = ["--", "src", "experiments", "configs", ":(exclude)experiments/*/results/*"]
    try:
        head = subprocess.check_output(["git", "rev-parse", "--short=12", "HEAD"], text=True, stderr=subprocess.DEVNULL)
        changed = subprocess.check_output(["git", "status", "--porcelain", *code], text=True)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": head.strip(), "dirty": bool(changed.strip())}


@cache
def machine(threads: str | None) -> dict[str, Any]:
    """The machine that stages run on; `threads`: number of threads, None for PyTorch's default."""
    cpu = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.is_file():
        models = [line.split(":", 1)[1] for line in about.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].strip() if models else cpu
    gpu = None
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        gpu = names[0].strip() if names else None
    packages = {name: version(name) for name in ("torch", "transformers", "lightning")}
    return {
        "cpu": cpu, "cores": os.cpu_count(), "threads": threads, "gpu": gpu,
        "python": platform.python_version(), **packages,
    }  # fmt: skip
