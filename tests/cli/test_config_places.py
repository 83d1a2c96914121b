"""Configuration files: whether they can be read, and where something stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from futurel1.cli.config_places import check_config_files, config_files, entries
from futurel1.cli.errors import CommandLineError


@pytest.mark.parametrize(("content", "message"), [
    (b"model:\n  init_args: {a: 1\ntrainer: [\n", r"bad\.yaml, line 3, column 8: not valid YAML"),
    (b"model:\n\tclass_path: A\n", r"bad\.yaml, line 2, column 1: not valid YAML, found character '\\t'"),
    (b"a: \x01", r"bad\.yaml: not valid YAML"),
    (b"\xff\xfe\x00", r"bad\.yaml is not text"),
    (b"[1, 2]", r"bad\.yaml is a list; a configuration is a mapping"),
    (b"text", r"bad\.yaml is a single value"),
    (b"trainer:\n  max_steps: 3\nmodel: A\ntrainer: {max_epochs: 1}\n",
     r"bad\.yaml, line 4: 'trainer' is there already, in line 1"),
    (b"a:\n- b: 1\n  b: 2\n", r"line 3: 'b' is there already, in line 2"),
    (b"# nothing\n", r"bad\.yaml is empty"),
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    for args in (["fit", "--config", str(file)], [f"--config={file}"], ["-c", str(file)]):
        with pytest.raises(CommandLineError, match=message):
            check_config_files(args)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CommandLineError, match="is a folder; give a YAML file, or --resume"):
        check_config_files(["--config", str(tmp_path)])
    with pytest.raises(CommandLineError, match="no such file"):
        check_config_files(["--config", str(tmp_path / "none.yaml")])
    check_config_files(["--config", "{trainer: {max_steps: 3}}", "--config"])  # text in the place of a file; no value
    assert config_files(["--config", "{trainer: {max_steps: 3}}", "--config", str(tmp_path)]) == []


def test_where_each_value_stands(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("trainer:\n  max_steps: 3\n  callbacks:\n  - class_path: A\n    init_args:\n      b: [1, x]\n")
    second.write_text("trainer: {max_steps: 4}\n")
    args = ["fit", "--config", str(first), "--config", str(second), "--trainer.max_steps", "5", "--flag"]
    found = [(entry.keys, entry.value, entry.place) for entry in entries(args)]
    assert found[0] == (("flag",), "", "--flag")
    steps = [(value, place) for keys, value, place in found if keys == ("trainer", "max_steps")]
    assert steps == [("5", "--trainer.max_steps"), ("4", f"{second}, line 1"), ("3", f"{first}, line 2")]
    assert (("trainer", "callbacks", "class_path"), "A", f"{first}, line 4") in found
    assert (("trainer", "callbacks", "init_args", "b"), "x", f"{first}, line 6") in found
