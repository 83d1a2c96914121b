"""Shares of the work, and processes that are interrupted."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable

import pytest
from planned_curation import Bench, planned

from futurel1.curation import Share
from futurel1.errors import ConfigError


def test_shares() -> None:
    assert Share.parse("1/3", {}) == Share(1, 3)
    assert Share.parse("1/3", {"RANK": "2", "WORLD_SIZE": "4"}) == Share(6, 12)
    srun = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}
    mpi = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert Share.parse("1/3", srun) == Share.parse("1/3", mpi) == Share(6, 12)
    del srun["SLURM_STEP_ID"], srun["SLURM_PROCID"]  # a batch script works alone
    assert Share.parse("1/3", srun) == Share(1, 3)
    with pytest.raises(ConfigError, match="no rank of so many"):
        Share.parse("0/1", {"RANK": "1"})
    with pytest.raises(ConfigError, match="neither RANK nor WORLD_SIZE"):
        Share.parse("0/1", {"NODE_RANK": "1"})
    for wrong in ("3/3", "1", "-1/2", "a/b", "0/0"):
        with pytest.raises(ConfigError, match="--shard is i/n"):
            Share.parse(wrong, {})


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


def test_two_processes_on_one_shard_are_refused(bench: Callable[..., Bench]) -> None:
    made = bench()
    script = (
        "import sys; from pathlib import Path; from futurel1.locks import one_writer\n"
        "with one_writer(Path(sys.argv[1]), 'probes-00000-of-00001'): print('holds', flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(made.out)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "holds\n"
        with pytest.raises(ConfigError, match=rf"probes-00000-of-00001 in .* is in use by process {other.pid} on "):
            made.run()
        made.run("1/2")
        other.communicate("\n")
    made.run()
    assert made.folder.table().num_open == 0
