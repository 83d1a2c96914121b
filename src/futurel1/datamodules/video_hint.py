"""Video/hint pairs for supervised latent training."""

import hashlib
import json
import logging
import random
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import Dataset

from futurel1.data import SFTBatch, open_records
from futurel1.data.chat import ENCODING, ChatEncoder
from futurel1.data.collate import OnError, SFTDataset
from futurel1.data.fetching import fetch
from futurel1.data.mixtures import Mixture, RecordPaths, positions, weighted_paths
from futurel1.data.records import RecordSource
from futurel1.data.video import VideoBackend
from futurel1.datamodules.base import RecordDataModule
from futurel1.datamodules.loading import PlannedLoader, Stage, plan_batches, sum_over_ranks
from futurel1.errors import ConfigError, FutureL1Error
from futurel1.files import replacing
from futurel1.leftovers import remove_leftovers_of
from futurel1.models.vision_cache import VisionFeatureCache
from futurel1.version import __version__

logger = logging.getLogger(__name__)
Paths = str | list[str]
UNKNOWN = 0
"""Marks the length of a record that could not be measured."""
_REMEDIES: dict[Stage, str] = {
    "train": "data.train",
    "val": "data.val, or data.val_fraction with data.train",
    "test": "data.test, data.val, or data.val_fraction with data.train",
    "predict": "data.predict, data.test, data.val, or data.val_fraction with data.train",
}


