"""Pretraining of a vision tower on the frames of a world, before a language model learns to read its features."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from futurel1.datamodules.scene_frames import FrameBatch, chosen_world
from futurel1.errors import ConfigError
from futurel1.models import LatentReasoner, LatentTokens, TrainingRun, load_processor
from futurel1.models.backbones import Qwen3VLBackbone
from futurel1.models.backbones.random_weights import TINY_RANDOM
from futurel1.models.backbones.tiny import tiny_model
from futurel1.modules.exact_resume import ExactResumeModule
from futurel1.modules.optimization import Schedule, freeze_parts, group_settings, schedule_factor, total_steps
from futurel1.worlds import SceneWorld

MEASURED_CLIPS = 512


class TowerPretrainModule(ExactResumeModule):
    """Trains only the vision tower: every post-merger feature of a frame regresses the content of the whole frame.

    The target is the frame's code (what the world says it shows, such as positions and colours), centred, scaled to a
    root mean square of 1 and rotated at random into the width of the features. So every feature, and any mean of
    features, describes the whole frame and nothing else, and features have the scale that latents need. DeepStack
    mergers are not part of the loss and keep their initial weights.

    Args:
        vision_depth: number of layers of the vision tower.
        vision_width: width of the vision tower.
        text_depth: number of layers of the language model, which is exported with its initial weights.
        text_width: width of the language model, and of the features.
        seed: seed of the initial weights.
        learning_rate: AdamW learning rate.
        betas: AdamW betas.
        weight_decay: AdamW decay.
        lr_schedule: ``cosine``, ``linear`` or ``constant`` after the warm-up.
        warmup_ratio: share of all steps used for linear warm-up.
        rotation_seed: seed of the rotation, and of the clips whose codes are the measure of centre and scale.
        world: the world; None for the world of events.

    Raises:
        ConfigError: features that are narrower than the code.
    """

    reasoner: LatentReasoner

    def __init__(
        self,
        vision_depth: int = 3,
        vision_width: int = 96,
        text_depth: int = 4,
        text_width: int = 128,
        seed: int = 0,
        learning_rate: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
        lr_schedule: Schedule = "cosine",
        warmup_ratio: float = 0.03,
        rotation_seed: int = 0,
        world: SceneWorld | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["world"])
        self.world = chosen_world(world, self.hparams)
        if text_width < self.world.code_size:
            raise ConfigError(
                f"text_width={text_width}: features have to hold a code of {self.world.code_size} numbers"
            )

    @cached_property
    def processor(self) -> Any:
        """The processor of the tiny backbone."""
        return load_processor(TINY_RANDOM)

    def configure_model(self) -> None:
        """Build the backbone and the target's constants, once."""
        if hasattr(self, "reasoner"):
            return
        hparams = self.hparams
        tower, width = hparams["vision_width"], hparams["text_width"]
        vision = {"depth": hparams["vision_depth"], "hidden_size": tower, "intermediate_size": 2 * tower}
        model = tiny_model(
            hparams["seed"],
            vision,
            num_hidden_layers=hparams["text_depth"],
            hidden_size=width,
            intermediate_size=3 * width,
        )
        tokens = LatentTokens.from_tokenizer(self.processor.tokenizer)
        assert tokens is not None  # load_processor registers them
        reasoner = LatentReasoner(Qwen3VLBackbone(model), tokens, processor=self.processor)
        freeze_parts(reasoner, ["llm", "head"])
        self.reasoner = reasoner
        generator = torch.Generator().manual_seed(hparams["rotation_seed"])
        rotation = torch.linalg.qr(torch.randn(width, width, generator=generator))[0][: self.world.code_size]
        scenes = self.world.scenes(np.random.default_rng(hparams["rotation_seed"]), MEASURED_CLIPS)
        steps = range(self.world.num_steps)
        codes = torch.from_numpy(np.concatenate([scene.code(steps) for scene in scenes]))
        mean = codes.mean(dim=0)
        self.register_buffer("rotation", rotation)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", (width / (codes - mean).square().sum(dim=1).mean()).sqrt())

    def on_train_start(self) -> None:
        """Switch to training mode, because `tiny_model` returns eval mode, and `fit` keeps it."""
        super().on_train_start()
        self.train()

    def _features(self, batch: FrameBatch) -> tuple[Tensor, Tensor]:
        """(N, H) features of all frames, and the target of each."""
        features = self.reasoner.backbone.encode_images(batch.pixel_values, batch.image_grid_thw)
        mean, scale, rotation = self.get_buffer("mean"), self.get_buffer("scale"), self.get_buffer("rotation")
        target = ((batch.codes - mean) * scale) @ rotation
        counts = torch.tensor(features.counts, device=target.device)
        return features.embeds, target.repeat_interleave(counts, dim=0)

    def codes(self, features: Tensor) -> Tensor:
        """(N, H) features to the (N, code_size) codes that they stand for, by inverting the rotation."""
        mean, scale, rotation = self.get_buffer("mean"), self.get_buffer("scale"), self.get_buffer("rotation")
        return features @ rotation.T / scale + mean

    def training_step(self, batch: FrameBatch, batch_idx: int) -> Tensor:
        """Mean squared error over features."""
        features, target = self._features(batch)
        loss = F.mse_loss(features, target)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/rms", features.detach().square().mean().sqrt())
        return loss

    def validation_step(self, batch: FrameBatch, batch_idx: int) -> None:
        """Log the error, and how well the mean feature of a frame encodes places, visibility and other classes."""
        features, target = self._features(batch)
        frames = len(batch.codes)
        pooled = features.view(frames, -1, features.shape[-1]).mean(dim=1)
        told = self.world.read_code(self.codes(pooled).cpu().numpy())
        true = self.world.read_code(batch.codes.cpu().numpy())
        apart = np.linalg.norm(told.positions - true.positions, axis=-1)[true.visible]
        values: dict[str, Any] = {
            "loss": F.mse_loss(features, target),
            "rms": features.square().mean().sqrt(),
            "position_error": float(apart.mean()),  # in sides of the frame
            "class_accuracy": float((told.classes == true.classes)[true.classes >= 0].mean()),
            "visible_accuracy": float((told.visible == true.visible).mean()),
        }
        self.log_dict({f"val/{name}": value for name, value in values.items()}, batch_size=frames, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW over the tower, and a schedule over the run's steps, as Lightning's dictionary."""
        hparams = self.hparams
        trained = [parameter for parameter in self.reasoner.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=hparams["learning_rate"], betas=tuple(hparams["betas"]), weight_decay=hparams["weight_decay"]
        )
        self._optimizer_settings = group_settings(optimizer)
        factor = schedule_factor(hparams["lr_schedule"], total_steps(self.trainer), hparams["warmup_ratio"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def export(self, folder: str | Path, *, training: TrainingRun | None = None) -> Path:
        """Write the model in Hugging Face format.

        Args:
            folder: folder to write.
            training: the run, for the model card.

        Returns:
            The folder.
        """
        if self.global_rank == 0:
            self.reasoner.save_pretrained(folder, training=training)
        return Path(folder)
