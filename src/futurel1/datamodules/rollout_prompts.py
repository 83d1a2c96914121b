"""Prompts for reinforcement learning: an endless stream for training, and every prompt once for validation."""

import logging
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count as counted
from operator import itemgetter
from typing import Any

from futurel1.data import RecordSource, SkippedRecord, open_records
from futurel1.data.collate import Fetched, OnError
from futurel1.data.encoded import EncodedSample
from futurel1.data.fetching import fetch
from futurel1.data.mixtures import Mixture, RecordPaths
from futurel1.data.prompts import PromptDataset
from futurel1.data.remote import media_folder
from futurel1.data.rl_prompts import parse_rl_prompt
from futurel1.data.video import VideoBackend
from futurel1.datamodules.prompts import BasePromptDataModule, Paths, PromptLoader, PromptStage
from futurel1.errors import ConfigError
from futurel1.rollout import ExperienceLoader, RolloutCollector

__all__ = ["PromptStream", "RolloutPromptDataModule"]

logger = logging.getLogger(__name__)


class _Orders:
    """The order of every pass over `size` records, or of every epoch of a mixture; seed None: the stored order.

    This is separate from the stream because the stream's loader refers to it. If the loader referred to the stream, the
    two would form a cycle, and the workers of an unused stream would run until the garbage collector finds it.
    """

    def __init__(self, size: int, seed: int | None, mixture: Mixture | None) -> None:
        self._size, self._seed, self._mixture = size, seed, mixture
        self._epoch, self._order = -1, list(range(size))

    def number(self, index: int) -> int:
        epoch, place = divmod(index, self._size)
        shuffle = self._seed is not None
        if epoch != self._epoch and (shuffle or self._mixture is not None):
            drawn = None if self._mixture is None else self._mixture.draw(epoch, shuffle)
            self._epoch, self._order = epoch, list(range(self._size)) if drawn is None else drawn
            if shuffle:
                random.Random(f"{self._seed}:{epoch}").shuffle(self._order)
        return self._order[place]

    def numbers(self, first: int, stride: int) -> Iterator[list[int]]:
        return ([self.number(index)] for index in counted(first, stride))


class PromptStream:
    """Endless stream of prompts, in a new random order in every pass; a position in it is a prompt index.

    Workers decode ahead as long as prompts are taken in sequence.

    Args:
        dataset: encoded prompts.
        seed: seed of the orders.
        shuffle: random order; False: the order of the records.
        num_workers: processes that decode and encode.
        mixture: draws the records of every pass; None: each once.
        report: called with records that could not be used.
    """

    def __init__(
        self,
        dataset: PromptDataset,
        *,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        mixture: Mixture | None = None,
        report: Callable[[tuple[SkippedRecord, ...]], None] = lambda skipped: None,
    ) -> None:
        self.dataset = dataset
        self._orders = _Orders(len(dataset), seed if shuffle else None, mixture)
        self._num_workers = num_workers
        self._report = report
        self._next: int | None = None
        self._stride = 0
        self._prompts: Iterator[Fetched] = iter(())

    def number(self, index: int) -> int:
        """Number of the record at a prompt index."""
        return self._orders.number(index)

    def take(
        self, first: int, count: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, EncodedSample | None]]:
        """Yield the prompts of indices `first + rank`, `first + rank + world_size`, ... below `first + count`.

        Returns:
            (index, prompt); the prompt is None for a record that could not be used, which is reported.
        """
        for index in range(first + rank, first + count, world_size):
            in_line = index == self._next and world_size == self._stride
            if count == 1 and not in_line:
                # A single prompt is not worth starting workers or stopping running ones (a resume asks for many).
                fetched = self.dataset.__getitems__([self.number(index)])[0]
            else:
                if not in_line:
                    self._start(index, world_size)
                self._next = None  # after an error the position of the workers is unknown
                fetched = next(self._prompts)
                self._next = index + world_size
            if fetched.skipped:
                self._report(tuple(fetched.skipped))
            yield index, fetched.samples[0] if fetched.samples else None

    def _start(self, index: int, stride: int) -> None:
        self._prompts = iter(())  # end the previous workers before new ones start
        numbers = self._orders.numbers(index, stride)
        self._prompts = fetch(self.dataset, numbers, itemgetter(0), num_workers=self._num_workers)
        self._stride = stride


