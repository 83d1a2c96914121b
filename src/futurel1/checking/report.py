"""What a check found, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from futurel1.checking.findings import Finding, Problem, RecordFacts
from futurel1.checking.splits import Split
from futurel1.data.samples import RecordTooLongError
from futurel1.data.video import VideoInfo
from futurel1.datamodules.base import RecordDataModule

__all__ = ["CheckReport", "Spread", "Tally"]

SHOWN = 20
"""Problems of a kind that the text lists."""
COUNTED = ("tokens", "latents", "spans", "observed", "hints")
"""Numbers of a record that the report spreads out."""


@dataclass(frozen=True)
class Spread:
    """Least, median, 95th percentile and most of some numbers."""

    least: float
    median: float
    p95: float
    most: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread | None:
        """The spread; None of no numbers."""
        if not numbers:
            return None
        return cls(*(round(float(value), 3) for value in np.percentile(numbers, (0, 50, 95, 100))))

    def __str__(self) -> str:
        return "".join(f"{value:>10,.6g}" for value in (self.least, self.median, self.p95, self.most))


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        data_module: class that read the records.
        processor: what counted tokens.
        max_length: most tokens of a record.
        records: records per split.
        checked: records that were read.
        seed: seed of the random choice; None: all records were read.
        seconds: how long it took.
        shapes: good records per shape.
        per_record: tokens, latents, spans, observed frames and hints of good records; absent without any.
        too_long: records with more than `max_length` tokens.
        videos: different videos of good records.
        images: different image files of good records.
        durations: seconds of the videos; None without any.
        resolutions: videos per size, `width x height`.
        formats: videos per container and decoder.
        unreadable: media files that are missing or cannot be read, to the number of records that this makes unusable.
        problems: what makes records unusable, in the order of the records.
        warnings: what does not stop a run, but is hardly meant so.
    """

    data_module: str
    processor: str
    max_length: int
    records: dict[str, int]
    checked: int
    seed: int | None
    seconds: float
    shapes: dict[str, int]
    per_record: dict[str, Spread]
    too_long: int
    videos: int
    images: int
    durations: Spread | None
    resolutions: dict[str, int]
    formats: dict[str, int]
    unreadable: dict[str, int]
    problems: list[Problem]
    warnings: list[Problem]

    @property
    def ok(self) -> bool:
        """Whether no record would stop a run."""
        return not self.problems

    def __str__(self) -> str:
        total = sum(self.records.values())
        chosen = "" if self.seed is None else f", chosen at random (seed {self.seed})"
        lines = [
            f"{self.checked:,} of {total:,} records checked{chosen}, in {self.seconds:.1f} s",
            f"{self.data_module}, processor {self.processor}, max_length {self.max_length:,}",
            "",
            *_counts("records", self.records),
            *_counts("shapes of good records", self.shapes),
        ]
        if self.per_record:
            lines += [
                "",
                f"{'per good record':<22}" + "".join(f"{name:>10}" for name in ("min", "median", "95%", "max")),
            ]
            lines += [f"  {name:<20}{spread}" for name, spread in self.per_record.items()]
        if self.durations is not None:
            lines += [f"  {'seconds of a video':<20}{self.durations}"]
        lines += ["", f"media of good records: {self.videos:,} videos, {self.images:,} image files"]
        lines += [*_counts("sizes of videos", self.resolutions), *_counts("formats of videos", self.formats)]
        lines += [*_counts("files that cannot be read, and records that need them", self.unreadable)]
        lines += [*_listed(self.warnings), *_listed(self.problems), "", self._verdict()]
        return "\n".join(lines)

    def _verdict(self) -> str:
        number = len(self.problems)
        long = f", {self.too_long:,} of them longer than max_length" if self.too_long else ""
        found = f"{number:,} problem{'s' if number > 1 else ''}{long}" if number else "no problems"
        return f"{found}, {len(self.warnings):,} warnings"


