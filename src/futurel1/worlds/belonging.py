"""Whether a clip is one that `futurel1 world` wrote."""

import json
import re
from pathlib import Path

from futurel1.worlds.clips import SPLITS
from futurel1.worlds.storage import CLIP_FOLDERS, MANIFEST

_CLIP = re.compile(rf"(?:{'|'.join(map(re.escape, SPLITS))})-\d+\.mp4")


def is_event_clip(video: Path) -> bool:
    """Whether a file is a clip of a world of events, by its name and by the manifest of the folder that it is in.

    Args:
        video: the file.

    Returns:
        True only for a clip that lies where it was written; a copy elsewhere cannot be told from any other video.
    """
    if not _CLIP.fullmatch(video.name) or video.parent.name not in CLIP_FOLDERS:
        return False
    try:
        manifest = json.loads((video.parent.parent / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("world") == "events"
