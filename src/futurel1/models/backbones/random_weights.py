"""Backbones with random weights, by name: ``tiny@random``, or ``qwen3-vl-8b@random`` in the published shape.

Such a name stands wherever a checkpoint does, and nothing is downloaded for it. Options after a colon leave out layers:
``qwen3-vl-8b@random:layers=1,vision_layers=1``.
"""

import copy
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from futurel1.errors import ConfigError, MissingFileError
from futurel1.models.backbones.published import GENERATION, IMAGE_SIZE, PUBLISHED, VIDEO_SIZE
from futurel1.models.backbones.qwen_vocabulary import PACKAGE, qwen_table, qwen_tokenizer
from futurel1.models.backbones.tiny import (
    qwen3_vl_processor,
    tiny_config,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
)

logger = logging.getLogger(__name__)

TINY_RANDOM = "tiny@random"
"""The tiny backbone's shape with random weights."""
SHAPES = ("tiny", *PUBLISHED)
"""What can stand before ``@random``."""
_NAME = re.compile(r"(?P<shape>[^@/\\]*)@random(?::(?P<options>.*))?", re.DOTALL)
_OPTIONS = ("layers", "vision_layers")


def is_random(name: str | Path) -> bool:
    """Whether a name means a backbone with random weights, of a known shape or not."""
    return _NAME.fullmatch(str(name)) is not None


@dataclass(frozen=True)
class RandomBackbone:
    """A backbone with random weights, built in memory.

    Under ``torch.device("meta")`` it has a shape and no memory, under ``torch.device("cuda")`` it is built on the GPU.

    Attributes:
        shape: one of :data:`SHAPES`.
        layers: layers of the language model; None: as many as published.
        vision_layers: layers of the vision tower; None: as many as published.
    """

    shape: str
    layers: int | None = None
    vision_layers: int | None = None

    @classmethod
    def parse(cls, name: str | Path) -> Self:
        """Read a name such as ``qwen3-vl-8b@random:layers=1,vision_layers=1``.

        Raises:
            MissingFileError: a shape that is not known.
            ConfigError: an option that is not known, or a number of layers that the shape does not have.
        """
        found = _NAME.fullmatch(str(name))
        if found is None or found["shape"] not in SHAPES:
            known = ", ".join(f"{shape}@random" for shape in SHAPES)
            raise MissingFileError(f"no backbone {str(name)!r} with random weights; there are {known}")
        chosen: dict[str, int] = {}
        for option in [] if found["options"] is None else found["options"].split(","):
            key, _, value = option.partition("=")
            if key not in _OPTIONS or key in chosen or not value.isdecimal():
                raise ConfigError(
                    f"{name}: {option!r} is no option; after the colon write layers=N, vision_layers=N or both with a "
                    f"comma, as in {found['shape']}@random:layers=1,vision_layers=1"
                )
            chosen[key] = int(value)
        backbone = cls(found["shape"], **chosen)
        backbone._check_layers(str(name))
        return backbone

    def _check_layers(self, name: str) -> None:
        whole = _whole_config(self.shape)
        most = (whole.text_config.num_hidden_layers, whole.vision_config.depth)
        for option, given, there in zip(_OPTIONS, (self.layers, self.vision_layers), most, strict=True):
            if given is not None and not 1 <= given <= there:
                raise ConfigError(f"{name}: {self.shape} has {there} {option}, give {option}=1 to {option}={there}")

    def config(self) -> Any:
        """The stock configuration, with the layers that are left."""
        config = _whole_config(self.shape)
        text, vision = config.text_config, config.vision_config
        text.num_hidden_layers = self.layers or text.num_hidden_layers
        vision.depth = self.vision_layers or vision.depth
        # A level is read after a layer of the tower and added after one of the language model.
        levels = [level for level in vision.deepstack_visual_indexes if level < vision.depth] or [vision.depth - 1]
        vision.deepstack_visual_indexes = levels[: text.num_hidden_layers]
        return config

    def model(self, dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa") -> Any:
        """The stock model in eval mode, initialised by `transformers` with the same weights in every process.

        The global random state does not change.

        Args:
            dtype: dtype of the weights.
            attn_implementation: attention of `transformers`.
        """
        if self.shape == "tiny":
            config = self.config()
            vision = {"depth": config.vision_config.depth}
            model = tiny_model(vision=vision, num_hidden_layers=config.text_config.num_hidden_layers).to(dtype)
            model.set_attn_implementation(attn_implementation)
            return model
        import transformers

        place = torch.get_default_device()
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            torch.manual_seed(0)
            model = transformers.AutoModelForImageTextToText.from_config(  # type: ignore[no-untyped-call]
                self.config(), dtype=dtype, attn_implementation=attn_implementation
            )
        model.generation_config = transformers.GenerationConfig(**GENERATION)  # type: ignore[no-untyped-call]
        return model.eval()

    def processor(self) -> Any:
        """Tokenizer, image and video processor; latent tokens are not registered yet.

        A published shape has the published tokenizer if the package `dashscope` is installed, and else the tiny one.

        Raises:
            CheckpointError: `dashscope` carries another vocabulary.
        """
        if self.shape == "tiny":
            return tiny_processor()
        table = qwen_table()
        if table is None:
            logger.info("%s: tokenizer of 1,024 pieces, since %s is not installed", self.shape, PACKAGE)
        return qwen3_vl_processor(tiny_tokenizer() if table is None else qwen_tokenizer(table), IMAGE_SIZE, VIDEO_SIZE)


def _whole_config(shape: str) -> Any:
    """The stock configuration of a shape with all its layers."""
    if shape == "tiny":
        return tiny_config()
    from transformers import AutoConfig

    config = AutoConfig.for_model(**copy.deepcopy(PUBLISHED[shape]))
    if qwen_table() is None:  # ids of the tokenizer that stands in
        tiny = tiny_config()
        for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            setattr(config, name, getattr(tiny, name))
    return config
