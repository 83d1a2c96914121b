"""Which world wrote a clip, or a file of records."""

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from futurel1.worlds.bouncing import BouncingWorld
from futurel1.worlds.clips import SPLITS, World
from futurel1.worlds.events import EventsWorld
from futurel1.worlds.storage import CLIP_FOLDERS, MANIFEST

WORLDS: Mapping[str, type[World]] = {"events": EventsWorld, "bouncing": BouncingWorld}
"""Worlds by the name in a folder's manifest; the other settings there are arguments of the class."""

_CLIP = re.compile(rf"(?:{'|'.join(map(re.escape, SPLITS))})-\d+(?:-[a-z]+)?\.mp4")


def is_event_clip(video: Path) -> bool:
    """Whether a file is a clip of a world of events, by its name and by the manifest of the folder that it is in.

    Args:
        video: the file.

    Returns:
        True only for a clip that lies where it was written; a copy elsewhere cannot be told from any other video.
    """
    return _CLIP.fullmatch(video.name) is not None and _manifest_of(video).get("world") == "events"


def world_of(file: Path) -> World | None:
    """The world that wrote a clip or records, with the settings of the folder that they lie in; None for other files.

    Args:
        file: a clip, or a file of records.

    Raises:
        ConfigError: the world needs a package that is not installed.
    """
    manifest = _manifest_of(file)
    kind = WORLDS.get(manifest.get("world", ""))
    if kind is None:
        return None
    arguments = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in manifest.items() if name in arguments})


def _manifest_of(file: Path) -> dict[str, Any]:
    """The manifest of the world whose folder a clip or records lie in; empty for any other file."""
    folder = file.parent.parent if file.parent.name in CLIP_FOLDERS else file.parent
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}
