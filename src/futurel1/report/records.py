"""The records behind a run's predictions: what was shown, what came later, and what was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from futurel1.data import RecordSource, open_records, parse_rl_prompt
from futurel1.data.frames import POOL_SIZE
from futurel1.data.futures import true_future
from futurel1.data.media import media_sources
from futurel1.data.remote import is_there
from futurel1.data.samples import Frame, PromptInfo, Turn, Video
from futurel1.data.whole_videos import VideoSampling
from futurel1.errors import ConfigError, MissingFileError
from futurel1.report.runs import RunContents

__all__ = ["RecordView", "RunRecords"]

_FRAME_TOKENS = 64


@dataclass(frozen=True)
class RecordView:
    """One record as a page shows it.

    Attributes:
        info: what is known of the prompt.
        shown: pictures that the model was shown, in order.
        videos: whole videos that it was shown.
        future: pictures that the record's own reasoning holds, in order: what each span should show.
        later: frames of the videos in `shown` after the last one that was shown, of the 8-frame pool.
        sources: names of all media, by which two records are seen to be about the same video.
    """

    info: PromptInfo
    shown: tuple[Frame, ...]
    videos: tuple[Video, ...]
    future: tuple[Frame, ...]
    later: tuple[Frame, ...]
    sources: frozenset[str]


class RunRecords:
    """The records that a run read, opened as the run opened them.

    Args:
        run: the run; its configuration names the data.
        data: files or folders of records in the place of those.

    Attributes:
        source: the records.
        sampling: how frames of whole videos are taken.

    Raises:
        ConfigError: the configuration names no data, or a data module that reads none.
        MissingFileError: the data have gone.
    """

    def __init__(self, run: RunContents, data: Sequence[str] = ()) -> None:
        options: Mapping[str, Any] = run.setting("data.init_args") or {}
        self.source = open_records(list(data), parse=parse_rl_prompt) if data else _open_as(run, options)
        self.sampling = VideoSampling(
            fps=float(options.get("video_fps") or 2.0),
            max_frames=int(options.get("video_max_frames") or 16),
            frame_tokens=_FRAME_TOKENS,
            num_frames=options.get("num_frames"),
        )
        self._numbers = {self.source.id(number): number for number in range(len(self.source))}

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def number(self, name: str) -> int:
        """Position of a record by its id.

        Raises:
            MissingFileError: the data have no such record.
        """
        if name not in self._numbers:
            raise MissingFileError(
                f"the run answered {name!r}, which is not among the {len(self)} records of "
                f"{', '.join(file.place for file in self.source.files[:3])}; name the run's own with --data"
            )
        return self._numbers[name]

    def split(self, name: str) -> str:
        """The part of the data that a record counts in: its benchmark's split, kind of question, or file.

        Raises:
            MissingFileError: the data have no such record.
            RecordError: the record cannot be used.
        """
        info = self.source.sample(self.number(name)).info
        return info.split or info.question_type or name.rpartition(":")[0]

    def view(self, name: str) -> RecordView:
        """Read a record by its id.

        Raises:
            MissingFileError: the data have no such record.
            RecordError: the record cannot be used.
        """
        number = self.number(name)
        prompt = self.source.sample(number)
        # Files that are not there were not needed to ask.
        future = tuple(
            frame
            for frame in true_future(self.source.raw(number), prompt)
            if frame.data is not None or is_there(frame.path)
        )
        media = [part for turn in prompt.turns for part in turn.parts if not isinstance(part, str)]
        everything = replace(prompt, turns=(*prompt.turns, Turn("assistant", future)))
        return RecordView(
            info=prompt.info,
            shown=prompt.observed,
            videos=tuple(part for part in media if isinstance(part, Video)),
            future=future,
            later=_later_frames(prompt.observed),
            sources=frozenset(media_sources(everything)),
        )

    def __len__(self) -> int:
        return len(self.source)


def _open_as(run: RunContents, options: Mapping[str, Any]) -> RecordSource:
    """Open the records of a run's test or prediction with its own data module."""
    path = str(run.setting("data.class_path") or "")
    if not path:
        raise ConfigError(f"{run.folder} has no config.yaml that names its data; name them with --data")
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(import_module(module or "futurel1.datamodules"), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{run.folder}: {path} cannot be imported ({error}); name the records with --data") from error
    if not hasattr(kind, "open_source"):
        raise ConfigError(f"{run.folder}: {path} opens no records of its own; name them with --data")
    tested = not any(run.folder.glob("predictions*.jsonl"))
    source: RecordSource = kind(**options).open_source("test" if tested else "predict")
    return source


def _later_frames(shown: Sequence[Frame]) -> tuple[Frame, ...]:
    """Pool frames after the last one that was shown, of every video."""
    last: dict[Path, Frame] = {}
    for frame in shown:
        if frame.pool_index is not None:
            before = last.get(frame.path)
            last[frame.path] = frame if before is None or (before.pool_index or 0) < frame.pool_index else before
    return tuple(
        replace(frame, pool_index=number)
        for frame in last.values()
        for number in range((frame.pool_index or 0) + 1, POOL_SIZE + 1)
    )
