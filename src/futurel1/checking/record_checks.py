"""One record after the other, read as a run reads it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from futurel1.checking.findings import Finding, Problem, RecordFacts
from futurel1.checking.splits import Split
from futurel1.data.encoded import EncodedSample
from futurel1.data.frames import frame_pool
from futurel1.data.multiple_choice import gold_letter, read_options
from futurel1.data.record_fields import RecordFields
from futurel1.data.remote import names_file, shown
from futurel1.data.samples import Frame, Sample, Video
from futurel1.data.video import VideoInfo, open_video
from futurel1.errors import ConfigError, FutureL1Error, MediaError, RecordError

__all__ = ["RecordChecks"]


class RecordChecks(Dataset[Finding]):
    """Findings by number, counted through all splits.

    A record can be used if the data module's own data set gives it, so that no other reader decides. What it holds is
    told from what that made.

    Args:
        splits: where the records are.
    """

    def __init__(self, splits: Sequence[Split]) -> None:
        self.splits = tuple(splits)
        self._ends = np.cumsum([len(split.dataset) for split in splits], dtype=np.int64)
        self._infos: dict[Path, VideoInfo] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> Finding:
        which = int(np.searchsorted(self._ends, number, side="right"))
        split = self.splits[which]
        dataset = split.dataset
        index = number - (int(self._ends[which - 1]) if which else 0)
        position = index if dataset.numbers is None else int(dataset.numbers[index])
        id = dataset.source.id(position)
        try:
            encoded = dataset[index]
            _check_budget(split, index, id)
        except FutureL1Error as error:
            return Finding(split.name, id, Problem.of(split.name, id, error, _culprit(split, position, error)))
        except Exception as error:
            # A run would end here whatever `on_error` says; the other records are checked all the same.
            return Finding(split.name, id, Problem.of(split.name, id, error))
        sample = dataset.source.sample(position)
        known = set(self._infos)
        facts = self._facts(split, sample, encoded)
        warnings = (*self._hint_warnings(split, sample), *_option_warnings(split, position, sample))
        opened = tuple((shown(path), info) for path, info in self._infos.items() if path not in known)
        return Finding(split.name, id, None, warnings, facts, opened)

    def _info(self, path: Path) -> VideoInfo:
        if path not in self._infos:
            with open_video(path) as video:
                self._infos[path] = video.info
        return self._infos[path]

    def _facts(self, split: Split, sample: Sample, encoded: EncodedSample) -> RecordFacts:
        tokens = split.dataset.encoder.tokens
        response = encoded.input_ids[encoded.prompt_length :]  # a system turn may show what a span looks like
        media = [part for turn in sample.turns for part in turn.parts if not isinstance(part, str)]
        videos = dict.fromkeys(part.path for part in media if _is_video(part))
        for path in videos:
            self._info(path)
        images = dict.fromkeys(
            shown(part.path) for part in media if isinstance(part, Frame) and not _is_video(part) and part.data is None
        )
        return RecordFacts(
            shape=sample.shape,
            own_id=encoded.info.id,
            tokens=len(encoded),
            latents=int((response == tokens.latent_id).sum()),
            spans=int((response == tokens.start_id).sum()),
            observed=len(sample.observed),
            hints=len(sample.hints),
            videos=tuple(map(shown, videos)),
            images=tuple(images),
        )

    def _hint_warnings(self, split: Split, sample: Sample) -> list[Problem]:
        """Hints that show no future: an observed frame, or the frame of another hint."""
        shown = {self._picture(frame) for frame in sample.observed}
        hints = Counter(self._picture(frame) for frame in sample.hints)
        field = next((frame.field for frame in sample.hints), "")
        found = []
        seen = sum(count for picture, count in hints.items() if picture in shown)
        if seen:
            found.append(("hint that is observed", f"{seen} of {len(sample.hints)} hints show an observed frame"))
        if any(count > 1 for count in hints.values()):
            found.append(("repeated hint", f"{len(sample.hints)} hints show {len(hints)} different frames"))
        remedy = (
            "list frames that come later, or drop the record (the pool of a video of fewer than 8 frames repeats some)"
        )
        return [
            Problem.warning(split.name, sample.id, about, f"{sample.place}: {message}; {remedy}", field=field)
            for about, message in found
        ]

    def _picture(self, frame: Frame) -> tuple[str, int]:
        """What tells pictures apart: a frame of a video, a file, or embedded bytes."""
        if frame.data is not None:
            return hashlib.sha256(frame.data).hexdigest(), -1
        if frame.pool_index is None:
            return str(frame.path), -1
        return str(frame.path), frame_pool(self._info(frame.path).num_frames)[frame.pool_index - 1]


def _is_video(part: Frame | Video) -> bool:
    return isinstance(part, Video) or part.pool_index is not None


def _check_budget(split: Split, index: int, id: str) -> None:
    """Refuse a record that is longer than a batch may be, as the data module does when it plans batches."""
    if split.budget is None:
        return
    length = min(split.dataset.length(index), split.dataset.encoder.max_length)
    if length > split.budget:
        raise ConfigError(
            f"{id} has {length} tokens, more than tokens_per_batch={split.budget}; raise tokens_per_batch, or set "
            "max_length to it with on_error: skip to leave such records out"
        )


def _culprit(split: Split, position: int, error: FutureL1Error) -> str:
    """The media file that an error is about, of those that the record names; "" if it is about none."""
    if not isinstance(error, MediaError | OSError):
        return ""
    try:
        sample = split.dataset.source.sample(position, check_files=False)
    except RecordError:
        return ""  # the record itself cannot be parsed; a missing file is named by its message
    said = str(error)
    media = [part for turn in sample.turns for part in turn.parts if not isinstance(part, str)]
    # embedded images have no file; the longest path in the message, because one may begin with another
    paths = [part.path for part in media if isinstance(part, Video) or part.data is None]
    return max((shown(path) for path in paths if names_file(said, path)), key=len, default="")


def _option_warnings(split: Split, position: int, sample: Sample) -> list[Problem]:
    """Options that no metric or reward could use; a data module that does not read options lets them pass."""
    record = split.dataset.source.raw(position)
    fields = RecordFields(record.raw, file=record.name, number=record.number, folder=record.folder)
    options = sample.info.options
    answer = sample.info.answer if sample.answer is None else sample.answer
    try:
        options = options or read_options(fields)
        if options and answer is not None and "qa" not in fields.values:
            # `answer` of a record with its answer inline holds the reasoning
            fields.values["answer"] = answer
            gold_letter(fields, answer, options, "")
    except RecordError as error:
        about = "answer that is no option" if options else "unreadable options"
        return [Problem.warning(split.name, sample.id, about, str(error), field="answer" if options else "options")]
    texts = Counter(text.strip().casefold() for text in (options or {}).values())
    twice = [text for text, count in texts.items() if count > 1]
    if not twice:
        return []
    message = f"{sample.place}: several options are {twice[0]!r}; write options that differ"
    return [Problem.warning(split.name, sample.id, "repeated option", message, field="options")]
