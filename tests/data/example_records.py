"""One record of each shape, and how tests change, write and parse records."""

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from futurel1.data.record_shapes import parse_record
from futurel1.data.samples import Frame

FOLDER = Path("/data")
CLIP = FOLDER / "clips/a.mp4"
FRAME_INDEXED = {
    "video": "clips/a.mp4",
    "image": [1, 2],
    "reasoning_image": [4, 7],
    "conversations": [
        {"from": "system", "value": " Be brief. "},
        {"from": "human", "value": "frame_1\n<image>\nframe_2\n<image>\nWhat happens next? "},
        {
            "from": "gpt",
            "value": "THOUGHT 0: He lifts a latch. <image>\nTHOUGHT 1: It swings.<image>\nTHOUGHT 2: Open.",
        },
    ],
    "answer": " He opens the gate.\n",
    "cot": "",
    "gain": 0.5,
}
UPSTREAM = {
    "video": "clips/a.mp4",
    "question": "What happens next?",
    "answer": "He lifts a latch.\n<rimage>\nIt swings.\n<rimage>\nOpen.\n<ans>He opens the gate.</ans>",
    "question_images_index": [1, 2],
    "reasoning_images_index": [4, 7],
    "meta_data": {"start": "0:01"},
}
PATH_BASED = {
    "image": ["seen.png"],
    "reasoning_image": ["later/1.png", "later/2.png"],
    "conversations": [
        {"from": "human", "value": "<image>What happens next?"},
        {"from": "gpt", "value": "He lifts a latch.<image><image>Open."},
    ],
    "answer": "He opens the gate.",
}
CHAT = {
    "messages": [
        {"role": "user", "content": "<video>\n What is this? <image> "},
        {"role": "assistant", "content": " A gate. "},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "It is open.\n"},
    ],
    "videos": ["clips/a.mp4"],
    "images": ["seen.png"],
}
UNLABELLED = {"id": "a", "video": "clips/a.mp4", "image": [1, 3], "reasoning_image": [5, 6, 8]}
SHAPES = {
    "frame-indexed": FRAME_INDEXED,
    "upstream": UPSTREAM,
    "path-based": PATH_BASED,
    "chat": CHAT,
    "unlabelled": UNLABELLED,
}
THOUGHTS = (
    "He lifts a latch.",
    Frame(CLIP, 4),
    "It swings.",
    Frame(CLIP, 7),
    "Open.",
)


def parse(record, **options):
    options = {"file": "train.jsonl", "number": 3, "folder": FOLDER, "check_files": False} | options
    return parse_record(record, **options)


def changed(record, **values):
    return copy.deepcopy(record) | values


def without(record, *keys):
    return {key: value for key, value in copy.deepcopy(record).items() if key not in keys}


def said(record, speaker, text):
    """The record with another text for a speaker of its conversations."""
    record = copy.deepcopy(record)
    next(turn for turn in record["conversations"] if turn["from"] == speaker)["value"] = text
    return record


SHARED = {
    "conversations": [{"from": "human", "value": "<video>What? <image>"}, {"from": "gpt", "value": " A gate. "}],
    "videos": ["clips/a.mp4"],
    "images": ["seen.png"],
}


def numbered(number):
    return {"messages": [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": f"A{number}"}]}


def question(sample):
    return sample.turns[0].parts[0]


def write_lines(path, records, newline="\n"):
    path.write_bytes(newline.join(json.dumps(record) for record in records).encode() + newline.encode())
    return path


def write_parquet(path, records, row_group_size=None):
    columns = {key: [record.get(key) for record in records] for record in records for key in record}
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def save(folder: Path, *shards: list[dict[str, Any]], **state: Any) -> Path:
    """Write a data set as `datasets.Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    listed = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_format_type": None}
    (folder / "state.json").write_text(json.dumps(listed | state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def rows(start: int, stop: int) -> list[dict[str, Any]]:
    return [numbered(number) for number in range(start, stop)]


def questions(source: Any) -> list[str]:
    return [sample.turns[0].parts[0] for sample in source]
