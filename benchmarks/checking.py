"""Records per second of `futurel1.checking.check`, against parsing alone and against the data module alone.

    python benchmarks/checking.py [--records 600] [--clips 300] [--seconds 5] [--width 640 --height 360] [--repeats 2]

Records share clips: there are `--records` of them over `--clips` distinct files, as in data sets with several questions
about a video. Each shows four frames of the pool of its clip and has two to imagine. Of a clip, `check` keeps its
duration and size alone, so a further record of it costs nearly what a record of another clip costs.

    parse      reads and parses each record, and looks whether its media are there; opens none of them
    load       the data set of the data module, record by record: what the first epoch of a run does before its batches
    check 0    `check` in this process, so that load and check differ by what check adds
    check 1    `check` with one worker
    check 2    `check` with two workers

Wall-clock seconds, the least of the repeats, turn by turn; the baseline is load. Clips are those of `loading.py`,
picture limits those of Qwen3-VL.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import torch

from futurel1.checking import check
from futurel1.data import open_records
from futurel1.datamodules import VideoHintDataModule, base
from futurel1.models import load_processor
from loading import HINTS, OBSERVED, QWEN_LIMITS, write_clip
from meters import machine

ALL = 50_000
"""Records of the extrapolation."""


def write_records(folder: Path, options: argparse.Namespace) -> Path:
    """Clips, and a file of frame-indexed records that share them."""
    for number in range(options.clips):
        write_clip(folder / f"{number}.mp4", options.seconds, options.width, options.height, number)
    question = "".join(f"frame_{index}\n<image>\n" for index in OBSERVED) + "What happens next?"
    thoughts = " <image>\n".join(f"THOUGHT {index}: It moves on." for index in range(len(HINTS))) + " <image>"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": thoughts}]
    shown = {"image": OBSERVED, "reasoning_image": HINTS, "conversations": turns, "answer": "It leaves."}
    path = folder / "train.jsonl"
    lines = [json.dumps({"id": number, "video": f"{number % options.clips}.mp4", **shown}) + "\n"
             for number in range(options.records)]  # fmt: skip
    path.write_text("".join(lines))
    return path


def parse(path: Path) -> None:
    """Parse all records."""
    for _ in open_records(path):
        pass


def load(path: Path) -> None:
    """Read all records as the data module does."""
    dataset = VideoHintDataModule(train=str(path), processor="tiny@random").dataset("train")
    assert dataset is not None
    for number in range(len(dataset)):
        dataset[number]


def whole(path: Path, num_workers: int) -> None:
    """Check all records."""
    report = check(str(path), model="tiny@random", num_workers=num_workers)
    assert report.ok, report
    assert not report.warnings, report


def main() -> None:
    """Write clips and records, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=600)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--seconds", type=int, default=5, help="length of a clip")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    processor = load_processor("tiny@random")
    processor.image_processor.size = QWEN_LIMITS
    base.load_processor = lambda path: processor
    print(f"{vars(options)}, {machine('cpu')}, PyAV {av.__version__}")
    ways: dict[str, Callable[[Path], None]] = {
        "parse": parse,
        "load": load,
        **{f"check {workers}": partial(whole, num_workers=workers) for workers in (0, 1, 2)},
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        path = write_records(Path(folder), options)
        for _ in range(options.repeats):
            for way, run in ways.items():
                begin = time.perf_counter()
                run(path)
                seconds[way].append(time.perf_counter() - begin)
    for way, taken in seconds.items():
        rate = options.records / min(taken)
        print(
            f"  {way:8} {rate:10.2f} records/s, {rate * min(seconds['load']) / options.records:8.2f} times load; "
            f"{ALL:,} records at this rate: {ALL / rate / 3600:.2f} h"
        )


if __name__ == "__main__":
    main()
