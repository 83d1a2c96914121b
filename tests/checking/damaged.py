"""Good records of every shape, and what is done to them."""

from __future__ import annotations

from typing import Any

ASKED = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "t <image>"}]
GOOD: dict[str, dict[str, Any]] = {
    "frame-indexed": {"video": "a.mp4", "image": [1], "reasoning_image": [4], "conversations": ASKED, "answer": "a"},
    "upstream TwiFF-2.7M": {
        "video": "a.mp4", "question": "q?", "answer": "s <rimage> t <ans>a</ans>", "question_images_index": [1],
        "reasoning_images_index": [4],
    },
    "path-based": {"image": ["a.png"], "reasoning_image": ["b.png"], "conversations": ASKED, "answer": "a"},
    "chat": {
        "messages": [{"role": "user", "content": "<video>q<image>"}, {"role": "assistant", "content": "r"}],
        "videos": ["a.mp4"], "images": ["a.png"],
    },
    "unlabelled video": {"video": "a.mp4", "image": [1], "reasoning_image": [4]},
}  # fmt: skip
"""Training records by the name of their shape."""
RL = {"problem": "q?", "answer": "B", "videos": ["a.mp4"], "images": ["a.png"], "options": ["up", "down"]}
BENCH = {
    "video_path": "a.mp4", "question_type": "hop1",
    "qa": {"Question": "q?", "Options": dict(zip("ABCD", ("up", "down", "left", "right"), strict=True)), "Answer": "A"},
}  # fmt: skip
INDEXED, PATHS = GOOD["frame-indexed"], GOOD["path-based"]
DAMAGE: dict[str, tuple[dict[str, Any] | str, str, str, str]] = {
    "missing clip": (INDEXED | {"video": "none.mp4"}, "RecordFileError", "video", "none.mp4"),
    "cut clip": (INDEXED | {"video": "cut.mp4"}, "MediaError", "video", "cut.mp4"),
    "text for a picture": (PATHS | {"image": ["text.png"]}, "MediaError", "image", "text.png"),
    "index": (INDEXED | {"image": [9]}, "RecordError", "image", ""),
    "hint before": (INDEXED | {"image": [5]}, "RecordError", "reasoning_image", ""),
    "markers": (INDEXED | {"image": [1, 2]}, "RecordError", "image", ""),
    "outside": (INDEXED | {"video": "../videos/train-00000.mp4"}, "RecordError", "video", ""),
    "empty answer": (INDEXED | {"answer": " "}, "RecordError", "answer", ""),
    "too long": (INDEXED | {"answer": "word " * 900}, "RecordTooLongError", "", ""),
    "broken line": ('{"video"', "RecordError", "", ""),
    "unknown shape": ({"frames": 3}, "RecordError", "", ""),
}
"""What was done, to the record, the error that it is, the field that it names and the media file."""