class RolloutPromptDataModule(BasePromptDataModule):
    """Prompts for `futurel1 fit` with :class:`futurel1.modules.LADAPOModule`.

    It reads RL records, training records of all labelled shapes (observed frames and question; the answer is the ground
    truth) and FutureBench records, see :func:`futurel1.data.parse_rl_prompt`. The train loader collects experience with
    the model in training. An epoch has as many rollout batches as the prompts would fill without filtering.

    Args:
        train: file, folder, pattern, address or list of them (.json, .jsonl, .parquet, .arrow) with prompts for
            training; or a list of ``{path, weight}`` for a mixture, see :class:`futurel1.data.Mixture`.
        val: the same for validation; None: no validation.
        test: the same for `futurel1 test`; None: the validation records.
        data_root: folder that no record's path may leave, through `..`, an absolute path or a link; None: no check.
        processor: checkpoint folder whose tokenizer and image processor are used; None: the model's own.
        batch_size: prompts per batch and device in validation and test; in training see the model's
            `rollout.batch_size` and `rollout.generation_batch_size`.
        system_prompt: text file with the system turn; None: the checkpoint's own, else the paper's wording.
        max_length: most tokens per prompt; longer ones are errors.
        video_fps: frames per second taken from whole videos.
        video_max_frames: most frames taken from a whole video.
        video_frame_tokens: most merged tokens per frame of a whole video.
        video_backend: video decoder: `pyav` (the same as `auto`), or `decord` or `torchcodec` if installed.
        on_error: ``raise``: stop at the first record that cannot be used; ``skip``: leave it out, count it and write it
            to `skipped.jsonl` in the run folder.
        num_workers: processes that decode video; 0 decodes in the process that trains.
        shuffle: use a new random order in every pass.
        seed: seed of the orders.

    Raises:
        ConfigError: invalid settings.
    """

    def __init__(
        self,
        train: RecordPaths | None = None,
        val: Paths | None = None,
        test: Paths | None = None,
        data_root: str | None = None,
        processor: str | None = None,
        batch_size: int = 8,
        system_prompt: str | None = None,
        max_length: int = 8192,
        video_fps: float = 2.0,
        video_max_frames: int = 16,
        video_frame_tokens: int = 64,
        video_backend: VideoBackend = "auto",
        on_error: OnError = "raise",
        num_workers: int = 2,
        shuffle: bool = True,
        seed: int = 0,
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
        # Loggers refuse a `seed` that differs from the model's, so they do not get these; `config.yaml` has them.
        self.save_hyperparameters(logger=False)
        if train is None and val is None and test is None:
            raise ConfigError("no data: give data.train (a .json, .jsonl, .parquet or .arrow file, or a folder)")
        self._experience: ExperienceLoader | None = None
        self._mixture: Mixture | None = None
        self._experience_of: tuple[Any, Any] | None = None
        self._restored: dict[str, Any] | None = None

    def open_source(self, stage: PromptStage) -> RecordSource:
        """Open the records of a stage."""
        given = {name: self.hparams[name] for name in ("train", "val", "test")}
        order = {"train": ("train",), "val": ("val",), "test": ("test", "val"), "predict": ("test", "val", "train")}
        paths = next((given[name] for name in order[stage] if given[name] is not None), None)
        if paths is None:
            raise ConfigError(f"no records for {stage}: give data.{order[stage][0]}")
        root = media_folder("data_root", self.hparams["data_root"])
        return open_records(paths, parse=partial(parse_rl_prompt, data_root=root))

    # ------------------------------------------------------------------ loaders

    def _sampling_module(self) -> Any:
        """The model in training; it must be able to make rollouts."""
        module: Any = None if self.trainer is None else self.trainer.lightning_module
        if not hasattr(module, "rollout"):
            raise ConfigError(
                "RolloutPromptDataModule collects rollouts with the model that is trained, and "
                f"{type(module).__name__} makes none: use LADAPOModule, or VideoHintDataModule for SFT"
            )
        return module

    def train_dataloader(self) -> ExperienceLoader:
        """Loader of experience, collected with the model in training.

        Raises:
            ConfigError: outside of a Trainer, or with a model that cannot sample.
        """
        module = self._sampling_module()
        trainer: Any = self.trainer
        if self._experience is not None and self._experience_of == (trainer, module):
            return self._experience  # requested again during a run: it continues where it is
        dataset = self.dataset("train")
        if dataset.source.mixed:
            self._mixture = Mixture(dataset.source.mixed, seed=self.hparams["seed"])
            logger.info("training mixture: %s", self._mixture)
        stream = PromptStream(
            dataset,
            seed=self.hparams["seed"],
            shuffle=self.hparams["shuffle"],
            num_workers=self.hparams["num_workers"],
            mixture=self._mixture,
            report=self.report_skipped,
        )
        collector = RolloutCollector(
            module.sampler,
            stream,
            module.rollout,
            micro_batches=trainer.accumulate_grad_batches,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            log_samples=module.log_samples,
        )
        self._experience = ExperienceLoader(
            collector,
            max(1, len(dataset) // module.rollout.batch_size),
            position=lambda: (trainer.current_epoch, trainer.fit_loop.batch_idx + 1),
            limit=lambda: trainer.num_training_batches,
        )
        self._experience_of = (trainer, module)
        if self._restored is not None:
            self._restore(self._experience, self._restored)
            self._restored = None
        return self._experience

    def val_dataloader(self) -> PromptLoader | list[Any]:
        """Every validation prompt once; empty without validation records."""
        if self.trainer is not None:
            self._sampling_module()
        return [] if self.hparams["val"] is None else self._loader("val")

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Position in the prompt stream, the current rollout batch and left-over groups, for exact resumes."""
        if self._experience is None:
            return {}
        return {"experience": self._experience.collection_state(), "mixture": self._drawn()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, whether or not the train loader exists yet."""
        if self._experience is None or "experience" not in state_dict:
            self._restored = state_dict if "experience" in state_dict else None
        else:
            self._restore(self._experience, state_dict)

    def _restore(self, experience: ExperienceLoader, state: dict[str, Any]) -> None:
        if state.get("mixture") != self._drawn():
            raise ConfigError(
                "cannot continue: the weights or sizes in data.train are not those of the interrupted run, and its "
                "prompts would be missed or repeated; restore them, or start a new run from the weights "
                "(model.init_from)"
            )
        experience.restore(state["experience"])

    def _drawn(self) -> list[list[int]] | None:
        """Records and samples of each source of a mixture; None without weights."""
        return None if self._mixture is None else [list(self._mixture.sizes), list(self._mixture.counts)]