class VideoHintDataModule(RecordDataModule):
    """Records with observed frames and future (hint) frames, batched for :class:`LatentSFTModule`.

    Args:
        train: file, folder, pattern, address or list of them (.json, .jsonl, .parquet, .arrow) with training records;
            or a list of ``{path, weight}`` for a mixture, see :class:`futurel1.data.Mixture`.
        val: the same for validation; None: `val_fraction` of the training records.
        test: the same for `futurel1 test`; None: the validation records.
        predict: the same for `futurel1 predict`; None: the test records.
        val_fraction: share of the training records that is held out when `val` is None; 0 for no validation.
        data_root: folder that no record's path may leave, through `..`, an absolute path or a link; None: no check.
        processor: checkpoint folder whose tokenizer and image processor are used; None: the model's own.
        batch_size: records per batch and device, if `tokens_per_batch` is None.
        tokens_per_batch: most padded tokens per batch and device; records of similar length go together. Lengths are
            measured once per data set and kept in `cache_dir`.
        max_latent_tokens: L_max, most latents per hint frame.
        fixed_latents: give every hint exactly `max_latent_tokens` latents, features pooled to that number.
        max_hint_tokens: most visual tokens of a hint frame before they are pooled; None: `max_latent_tokens`.
        system_prompt: text file with the system turn; None: the checkpoint's own, else the paper's wording.
        max_length: most tokens per record; longer ones are errors.
        video_fps: frames per second taken from whole videos (chat records).
        video_max_frames: most frames taken from a whole video.
        video_frame_tokens: most merged tokens per frame of a whole video.
        video_backend: video decoder: `pyav` (the same as `auto`), or `decord` or `torchcodec` if installed.
        on_error: ``raise``: stop at the first record that cannot be used; ``skip``: leave it out, count it and write it
            to `skipped.jsonl` in the run folder.
        num_workers: processes that decode video; 0 decodes in the training process.
        shuffle: use a new random order of the training records in every epoch.
        shuffle_shards: packed shards (:func:`futurel1.pack.pack`) whose records are shuffled together. Others are not
            read meanwhile.
        seed: seed of the order and of the validation split.
        vision_cache: folder for features of the frozen vision tower; None: compute them every time.
        cache_dir: folder for measured lengths.

    Raises:
        ConfigError: settings that contradict each other.
    """

    def __init__(
        self,
        train: RecordPaths | None = None,
        val: Paths | None = None,
        test: Paths | None = None,
        predict: Paths | None = None,
        val_fraction: float = 0.0,
        data_root: str | None = None,
        processor: str | None = None,
        batch_size: int = 1,
        tokens_per_batch: int | None = None,
        max_latent_tokens: int = 4,
        fixed_latents: bool = False,
        max_hint_tokens: int | None = None,
        system_prompt: str | None = None,
        max_length: int = 16384,
        video_fps: float = 2.0,
        video_max_frames: int = 16,
        video_frame_tokens: int = 64,
        video_backend: VideoBackend = "auto",
        on_error: OnError = "raise",
        num_workers: int = 2,
        shuffle: bool = True,
        shuffle_shards: int = 16,
        seed: int = 0,
        vision_cache: str | None = None,
        cache_dir: str = "runs/cache",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not 0 <= val_fraction < 1:
            raise ConfigError(f"val_fraction must be at least 0 and below 1, got {val_fraction}")
        if val is not None and val_fraction:
            raise ConfigError("give val or val_fraction, not both")
        if train is None and val is None and test is None and predict is None:
            raise ConfigError("no data: give data.train (a .json, .jsonl or .parquet file, or a folder of them)")
        if val_fraction and train is None:
            raise ConfigError(f"val_fraction={val_fraction} is a share of data.train, which is not given")
        if tokens_per_batch is not None and isinstance(train, list) and weighted_paths(train):
            raise ConfigError(
                "weights in data.train with tokens_per_batch: its batches are composed once, but every epoch of a "
                "mixture has other records; set batch_size instead"
            )
        if batch_size < 1 or (tokens_per_batch is not None and tokens_per_batch < 1) or num_workers < 0:
            raise ConfigError(
                "batch_size and tokens_per_batch must be at least 1 and num_workers at least 0, got "
                f"{batch_size}, {tokens_per_batch} and {num_workers}"
            )
        if shuffle_shards < 1:
            raise ConfigError(f"shuffle_shards must be at least 1, got {shuffle_shards}")
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self._datasets: dict[Stage, SFTDataset] = {}
        self._lengths: dict[Stage, np.ndarray[Any, np.dtype[np.int64]]] = {}
        self._encoder: ChatEncoder | None = None
        self._cache: VisionFeatureCache | None = None

    # ------------------------------------------------------------------ set-up

    @property
    def encoder(self) -> ChatEncoder:
        """The encoder of records, made on first use with `processor` or the model's own processor."""
        if self._encoder is None:
            hparams = self.hparams
            processor = self.find_processor(hparams["processor"])
            names = (
                "max_latent_tokens", "fixed_latents", "max_hint_tokens", "system_prompt", "max_length", "video_fps",
                "video_max_frames", "video_frame_tokens", "video_backend",
            )  # fmt: skip
            options = {name: hparams[name] for name in names}
            self._encoder = ChatEncoder(processor, **options, keys=hparams["vision_cache"] is not None)
        return self._encoder

    def _stage_paths(self, stage: Stage) -> RecordPaths | None:
        order: dict[Stage, tuple[Stage, ...]] = {
            "train": ("train",),
            "val": ("val",),
            "test": ("test", "val"),
            "predict": ("predict", "test", "val"),
        }
        return next((self.hparams[name] for name in order[stage] if self.hparams[name] is not None), None)

    def dataset(self, stage: Stage) -> SFTDataset | None:
        """The records of a stage; None if the stage has none."""
        if stage not in self._datasets:
            made = self._make_dataset(stage)
            if made is None:
                return None
            self._datasets[stage] = made
        return self._datasets[stage]

    def _make_dataset(self, stage: Stage) -> SFTDataset | None:
        paths, numbers = self._stage_paths(stage), None
        fraction = self.hparams["val_fraction"]
        # A stage without its own records gets a share of the training records.
        split = bool(fraction) and (stage == "train" or paths is None)
        if split:
            paths = self.hparams["train"]
        if paths is None:
            return None
        source: RecordSource = open_records(paths, data_root=self.hparams["data_root"])
        if split:
            order = list(range(len(source)))
            random.Random(f"{self.hparams['seed']}:split").shuffle(order)
            held_out = max(1, round(fraction * len(order)))
            numbers = sorted(order[held_out:] if stage == "train" else order[:held_out])
        return SFTDataset(source, self.encoder, on_error=self.hparams["on_error"], data_numbers=numbers)

    def prepare_data(self) -> None:
        """Measure record lengths once, on one process, if batches are bounded by tokens."""
        if self.hparams["tokens_per_batch"] is not None:
            for stage in self._stages():
                self.lengths(stage)

    def _stages(self) -> tuple[Stage, ...]:
        running = None if self.trainer is None else self.trainer.state.fn
        by_function: dict[str, tuple[Stage, ...]] = {
            "fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",),
        }  # fmt: skip
        return by_function.get(str(getattr(running, "value", running)), ("train", "val"))

    def lengths(self, stage: Stage) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(records,) token counts of all records of a stage, read from disk if they were measured before.

        A record that could not be measured under `on_error: skip` counts as 1. The next run tries it again, because its
        files may exist by then.

        Raises:
            ConfigError: a record is longer than `tokens_per_batch`.
        """
        if stage in self._lengths:
            return self._lengths[stage]
        dataset = self.dataset(stage)
        if dataset is None:
            return np.zeros(0, dtype=np.int64)
        file = Path(self.hparams["cache_dir"]) / f"lengths-{self._fingerprint(dataset)}.npy"
        measured = _stored_lengths(file, len(dataset))
        missing = np.flatnonzero(measured == UNKNOWN)
        if len(missing):
            measured[missing] = _measure(dataset, missing.tolist(), self.hparams["num_workers"])
            _save(file, measured)
        # Longer records raise an error when they are encoded.
        lengths: np.ndarray[Any, np.dtype[np.int64]] = np.clip(measured, 1, self.hparams["max_length"])
        self._check_budget(dataset, lengths)
        self._lengths[stage] = lengths
        return lengths

    def _check_budget(self, dataset: SFTDataset, lengths: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        budget = self.hparams["tokens_per_batch"]
        longest = int(lengths.argmax())
        if budget is not None and lengths[longest] > budget:
            number = longest if dataset.numbers is None else dataset.numbers[longest]
            raise ConfigError(
                f"{dataset.source.id(number)} has {lengths[longest]} tokens, more than tokens_per_batch={budget}; "
                "raise tokens_per_batch, or set max_length to it with on_error: skip to leave such records out"
            )

    def _fingerprint(self, dataset: SFTDataset) -> str:
        """Digest of everything that record lengths depend on, except the contents of media files."""
        files = [(file.place, file.version, file.size) for file in dataset.source.files]
        names = (
            "max_latent_tokens",
            "fixed_latents",
            "video_fps",
            "video_max_frames",
            "video_frame_tokens",
            "on_error",
            "data_root",
        )
        settings = {name: self.hparams[name] for name in names}
        processor = self.encoder.processor
        image = {name: str(getattr(processor.image_processor, name)) for name in ("size", "patch_size", "merge_size")}
        words = sorted(processor.tokenizer.get_vocab().items())
        numbers = None if dataset.numbers is None else list(dataset.numbers)
        family = type(processor).__name__
        text = [__version__, ENCODING, files, numbers, settings, family, image, words, self.encoder.system_prompt]
        return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:20]

    # ------------------------------------------------------------------ loaders

    def _loader(self, stage: Stage) -> PlannedLoader | list[Any]:
        trainer: Any = self.trainer
        dataset = self.dataset(stage)
        if dataset is None:
            if trainer is not None and trainer.state.fn not in (None, TrainerFn.FITTING):
                raise ConfigError(f"no records for `{trainer.state.fn.value}`: give {_REMEDIES[stage]}")
            return []
        world_size = 1 if trainer is None else trainer.world_size
        training = stage == "train"
        plan = partial(
            _plan,
            size=len(dataset),
            batch_size=self.hparams["batch_size"],
            world_size=world_size,
            seed=self.hparams["seed"],
            shuffle=training and self.hparams["shuffle"],
            lengths=None if self.hparams["tokens_per_batch"] is None else self.lengths(stage),
            tokens_per_batch=self.hparams["tokens_per_batch"],
            mixture=self._mixture(dataset) if training else None,
            shards=[positions(shard, dataset.numbers) for shard in dataset.source.shards] if training else (),
            shuffle_shards=self.hparams["shuffle_shards"],
        )
        return PlannedLoader(
            dataset,
            plan,
            rank=0 if trainer is None else trainer.global_rank,
            tokens=self.encoder.tokens,
            pad_token_id=self.encoder.pad_token_id,
            num_workers=self.hparams["num_workers"],
            fixed_epoch=not training or (trainer is not None and bool(trainer.overfit_batches)),
            **(_training_options(trainer) if training and trainer is not None else {}),
        )

    def _mixture(self, dataset: SFTDataset) -> Mixture | None:
        """What draws the records of an epoch; None without weights."""
        if not dataset.source.mixed:
            return None
        mixture = Mixture(dataset.source.mixed, seed=self.hparams["seed"], numbers=dataset.numbers)
        logger.info("training mixture: %s", mixture)
        return mixture

    def train_dataloader(self) -> PlannedLoader | list[Any]:
        """Planned training batches with the token totals of their optimizer step."""
        loader = self._loader("train")
        if isinstance(loader, list):
            raise ConfigError(f"no training records: give {_REMEDIES['train']}")
        return loader

    def val_dataloader(self) -> PlannedLoader | list[Any]:
        """Validation batches, the same in every epoch; empty without validation records."""
        return self._loader("val")

    def test_dataloader(self) -> PlannedLoader | list[Any]:
        """Test batches; the validation records if there is no test split."""
        return self._loader("test")

    def predict_dataloader(self) -> PlannedLoader | list[Any]:
        """Prediction batches; the test records if there is no prediction split."""
        return self._loader("predict")

    # ------------------------------------------------------------------ batches

    def on_after_batch_transfer(self, batch: SFTBatch, dataloader_idx: int) -> SFTBatch:
        """Report skipped records, and look up cached features of the frozen vision tower."""
        if batch.skipped:
            self.report_skipped(batch.skipped)
        if self.hparams["vision_cache"] is None:
            return batch
        if self._cache is None:
            self._cache = self._open_cache()
        changes: dict[str, Any] = {}
        # Lightning calls this hook outside the precision context of the steps.
        with self._cache_precision():
            if (
                batch.pixel_values is not None
                and batch.image_grid_thw is not None
                and batch.pixel_values_videos is None
            ):
                changes["image_features"] = self._cache.encode(
                    batch.pixel_values, batch.image_grid_thw, batch.image_keys
                )
            if batch.hint_pixel_values is not None and batch.hint_grid_thw is not None:
                changes["hint_features"] = self._cache.encode(
                    batch.hint_pixel_values, batch.hint_grid_thw, batch.hint_keys
                )
        return replace(batch, **changes)

    def _cache_precision(self) -> AbstractContextManager[None]:
        return nullcontext() if self.trainer is None else self.trainer.precision_plugin.forward_context()

    def _open_cache(self) -> VisionFeatureCache:
        trainer = self.trainer
        if trainer is None:
            raise ConfigError("a vision cache works inside a Trainer only")
        if getattr(trainer.strategy, "device_mesh", None) is not None:
            raise ConfigError("vision_cache cannot be used with sharded weights (ModelParallelStrategy)")
        module: Any = trainer.lightning_module
        return VisionFeatureCache(self.hparams["vision_cache"], module.reasoner)


def _training_options(trainer: Trainer) -> dict[str, Any]:
    """Arguments of a training loader that query the Trainer: its position, and what makes up an optimizer step."""
    return {
        # not `epoch_progress.current.processed`, which samplers get: it runs ahead after some resumes
        "position": lambda: (trainer.current_epoch, trainer.fit_loop.batch_idx + 1),
        "limit": lambda: trainer.num_training_batches,
        "window": lambda: trainer.accumulate_grad_batches,
        "reduce": partial(sum_over_ranks, device=trainer.strategy.root_device),
    }


def _plan(epoch: int, *, size: int, **options: Any) -> list[list[list[int]]]:
    return plan_batches(size, epoch=epoch, **options)


class _Lengths(Dataset[int]):
    """Lengths by number, for measuring in parallel; UNKNOWN for a record that cannot be used under `on_error: skip`."""

    def __init__(self, dataset: SFTDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, number: int) -> int:
        try:
            return self.dataset.length(number)
        except FutureL1Error:
            if self.dataset.on_error == "raise":
                raise
            return UNKNOWN  # reported when its batch is made


def _stored_lengths(file: Path, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Lengths that were measured before; unknown ones where there is no such file, or a damaged one."""
    if file.is_file():
        try:
            stored: np.ndarray[Any, np.dtype[Any]] = np.load(file, allow_pickle=False)
            if stored.shape == (count,) and stored.dtype.kind in "iu":
                return stored.astype(np.int64)
            problem = f"{stored.dtype} of shape {stored.shape} in it"
        except (OSError, ValueError, EOFError) as error:
            problem = str(error)
        logger.warning("%s is damaged (%s): record lengths are measured again", file, problem)
    return np.full(count, UNKNOWN)


def _measure(dataset: SFTDataset, numbers: list[int], num_workers: int) -> list[int]:
    from rich.progress import track

    size = 64
    batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    parts = fetch(_Lengths(dataset), batches, list, num_workers=num_workers)
    lengths: list[int] = []
    for part in track(parts, description="measuring record lengths", total=len(batches)):
        lengths.extend(part)
    return lengths


def _save(file: Path, array: np.ndarray[Any, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers_of(file)
        with replacing(file) as partial_file, partial_file.open("wb") as stream:
            np.save(stream, array)
    except OSError as error:
        logger.warning(
            "cache_dir %s cannot be written (%s): record lengths will be measured again by the next run. Check its "
            "permissions and free space, or name another folder",
            file.parent, error,
        )  # fmt: skip
