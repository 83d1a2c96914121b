"""Processes that launchers start: what Lightning is told about them, and whole commands of two tasks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_checks import metrics, run_tasks
from lightning import Trainer

from futurel1.cli.cluster import (
    AllocationEnvironment,
    LaunchedEnvironment,
    SrunEnvironment,
    check_processes,
    cluster_environment,
)
from futurel1.errors import ConfigError
from futurel1.launch import Launch


def srun(rank: int, tasks: int = 2, **more: str) -> dict[str, str]:
    """As in a step of an interactive job, whose name hides SLURM from Lightning."""
    own = {"PROCID": rank, "LOCALID": rank, "NTASKS": tasks, "NODEID": 0, "NNODES": 1, "STEP_ID": 0, "JOB_ID": 4711}
    named = {f"SLURM_{name}": str(value) for name, value in own.items()}
    return {**named, "SLURM_NODELIST": "localhost", "SLURM_JOB_NAME": "bash", **more}


def open_mpi(rank: int, size: int = 2) -> dict[str, str]:
    own = {"RANK": rank, "LOCAL_RANK": rank, "SIZE": size, "LOCAL_SIZE": size}
    return {**{f"OMPI_COMM_WORLD_{name}": str(value) for name, value in own.items()}, "PMIX_NAMESPACE": "prterun-a@1"}


@pytest.mark.slow
def test_tasks_train_and_predict_as_one_run(settings: list[str], tmp_path: Path) -> None:
    devices = ["--trainer.devices", "2", "--data.init_args.batch_size", "2"]
    done = run_tasks(tmp_path, [srun(0), srun(1)], "fit", *settings, *devices, "--run_name", "together")
    assert [status for status, _ in done] == [0, 0], done
    runs = tmp_path / "runs"
    assert [path.name for path in runs.iterdir()] == ["together"]
    assert [output.count("run folder: ") for _, output in done] == [1, 0]
    assert len(metrics(runs / "together", "train/loss")) == 2
    start = ["--model.init_args.init_from", str(runs / "together")]
    done = run_tasks(tmp_path, [open_mpi(0), open_mpi(1)], "predict", *settings, *devices, *start)
    assert [status for status, _ in done] == [0, 0], done
    (folder,) = (path for path in runs.iterdir() if path.name != "together")
    parts = [folder / name for name in ("predictions.jsonl", "predictions-rank1.jsonl")]
    ids = [[json.loads(line)["id"] for line in part.read_text().splitlines()] for part in parts]
    assert [len(own) for own in ids] == [2, 2]
    assert sorted(ids[0] + ids[1]) == [f"test.jsonl:{n}" for n in range(1, 5)]


def test_tasks_that_do_not_match_the_trainer_all_say_so(settings: list[str], tmp_path: Path) -> None:
    for status, output in run_tasks(tmp_path, [srun(0), srun(1)], "test", *settings, "--run_name", "odd"):
        assert status == 1
        (line,) = (line for line in output.splitlines() if line.startswith("futurel1: error: "))
        assert "srun started 2 processes, but trainer.devices 1 and trainer.num_nodes 1 make 1" in line
        assert "--trainer.devices 2 --trainer.num_nodes 1" in line
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the address of earlier tests."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that it is restored at the end, whatever is set meanwhile
        monkeypatch.delenv(name)


def trainer(devices: int = 1, nodes: int = 1) -> SimpleNamespace:
    return SimpleNamespace(num_devices=devices, num_nodes=nodes)


def test_numbers_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    check_processes(trainer(4), Launch())  # the Trainer starts them
    check_processes(trainer(4, 2), Launch("srun", world_size=8, nodes=2))
    check_processes(trainer(4, 2), Launch("mpi", world_size=8, nodes=0))  # the launcher does not tell
    for launch in (Launch("srun", world_size=8, nodes=1), Launch("torchrun", world_size=4, nodes=2)):
        with pytest.raises(ConfigError, match="so that they agree"):
            check_processes(trainer(4, 2), launch)
    with pytest.raises(ConfigError, match=r"3 processes on 3 nodes.* --trainer\.devices 1 --trainer\.num_nodes 3"):
        check_processes(trainer(), Launch("srun", world_size=3, nodes=3))
    with pytest.raises(ConfigError, match="this one was started alone"):
        check_processes(trainer(4, 2), Launch())
    monkeypatch.setenv("NODE_RANK", "0")
    check_processes(trainer(4, 2), Launch())


def test_tasks_of_a_step_meet_at_its_own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = []
    for changed in ({}, {"SLURM_STEP_ID": "1"}, {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}):
        for name, value in srun(1, SLURM_STEP_NODELIST="node[3-4]", **changed).items():
            monkeypatch.setenv(name, value)
        found = cluster_environment(Launch.detect())
        assert isinstance(found, SrunEnvironment)
        assert (found.main_address, found.world_size(), found.creates_processes_externally) == ("node3", 2, True)
        ports.append(found.main_port)
    assert ports[0] == ports[2] != ports[1]
    monkeypatch.setenv("MASTER_ADDR", "given")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert (found.main_address, found.main_port) == ("given", 1)


def test_a_batch_script_without_srun_starts_its_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    found = cluster_environment(Launch.detect())
    assert isinstance(found, AllocationEnvironment)
    assert found.auto_requeue
    assert not found.creates_processes_externally
    made = Trainer(accelerator="cpu", devices=2, strategy="ddp", plugins=[found], logger=False)
    assert (made.world_size, made.global_rank) == (2, 0)
    assert not found.auto_requeue  # the signal would not reach the other process


def test_processes_of_mpi_need_an_address_between_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in open_mpi(1).items():
        monkeypatch.setenv(name, value)
    found = cluster_environment(Launch.detect())
    assert isinstance(found, LaunchedEnvironment)
    assert (found.global_rank(), found.local_rank(), found.world_size(), found.node_rank()) == (1, 1, 2, 0)
    assert found.main_address == "127.0.0.1"
    assert found.main_port > 1024
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "1")
    with pytest.raises(ConfigError, match="export MASTER_ADDR"):
        cluster_environment(Launch.detect())
    assert cluster_environment(Launch()) is None
    assert cluster_environment(Launch("torchrun", world_size=2)) is None
