"""How this process was started, and its place among the processes that were started with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from futurel1.errors import ConfigError

__all__ = ["Launch", "Launcher"]

Launcher = Literal["single", "torchrun", "srun", "mpi", "environment"]
_RESERVED_STEPS = 0xFFFFFFF0
"""From here on, SLURM's step numbers mean batch scripts and interactive shells, not steps of srun."""
_MPI = (
    ("OMPI_COMM_WORLD_", "RANK", "SIZE", ("OMPI_COMM_WORLD_LOCAL_RANK",), ("OMPI_COMM_WORLD_LOCAL_SIZE",)),
    ("MV2_COMM_WORLD_", "RANK", "SIZE", ("MV2_COMM_WORLD_LOCAL_RANK",), ("MV2_COMM_WORLD_LOCAL_SIZE",)),
    (
        "PMI_", "RANK", "SIZE", ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID", "LOCAL_RANK"),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE", "PALS_LOCAL_SIZE"),
    ),
)  # fmt: skip
"""Prefix, rank and size, local rank and local size of Open MPI, MVAPICH, and the launchers that speak PMI."""


@dataclass(frozen=True)
class Launch:
    """One process of a launch: what started it, and which of the processes it is.

    Attributes:
        launcher: ``torchrun``; ``srun``, with several tasks; ``mpi``: mpirun, mpiexec and the like; ``environment``:
            `RANK` or `LOCAL_RANK` with `WORLD_SIZE`, set by another launcher, by hand, or by a Trainer for the
            processes that it starts; ``single``: a process that was started alone, also inside of a SLURM allocation.
        rank: number of this process, from 0; None on a further node (NODE_RANK) where only a Trainer knows it.
        local_rank: number of this process on its node, from 0.
        world_size: number of processes.
        node: number of the node, from 0.
        nodes: number of nodes; 0 if the launcher does not tell.
        id: name that all processes of this launch have in common, and no other launch at the same time has; "" if the
            launcher gives none.
        job: the SLURM job, with the cluster's name; "" outside of SLURM. A requeued job keeps it.
        step: number of srun's step in the job; "" without srun.
        restarts: how often SLURM has restarted the job.
    """

    launcher: Launcher = "single"
    rank: int | None = 0
    local_rank: int = 0
    world_size: int = 1
    node: int = 0
    nodes: int = 1
    id: str = ""
    job: str = ""
    step: str = ""
    restarts: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process with rank 0."""
        return self.rank == 0

    @classmethod
    def detect(cls, environment: Mapping[str, str] | None = None) -> Launch:
        """The launch that an environment describes.

        Args:
            environment: environment variables; None: those of this process.

        Raises:
            ConfigError: the variables of one launcher contradict each other, or those of another launcher.
        """
        env = os.environ if environment is None else environment
        task, ranks = _srun(env), _mpi_ranks(env)
        if "TORCHELASTIC_RUN_ID" in env:
            return _torchrun(env, task, ranks)
        if task is not None and ranks is not None and (task.rank, task.world_size) != ranks[:2]:
            # mpirun starts its daemons by srun, one per node; several mpiruns under one srun each believe to be alone
            if task.world_size > ranks[1]:
                raise ConfigError(
                    f"srun started {task.world_size} tasks, and MPI knows of {ranks[1]} processes: start the command "
                    "by one of the two"
                )
            task = None
        if task is not None:
            return _checked(task, env)
        if ranks is not None and ranks[1] > 1:
            return _checked(_mpi(env, *ranks), env)
        return _by_environment(env)


def _job(env: Mapping[str, str]) -> dict[str, str | int]:
    job = env.get("SLURM_JOB_ID", "")
    cluster = env.get("SLURM_CLUSTER_NAME", "")
    return {
        "job": f"{cluster}:{job}" if job and cluster else job,
        "step": env.get("SLURM_STEP_ID", "") if _step_number(env) is not None else "",
        "restarts": _number(env, "SLURM_RESTART_COUNT", 0),
    }


def _launch(env: Mapping[str, str], launcher: Launcher, **fields: int | str | None) -> Launch:
    """A launch with the job's fields, checked."""
    made = Launch(launcher=launcher, **{**_job(env), **fields})  # type: ignore[arg-type]
    if made.rank is not None and not 0 <= made.rank < made.world_size:
        raise ConfigError(
            f"the environment says rank {made.rank} of {made.world_size} ({launcher}), which is no rank of so many; "
            "start the command by torchrun, srun or mpirun, or unset RANK, LOCAL_RANK and WORLD_SIZE"
        )
    return made


