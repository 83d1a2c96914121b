"""Whether a clip, or a file of records, is one that `futurel1 world` wrote."""

import json
import re
from pathlib import Path
from typing import Any

from futurel1.worlds.clips import SPLITS
from futurel1.worlds.storage import CLIP_FOLDERS, MANIFEST

_CLIP = re.compile(rf"(?:{'|'.join(map(re.escape, SPLITS))})-\d+(?:-[a-z]+)?\.mp4")


def is_event_clip(video: Path) -> bool:
    """Whether a file is a clip of a world of events, by its name and by the manifest of the folder that it is in.

    Args:
        video: the file.

    Returns:
        True only for a clip that lies where it was written; a copy elsewhere cannot be told from any other video.
    """
    if not _CLIP.fullmatch(video.name) or video.parent.name not in CLIP_FOLDERS:
        return False
    return _manifest_of(video.parent.parent) is not None


def events_world_of(records: Path) -> dict[str, Any] | None:
    """The settings of the world of events whose folder a file of records lies in; None for other files.

    Args:
        records: the file.
    """
    return _manifest_of(records.parent)


def _manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a world of events; None for any other folder."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("world") == "events" else None
