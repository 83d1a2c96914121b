"""Records per second and MB/s of `futurel1 pack`, and of reading clips out of its shards against reading single files.

    python benchmarks/sharding.py [--records 2000] [--kilobytes 1000] [--shard_size 256] [--folder FOLDER]

Each record has a clip of its own, of random bytes: nothing is decoded, so that what remains is files. `--folder` is on
the disk that is measured (default: the folder of temporary files).

    pack       reads, digests and writes every record and clip, reads the shards back and compares
    files      each record and all bytes of its clip, from single files, in random order
    shards     the same from the packed shards, in the order in which training reads them (16 shards a window)
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

from futurel1.data import open_records
from futurel1.data.mixtures import shard_order
from futurel1.data.records import RecordSource
from futurel1.data.remote import ensure_local
from futurel1.pack import pack
from meters import machine

WINDOW = 16


def write_records(folder: Path, options: argparse.Namespace) -> Path:
    """Records with a clip each, in folders of a thousand clips."""
    turns = [{"from": "human", "value": "<image>\nWhat next?"}, {"from": "gpt", "value": "It moves on. <image>"}]
    path = folder / "train.jsonl"
    with path.open("w") as stream:
        for number in range(options.records):
            clip = folder / f"{number // 1000}/{number}.mp4"
            clip.parent.mkdir(exist_ok=True)
            clip.write_bytes(os.urandom(1000 * options.kilobytes))
            record = {"video": f"{clip.parent.name}/{clip.name}", "image": [1], "reasoning_image": [4]}
            stream.write(json.dumps({**record, "conversations": turns, "answer": "It leaves."}) + "\n")
    return path


def read(source: RecordSource, order: list[int]) -> float:
    """Seconds of reading all records and their clips."""
    began = time.perf_counter()
    for number in order:
        path = source.sample(number).hints[0].path
        ensure_local(path)
        path.read_bytes()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=2_000)
    parser.add_argument("--kilobytes", type=int, default=1_000)
    parser.add_argument("--shard_size", type=float, default=256.0)
    parser.add_argument("--folder")
    options = parser.parse_args()
    print(f"{vars(options)}, {machine('cpu')}")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        os.environ["FUTUREL1_CACHE"] = str(folder / "cache")
        records = write_records(folder, options)
        began = time.perf_counter()
        packed = pack(str(records), str(folder / "packed"), shard_size=options.shard_size)
        seconds = {"pack": time.perf_counter() - began}
        numbers = list(range(options.records))
        random.Random(0).shuffle(numbers)
        seconds["files"] = read(open_records(records), numbers)
        shards = open_records(folder / "packed")
        seconds["shards"] = read(shards, shard_order(shards.shards, WINDOW, random.Random(0)))
    for what, took in seconds.items():
        print(f"  {what:8} {options.records / took:8.0f} records/s  {packed.size / took / 1e6:8.0f} MB/s")


if __name__ == "__main__":
    main()
