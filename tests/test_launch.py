"""Launches as environments describe them: torchrun, SLURM, MPI, others, and ones that contradict themselves."""

from __future__ import annotations

from typing import Any

import pytest

from futurel1.errors import ConfigError
from futurel1.launch import Launch

ELASTIC = {
    "TORCHELASTIC_RUN_ID": "42", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29500",
}  # fmt: skip
BATCH = {  # a batch script: srun has not started it
    "SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train",
}  # fmt: skip
TASK = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-a-1@1",
}  # fmt: skip
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def place(environment: dict[str, str]) -> tuple[Any, ...]:
    found = Launch.detect(environment)
    return found.launcher, found.rank, found.local_rank, found.world_size, found.node, found.nodes


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("single", 0, 0, 1, 0, 1)),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0", "MASTER_PORT": "1"}, ("single", 0, 0, 1, 0, 1)),
        (ELASTIC, ("torchrun", 5, 1, 8, 1, 2)),
        (TASK, ("srun", 5, 1, 8, 1, 2)),
        ({**TASK, "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "1"}, ("srun", 5, 1, 6, 1, 1)),
        ({**TASK, "SLURM_JOB_NAME": "bash"}, ("srun", 5, 1, 8, 1, 2)),  # srun within an interactive job
        ({**TASK, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, ("srun", 5, 1, 8, 1, 2)),
        (BATCH, ("single", 0, 0, 1, 0, 1)),
        ({**BATCH, "SLURM_STEP_ID": "4294967290"}, ("single", 0, 0, 1, 0, 1)),  # the shell of an interactive job
        ({**BATCH, "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"}, ("single", 0, 0, 1, 0, 1)),
        ({**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, ("single", 0, 0, 1, 0, 1)),
        ({**BATCH, **ELASTIC}, ("torchrun", 5, 1, 8, 1, 2)),  # torchrun in a batch script
        ({**TASK, "SLURM_NTASKS": "2", "SLURM_PROCID": "1", **ELASTIC}, ("torchrun", 5, 1, 8, 1, 2)),
        ({**BATCH, "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", **ELASTIC, "GROUP_WORLD_SIZE": "1"},
         ("torchrun", 5, 1, 8, 1, 1)),
        (OPEN_MPI, ("mpi", 5, 1, 8, 1, 2)),
        ({**BATCH, **OPEN_MPI}, ("mpi", 5, 1, 8, 1, 2)),
        ({**TASK, "SLURM_NTASKS": "2", "SLURM_PROCID": "1", **OPEN_MPI}, ("mpi", 5, 1, 8, 1, 2)),  # its daemons
        (HYDRA, ("mpi", 1, 1, 2, 0, 1)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "LOCAL_RANK": "0"}, ("mpi", 1, 0, 2, 0, 0)),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_RANK": "1"},
         ("mpi", 1, 1, 2, 0, 0)),
        ({**TASK, "PMI_RANK": "5", "PMI_SIZE": "8"}, ("srun", 5, 1, 8, 1, 2)),  # srun --mpi=pmi2
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, ("single", 0, 0, 1, 0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, ("environment", 2, 0, 4, 0, 0)),
        ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "1"},
         ("environment", 2, 0, 4, 1, 2)),
        # what a Trainer sets for the processes that it starts, on its first node and on another one
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, ("environment", 1, 1, 2, 0, 0)),
        ({"LOCAL_RANK": "1", "NODE_RANK": "1", "WORLD_SIZE": "4"}, ("environment", None, 1, 4, 1, 0)),
        ({"NODE_RANK": "1", "MASTER_ADDR": "a"}, ("single", None, 0, 1, 1, 1)),
    ],
)  # fmt: skip
def test_the_place_of_a_process(environment: dict[str, str], expected: tuple[Any, ...]) -> None:
    assert place(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "3", "SLURM_PROCID": "1"}, "without SLURM_STEP_ID"),
        ({**TASK, "SLURM_NTASKS": "3"}, "rank 5 of 3"),
        ({**TASK, "SLURM_PROCID": ""}, "SLURM_PROCID is ''"),
        ({**TASK, "RANK": "0"}, "RANK=0 in the environment, but srun says 5"),
        ({**TASK, "LOCAL_RANK": "0"}, "LOCAL_RANK=0 in the environment, but srun says 1"),
        ({**TASK, "WORLD_SIZE": "2"}, "WORLD_SIZE=2 in the environment, but srun says 8"),
        ({**TASK, "SLURM_NTASKS": "3", "SLURM_PROCID": "1", **ELASTIC, "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "1"},
         r"srun \(SLURM_NTASKS\) started torchrun 3 times, but torchrun was told of 1 nodes and has 8"),
        ({**HYDRA, **ELASTIC, "GROUP_WORLD_SIZE": "1"}, "mpirun started torchrun 2 times"),
        ({**TASK, **HYDRA}, "srun started 8 tasks, and MPI knows of 2"),
        ({**OPEN_MPI, "LOCAL_RANK": "0"}, "LOCAL_RANK=0 in the environment, but mpi says 1"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "8"}, "rank 8 of 8"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "export LOCAL_RANK"),
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"RANK": "1"}, "rank 1 of 1"),
        ({"LOCAL_RANK": "1"}, "rank 1 of 1"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "no rank of so many"),
        ({"WORLD_SIZE": "4"}, "no RANK or LOCAL_RANK"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Launch.detect(environment)


def test_ids_are_common_to_a_launch_and_to_no_other() -> None:
    def of(environment: dict[str, str], **changed: str) -> str:
        return Launch.detect({**environment, **changed}).id

    assert of(TASK) == of(TASK, SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0") != ""
    others = [of(TASK), of(TASK, SLURM_STEP_ID="1"), of(TASK, SLURM_JOB_ID="78"), of(TASK, SLURM_RESTART_COUNT="1")]
    assert len(set(others)) == 4
    assert of(ELASTIC) == of(ELASTIC, RANK="0", LOCAL_RANK="0", GROUP_RANK="0")
    assert len({of(ELASTIC), of(ELASTIC, TORCHELASTIC_RESTART_COUNT="1"), of(ELASTIC, MASTER_PORT="1")}) == 3
    assert of(OPEN_MPI) == of(OPEN_MPI, OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_LOCAL_RANK="0") != ""
    assert of(HYDRA) == ""
    assert of(HYDRA, MASTER_ADDR="a", MASTER_PORT="5") == "mpi-a-5"
    assert of({}) == of(BATCH) == of({"RANK": "0", "WORLD_SIZE": "2"}) == ""


def test_a_job_keeps_its_name_when_it_is_requeued() -> None:
    first, again = Launch.detect(TASK), Launch.detect({**TASK, "SLURM_RESTART_COUNT": "1"})
    assert (first.job, first.step, first.restarts) == ("77", "0", 0)
    assert (again.job, again.step, again.restarts) == ("77", "0", 1)
    alone = Launch.detect({**BATCH, "SLURM_CLUSTER_NAME": "alps"})
    assert (alone.job, alone.step, alone.is_first) == ("alps:77", "", True)
    assert Launch.detect({}).job == ""
    assert not first.is_first
