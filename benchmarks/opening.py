"""Seconds and memory of opening records, and records per second when they are read in random order.

    python benchmarks/opening.py [--records 1000000] [--shards 10] [--kind jsonl|parquet|tar] [--place PLACE]

Writes shards of frame-indexed records of 1.5 kB each, text of a question and of reasoning, and opens them in a process
of its own each time. `--place` opens what is there already instead: a path, a pattern or an address.

    open       `open_records`: seconds, and MB by which it made the process larger
    read       parsing records without their media, in random order, one by one in this process
"""

import argparse
import io
import json
import random
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from futurel1.data import open_records
from futurel1.data.tar_shards import INDEX_SUFFIX, scan_members
from meters import forget_peak, machine, peak_mb

READ = 2_000
"""Records that are read in random order."""


def write_shards(folder: Path, options: argparse.Namespace) -> None:
    """Records of one clip each; the clips are not there."""
    thoughts = "THOUGHT 0: It moves on and on. <image>\n" * 2 + "It goes on. " * 70
    question = "<image>\n<image>\n" + "What happens next? " * 20
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": thoughts}]
    record = {"image": [1, 2], "reasoning_image": [4, 7], "conversations": turns, "answer": "It leaves the frame."}
    each = options.records // options.shards
    for shard in range(options.shards):
        rows = ({"id": shard * each + row, "video": f"clips/{shard}/{row}.mp4", **record} for row in range(each))
        file = folder / f"{shard:05d}.{options.kind}"
        if options.kind == "tar":
            write_tar(file, rows)
        elif options.kind == "parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), file, row_group_size=1_000)
        else:
            with file.open("w") as stream:
                stream.writelines(json.dumps(row) + "\n" for row in rows)


def write_tar(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    """A shard as `futurel1 pack` writes it, with clips of no bytes."""
    with tarfile.open(file, "w") as shard:
        for row in rows:
            data = json.dumps(row).encode()
            member = tarfile.TarInfo(f"{row['id']:09d}.json")
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
            shard.addfile(tarfile.TarInfo(f"{row['id']:09d}.video0.mp4"))
    with file.open("rb") as written, file.with_name(file.name + INDEX_SUFFIX).open("wb") as stream:
        scan_members(written).save(stream, file.stat().st_size)


def opened(place: str) -> tuple[int, float, float, float]:
    """Records, seconds and MB of opening, and records per second of reading."""
    before = forget_peak("cpu")
    began = time.perf_counter()
    source = open_records(place)
    seconds = time.perf_counter() - began
    grown = peak_mb("cpu") - before
    numbers = random.Random(0).choices(range(len(source)), k=READ)
    began = time.perf_counter()
    for number in numbers:
        source.sample(number, check_files=False)
    return len(source), seconds, grown, READ / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--kind", choices=("jsonl", "parquet", "tar"), default="jsonl")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--place", help="records that are there already")
    options = parser.parse_args()
    print(f"{vars(options)}, {machine('cpu')}")
    with tempfile.TemporaryDirectory() as folder:
        if options.place is None:
            write_shards(Path(folder), options)
        place = options.place or folder
        results = []
        for _ in range(options.repeats):
            # no fork: what this process holds would count
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                results.append(pool.submit(opened, place).result())
    count = results[0][0]
    seconds, grown, rate = (median(column) for column in list(zip(*results, strict=True))[1:])
    per_million = 1e6 / count
    print(f"  open    {count:,} records in {seconds:.2f} s, {grown:.0f} MB; {seconds * per_million:.2f} s and "
          f"{grown * per_million:.0f} MB a million")  # fmt: skip
    print(f"  read    {rate:.0f} records/s in random order")


if __name__ == "__main__":
    main()
