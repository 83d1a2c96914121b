"""`futurel1 world`."""

import json

import jsonargparse
import pytest
from world_reading import records_of

from futurel1.worlds import events
from futurel1.worlds.command import world


def test_the_command_writes_both_and_prints_three_lines(tmp_path, capsys):
    out = tmp_path / "demo"
    jsonargparse.CLI(world, args=[str(out), "--train=2", "--test=1", "--footage=true"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("train:", "test:", "clips:"))]
    assert len(lines) == 3
    assert lines[0].startswith("train: 2 records")
    assert lines[1].startswith("test: 1 records")
    assert lines[2].startswith("clips: 3 written and 0 kept")
    assert lines[2].endswith("footage.jsonl")
    assert len(list((out / "videos").glob("*.mp4"))) == 3 + 4


def test_the_command_writes_a_split_for_reinforcement_learning(tmp_path, capsys):
    jsonargparse.CLI(world, args=[str(tmp_path), "--train=1", "--test=1", "--rl=2", "--size=32", "--task=next_zone"])
    assert f"rl: 2 records in {tmp_path / 'rl.jsonl'}" in capsys.readouterr().out
    assert {record["question_type"] for record in records_of(tmp_path / "rl.jsonl")} == {"hop1"}


def test_the_command_writes_the_world(tmp_path, capsys):
    jsonargparse.CLI(world, args=[str(tmp_path), "--train=2", "--test=1", "--task=events", "--size=32", "--seed=3"])
    told = capsys.readouterr().out
    assert f"train: 2 records in {tmp_path / 'train.jsonl'}" in told
    assert "futurebench: 1 records" in told
    assert "clips: 3 written and 0 kept" in told
    assert json.loads((tmp_path / "world.json").read_text()) == {
        "world": "events",
        "version": events.MANIFEST_VERSION,
        "seed": 3,
        "size": 32,
    }


def test_the_command_says_how_many_records_there_are(tmp_path, capsys):
    arguments = ["--train=0", "--test=0", "--pretrain=2", "--task=events", "--size=32"]
    jsonargparse.CLI(world, args=[str(tmp_path), *arguments])
    assert f"pretrain: 2 records of each kind in {tmp_path / 'pretrain_*.jsonl'}" in capsys.readouterr().out


def test_the_commands_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        jsonargparse.CLI(world, args=["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for phrase in (
        "Number of training clips",
        "Seed of the world",
        "multiple of 32",
        "four real clips",
        "Replace a world",
    ):
        assert phrase in text
