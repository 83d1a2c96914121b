"""Ray Data as an engine: tasks of a cluster read and encode records, and actors with a model each answer."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Self

from futurel1.data.chat import ChatEncoder
from futurel1.data.encoded import EncodedSample
from futurel1.data.fetching import Batches
from futurel1.engines.base import Answers, Block, Decoding, Engine, EngineSettings
from futurel1.engines.own_loop import OwnLoop, SampledResponses
from futurel1.errors import ConfigError, FutureL1Error
from futurel1.runs import Dtype, load_reasoner

__all__ = ["Ray", "RayEngine"]

logger = logging.getLogger(__name__)
MOST_READS = 10_000
"""Most tasks that read records; beyond that a task reads several blocks, one after the other."""


class Ray(EngineSettings):
    """Actors of a Ray cluster, each with the model; needs `pip install 'futurel1[ray]'` on all nodes.

    Responses are those of the own loop, to the byte if the devices are of one kind. Records and media have to be
    readable on all nodes under the same paths.

    Args:
        address: address of the cluster, or ``auto``; None: that of the variable RAY_ADDRESS, else a cluster on this
            machine, which ends with the command.
        actors: fewest processes with a model.
        max_actors: most of them, where the cluster has room; None: `actors`.
        gpus: GPUs of each, or a part of one.
        cpus: CPU cores of each; further ones read and encode records.
        dtype: dtype of the weights; auto is bfloat16 on a GPU and float32 on a CPU.
        device: cpu, cuda or auto.

    Raises:
        ConfigError: numbers out of range, or Ray is not installed.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        actors: int = 1,
        max_actors: int | None = None,
        gpus: float = 0.0,
        cpus: float = 1.0,
        dtype: Dtype = "auto",
        device: str = "auto",
    ) -> None:
        try:
            import ray.data  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"the engine Ray needs the package {error.name}: pip install 'futurel1[ray]' on all nodes"
            ) from error
        if actors < 1 or (max_actors is not None and max_actors < actors):
            raise ConfigError(f"actors is at least 1 and at most max_actors, got {actors} and {max_actors}")
        if not (gpus >= 0 and cpus >= 0 and gpus + cpus > 0):
            raise ConfigError(f"gpus and cpus of an actor are not negative, and not both 0; got {gpus} and {cpus}")
        self.address = address
        self.actors = actors
        self.max_actors = actors if max_actors is None else max_actors
        self.needs = {"num_gpus": gpus, "num_cpus": cpus}
        self.dtype: Dtype = dtype
        self.device = device

    def engine(self, model: str, encoder: ChatEncoder, decoding: Decoding) -> RayEngine:
        """Make the engine; the cluster is asked for when it is entered."""
        return RayEngine(self, _Model(model, self.dtype, self.device, encoder, decoding, os.getcwd()))

    def identity(self) -> dict[str, Any]:
        """Nothing: the own loop gives the same responses."""
        return {}


@dataclass(frozen=True)
class _Model:
    """What an actor loads, from the folder in which the command was given."""

    name: str
    dtype: Dtype
    device: str
    encoder: ChatEncoder
    decoding: Decoding
    folder: str

    def load(self) -> SampledResponses:
        os.chdir(self.folder)  # relative paths start where the command was given
        return SampledResponses(load_reasoner(self.name, dtype=self.dtype, device=self.device), self.decoding)


class RayEngine(Engine[EncodedSample]):
    """Sends blocks through a cluster, and yields them in their order.

    A task or an actor that is lost, alone or with its node, is started again and repeats what it had in hand.

    Args:
        chosen: the cluster and its actors.
        model: what they load.
    """

    def __init__(self, chosen: Ray, model: _Model) -> None:
        self.encoder: ChatEncoder = model.encoder
        self._chosen = chosen
        self._model = model

    def __enter__(self) -> Self:
        """Connect to the cluster, or start one."""
        import ray

        logging.getLogger("ray.data").setLevel(logging.WARNING)
        self._own = not ray.is_initialized()
        if self._own:
            try:
                ray.init(address=self._chosen.address, log_to_driver=False, logging_level=logging.WARNING)
            except (ConnectionError, ValueError) as error:
                raise ConfigError(
                    f"no Ray cluster at {self._chosen.address} ({error}); start one by `ray start --head`, or leave "
                    "address out"
                ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the cluster, or end it if it was started here."""
        import ray

        if self._own:
            ray.shutdown()

    def settings(self) -> dict[str, Any]:
        """Those of the own loop, from a process with the resources of an actor."""
        import ray

        found: dict[str, Any] = ray.get(ray.remote(**self._chosen.needs)(_settings).remote(self._model))
        return found

    def run(
        self,
        dataset: Any,
        numbers: Iterable[Sequence[int]],
        collate: Callable[[list[Any]], Block[EncodedSample]],
        *,
        num_workers: int = 0,
    ) -> Iterator[tuple[Any, list[list[Answers]]]]:
        """Read blocks in tasks of the cluster; it decides how many, so `num_workers` has no effect."""
        import ray

        blocks = [list(map(int, block)) for block in numbers]
        if not blocks:
            return
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        pool = ray.data.ActorPoolStrategy(min_size=self._chosen.actors, max_size=self._chosen.max_actors)
        read = partial(_read, ray.put((os.getcwd(), dataset, blocks, collate)))
        rows = ray.data.range(len(blocks), override_num_blocks=min(len(blocks), MOST_READS)).map(read, num_cpus=1)
        # Ray Data runs steps of equal needs in one process, and actors would decode video: one byte makes these differ.
        needs = {**self._chosen.needs, "memory": 1}
        answered = rows.map(_Answering, fn_constructor_args=(self._model,), compute=pool, **needs)
        for row in answered.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, FutureL1Error):
                raise result
            yield result


def _read(given: Any, row: dict[str, Any]) -> dict[str, Any]:
    """A task: reads a block and encodes its prompts; a library error takes its place."""
    dataset, blocks, collate = _received(given)
    return {"block": pickle.dumps(Batches(dataset, collate)[blocks[int(row["id"])]])}


@lru_cache(maxsize=1)
def _received(given: Any) -> Any:
    """What the tasks of a run have in common; a worker process unpacks it once, because a tokenizer takes long."""
    import ray

    folder, *received = ray.get(given)
    os.chdir(folder)
    return received


class _Answering:
    """An actor: decodes the rounds of a block."""

    def __init__(self, model: _Model) -> None:
        self._loop = OwnLoop(model.load(), model.encoder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        block = pickle.loads(row["block"])
        if not isinstance(block, FutureL1Error):
            try:
                (block,) = self._loop.answer([block])
            except FutureL1Error as error:
                block = error
        return {"result": pickle.dumps(block)}


def _settings(model: _Model) -> dict[str, Any]:
    return model.load().settings()
