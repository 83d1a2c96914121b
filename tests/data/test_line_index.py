"""Where lines start: as a plain loop finds it, whatever is in them; and kept for remote files until they change."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from range_server import serving

from futurel1.data import line_index
from futurel1.data.line_index import index_lines
from futurel1.data.stored_files import remote_files

MARK = b"\xef\xbb\xbf"


def plain(data):
    """Content of the lines that are not blank, and their numbers."""
    lines = enumerate(BytesIO(data).readlines(), 1)
    return [(number, line) for number, line in lines if (line.removeprefix(MARK) if number == 1 else line).strip()]


@given(
    st.lists(st.sampled_from([b"{}", b" {}", b"", b" \t", b"\r", b"\x0b", b"x" * 30, MARK, b"\x00"]), max_size=12),
    st.booleans(),
    st.booleans(),
    st.integers(1, 40),
)
def test_lines_are_those_of_a_plain_loop(lines, marked, ended, chunk):
    data = (MARK if marked else b"") + b"\n".join(lines) + (b"\n" if ended else b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_index, "_CHUNK_BYTES", chunk)
        index = line_index._scan(BytesIO(data))
    expected = plain(data)
    spans = [index.span(position) for position in range(len(index))]
    assert [BytesIO(data[start:stop]).readline() for start, stop in spans] == [line for _, line in expected]
    numbers = [i + 1 + int(np.searchsorted(index.blanks, i, side="right")) for i in range(len(index))]
    assert numbers == [number for number, _ in expected]


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setenv("FUTUREL1_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"{}\n\n{}\n")
    with serving(folder) as server:
        yield server, folder / "a.jsonl"


def _index(server):
    [file] = remote_files(f"{server.url}/a.jsonl", (".jsonl",))
    return index_lines(file)


def test_a_remote_file_is_scanned_once_per_version(served):
    server, file = served
    assert [_index(server).bounds.tolist() for _ in range(2)] == [[0, 4, 7]] * 2
    assert server.count("GET", "a.jsonl") == 1
    file.write_bytes(b"{}\n")
    assert _index(server).bounds.tolist() == [0, 3]


def test_a_damaged_index_is_made_again(served, tmp_path, caplog):
    server, _ = served
    _index(server)
    [kept] = (tmp_path / "cache/indexes").iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert _index(server).bounds.tolist() == [0, 4, 7]
    assert f"{kept} is damaged" in caplog.text
