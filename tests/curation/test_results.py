"""Results on the disk: cut, damaged and foreign ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from planned_curation import Bench

from futurel1.errors import ConfigError, MissingFileError, RecordError


def test_a_line_longer_than_what_is_read_at_once_is_cut_back(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.run("0/2")
    file = next(made.out.glob("probes-*.jsonl"))
    whole = file.read_bytes()
    for rest in (b"x" * 200_000, b"{"):
        file.write_bytes(whole + rest)
        made.run("0/2")
        assert file.read_bytes() == whole
    file.write_bytes(b"y" * 70_000)
    made.run("0/2")
    assert file.read_bytes() == whole


def test_damaged_and_foreign_lines_are_named(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.run("0/2")
    file = next(made.out.glob("probes-*.jsonl"))
    whole = file.read_text()
    for line, error, message in (
        ("\0\0\0\n", RecordError, r"line 2 is no probe"),
        (whole.splitlines()[1].replace('"number": 1', '"number": 99') + "\n", RecordError, "line 2 is no probe"),
        (whole.splitlines()[1].replace("records.jsonl", "others.jsonl") + "\n", ConfigError, "line 2 is of other"),
        (whole.splitlines()[1].replace('"settings": "', '"settings": "0') + "\n", ConfigError, "line 2 is of other"),
    ):
        file.write_text(whole.splitlines(keepends=True)[0] + line)
        with pytest.raises(error, match=message):
            made.folder.table()


def test_other_settings_are_refused(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.folder.settle({"rollouts": 8})
    with pytest.raises(ConfigError, match=r"other settings \(rollouts, seed differ\)"):
        made.folder.settle({"rollouts": 4, "seed": 0})
    (made.out / "settings.json").write_text("")
    with pytest.raises(ConfigError, match=r"settings\.json is damaged .* remove this file alone"):
        made.folder.settle({"rollouts": 8})
    (made.out / "settings.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"settings\.json holds no settings"):
        made.folder.settle({"rollouts": 8})


def test_results_are_needed_to_merge(bench: Callable[..., Bench], tmp_path: Path) -> None:
    made = bench()
    made.folder.path = tmp_path / "elsewhere"
    with pytest.raises(MissingFileError, match="holds no probes"):
        made.folder.settings()
