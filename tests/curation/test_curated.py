"""Curated records: the input with its gains, readable where it lies."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from planned_curation import Bench

from futurel1.data import open_records


def test_curated_records_can_be_trained_on_where_they_lie(bench: Callable[..., Bench]) -> None:
    made = bench("deeper/out")
    made.run()
    made.merge(top=3)
    source = open_records(made.out / "curated.jsonl")
    assert len(source) == 3
    gains = []
    for sample in source:
        assert sample.hints[0].path.is_file()
        gains.append(sample.meta["gain"])
    assert gains == sorted(gains, reverse=True)


def test_parquet_keeps_its_shape_and_absolute_paths(bench: Callable[..., Bench], records: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in records.read_text().splitlines()[:8]]
    for place, row in enumerate(rows):
        row["image"] = [str(records.parent / path) for path in row["image"]]
        row["reasoning_image"] = [os.path.relpath(records.parent / path, tmp_path) for path in row["reasoning_image"]]
        row["day"] = date(2026, 1, place + 1)
        row |= {"price": Decimal("1.50"), "thumbnail": b"\x00\xff", "length": timedelta(seconds=3)}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=3)
    made = bench("deeper/out", tmp_path / "rows.parquet")
    made.run()
    made.merge(min_gain=-8, max_base=8)
    written = [json.loads(line) for line in (made.out / "curated.jsonl").read_text().splitlines()]
    assert len(written) == 7
    for record in written:
        row = next(row for row in rows if row["note"] == record["note"])
        assert record["image"] == row["image"]
        assert record["day"] == row["day"].isoformat()
        assert (record["price"], record["thumbnail"], record["length"]) == ("1.50", "AP8=", "0:00:03")
        assert record.keys() - row.keys() == {"gain", "correct_in_8_base", "correct_in_8_hint"}
    assert all(sample.hints[0].path.is_file() for sample in open_records(made.out / "curated.jsonl"))


def test_text_that_is_no_unicode_is_passed_on(bench: Callable[..., Bench], records: Path, tmp_path: Path) -> None:
    row = {**json.loads(records.read_text().splitlines()[0]), "note": "\ud800 half"}
    row["image"], row["reasoning_image"] = (
        [str(records.parent / path) for path in row[field]] for field in ("image", "reasoning_image")
    )
    (tmp_path / "odd.jsonl").write_text(json.dumps(row))
    made = bench("out", tmp_path / "odd.jsonl")
    made.run()
    made.merge(min_gain=-8, max_base=8)
    assert json.loads((made.out / "curated.jsonl").read_text())["note"] == "\ud800 half"
