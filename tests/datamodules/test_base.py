"""The file of skipped records, whatever a kill or a power cut left of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from futurel1.data.samples import SkippedRecord
from futurel1.datamodules.base import RecordDataModule


def skip(*ids: str) -> None:
    """Report records as one session of a run does."""
    RecordDataModule().report_skipped(tuple(SkippedRecord(name, "RecordError", f"é {name}") for name in ids))


@pytest.mark.parametrize("rest", [
    b'{"id": "b", "err', "é".encode()[:1], b"\0" * 40, b'{"id": "b"}\0\0', b"", b'{"id": "b"}',
], ids=["cut", "character", "zeros", "zeros-after", "nothing", "unended"])  # fmt: skip
def test_a_cut_file_of_skipped_records_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "skipped.jsonl"
    skip("a")
    file.write_bytes(file.read_bytes() + rest)
    skip("a", "b")
    skip("b", "c")
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["a", "b", "c"]
    assert json.loads(file.read_text().splitlines()[0])["message"] == "é a"


def test_an_empty_or_damaged_file_of_skipped_records_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (b"", b"\0\0\0", b'not json\n\xff\xfe\n[]\n{"id": "a"}\n'):
        (tmp_path / "skipped.jsonl").write_bytes(text)
        skip("a", "b")
        ids = [json.loads(line)["id"] for line in (tmp_path / "skipped.jsonl").read_bytes().splitlines()[-2:]]
        assert ids == ["a", "b"]