def _counts(title: str, counts: dict[str, int]) -> list[str]:
    """A list of counts, the greatest first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    more = [f"  and {len(ordered) - SHOWN:,} more"] if len(ordered) > SHOWN else []
    return [f"{title}:", *(f"{count:>10,}  {name}" for name, count in ordered[:SHOWN]), *more] if ordered else []


def _listed(problems: Iterable[Problem]) -> list[str]:
    """Problems by kind, the first ones of each."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    lines = []
    for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        lines += ["", f"{len(found):,} x {kind}"]
        lines += [f"  {problem.split}: {problem.message}" for problem in found[:SHOWN]]
        lines += [f"  and {len(found) - SHOWN:,} more; --json lists all"] if len(found) > SHOWN else []
    return lines


class Tally:
    """Adds findings up.

    Args:
        unopened: problems of files that could not be opened.
    """

    def __init__(self, unopened: Iterable[Problem] = ()) -> None:
        self.problems = list(unopened)
        self.warnings: list[Problem] = []
        self.checked = 0
        self._numbers: dict[str, list[int]] = {name: [] for name in COUNTED}
        self._shapes = Counter[str]()
        self._videos: dict[str, VideoInfo] = {}
        self._media: dict[str, dict[str, None]] = {}
        self._images: set[str] = set()
        self._ids: dict[tuple[str, str | int], str] = {}

    def add(self, finding: Finding) -> None:
        """Count a record."""
        self.checked += 1
        self.warnings += finding.warnings
        self._videos.update(finding.opened)
        if finding.problem is not None:
            self.problems.append(finding.problem)
        if finding.facts is not None:
            self._add_facts(finding, finding.facts)

    def _add_facts(self, finding: Finding, facts: RecordFacts) -> None:
        self._shapes[facts.shape] += 1
        for name, numbers in self._numbers.items():
            numbers.append(getattr(facts, name))
        self._images.update(facts.images)
        self._media.setdefault(finding.split, {}).update(dict.fromkeys((*facts.videos, *facts.images)))
        if facts.own_id is not None:
            first = self._ids.setdefault((finding.split, facts.own_id), finding.id)
            if first != finding.id:
                message = f"{finding.id}: its id {facts.own_id!r} is also that of {first}; give each record its own"
                self.warnings.append(Problem.warning(finding.split, finding.id, "repeated id", message, field="id"))

    def _shared(self) -> list[Problem]:
        """Warnings about files that are trained on and evaluated on."""
        trained = self._media.get("train", {})
        return [
            Problem.warning(
                split, "", "media that are also in train", f"{path}: train shows the same file", media=path
            )
            for split, media in self._media.items()
            for path in media
            if split != "train" and path in trained
        ]  # fmt: skip

    def report(
        self, module: RecordDataModule, splits: Sequence[Split], seed: int | None, seconds: float
    ) -> CheckReport:
        """What was found.

        Args:
            module: what read the records.
            splits: all records.
            seed: seed of a random choice, if there was one.
            seconds: how long it took.
        """
        spreads = {name: Spread.of(numbers) for name, numbers in self._numbers.items()}
        infos = self._videos.values()
        return CheckReport(
            data_module=type(module).__name__,
            processor=str(module.hparams["processor"]),
            max_length=int(module.hparams["max_length"]),
            records={split.name: len(split.dataset) for split in splits},
            checked=self.checked,
            seed=seed if self.checked < sum(len(split.dataset) for split in splits) else None,
            seconds=round(seconds, 3),
            shapes=dict(self._shapes.most_common()),
            per_record={name: spread for name, spread in spreads.items() if spread is not None and spread.most},
            too_long=sum(problem.error == RecordTooLongError.__name__ for problem in self.problems),
            videos=len(self._videos),
            images=len(self._images),
            durations=Spread.of([info.duration for info in infos]),
            resolutions=dict(Counter(f"{info.width} x {info.height}" for info in infos).most_common()),
            formats=dict(Counter(f"{info.container} {info.codec}" for info in infos).most_common()),
            unreadable=dict(Counter(problem.media for problem in self.problems if problem.media).most_common()),
            problems=self.problems,
            warnings=[*self.warnings, *self._shared()],
        )
