"""Unlabelled clips of a world, rendered in memory: observed frames, and frames to imagine."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from futurel1.data import SFTBatch
from futurel1.data.chat import ChatEncoder
from futurel1.data.samples import Frame, Sample, Turn
from futurel1.datamodules.scene_frames import DrawnDataModule, check_numbers, chosen_world
from futurel1.errors import ConfigError
from futurel1.worlds import SceneWorld

__all__ = ["SceneClipsDataModule"]


class SceneClipsDataModule(DrawnDataModule):
    """Batches of unlabelled clips: the first frames are observed, the frames that follow are hints.

    Unlabelled video teaches how a scene continues. Rendering millions of frames in memory costs next to nothing, while
    writing as many clips to disk would take hours. Clips look like those of the world's split ``pretrain``. A batch
    depends only on the seed and its number, so a resumed run sees the same batches.

    Args:
        num_batches: training batches per epoch.
        num_val_batches: validation batches, made of other clips.
        batch_size: clips per batch.
        observed: observed frames; two are enough to reveal speeds.
        imagined: frames to imagine, which follow the observed ones; a clip of the world of events has 10 frames in all.
        frame_size: side of the frames in pixels, a multiple of 32.
        noise: standard deviation of pixel noise in grey levels, which imitates compressed video.
        max_latent_tokens: as of :class:`VideoHintDataModule`.
        fixed_latents: as of :class:`VideoHintDataModule`.
        max_hint_tokens: as of :class:`VideoHintDataModule`.
        system_prompt: as of :class:`VideoHintDataModule`.
        seed: seed of the clips.
        num_workers: processes that render clips; 0 renders in the training process.
        world: the world; None for the world of events.

    Raises:
        ConfigError: an invalid number.
    """

    def __init__(
        self,
        num_batches: int = 2000,
        num_val_batches: int = 4,
        batch_size: int = 96,
        observed: int = 2,
        imagined: int = 8,
        frame_size: int = 64,
        noise: float = 2.0,
        max_latent_tokens: int = 1,
        fixed_latents: bool = True,
        max_hint_tokens: int | None = 4,
        system_prompt: str | None = None,
        seed: int = 0,
        num_workers: int = 1,
        world: SceneWorld | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["world"])
        self.world = chosen_world(world, self.hparams)
        if min(num_batches, num_val_batches, batch_size) < 1:
            raise ConfigError(
                "num_batches, num_val_batches and batch_size are at least 1, got "
                f"{num_batches}, {num_val_batches} and {batch_size}"
            )
        if min(observed, imagined) < 1 or observed + imagined > self.world.num_steps:
            raise ConfigError(
                f"observed={observed} and imagined={imagined}: at least 1 each, and together at most the "
                f"{self.world.num_steps} frames of a clip"
            )
        if frame_size < 32 or frame_size % 32:
            raise ConfigError(f"frame_size={frame_size}: a multiple of 32 is needed")
        check_numbers(noise, seed, num_workers)

    def batches(self, stream: int) -> "_ClipBatches":
        """Clips of a stream (0 for training, 1 for validation)."""
        hparams = self.hparams
        encoder = ChatEncoder(
            self.processor_for("clips are encoded"),
            max_latent_tokens=hparams["max_latent_tokens"],
            fixed_latents=hparams["fixed_latents"],
            max_hint_tokens=hparams["max_hint_tokens"],
            system_prompt=hparams["system_prompt"],
        )
        return _ClipBatches(
            encoder,
            entropy=(hparams["seed"], stream),
            size=hparams["batch_size"],
            frames=(hparams["observed"], hparams["imagined"]),
            frame_size=hparams["frame_size"],
            noise=hparams["noise"],
            world=self.world,
        )


class _ClipBatches(Dataset[SFTBatch]):
    """Batches of clips by number."""

    def __init__(
        self,
        encoder: ChatEncoder,
        *,
        entropy: tuple[int, int],
        size: int,
        frames: tuple[int, int],
        frame_size: int,
        noise: float,
        world: SceneWorld,
    ) -> None:
        self.encoder = encoder
        self.entropy = entropy
        self.size = size
        self.observed, self.imagined = frames
        self.frame_size = frame_size
        self.noise = noise
        self.world = world
        self.template = encoder.encode(self._blank())

    def _blank(self) -> Sample:
        """A clip of black frames: its token ids are those of every clip, because all frames have one size."""
        file = io.BytesIO()
        Image.new("RGB", (self.frame_size, self.frame_size)).save(file, "PNG")
        frame = Frame(Path("blank.png"), None, file.getvalue())
        turns = (Turn("user", (frame,) * self.observed), Turn("assistant", (frame,) * self.imagined))
        return Sample("blank:1", turns, None, {})

    def __getitem__(self, number: int) -> SFTBatch:
        rng = np.random.default_rng(np.random.SeedSequence([*self.entropy, number]))
        length = self.observed + self.imagined
        scenes = self.world.scenes(rng, self.size, size=self.frame_size, split="pretrain")
        starts = rng.integers(self.world.num_steps - length + 1, size=self.size).tolist()
        clean = np.stack(
            [scene.render(range(start, start + length)) for scene, start in zip(scenes, starts, strict=True)]
        )
        disturbed = clean + self.noise * rng.standard_normal(clean.shape, dtype=np.float32)
        noisy = np.clip(np.rint(disturbed), 0, 255).astype(np.uint8)
        seen = [Image.fromarray(frame) for clip in noisy[:, : self.observed] for frame in clip]
        hints = [self.encoder.as_hint(Image.fromarray(frame)) for clip in noisy[:, self.observed :] for frame in clip]
        patches = self.encoder.processor.image_processor
        shown, future = (patches(images=pictures, do_resize=False, return_tensors="pt") for pictures in (seen, hints))
        template = self.template
        return SFTBatch(
            input_ids=template.input_ids.repeat(self.size, 1),
            attention_mask=torch.ones_like(template.input_ids).repeat(self.size, 1),
            labels=template.labels.repeat(self.size, 1),
            pixel_values=shown["pixel_values"],
            image_grid_thw=shown["image_grid_thw"],
            hint_pixel_values=future["pixel_values"],
            hint_grid_thw=future["image_grid_thw"],
            sample_ids=tuple(f"clips-{self.entropy[1]}-{number}:{row + 1}" for row in range(self.size)),
        )
