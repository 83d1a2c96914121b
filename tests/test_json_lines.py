"""Files that a run appends lines to: what they hold, and what is left of a line that was cut off."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from futurel1.errors import RecordError
from futurel1.json_lines import drop_cut_line, json_line, readable_lines, written_ids

# surrogates included: half a pair is what a record may hold, and UTF-8 cannot
TEXT = st.text(st.characters(codec=None, exclude_categories=()))


@given(st.dictionaries(TEXT, TEXT | st.integers() | st.none() | st.lists(TEXT)))
def test_every_text_is_read_as_it_was_written(record: dict[str, object]) -> None:
    line = json_line(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    read = json.loads(line.decode("utf-8"))
    joined = json.loads(json.dumps(record))  # two halves that stand next to each other are one character
    assert read == joined


def test_whole_characters_stay_readable() -> None:
    assert json_line({"id": "é\u2028\ud800"}) == '{"id": "é\u2028'.encode() + b'\\ud800"}\n'


@pytest.mark.parametrize(("text", "kept"), [
    (b"a\nb\nc", b"a\nb\n"), (b"a\n", b"a\n"), (b"abc", b""), (b"", b""),
    ("a\né".encode()[:-1], b"a\n"),  # within a character
    (b"a\n\0\0\0", b"a\n"), (b"a\nb\0\0", b"a\n"), (b"\0\0", b""),  # what a power cut leaves
])  # fmt: skip
def test_cut_lines_are_dropped(tmp_path: Path, text: bytes, kept: bytes) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(text)
    drop_cut_line(file)
    assert file.read_bytes() == kept


def test_damaged_lines_of_a_log_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b'{"id": 1}\n\0\0{"id": 2}\n[3]\n{"id": 4\n{"id": 5}\n{"id": 6')
    assert readable_lines(file) == [(b'{"id": 1}\n', {"id": 1}), (b'{"id": 5}\n', {"id": 5})]
    assert [record.message.split(",")[1] for record in caplog.records] == [
        f" line {number} is damaged and left out" for number in (2, 3, 4)
    ]


def test_ids_are_those_of_complete_lines(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(json_line({"id": "a\u2028"}) + json_line({"id": "\ud800"}) + b'{"id": "c"}')
    assert written_ids(file) == ["a\u2028", "\ud800"]
    for line in ("not json", "[]", "{}"):
        file.write_text(f'{{"id": "a"}}\n{line}\n')
        with pytest.raises(RecordError, match=r"lines\.jsonl, line 2 is no record with an id .*remove it to go on"):
            written_ids(file)