def _torchrun(env: Mapping[str, str], task: Launch | None, ranks: tuple[int, int, str] | None) -> Launch:
    agents = _number(env, "GROUP_WORLD_SIZE", 1)
    outer = {} if task is None else {f"srun ({_tasks_name(env)})": task.world_size}
    if ranks is not None and ranks[1] > 1:
        outer["mpirun"] = ranks[1]
    for name, started in outer.items():
        if started != agents:
            raise ConfigError(
                f"{name} started torchrun {started} times, but torchrun was told of {agents} nodes and has "
                f"{_number(env, 'WORLD_SIZE', 1)} processes: give torchrun --nnodes {started} --rdzv_backend c10d "
                "--rdzv_endpoint HOST:PORT, or start it once"
            )
    parts = (env.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"))
    return _launch(
        env,
        "torchrun",
        rank=_number(env, "RANK"),
        local_rank=_number(env, "LOCAL_RANK"),
        world_size=_number(env, "WORLD_SIZE"),
        node=_number(env, "GROUP_RANK", 0),
        nodes=agents,
        id="-".join(("torchrun", *parts, env.get("TORCHELASTIC_RESTART_COUNT", "0"))),
    )


def _step_number(env: Mapping[str, str]) -> int | None:
    """Number of the srun step; None in a batch script or an interactive shell."""
    step = env.get("SLURM_STEP_ID") or env.get("SLURM_STEPID") or ""
    return int(step) if step.isdecimal() and int(step) < _RESERVED_STEPS else None


def _tasks_name(env: Mapping[str, str]) -> str:
    """The variable with the number of tasks of a step; SLURM_NTASKS may be that of the whole job."""
    return "SLURM_STEP_NUM_TASKS" if env.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"


def _srun(env: Mapping[str, str]) -> Launch | None:
    """The task of a step with several tasks, whatever the job's name; without srun there is no step."""
    if _step_number(env) is None:
        if _number(env, "SLURM_PROCID", 0) > 0:
            raise ConfigError(
                f"SLURM_PROCID={env['SLURM_PROCID']} without SLURM_STEP_ID: srun sets both; start the command by srun, "
                "or unset SLURM_PROCID"
            )
        return None
    tasks = _number(env, _tasks_name(env), 1)
    if tasks == 1:
        return None
    job = env.get("SLURM_JOB_ID", "")
    nodes = "SLURM_STEP_NUM_NODES" if env.get("SLURM_STEP_NUM_NODES") else "SLURM_NNODES"
    parts = (env.get("SLURM_CLUSTER_NAME", ""), job, env["SLURM_STEP_ID"], env.get("SLURM_RESTART_COUNT", "0"))
    return _launch(
        env,
        "srun",
        rank=_number(env, "SLURM_PROCID"),
        local_rank=_number(env, "SLURM_LOCALID"),
        world_size=tasks,
        node=_number(env, "SLURM_NODEID", 0),
        nodes=_number(env, nodes, 0),
        id="-".join(("srun", *parts)) if job else "",
    )


def _mpi_ranks(env: Mapping[str, str]) -> tuple[int, int, str] | None:
    """Rank, number of processes and the prefix of their variables."""
    for prefix, rank, size, _, _ in _MPI:
        if prefix + rank in env:
            return _number(env, prefix + rank), _number(env, prefix + size), prefix
    return None


def _mpi(env: Mapping[str, str], rank: int, size: int, prefix: str) -> Launch:
    local_ranks, local_sizes = next((locals_, sizes) for name, *_, locals_, sizes in _MPI if name == prefix)
    local_rank = next((name for name in local_ranks if env.get(name)), None)
    if local_rank is None:
        raise ConfigError(
            f"{prefix}RANK={rank} without a number on this node (one of {', '.join(local_ranks)}): export LOCAL_RANK"
        )
    local_size = next((_number(env, name) for name in local_sizes if env.get(name)), 0)
    nodes = -(-size // local_size) if local_size else 0
    space = env.get("PMIX_NAMESPACE") or env.get("OMPI_MCA_ess_base_jobid") or ""
    return _launch(
        env,
        "mpi",
        rank=rank,
        local_rank=_number(env, local_rank),
        world_size=size,
        node=rank // local_size if local_size else 0,
        nodes=nodes,
        id=f"mpi-{space}" if space else _address_id(env, "mpi"),
    )


def _checked(launch: Launch, env: Mapping[str, str]) -> Launch:
    """The launch, unless variables of other launchers say something else."""
    known = {"RANK": launch.rank, "LOCAL_RANK": launch.local_rank, "WORLD_SIZE": launch.world_size}
    for name, value in known.items():
        if env.get(name) and _number(env, name) != value:
            raise ConfigError(
                f"{name}={env[name]} in the environment, but {launch.launcher} says {value}: unset {name}, or start "
                "the command by one launcher"
            )
    return launch


def _by_environment(env: Mapping[str, str]) -> Launch:
    """A process whose place stands in RANK and WORLD_SIZE, or in LOCAL_RANK as a Trainer sets it; else a single one."""
    node, local_rank = _number(env, "NODE_RANK", _number(env, "GROUP_RANK", 0)), _number(env, "LOCAL_RANK", 0)
    world_size = _number(env, "WORLD_SIZE", 1)
    local_size = _number(env, "LOCAL_WORLD_SIZE", 0)
    nodes = -(-world_size // local_size) if local_size else 0
    place: dict[str, int] = {"local_rank": local_rank, "world_size": world_size, "node": node}
    if env.get("RANK"):
        launcher: Launcher = "environment" if world_size > 1 else "single"
        shared = _address_id(env, "environment")
        return _launch(env, launcher, **place, rank=_number(env, "RANK"), nodes=nodes, id=shared)
    if world_size == 1:
        return _launch(env, "single", **place, rank=None if node else local_rank)
    if "LOCAL_RANK" not in env:
        raise ConfigError(
            f"WORLD_SIZE={world_size} in the environment, but no RANK or LOCAL_RANK: set RANK too, or unset WORLD_SIZE"
        )
    rank = node * local_size + local_rank if local_size or node == 0 else None
    return _launch(env, "environment", **place, rank=rank, nodes=nodes)


def _address_id(env: Mapping[str, str], launcher: str) -> str:
    """A name from the address where the processes meet, which no two launches can have at the same time."""
    address, port = env.get("MASTER_ADDR"), env.get("MASTER_PORT")
    return f"{launcher}-{address}-{port}" if address and port else ""


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = env.get(name)
    if not value and default is not None:
        return default
    if not value or not value.strip().isdecimal():
        raise ConfigError(
            f"{name} is {value!r} in the environment, which is no number of a process; start the command by torchrun, "
            "srun or mpirun, or unset it"
        )
    return int(value)
