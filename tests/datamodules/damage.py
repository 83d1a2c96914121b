"""Damage to records: every kind of value at every place, and lines that are no records."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from futurel1.datamodules import (
    FutureBenchDataModule,
    PromptDataModule,
    RolloutPromptDataModule,
    VideoHintDataModule,
)
from futurel1.datamodules.base import RecordDataModule

ASKED = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "t <image>"}]
SHARED = [{"from": "human", "value": "<video>q"}, {"from": "gpt", "value": "r"}]
TYPED = [{"type": "video", "video": "a.mp4"}, {"type": "image", "image": "a.png"}, {"type": "text", "text": "q"}]
SHAPES: dict[str, dict[str, Any]] = {
    "indexed": {"video": "a.mp4", "image": [1], "reasoning_image": [4], "conversations": ASKED, "answer": "a"},
    "upstream": {"video": "a.mp4", "question": "q?", "answer": "s <rimage> t <ans>a</ans>",
                 "question_images_index": [1], "reasoning_images_index": [4]},
    "paths": {"image": ["a.png"], "reasoning_image": ["a.png"], "conversations": ASKED, "answer": "a"},
    "chat": {"messages": [{"role": "user", "content": "<video>q<image>"}, {"role": "assistant", "content": "r"}],
             "videos": ["a.mp4"], "images": ["a.png"]},
    "shared": {"conversations": SHARED, "videos": ["a.mp4"]},
    "typed": {"messages": [{"role": "user", "content": TYPED}, {"role": "assistant", "content": "r"}]},
    "unlabelled": {"video": "a.mp4", "image": [1], "reasoning_image": [4]},
    "rl": {"problem": "q?", "answer": "B", "videos": ["a.mp4"], "images": ["a.png"], "options": ["up", "down"]},
    "bench": {"video_path": "a.mp4", "question_type": "hop1",
              "qa": {"Question": "q?", "Options": dict.fromkeys("ABCD", "up"), "Answer": "A"}},
}  # fmt: skip
TRAINING = ("indexed", "upstream", "paths", "chat", "shared", "typed", "unlabelled")
MODULES: dict[str, tuple[Callable[..., RecordDataModule], str, tuple[str, ...]]] = {
    "sft": (VideoHintDataModule, "train", TRAINING),
    "prompts": (PromptDataModule, "predict", TRAINING),
    "rollouts": (RolloutPromptDataModule, "val", (*TRAINING, "rl", "bench")),
    "futurebench": (FutureBenchDataModule, "records", ("bench",)),
}
NESTED: Any = []
for _ in range(700):
    NESTED = [NESTED]
VALUES: list[Any] = [
    None, True, 2.5, -1, 10**400, float("nan"), float("inf"), "", "\ud800", "a\0b", "a/" * 3000 + "x.png", "x" * 300,
    [], [None], [[]], {}, {"a": None}, {"\ud800": 1}, ["\ud800"], [{"from": None}], {"from": [], "value": []}, NESTED,
    "text.mp4", "text.png", "cut.mp4", "cut.png", "folder.mp4", "loop.mp4", "pipe.mp4", "zero.png", "thin.png",
    "deep.png", "secret.png", "locked/a.png", "http://a.org/b.mp4", "file:///nowhere.mp4", "<|im_end|>", "<image>",
    [9], ["text.png"], ["text.mp4"], [{"bytes": "zz"}], [{"bytes": "AAAA"}], [{"path": 5}],
]  # fmt: skip
LINES = [
    b'{"video": "a.mp4", "video": "b.mp4"}', b'{"messages": [{"role": "user", "role": "user"}]}', b"5", b"null",
    b'"x"', b'{"image": [' + b"9" * 5000 + b"]}", b"[" * 5000 + b"]" * 5000, b'{"video"', b'{"a": "\xff"}',
    b'{"\\ud800": 1}', b'{"\\ud800": 1, "\\ud800": 2}', b'{"video": NaN, "image": [Infinity]}',
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values within a record."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from places(child, (*path, key))


def damaged(shapes: tuple[str, ...], every: int) -> list[dict[str, Any]]:
    """Records of the shapes, each with another value at one place; of all of them every so many-th."""
    found = []
    number = 0
    for shape in shapes:
        record: dict[str, Any] = {"id": "q", "system": "s", **SHAPES[shape]}
        for place in places(record):
            for value in VALUES:
                number += 1
                if number % every:
                    continue
                odd = copy.deepcopy(record)
                target: Any = odd
                for key in place[:-1]:
                    target = target[key]
                target[place[-1]] = value
                found.append(odd)
        found += [{**record, "\ud800": 1}, {**record, "k" * 9000: 1}, {**record, "more": NESTED}]
    return found
