"""`futurel1 curate`: shards, ranks, kills, refusals, and what it writes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
import zipfile
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planned_curation import Bench, planned

from futurel1.cli import main
from futurel1.curation import Share, results
from futurel1.data import open_records
from futurel1.errors import ConfigError, MissingFileError, RecordError
from processes import Command

# ---------------------------------------------------------------------------------------- shards and interruptions


def test_any_number_of_shards_gives_the_same_bytes(bench: Callable[..., Bench]) -> None:
    outputs = []
    for count in (1, 2, 3, 7):
        made = bench(f"of-{count}")
        order = list(range(count))
        random.Random(count).shuffle(order)
        for index in order:
            made.run(f"{index}/{count}", batch_size=2)
        assert set(made.respond.asked.values()) == {1}
        assert sorted(line["number"] for line in made.lines()) == list(range(len(made.source)))
        made.merge()
        outputs.append(made.outputs())
    assert outputs[1:] == outputs[:1] * 3
    chosen = [json.loads(line) for line in outputs[0]["curated.jsonl"].splitlines()]
    ids = [made.source.id(number) for number in range(len(made.source)) if made.folder.table().hints[number]]
    ranked = sorted(ids, key=lambda name: planned(name)[0] - planned(name)[1])
    good = [name for name in ranked if planned(name)[0] <= 6 and planned(name)[1] - planned(name)[0] >= 2]
    assert len(chosen) == len(good) > 3
    for record, name in zip(chosen, good, strict=True):
        base, hint = planned(name)
        assert (record["gain"], record["correct_in_8_base"], record["correct_in_8_hint"]) == (hint - base, base, hint)
        assert record["note"] == f"größer \N{SNOWMAN} {int(name.split(':')[1]) - 1}"


def test_number_of_shards_may_change_on_the_way(bench: Callable[..., Bench]) -> None:
    whole = bench("whole")
    whole.run()
    whole.merge()
    made = bench()
    made.run("1/3")
    with pytest.raises(ConfigError, match=r"17 of 26 candidates are not probed yet"):
        made.merge()
    made.run("0/2")
    made.run()
    made.merge()
    assert made.outputs() == whole.outputs()
    assert set(made.respond.asked.values()) == {1}
    assert len(made.lines()) == len(made.source)


def test_an_interrupted_shard_goes_on_behind_its_last_whole_line(bench: Callable[..., Bench]) -> None:
    whole = bench("whole")
    whole.run()
    whole.merge()
    made = bench()
    for stop in (4, 9, 16):
        made.respond = made.responses(fail_after=stop)
        with pytest.raises(KeyboardInterrupt):
            made.run(batch_size=2)
        file = next(made.out.glob("probes-*.jsonl"))
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines) + lines[0][: stop % 7 * 9 + 1])  # killed within a line
        assert made.folder.table().num_open == len(made.source) - len(lines)
    made.respond = made.responses()
    made.run(batch_size=2)
    assert [line["number"] for line in made.lines()] == list(range(len(made.source)))
    made.merge()
    assert made.outputs() == whole.outputs()


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


def test_two_processes_on_one_shard_are_refused(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "LOCK_SECONDS", 0.0)
    made = bench()
    with made.folder.shard_file(0, 1), pytest.raises(ConfigError, match="another process is probing shard 0/1"):
        made.run()


def test_what_a_killed_process_left_behind_is_waited_for(bench: Callable[..., Bench]) -> None:
    made = bench()
    with made.folder.shard_file(0, 1) as held:
        # As a data loader's worker does, which outlives its process for seconds.
        worker = subprocess.Popen(["sleep", "1"], pass_fds=[held.fileno()])
    began = time.monotonic()
    made.run()
    assert time.monotonic() - began > 0.5
    assert worker.wait() == 0
    assert made.folder.table().num_open == 0


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


# ----------------------------------------------------------------------------------------------------- what is written


def test_curated_records_can_be_trained_on_where_they_lie(bench: Callable[..., Bench]) -> None:
    made = bench("deeper/out")
    made.run()
    made.merge(top=3)
    source = open_records(made.out / "curated.jsonl")
    assert len(source) == 3
    gains = []
    for sample in source:
        assert sample.hints[0].path.is_file()
        gains.append(sample.meta["gain"])
    assert gains == sorted(gains, reverse=True)


def test_parquet_keeps_its_shape_and_absolute_paths(bench: Callable[..., Bench], records: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in records.read_text().splitlines()[:8]]
    for place, row in enumerate(rows):
        row["image"] = [str(records.parent / path) for path in row["image"]]
        row["reasoning_image"] = [os.path.relpath(records.parent / path, tmp_path) for path in row["reasoning_image"]]
        row["day"] = date(2026, 1, place + 1)
        row |= {"price": Decimal("1.50"), "thumbnail": b"\x00\xff", "length": timedelta(seconds=3)}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=3)
    made = bench("deeper/out", tmp_path / "rows.parquet")
    made.run()
    made.merge(min_gain=-8, max_base=8)
    written = [json.loads(line) for line in (made.out / "curated.jsonl").read_text().splitlines()]
    assert len(written) == 7
    for record in written:
        row = next(row for row in rows if row["note"] == record["note"])
        assert record["image"] == row["image"]
        assert record["day"] == row["day"].isoformat()
        assert (record["price"], record["thumbnail"], record["length"]) == ("1.50", "AP8=", "0:00:03")
        assert record.keys() - row.keys() == {"gain", "correct_in_8_base", "correct_in_8_hint"}
    assert all(sample.hints[0].path.is_file() for sample in open_records(made.out / "curated.jsonl"))


def test_text_that_is_no_unicode_is_passed_on(bench: Callable[..., Bench], records: Path, tmp_path: Path) -> None:
    row = {**json.loads(records.read_text().splitlines()[0]), "note": "\ud800 half"}
    row["image"], row["reasoning_image"] = (
        [str(records.parent / path) for path in row[field]] for field in ("image", "reasoning_image")
    )
    (tmp_path / "odd.jsonl").write_text(json.dumps(row))
    made = bench("out", tmp_path / "odd.jsonl")
    made.run()
    made.merge(min_gain=-8, max_base=8)
    assert json.loads((made.out / "curated.jsonl").read_text())["note"] == "\ud800 half"


# ----------------------------------------------------------------------------------------------------- the command line


def options(world: Path, out: Path, *more: str, records: Path | None = None) -> list[str]:
    return [
        "curate", str(records or world / "train.jsonl"), "--out", str(out), "--prompts.system_prompt",
        str(world / "prompt.txt"), "--rollouts", "2", "--sampling.max_new_tokens", "12", "--batch_size", "1",
        "--num_workers", "0", "--device", "cpu", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(clips_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curation in one go."""
    out = tmp_path_factory.mktemp("curations") / "whole"
    main(options(clips_world, out, "--thresholds.min_gain", "0"))
    return out


