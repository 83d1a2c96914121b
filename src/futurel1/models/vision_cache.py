"""On-disk cache for features of a frozen vision tower: each frame is encoded once, not once per epoch."""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from futurel1.errors import ConfigError
from futurel1.files import replacing
from futurel1.leftovers import remove_leftovers
from futurel1.models.backbones import VisionFeatures
from futurel1.models.backbones.base import check_patches
from futurel1.models.reasoner import LatentReasoner

logger = logging.getLogger(__name__)


def tower_fingerprint(reasoner: LatentReasoner) -> str:
    """Digest of the vision tower: its weights, its dtype and its family."""
    digest = hashlib.sha256(reasoner.backbone.model_type.encode())
    for name, tensor in sorted(reasoner.backbone.vision_tower.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class VisionFeatureCache:
    """Looks up features by frame and tower, and computes only those that are missing.

    An entry's file name is a digest of its full key (video file, modification time, size, frame, patch grid, precision,
    tower). The entry also stores the key, and every read compares it, so a changed video or tower never gets stale
    features.

    Args:
        folder: folder of the safetensors files, with subfolders named after the first two digits of the digest.
        reasoner: model with a frozen vision tower.

    Raises:
        ConfigError: the vision tower is being trained, or the folder is a file.
    """

    def __init__(self, folder: str | Path, reasoner: LatentReasoner) -> None:
        if reasoner.vision_is_trainable:
            raise ConfigError(
                "a vision feature cache needs a frozen vision tower, mergers included: freeze 'vision' and 'merger', "
                "or leave vision_cache out"
            )
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise ConfigError(f"vision_cache {folder} is a file; name a folder")
        self.folder = Path(folder)
        self.reasoner = reasoner
        self.fingerprint = tower_fingerprint(reasoner)
        self.hits = 0
        self.misses = 0
        self._warned: set[str] = set()
        self._cleaned: set[Path] = set()

    def encode(self, pixel_values: Tensor, grid_thw: Tensor, keys: Sequence[str]) -> VisionFeatures:
        """Look up or compute the features of images.

        Args:
            pixel_values: (P, D) patches of all images.
            grid_thw: (I, 3) patch grid of each image.
            keys: I keys, one per image.

        Raises:
            ConfigError: keys and images differ in number.
        """
        if len(keys) != len(grid_thw):
            raise ConfigError(f"{len(keys)} cache keys for {len(grid_thw)} images")
        if not keys:
            return self.reasoner.backbone.encode_images(pixel_values, grid_thw).detach()
        device = pixel_values.device
        check_patches("image", pixel_values, grid_thw)
        names = [self._full_key(key, grid, device) for key, grid in zip(keys, grid_thw.tolist(), strict=True)]
        entries = [self._read(name, device) for name in names]
        missing = [i for i, entry in enumerate(entries) if entry is None]
        self.hits += len(entries) - len(missing)
        self.misses += len(missing)
        if missing:
            patches = torch.split(pixel_values, grid_thw.prod(dim=-1).tolist())
            chosen = torch.tensor(missing, device=grid_thw.device)
            with torch.no_grad():
                fresh = self.reasoner.backbone.encode_images(
                    torch.cat([patches[i] for i in missing]), grid_thw[chosen]
                ).detach()
            levels = [torch.split(level, list(fresh.counts)) for level in (fresh.embeds, *fresh.deepstack)]
            for i, *parts in zip(missing, *levels, strict=True):
                entries[i] = parts
                self._write(names[i], parts)
        columns = list(zip(*(entry for entry in entries if entry is not None), strict=True))
        embeds, *deepstack = (torch.cat(column) for column in columns)
        counts = tuple(len(part) for part in columns[0])
        return VisionFeatures(embeds, tuple(deepstack), grid_thw, counts)

    def _full_key(self, key: str, grid: Sequence[int], device: torch.device) -> str:
        # Autocast changes what the tower computes without changing its weights.
        autocast = torch.is_autocast_enabled(device.type)
        precision = torch.get_autocast_dtype(device.type) if autocast else "as stored"
        return f"{key}|{'x'.join(map(str, grid))}|{precision}|{self.fingerprint}"

    def _file(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:40]}.safetensors"

    def _read(self, name: str, device: torch.device) -> list[Tensor] | None:
        from safetensors import SafetensorError, safe_open

        file = self._file(name)
        try:
            if not file.is_file():
                return None
            with safe_open(file, framework="pt", device=str(device)) as handle:
                if (handle.metadata() or {}).get("key") != name:
                    return None
                return [handle.get_tensor(str(level)) for level in range(len(handle.keys()))]
        except SafetensorError as error:
            logger.warning("%s is damaged (%s) and will be written anew", file, error)
            return None
        except OSError as error:
            self._say_it_fails("read", error)
            return None

    def _write(self, name: str, parts: Sequence[Tensor]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        file = self._file(name)
        tensors = {str(level): part.contiguous() for level, part in enumerate(parts)}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.parent not in self._cleaned:  # what a killed run was writing is missing, so it is written again
                self._cleaned.add(file.parent)
                remove_leftovers(file.parent)
            with replacing(file) as partial:
                save_file(tensors, partial, metadata={"key": name})
        except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
            self._say_it_fails("written", error)

    def _say_it_fails(self, what: str, error: Exception) -> None:
        """Warn once for reading and once for writing: features are computed where the cache fails."""
        if what not in self._warned:
            self._warned.add(what)
            logger.warning(
                "vision_cache %s cannot be %s (%s): frames are encoded again in every epoch. Check its permissions and "
                "free space, or name another folder",
                self.folder, what, error,
            )  # fmt: skip
