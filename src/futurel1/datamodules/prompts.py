"""Prompts for `futurel1 predict` and `futurel1 test`: every record once, on one rank, resumable by sample."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypedDict

import torch

from futurel1.data import LookAhead, PromptBatch, RecordSource, SkippedRecord, open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import OnError
from futurel1.data.fetching import fetch
from futurel1.data.prompts import PromptCollator, PromptDataset, parse_prompt
from futurel1.data.remote import media_folder
from futurel1.data.video import VideoBackend
from futurel1.datamodules.base import RecordDataModule
from futurel1.engines import Engine, answered_batch, prompt_block
from futurel1.errors import ConfigError, RecordError

__all__ = ["BasePromptDataModule", "PromptDataModule", "PromptLoader"]

logger = logging.getLogger(__name__)
Paths = str | list[str]
PromptStage = Literal["train", "val", "test", "predict"]


class EncoderOptions(TypedDict, total=False):
    """Arguments of :class:`ChatEncoder` that a data module sets."""

    system_prompt: str | None
    max_length: int
    video_fps: float
    video_max_frames: int
    video_frame_tokens: int
    video_num_frames: int
    video_backend: VideoBackend
    strip_text: bool


class PromptLoader:
    """A sized loader of prompts: rank `r` of `w` takes every `w`-th record, starting with the `r`-th.

    No record is repeated to keep ranks in step, so the last batches of some ranks may be smaller or missing. Every rank
    reports the length of the longest one: Lightning skips the hooks of a loop whose loader has length 0, and the other
    ranks would wait there for this rank's metrics.

    Args:
        dataset: encoded prompts.
        numbers: the records to ask, in order, for all ranks together.
        batch_size: most rows of a batch.
        rank: rank of this process.
        world_size: number of processes.
        num_workers: processes that decode and encode.
        report: called with the records that a batch left out.
        engine: answers the prompts while they are loaded; None: whoever gets a batch decodes it.
    """

    def __init__(
        self,
        dataset: PromptDataset,
        numbers: Sequence[int],
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        report: Callable[[tuple[SkippedRecord, ...]], None] = lambda skipped: None,
        engine: Engine[Any] | None = None,
    ) -> None:
        self.dataset = dataset
        self.numbers = list(numbers)[rank::world_size]
        self._batch_size = batch_size
        self._length = -(-len(numbers) // (batch_size * world_size))
        self._whole = len(self.numbers) == len(dataset)
        self._num_workers = num_workers
        self._report = report
        self._engine = engine

    @property
    def batch_size(self) -> int:
        """Most rows of a batch."""
        return self._batch_size

    def __len__(self) -> int:
        return self._length

    def _batches(self) -> Iterator[PromptBatch]:
        starts = range(0, len(self.numbers), self._batch_size)
        numbers = [self.numbers[start : start + self._batch_size] for start in starts]
        if self._engine is None:
            collate = PromptCollator(self.dataset.encoder.pad_token_id)
            pin_memory = torch.cuda.is_available()
            yield from fetch(self.dataset, numbers, collate, num_workers=self._num_workers, pin_memory=pin_memory)
            return
        with self._engine as engine:
            for batch, [answers] in engine.run(self.dataset, numbers, prompt_block, num_workers=self._num_workers):
                yield answered_batch(batch, answers, self.dataset.on_error)

    def __iter__(self) -> Iterator[PromptBatch]:
        usable = False
        for batch in self._batches():
            if batch.skipped:
                self._report(batch.skipped)
            if len(batch):
                usable = True
                yield batch
        if self._whole and not usable:
            raise RecordError(
                f"none of {len(self.dataset)} records can be used; run with on_error: raise to see the first reason"
            )


class BasePromptDataModule(RecordDataModule):
    """Base of the data modules for prompts of records and of benchmarks; a subclass opens the source of the samples.

    Args:
        processor: checkpoint folder whose tokenizer and image processor are used; None: the model's own.
        batch_size: prompts per batch and device.
        on_error: ``raise`` or ``skip``.
        num_workers: processes that decode and encode.
        encoder_options: arguments of the encoder.

    Raises:
        ConfigError: invalid settings.
    """

    def __init__(
        self,
        *,
        processor: str | None,
        batch_size: int,
        on_error: OnError,
        num_workers: int,
        encoder_options: EncoderOptions,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(
                f"batch_size must be at least 1 and num_workers at least 0, got {batch_size} and {num_workers}"
            )
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self.skip_ids: set[str] = set()
        self._processor = processor
        self._batch_size = batch_size
        self._on_error: OnError = on_error
        self._num_workers = num_workers
        self._encoder_options = encoder_options
        self._encoder: ChatEncoder | None = None
        self._engine: Engine[Any] | None = None
        self._datasets: dict[PromptStage, PromptDataset] = {}

    @abstractmethod
    def open_source(self, stage: PromptStage) -> RecordSource:
        """Open the records of a stage, as samples whose `info` goes into the batches."""

    @property
    def encoder(self) -> ChatEncoder:
        """The encoder of prompts, made on first use with `processor` or the model's own processor."""
        if self._encoder is None:
            self._encoder = self._make_encoder()
        return self._encoder

    def _make_encoder(self, **more: Any) -> ChatEncoder:
        return ChatEncoder(self.find_processor(self._processor), **self._encoder_options, **more)

    def dataset(self, stage: PromptStage) -> PromptDataset:
        """The prompts of a stage, including those in `skip_ids`."""
        if stage not in self._datasets:
            make_engine = getattr(self.trainer and self.trainer.lightning_module, "make_engine", None)
            self._engine = make_engine(self.encoder) if make_engine else None
            encoder: Any = self.encoder if self._engine is None else self._engine.encoder
            self._datasets[stage] = PromptDataset(self.open_source(stage), encoder, on_error=self._on_error)
        return self._datasets[stage]

    def skip_finished(self, ids: Iterable[str]) -> None:
        """Leave out prompts that an interrupted run has finished.

        Args:
            ids: their `sample_ids`. Loaders made from now on leave them out.
        """
        self.skip_ids.update(ids)

    def _loader(self, stage: PromptStage) -> PromptLoader:
        dataset = self.dataset(stage)
        numbers: Sequence[int] = range(len(dataset))
        if self.skip_ids:
            by_id = {dataset.source.id(number): number for number in numbers}
            unknown = sorted(self.skip_ids - by_id.keys())
            if unknown:
                raise ConfigError(
                    f"cannot continue: {len(unknown)} of {len(self.skip_ids)} finished prompts are not among these "
                    f"{len(by_id)} records, such as {unknown[0]}; give the records of the interrupted run, or another "
                    "output"
                )
            numbers = [number for name, number in by_id.items() if name not in self.skip_ids]
        trainer = self.trainer
        self._add_future(dataset)
        return PromptLoader(
            dataset,
            numbers,
            batch_size=self._batch_size,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
            num_workers=self._num_workers,
            report=self.report_skipped,
            engine=self._engine,
        )

    def _add_future(self, dataset: PromptDataset) -> None:
        """Let prompts carry the frames that the model's intervention feeds, see `LatentPredictor`.

        How these are encoded is known once the model is loaded, which it is when loaders are made.
        """
        module: Any = None if self.trainer is None else self.trainer.lightning_module
        dataset.future = getattr(module, "future", None)
        if dataset.future is not None:
            dataset.encoder = self._make_encoder(**module.reasoner.settings.hint_options())
            dataset.data_root = media_folder("data_root", self.hparams.get("data_root"))

    def test_dataloader(self) -> LookAhead[PromptBatch]:
        """Prompts for `futurel1 test`."""
        return LookAhead(self._loader("test"))

    def predict_dataloader(self) -> LookAhead[PromptBatch]:
        """Prompts for `futurel1 predict`."""
        return LookAhead(self._loader("predict"))