def read_lines(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for file in sorted(out.glob("probes-*.jsonl")) for line in file.open() if line.endswith("\n")
    ]


def test_shards_and_ranks_from_the_command_line(
    clips_world: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = whole.parent / "parts"
    main(options(clips_world, out, "--shard", "1/2"))
    assert "4 of 8 candidates are left to others" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(options(clips_world, out, "--merge", "true"))
    assert "4 of 8 candidates are not probed yet" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):  # as torchrun tells its processes
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        main(options(clips_world, out, "--shard", "0/2"))
    monkeypatch.undo()
    files = [file.name for file in sorted(out.glob("probes-*"))]
    assert files == ["probes-00000-of-00004.jsonl", "probes-00001-of-00002.jsonl", "probes-00001-of-00004.jsonl"]
    assert (out / "curated.jsonl").read_text() == ""  # nothing gains 2 of 2 from random weights

    main(["curate", str(clips_world / "train.jsonl"), "--out", str(out), "--merge=true", "--thresholds.min_gain=0"])
    for name in ("curated.jsonl", "report.txt", "report.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert "8  candidates" in capsys.readouterr().out
    assert len((out / "curated.jsonl").read_text().splitlines()) == 8


def test_refusals_of_the_command_line(clips_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "run" / "checkpoints" / "last.ckpt", "w") as checkpoint:
        checkpoint.writestr("data", "")

    def refused(*more: str, records: Path | None = None) -> str:
        with pytest.raises(SystemExit):
            main(options(clips_world, out, *more, records=records))
        return capsys.readouterr().err

    assert "holds no probes" in refused("--merge", "true")
    assert "--shard is i/n" in refused("--shard", "2/2")
    assert "no such folder" in refused("--prompts.data_root", str(tmp_path / "gone"))
    assert "outside data_root" in refused("--prompts.data_root", str(tmp_path))
    assert "batch_size is at least 1" in refused("--batch_size", "0")
    assert "leave --shard 1/2 out" in refused("--merge", "true", "--shard", "1/2")
    assert "temperature must be above 0" in refused("--sampling.temperature", "0")
    assert "max_new_tokens must be at least 1" in refused("--sampling.max_new_tokens", "0")
    assert "--device tpu-x" in refused("--device", "tpu-x")
    inside = str(clips_world / "curated")
    assert "would be read as records" in refused("--out", inside, records=clips_world)
    assert "has no Hugging Face export, only last.ckpt" in refused("--model", str(tmp_path / "run"))
    assert "none of" not in refused(records=tmp_path / "gone.jsonl")
    main(options(clips_world, out, "--shard", "0/8"))
    assert "(seed differ)" in refused("--sampling.seed", "1")
    judge = ["--judge", "Judge", "--judge.base_url", "http://127.0.0.1:9/v1", "--judge.model", "m"]
    assert "(judge differ)" in refused(*judge, "--judge.api_key_env", "null")
    assert "(repetition_limit differ)" in refused("--repetition_limit", "1")
    assert "repetition_limit must be between 0 and 1" in refused("--repetition_limit", "1.5")
    (clips_world / "fewer.jsonl").write_text((clips_world / "train.jsonl").read_text().splitlines()[0])
    assert "(records differ)" in refused(records=clips_world / "fewer.jsonl")
    assert "holds probes of other records" in refused("--merge", "true", records=clips_world / "fewer.jsonl")


def test_shares() -> None:
    assert Share.parse("1/3", {}) == Share(1, 3)
    assert Share.parse("1/3", {"RANK": "2", "WORLD_SIZE": "4"}) == Share(6, 12)
    for odd in ({"RANK": "x"}, {"RANK": "1"}, {"RANK": "0", "WORLD_SIZE": "0"}):
        with pytest.raises(ConfigError, match="no rank of so many"):
            Share.parse("0/1", odd)
    for wrong in ("3/3", "1", "-1/2", "a/b", "0/0"):
        with pytest.raises(ConfigError, match="--shard is i/n"):
            Share.parse(wrong, {})


def test_results_are_needed_to_merge(bench: Callable[..., Bench], tmp_path: Path) -> None:
    made = bench()
    made.folder.path = tmp_path / "elsewhere"
    with pytest.raises(MissingFileError, match="holds no probes"):
        made.folder.settings()


@pytest.mark.slow
def test_a_killed_process_goes_on_without_repeating_or_losing_a_candidate(
    clips_world: Path, whole: Path, tmp_path: Path
) -> None:
    out = whole.parent / "killed"
    killed = Command(options(clips_world, out, "--thresholds.min_gain", "0"), tmp_path / "killed.log")
    killed.kill_when(lambda: out.is_dir() and len(read_lines(out)) >= 2)
    before = read_lines(out)
    assert 2 <= len(before) < 8
    assert not (out / "curated.jsonl").exists()
    main(options(clips_world, out, "--thresholds.min_gain", "0"))
    after = read_lines(out)
    assert after[: len(before)] == before
    assert [line["number"] for line in after] == list(range(8))
    assert after == read_lines(whole)
    for name in ("curated.jsonl", "report.txt", "report.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
