"""The interface of all engines: they read blocks of records in workers, and answer the prompts of each block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from futurel1.data import Sample
from futurel1.data.chat import ChatEncoder
from futurel1.models.transcript import Transcript
from futurel1.rollout import SamplingSettings

__all__ = [
    "Answers", "Block", "Decoding", "Engine", "EngineSettings", "Prompt", "PromptEncoder", "Unanswered",
]  # fmt: skip


class Prompt(Protocol):
    """A prompt as an engine takes it."""

    @property
    def sample_id(self) -> str:
        """`<file name>:<record number>`."""


PromptT = TypeVar("PromptT", bound=Prompt)
PromptT_co = TypeVar("PromptT_co", bound=Prompt, covariant=True)


class PromptEncoder(Protocol[PromptT_co]):
    """Makes prompts of samples, in loader workers."""

    def encode_prompt(self, sample: Sample) -> PromptT_co:
        """Everything before the first response of a sample, as the engine takes it."""


@dataclass(frozen=True)
class Unanswered:
    """Why a prompt has no responses.

    Attributes:
        reason: what went wrong; names the record.
        refused: whether the engine will refuse this prompt every time.
    """

    reason: str
    refused: bool = False


Answers = tuple[Transcript, ...] | Unanswered
"""The responses to one prompt, or why there are none."""


@dataclass(frozen=True)
class Block(Generic[PromptT]):
    """What a worker made of one block of records.

    Attributes:
        items: what whoever asked wants to know of the records; not the prompts, which may be large.
        rounds: prompts; those of a round are decoded together.
    """

    items: Any
    rounds: tuple[tuple[PromptT, ...], ...]


@dataclass(frozen=True)
class Decoding:
    """How prompts are answered.

    Attributes:
        sampling: temperature, top-p, seed and length.
        num_branches: responses per prompt.
        do_sample: sample tokens at random; False: greedily, ignoring temperature, top-p and seed.
    """

    sampling: SamplingSettings
    num_branches: int = 1
    do_sample: bool = True


class Engine(ABC, Generic[PromptT]):
    """Answers prompts; a context manager, since engines may hold connections and processes.

    Attributes:
        encoder: makes the prompts that this engine takes.
    """

    encoder: PromptEncoder[PromptT]

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What responses depend on besides prompts and sampling: above all the model."""

    @abstractmethod
    def run(
        self,
        dataset: Any,
        numbers: Iterable[Sequence[int]],
        collate: Callable[[list[Any]], Block[PromptT]],
        *,
        num_workers: int = 0,
    ) -> Iterator[tuple[Any, list[list[Answers]]]]:
        """Read blocks of records, and answer their prompts.

        Args:
            dataset: items by number.
            numbers: the numbers of each block.
            collate: makes a block of its items, where they are read.
            num_workers: processes of this machine that decode video.

        Yields:
            The items of each block and the answers to its rounds, in the order of `numbers`.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release what the engine holds."""


class EngineSettings(ABC):
    """Settings of an engine other than the own loop, as the command line takes them."""

    @abstractmethod
    def engine(self, model: str, encoder: ChatEncoder, decoding: Decoding) -> Engine[Any]:
        """Make the engine.

        Args:
            model: the model, as :func:`~futurel1.runs.load_reasoner` takes it.
            encoder: encodes prompts as the own loop would.
            decoding: how prompts are answered.

        Raises:
            ConfigError: the engine cannot decode like that.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What responses depend on, as far as these settings tell: no addresses, no limits."""
