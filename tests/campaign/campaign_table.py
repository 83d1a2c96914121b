"""The table of the campaign at the end of a run.

A plugin of all tests: with several processes, the one that prints loads no conftest of a folder.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


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
