"""The engine Ray on a cluster of two nodes: the bytes of the own loop, whatever is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from futurel1.cli import main
from futurel1.worlds import write_world
from processes import Command

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'futurel1[ray]'")
RESULTS = ("curated.jsonl", "report.txt", "report.png", "settings.json", "probes-00000-of-00001.jsonl")
CLIPS = 48
"""Enough for a run not to end before the last loss: results are written in order, those behind a lost one at once."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with questions, and a short system prompt."""
    out = tmp_path_factory.mktemp("world")
    write_world(out, train=CLIPS, test=1, size=64, progress=False)
    (out / "prompt.txt").write_text("Think.")
    return out


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of two (pretended) cores each; the second may be removed."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 10**8})
    made.second = made.add_node(num_cpus=2, object_store_memory=10**8)
    yield made
    ray.shutdown()
    made.shutdown()


def options(world: Path, out: Path, *more: str) -> list[str]:
    return [
        "curate", str(world / "train.jsonl"), "--out", str(out), "--prompts.system_prompt", str(world / "prompt.txt"),
        "--rollouts", "2", "--sampling.max_new_tokens", "12", "--batch_size", "1", "--prompts.num_workers", "0",
        "--thresholds.min_gain", "0", *more,
    ]  # fmt: skip


def by_ray(cluster: Any) -> list[str]:
    return ["--engine", "Ray", "--engine.address", cluster.address, "--engine.actors", "2", "--engine.device", "cpu"]


@pytest.fixture(scope="module")
def own(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The own loop's results."""
    out = tmp_path_factory.mktemp("own") / "out"
    main(options(world, out, "--device", "cpu"))
    return out


def same(out: Path, other: Path) -> bool:
    return all((out / name).read_bytes() == (other / name).read_bytes() for name in RESULTS)


@pytest.mark.campaign
def test_a_cluster_gives_the_bytes_of_the_own_loop(
    world: Path, own: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)  # after the cluster was started elsewhere
    main(options(Path(), tmp_path / "out", *by_ray(cluster)))
    assert same(tmp_path / "out", own)
    half = tmp_path / "half"  # a run of the own loop goes on in the cluster
    main(options(world, half, "--shard", "0/2", "--device", "cpu"))
    main(options(world, half, *by_ray(cluster)))
    assert (half / "curated.jsonl").read_bytes() == (own / "curated.jsonl").read_bytes()


def actors(cluster: Any) -> list[int]:
    """Process ids of the actors with a model, on all nodes of this cluster."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and b"MapWorker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return sorted(found)


@pytest.mark.campaign
def test_lost_actors_and_a_lost_node_lose_and_double_nothing(
    world: Path, own: Path, tmp_path: Path, cluster: Any
) -> None:
    file, killed, errors = tmp_path / "out" / "probes-00000-of-00001.jsonl", [], []

    def lose() -> None:
        """Kill an actor at random after 1, 3 and 5 results, and take the second node away after 7."""
        draw = random.Random(0)
        try:
            for results in (1, 3, 5, 7):
                deadline = time.monotonic() + 120
                while not (file.is_file() and file.read_bytes().count(b"\n") >= results and actors(cluster)):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                if results == 7:
                    cluster.remove_node(cluster.second)
                else:
                    killed.append(draw.choice(actors(cluster)))
                    os.kill(killed[-1], signal.SIGKILL)
        except BaseException as error:
            errors.append(error)

    losing = threading.Thread(target=lose)
    losing.start()
    main(options(world, tmp_path / "out", *by_ray(cluster)))
    losing.join()
    assert not errors
    assert len(killed) == 3
    assert len(cluster.list_all_nodes()) == 1
    assert same(tmp_path / "out", own)


@pytest.mark.campaign
def test_a_killed_driver_goes_on(world: Path, own: Path, tmp_path: Path, cluster: Any) -> None:
    out = tmp_path / "out"
    file = out / "probes-00000-of-00001.jsonl"
    driver = Command(options(world, out, *by_ray(cluster)), tmp_path / "log")
    driver.kill_when(lambda: file.is_file() and file.read_bytes().count(b"\n") >= 2)
    before = [json.loads(line)["number"] for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    assert len(before) >= 2
    main(options(world, out, *by_ray(cluster)))
    assert same(out, own)


@pytest.mark.campaign
@pytest.mark.parametrize(("command", "file"), [("predict", "predictions.jsonl"), ("test", "samples.jsonl")])
def test_answers_are_those_of_the_own_loop(world: Path, tmp_path: Path, cluster: Any, command: str, file: str) -> None:
    def answered(run: Path, *more: str) -> list[dict[str, Any]]:
        main(
            [
                command, "--config", "tiny/predict", "--data.init_args.predict", str(world / "train.jsonl"),
                "--data.init_args.num_workers", "0", "--data.init_args.batch_size", "3", "--run_dir", str(run),
                "--model.init_args.num_branches", "2", "--model.init_args.do_sample", "true",
                "--model.init_args.sampling.max_new_tokens", "24", *more,
            ]
        )  # fmt: skip
        return [{**json.loads(line), "seconds": 0} for line in (run / file).read_text().splitlines()]

    own = answered(tmp_path / "own")
    assert len(own) == CLIPS
    assert any(line["spans"] for line in own)
    chosen = ["--model.init_args.engine", "Ray", "--model.init_args.engine.address", cluster.address]
    assert answered(tmp_path / "ray", *chosen, "--model.init_args.engine.device", "cpu") == own
