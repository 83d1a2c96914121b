"""Functions of the library as commands."""

from __future__ import annotations

import json
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from futurel1.cli import main
from futurel1.cli.tools import TOOLS
from futurel1.worlds import events


@pytest.mark.parametrize("name", TOOLS)
def test_help_explains_every_option_and_gives_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    module, _, function = TOOLS[name].function.partition(":")
    documented = getattr(import_module(module), function).__doc__.partition("Args:")[2].partition("Returns:")[0]
    for line in documented.partition("Raises:")[0].splitlines():
        if line.startswith("        ") and line[8] != " ":
            option, _, words = line.strip().partition(": ")
            assert option in text
            assert " ".join(words.rstrip(".").split()[:4]) in text
    assert f"Example: {TOOLS[name].example}" in text


def test_the_examples_can_be_parsed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, tool in TOOLS.items():
        program, command, *options = shlex.split(tool.example)
        assert (program, command) == ("futurel1", name)
        if tool.about_run:  # has no configuration of its own; tests/planning runs it
            continue
        with pytest.raises(SystemExit) as caught:
            main([command, *options, "--print_config"])
        assert caught.value.code == 0, name
    assert "min_gain: 3" in capsys.readouterr().out


def test_a_world_is_written_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = ["--train", "2", "--test", "1", "--rl", "1", "--pretrain", "1", "--footage", "true"]
    main(["world", "--out", str(tmp_path), "--size", "32", "--seed", "3", *counts])
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name, count in (("train", 2), ("test", 1), ("rl", 1), ("pretrain_watch", 1), ("futurebench", 1)):
        assert [f"{name}.jsonl", str(count), "records"] in told
        assert len((tmp_path / f"{name}.jsonl").read_text().splitlines()) == count
    assert ["videos/", "5", "clips", "written,", "0", "kept"] in told
    assert told[-1] == ["world:", f"{tmp_path},", "real", "clips", "in", "footage.jsonl"]
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 5 + 4
    assert json.loads((tmp_path / "world.json").read_text()) == {
        "world": "events",
        "version": events.MANIFEST_VERSION,
        "seed": 3,
        "size": 32,
    }


def test_results_as_json_and_options_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,2.0\n1,1.0\n")
    (tmp_path / "options.yaml").write_text(f"run: {tmp_path}\nout: {tmp_path}/drawn.png\n")
    main(["curves", str(tmp_path), "--config", str(tmp_path / "options.yaml"), "--json"])
    made = json.loads(capsys.readouterr().out)
    assert made == {"picture": f"{tmp_path}/drawn.png", "values": {"train/loss": [2.0, 1.0, 1]}}
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
    main(["curves", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}/curves.png"


def test_problems_of_records_are_told_and_make_the_exit_status_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]}
    (tmp_path / "good.jsonl").write_text(json.dumps(good))
    (tmp_path / "bad.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good | {"images": ["none.png"]}))
    options = ["--model", "tiny@random", "--num_workers", "0"]
    main(["check", str(tmp_path / "good.jsonl"), *options])
    assert "no problems" in capsys.readouterr().out
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as caught:
            main(["check", f"[{tmp_path}/bad.jsonl, {tmp_path}/good.jsonl]", *options, *more])
        assert caught.value.code == 1
    *text, told = capsys.readouterr().out.splitlines()
    assert text[-1] == "1 problem, 0 warnings"
    (problem,) = json.loads(told)["problems"]
    assert (problem["file"], problem["record"], problem["error"]) == ("bad.jsonl", 2, "RecordFileError")
