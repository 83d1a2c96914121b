"""What a check says about a single record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest
from damaged import GOOD, INDEXED, PATHS

from futurel1.checking import RecordChecks, Split, check
from futurel1.data.collate import SFTDataset
from futurel1.datamodules import VideoHintDataModule

Write = Callable[..., str]
CHOICE = {"options": {"A": "up", "B": "down"}}


def warnings(file: str) -> list[tuple[int | None, str, str]]:
    report = check(file, model="tiny@random", num_workers=0)
    assert report.ok, report
    return [(each.record, each.error, each.field) for each in report.warnings]


def test_what_looks_wrong_is_a_warning(write: Write) -> None:
    upstream = GOOD["upstream TwiFF-2.7M"] | CHOICE
    records = [
        INDEXED | {"reasoning_image": [1]},
        PATHS | {"reasoning_image": ["a.png"]},
        INDEXED | CHOICE | {"answer": "sideways"},
        INDEXED | CHOICE | {"answer": "down"},
        upstream | {"answer": "s <rimage> t <ans>up</ans>"},
        upstream | {"answer": "s <rimage> t <ans>left</ans>"},
        INDEXED | {"options": ["up", "Up "], "answer": "B"},
        INDEXED | {"options": ["up", 3]},
        INDEXED | {"id": "x"},
        INDEXED | {"id": "x"},
    ]
    assert warnings(write(*records)) == [
        (1, "hint that is observed", "video"),
        (2, "hint that is observed", "reasoning_image"),
        (3, "answer that is no option", "answer"),
        (6, "answer that is no option", "answer"),
        (7, "repeated option", "options"),
        (8, "unreadable options", "options"),
        (10, "repeated id", "id"),
    ]


def test_a_short_video_repeats_its_last_frame_as_a_hint(write: Write, media: Any) -> None:
    with av.open(str(media / "short.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=2)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for grey in (0, 80, 160, 240):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    turns = [INDEXED["conversations"][0], {"from": "gpt", "value": "<image>t<image>"}]
    record = INDEXED | {"video": "short.mp4", "conversations": turns}
    late = record | {"image": [4], "reasoning_image": [7, 8]}
    found = warnings(write(INDEXED | {"video": "short.mp4", "reasoning_image": [3]}, late))
    assert found == [(2, "hint that is observed", "video"), (2, "repeated hint", "video")]


def test_a_budget_of_tokens_is_checked(write: Write) -> None:
    file = write(INDEXED, INDEXED | {"answer": "word " * 200})
    data = VideoHintDataModule(train=file, processor="tiny@random")
    dataset = data.dataset("train")
    assert dataset is not None
    short, long = (dataset.length(number) for number in range(2))
    checks = RecordChecks([Split("train", dataset, long - 1)])
    assert checks[0].facts is not None
    assert checks[0].facts.tokens == short
    problem = checks[1].problem
    assert problem is not None
    assert (problem.error, problem.record) == ("ConfigError", 2)
    assert f"{long} tokens, more than tokens_per_batch={long - 1}" in problem.message


def test_an_error_that_is_not_the_librarys_stops_nothing(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SFTDataset.__getitem__

    def broken(self: SFTDataset, index: int) -> Any:
        if index == 0:
            raise ZeroDivisionError("of a codec")
        return original(self, index)

    monkeypatch.setattr(SFTDataset, "__getitem__", broken)
    report = check(write(INDEXED, INDEXED), model="tiny@random", num_workers=0)
    assert [(each.record, each.error, each.message) for each in report.problems] == [
        (1, "ZeroDivisionError", "of a codec")
    ]
    assert report.shapes == {"frame-indexed": 1}