class PromptDataModule(BasePromptDataModule):
    """Prompts of training records for `futurel1 predict` and `futurel1 test`: observed frames and question only.

    Each row's `info` holds ``question``, ``answer``, ``options`` and ``question_type``, see
    :func:`~futurel1.data.prompts.parse_prompt`.

    Args:
        predict: file, folder, pattern, address or list of them (.json, .jsonl, .parquet, .arrow) for `futurel1
            predict`; None: the test records.
        test: the same for `futurel1 test`; None: the prediction records.
        data_root: folder that no record's path may leave, through `..`, an absolute path or a link; None: no check.
        processor: checkpoint folder whose tokenizer and image processor are used; None: the model's own.
        batch_size: prompts per batch and device.
        system_prompt: text file with the system turn; None: the checkpoint's own, else the paper's wording.
        max_length: most tokens per prompt; longer ones are errors.
        video_fps: frames per second taken from whole videos (chat records).
        video_max_frames: most frames taken from a whole video.
        video_frame_tokens: most merged tokens per frame of a whole video.
        video_backend: video decoder: `pyav` (the same as `auto`), or `decord` or `torchcodec` if installed.
        on_error: ``raise``: stop at the first record that cannot be used; ``skip``: leave it out, count it and write it
            to `skipped.jsonl` in the run folder.
        num_workers: processes that decode video; 0 decodes in the process that predicts.

    Raises:
        ConfigError: invalid settings.
    """

    def __init__(
        self,
        predict: Paths | None = None,
        test: Paths | None = None,
        data_root: str | None = None,
        processor: str | None = None,
        batch_size: int = 1,
        system_prompt: str | None = None,
        max_length: int = 16384,
        video_fps: float = 2.0,
        video_max_frames: int = 16,
        video_frame_tokens: int = 64,
        video_backend: VideoBackend = "auto",
        on_error: OnError = "raise",
        num_workers: int = 2,
    ) -> None:
        super().__init__(
            processor=processor,
            batch_size=batch_size,
            on_error=on_error,
            num_workers=num_workers,
            encoder_options={
                "system_prompt": system_prompt,
                "max_length": max_length,
                "video_fps": video_fps,
                "video_max_frames": video_max_frames,
                "video_frame_tokens": video_frame_tokens,
                "video_backend": video_backend,
            },
        )
        self.save_hyperparameters()
        if predict is None and test is None:
            raise ConfigError("no data: give data.predict (a .json, .jsonl, .parquet or .arrow file, or a folder)")

    def open_source(self, stage: PromptStage) -> RecordSource:
        """Open the records of a stage."""
        test, predict = self.hparams["test"], self.hparams["predict"]
        paths = {"test": (test, predict), "predict": (predict, test)}[stage]
        root = media_folder("data_root", self.hparams["data_root"])
        return open_records(paths[paths[0] is None], parse=partial(parse_prompt, data_root=root))
