"""Storage of a world's clips and records in a folder: complete files only, and one world per folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from futurel1.errors import ConfigError
from futurel1.files import replacing, write_whole
from futurel1.leftovers import remove_leftovers
from futurel1.worlds.clips import OBSERVED_FOLDER, SPLITS, VIDEO_FOLDER

__all__ = ["CHANGES", "PRETRAINING_KINDS", "claim_folder", "write_clip", "write_records"]

FRAMES_PER_SECOND = 2
MANIFEST = "world.json"
CLIP_FOLDERS = (VIDEO_FOLDER, OBSERVED_FOLDER)
PRETRAINING_KINDS = ("describe", "imagine", "watch", "tell", "answer")
CHANGES = ("reversed", "moved", "recoloured")
"""Changes to the observed frames of the split `counterfactual`."""
RECORD_FILES = (
    *(f"{split}.jsonl" for split in SPLITS),
    *(f"{split}_open.jsonl" for split in SPLITS),
    *(f"pretrain_{kind}.jsonl" for kind in PRETRAINING_KINDS),
    *(f"counterfactual_{change}.jsonl" for change in CHANGES),
    "futurebench.jsonl",
)


def claim_folder(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Prepare a folder for a world with these settings; this process must hold the folder's lock.

    Args:
        out: the folder; created if missing.
        settings: all settings that clips depend on; they are written to the folder's manifest.
        overwrite: remove the clips and records of a world that is already there, whatever its settings.

    Raises:
        ConfigError: the folder holds clips of other or unknown settings.
    """
    manifest = out / MANIFEST
    videos = out / VIDEO_FOLDER
    videos.mkdir(parents=True, exist_ok=True)
    if overwrite:
        # The manifest goes last: after a crash here, the folder still says which clips it has.
        for path in [*(out / name for name in RECORD_FILES), *_clips(out), manifest]:
            path.unlink(missing_ok=True)
    remove_leftovers(out, alone=True)
    found: object = None
    if manifest.exists():
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{manifest} is not JSON; choose another folder or pass overwrite=True") from error
    elif _clips(out):
        raise ConfigError(f"{videos} holds clips but {manifest} is not there; choose another folder or overwrite=True")
    if found not in (None, settings):
        raise ConfigError(
            f"{out} already holds a world with other settings: {json.dumps(found)} there, {json.dumps(settings)} asked "
            "for; choose another folder or pass overwrite=True"
        )
    if found is None:
        write_whole(manifest, json.dumps(settings, indent=2) + "\n")


def _clips(out: Path) -> list[Path]:
    """Clips of a world in a folder; clips with other names are not the world's and are left alone."""
    return sorted(path for folder in CLIP_FOLDERS for split in SPLITS for path in (out / folder).glob(f"{split}-*.mp4"))


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON Lines unless the file holds them already, so that caches keyed by its modification time stay valid."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)


def write_clip(path: Path, render: Callable[[], NDArray[np.uint8]], causal: bool = False) -> bool:
    """Write a clip unless its file exists.

    Args:
        path: the file; its folder is created if missing.
        render: renders the clip's (N, H, W, 3) RGB frames.
        causal: encode a frame without regard to later ones.

    Returns:
        Whether it was written now.
    """
    # A power cut can leave a renamed file without its bytes.
    if path.exists() and path.stat().st_size > 0:
        return False
    path.parent.mkdir(exist_ok=True)
    _encode(path, render(), causal)
    return True


def _encode(path: Path, frames: NDArray[np.uint8], causal: bool) -> None:
    """Encode (N, H, W, 3) RGB frames atomically as H.264 that every player and decord can read."""
    import av

    with replacing(path) as part, av.open(str(part), "w", format="mp4") as container:
        # crf 10 keeps states within a few grey levels; no B-frames and one thread keep the file simple and repeatable.
        options = {"crf": "10", "preset": "veryfast", "bf": "0", "threads": "1"}
        if causal:
            options["tune"] = "zerolatency"
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
