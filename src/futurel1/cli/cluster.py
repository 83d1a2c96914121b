"""What a Trainer is told about the processes of a launch, so that it and the library never see different ones."""

from __future__ import annotations

import os
import zlib
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from futurel1.errors import ConfigError
from futurel1.launch import Launch

__all__ = ["AllocationEnvironment", "LaunchedEnvironment", "SrunEnvironment", "check_processes", "cluster_environment"]


def cluster_environment(launch: Launch) -> ClusterEnvironment | None:
    """The plugin for a Trainer of this launch; None where Lightning's own choice is right.

    Raises:
        ConfigError: the processes have no address in common.
    """
    if launch.launcher == "srun":
        return SrunEnvironment(launch)
    if launch.launcher == "mpi" or (launch.launcher == "environment" and "RANK" in os.environ):
        return LaunchedEnvironment(launch)
    if launch.launcher != "torchrun" and launch.job:
        return AllocationEnvironment()
    return None


def check_processes(trainer: Any, launch: Launch) -> None:
    """Refuse a Trainer that works with another number of processes than were started.

    Args:
        trainer: the Trainer.
        launch: what was started.

    Raises:
        ConfigError: the numbers differ; each process would do all the work, or wait for ever.
    """
    wanted, started, nodes = trainer.num_devices * trainer.num_nodes, launch.world_size, launch.nodes
    used = f"trainer.devices {trainer.num_devices} and trainer.num_nodes {trainer.num_nodes}"
    if started > 1 and (wanted != started or (nodes and trainer.num_nodes != nodes)):
        devices = f"--trainer.devices {started // nodes} --trainer.num_nodes {nodes}" if nodes else "both"
        on = f" on {nodes} nodes" if nodes > 1 else ""
        raise ConfigError(
            f"{launch.launcher} started {started} processes{on}, but {used} make {wanted}: give {devices} so that they "
            "agree, or start as many processes"
        )
    if started == 1 and trainer.num_nodes > 1 and "NODE_RANK" not in os.environ:
        raise ConfigError(
            f"{used} need processes on each node, but this one was started alone: start the command by srun or torchrun"
        )


def _port(launch: Launch) -> int:
    """A port that all processes of a launch derive alike, and two launches hardly ever; above 15000, as SLURM's."""
    return 15000 + zlib.crc32(launch.id.encode()) % 10000


class SrunEnvironment(SLURMEnvironment):
    """Tasks of one step, whatever the job's name; the step may have fewer nodes than the job.

    Args:
        launch: a launch by srun.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        super().__init__()

    def _validate_srun_variables(self) -> None:  # type: ignore[override]  # static in Lightning, and called as here
        """Leave it to `check_processes`: --ntasks without --ntasks-per-node is as good."""

    @property
    def main_address(self) -> str:
        """First node of the step."""
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or "127.0.0.1"
        return os.environ.get("MASTER_ADDR") or self.resolve_root_node_address(nodes)

    @property
    def main_port(self) -> int:
        """A port of this step: several steps of a job may run at the same time."""
        return int(os.environ.get("MASTER_PORT") or _port(self._launch))

    def world_size(self) -> int:
        """Number of tasks of the step."""
        return self._launch.world_size

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Leave it to `check_processes`."""


class AllocationEnvironment(LightningEnvironment, SLURMEnvironment):
    """A process in a SLURM allocation that srun did not start: the Trainer starts the others, SLURM requeues the job.

    Lightning takes `SLURM_NTASKS`, which a batch script inherits from `#SBATCH --ntasks`, for tasks that were started,
    and waits for them.
    """

    @property
    def auto_requeue(self) -> bool:
        """Whether SLURM's signal saves the state: it reaches this process alone, and saving needs all of them."""
        return self._auto_requeue and self.world_size() == 1

    @auto_requeue.setter
    def auto_requeue(self, value: bool) -> None:
        self._auto_requeue = value

    def _validate_srun_used(self) -> None:  # type: ignore[override]  # static in Lightning, and called as here
        """Being started without srun is what this class is for."""

    def _validate_srun_variables(self) -> None:  # type: ignore[override]
        """The variables are those of the allocation, not of tasks."""

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Nothing of the allocation has to match."""


class LaunchedEnvironment(ClusterEnvironment):
    """Processes that mpirun or another launcher started, by their environment variables, without mpi4py.

    They meet at `MASTER_ADDR` and `MASTER_PORT`; on one node these may be missing.

    Args:
        launch: the launch.

    Raises:
        ConfigError: no address is given, and the processes may be on several nodes, or have no name in common.
    """

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self._launch = launch
        given = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        if not all(given) and (launch.nodes != 1 or not launch.id):
            raise ConfigError(
                f"{launch.launcher} started {launch.world_size} processes that know no address in common: export "
                "MASTER_ADDR (the first node) and MASTER_PORT (a free port) to all of them"
            )

    @property
    def creates_processes_externally(self) -> bool:
        """All processes exist."""
        return True

    @property
    def main_address(self) -> str:
        """Address of the first process."""
        return os.environ.get("MASTER_ADDR") or "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Port of the first process."""
        return int(os.environ.get("MASTER_PORT") or _port(self._launch))

    @staticmethod
    def detect() -> bool:
        """Never by Lightning itself."""
        return False

    def world_size(self) -> int:
        """Number of processes."""
        return self._launch.world_size

    def set_world_size(self, size: int) -> None:
        """The launcher has set it."""

    def global_rank(self) -> int:
        """Number of this process."""
        assert self._launch.rank is not None  # `cluster_environment` takes this class only where it is known
        return self._launch.rank

    def set_global_rank(self, rank: int) -> None:
        """The launcher has set it."""

    def local_rank(self) -> int:
        """Number of this process on its node."""
        return self._launch.local_rank

    def node_rank(self) -> int:
        """Number of the node."""
        return self._launch.node
