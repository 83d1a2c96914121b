"""Frames of a world with codes of their content, rendered in memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, MutableMapping
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from futurel1.data.fetching import fetch
from futurel1.errors import ConfigError
from futurel1.recipes import keep_recipe, object_of
from futurel1.worlds import EventsWorld, SceneWorld

__all__ = ["FrameBatch", "SceneFramesDataModule"]

FRAMES_PER_SCENE = 2


class FrameBatch(NamedTuple):
    """I frames in P patches of D values, with codes of their content.

    Attributes:
        pixel_values: (P, D) patches.
        image_grid_thw: (I, 3) int64 patch grids.
        codes: (I, C) what the frames show, see `futurel1.worlds.SceneWorld`.
    """

    pixel_values: Tensor
    image_grid_thw: Tensor
    codes: Tensor


def chosen_world(given: SceneWorld | None, hparams: MutableMapping[str, Any]) -> SceneWorld:
    """The world that a constructor argument stands for; the hyper-parameters receive how it is made.

    Args:
        given: the argument: a world, what a checkpoint holds of one, or None for the world of events.
        hparams: hyper-parameters to add it to.

    Raises:
        ConfigError: the checkpoint does not know how the world is made.
    """
    world: SceneWorld | None = object_of(SceneWorld, "world", given)
    keep_recipe(hparams, "world", world)
    return EventsWorld() if world is None else world


def check_numbers(noise: float, seed: int, num_workers: int) -> None:
    """Refuse numbers that no data module of rendered batches can use.

    Raises:
        ConfigError: one of them is negative, or not a number.
    """
    if not noise >= 0:
        raise ConfigError(f"noise is a number of grey levels from 0, got {noise}")
    if min(seed, num_workers) < 0:
        raise ConfigError(f"seed and num_workers count from 0, got {seed} and {num_workers}")


class DrawnDataModule(LightningDataModule, ABC):
    """Batches that are rendered in memory, by number.

    Subclasses have the hyper-parameters `num_batches`, `num_val_batches` and `num_workers`.
    """

    @abstractmethod
    def batches(self, stream: int) -> Dataset[Any]:
        """Batches by number.

        Args:
            stream: 0 for training, 1 for validation; the two have different batches.

        Raises:
            ConfigError: there is no Trainer, whose model provides the processor.
        """

    def processor_for(self, purpose: str) -> Any:
        """The processor of the Trainer's model.

        Args:
            purpose: what it does to the batches, for the message.

        Raises:
            ConfigError: there is no Trainer.
        """
        if self.trainer is None:
            raise ConfigError(f"{purpose} by the model's processor: load them inside a Trainer")
        module: Any = self.trainer.lightning_module
        return module.processor

    def train_dataloader(self) -> "BatchesFrom":
        """Training batches, in the same order in every epoch."""
        trainer: Any = self.trainer
        hparams = self.hparams
        return BatchesFrom(
            self.batches(0), hparams["num_batches"], lambda: trainer.fit_loop.batch_idx + 1, hparams["num_workers"]
        )

    def val_dataloader(self) -> "BatchesFrom":
        """Validation batches."""
        return BatchesFrom(self.batches(1), self.hparams["num_val_batches"], lambda: 0, self.hparams["num_workers"])


class SceneFramesDataModule(DrawnDataModule):
    """Batches of random frames of a world, of everything that occurs in it.

    A batch depends only on the seed and its number, so a resumed run sees the same batches.

    Args:
        num_batches: training batches per epoch.
        num_val_batches: validation batches, made of other scenes.
        batch_size: frames per batch, an even number: each scene gives two.
        frame_sizes: sides in pixels, multiples of 32. Each batch samples one; a size listed twice is twice as likely.
        noise: standard deviation of pixel noise in grey levels, which imitates compressed video.
        seed: seed of the frames.
        num_workers: processes that render frames; 0 renders in the training process.
        world: the world; None for the world of events.

    Raises:
        ConfigError: an invalid number.
    """

    def __init__(
        self,
        num_batches: int = 3000,
        num_val_batches: int = 8,
        batch_size: int = 96,
        frame_sizes: list[int] = [64, 64, 64, 96],  # noqa: B006 (never changed; a tuple cannot be written in YAML)
        noise: float = 2.0,
        seed: int = 0,
        num_workers: int = 1,
        world: SceneWorld | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["world"])
        self.world = chosen_world(world, self.hparams)
        if min(num_batches, num_val_batches) < 1 or batch_size < 2 or batch_size % FRAMES_PER_SCENE:
            raise ConfigError(
                "num_batches and num_val_batches are at least 1 and batch_size an even number, got "
                f"{num_batches}, {num_val_batches} and {batch_size}"
            )
        if not frame_sizes or any(size < 32 or size % 32 for size in frame_sizes):
            raise ConfigError(f"frame_sizes are multiples of 32, got {frame_sizes}")
        check_numbers(noise, seed, num_workers)

    def batches(self, stream: int) -> "_FrameBatches":
        """Frames of a stream (0 for training, 1 for validation)."""
        hparams = self.hparams
        return _FrameBatches(
            self.processor_for("frames are cut into patches").image_processor,
            entropy=(hparams["seed"], stream),
            size=hparams["batch_size"],
            frame_sizes=hparams["frame_sizes"],
            noise=hparams["noise"],
            world=self.world,
        )


class BatchesFrom:
    """A sized loader that yields batches in order, starting where an interrupted run stopped.

    Args:
        batches: batches by number.
        count: number of batches.
        first: returns the number of the first batch to yield; called when a pass begins.
        num_workers: processes that make batches.
    """

    def __init__(self, batches: Dataset[Any], count: int, first: Callable[[], int], num_workers: int) -> None:
        self.batches = batches
        self.count = count
        self.first = first
        self.num_workers = num_workers

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that `first` is called late: a resuming Trainer makes its iterator before it restores its
        # counts, and makes no new one after an epoch has ended.
        numbers = ([number] for number in range(self.first(), self.count))
        yield from fetch(self.batches, numbers, itemgetter(0), num_workers=self.num_workers)

    def state_dict(self) -> dict[str, Any]:
        """Empty, because the Trainer counts batches; the method tells Lightning that the loader can resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing: there is no state."""


class _FrameBatches(Dataset[FrameBatch]):
    """Batches of frames by number."""

    def __init__(
        self,
        image_processor: Any,
        *,
        entropy: tuple[int, int],
        size: int,
        frame_sizes: list[int],
        noise: float,
        world: SceneWorld,
    ) -> None:
        self.image_processor = image_processor
        self.entropy = entropy
        self.size = size
        self.frame_sizes = frame_sizes
        self.noise = noise
        self.world = world

    def __getitem__(self, number: int) -> FrameBatch:
        rng = np.random.default_rng(np.random.SeedSequence([*self.entropy, number]))
        frame_size = self.frame_sizes[int(rng.integers(len(self.frame_sizes)))]
        pictures, codes = [], []
        for scene in self.world.scenes(rng, self.size // FRAMES_PER_SCENE, size=frame_size):
            steps = rng.choice(self.world.num_steps, FRAMES_PER_SCENE, replace=False).tolist()
            pictures.append(scene.render(steps))
            codes.append(scene.code(steps))
        noisy = np.concatenate(pictures) + rng.normal(0, self.noise, (self.size, frame_size, frame_size, 3))
        frames = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        inputs = self.image_processor(images=list(frames), do_resize=False, return_tensors="pt")
        return FrameBatch(inputs["pixel_values"], inputs["image_grid_thw"], torch.from_numpy(np.concatenate(codes)))
