"""Files of records, one class per format: JSON, JSON Lines, Parquet, Arrow and tar. Each reads one record at a time."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from futurel1.data.line_index import index_lines
from futurel1.data.record_fields import printable
from futurel1.data.stored_files import StoredFile
from futurel1.data.tar_shards import member_folder, tar_members
from futurel1.errors import RecordError, RemoteError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["RECORD_FILE_SUFFIXES", "RecordFile", "decode_json", "open_file"]

RECORD_FILE_SUFFIXES = (".json", ".jsonl", ".parquet", ".arrow", ".tar")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ROW_GROUPS_KEPT = 2
_ARROW_TABLES_KEPT = 2
_ARROW_FILE_MAGIC = b"ARROW1"


class RecordFile(Protocol):
    """One file of records; positions count from 0."""

    file: StoredFile

    @property
    def folder(self) -> Path:
        """The folder from which relative media paths start."""
        ...

    def __len__(self) -> int: ...

    def number(self, position: int) -> int:
        """The 1-based number of a record; in JSON Lines, its line number."""
        ...

    def read(self, position: int, place: str) -> Any:
        """The record as stored; `place` names it in errors."""
        ...


def open_file(file: StoredFile, name: str) -> RecordFile:
    """Open a file of records by its extension.

    Args:
        file: a file with one of `RECORD_FILE_SUFFIXES`.
        name: name of the file in messages.

    Raises:
        RecordError: the file has no records, or its content does not match its extension.
        RemoteError: its store does not give it.
    """
    if file.size == 0:
        raise RecordError(f"{file.place}: the file is empty (0 bytes); write records to it or leave it out")
    suffix = file.path.suffix.lower()
    records: RecordFile
    if suffix == ".jsonl":
        records = _JsonLinesFile(file)
    elif suffix == ".parquet":
        records = _ParquetFile(file, name)
    elif suffix == ".arrow":
        records = _ArrowFile(file, name)
    elif suffix == ".tar":
        records = _TarFile(file)
    else:
        records = _JsonFile(file, name)
    if len(records) == 0:
        raise RecordError(f"{file.place}: the file has no records; write some or leave it out")
    return records


class _RepeatedKeyError(ValueError):
    """A JSON object repeats a key."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object; refuse repeated keys, of which `json` would silently keep the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _RepeatedKeyError(next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1))
    return value


def decode_json(data: bytes, place: str, remedy: str) -> Any:
    """Decode one JSON value; `remedy` tells the user how to fix a syntax error."""
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{place}: byte {data[error.start]:#04x} at offset {error.start} is not UTF-8; save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        excerpt = error.doc[max(0, error.pos - 20) : error.pos + 20]
        raise RecordError(
            f"{place}: not valid JSON: {error.msg}, line {error.lineno} column {error.colno}, near {excerpt!r}; "
            f"{remedy}"
        ) from error
    except _RepeatedKeyError as error:
        raise RecordError(
            f"{place}, field '{printable(error.key)}': an object has this key twice, and only one of the values could "
            "count; remove the other"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{place}: JSON that Python cannot hold ({error}); correct or drop it") from error


class _Beside:
    """Records whose media lie beside their file."""

    def __init__(self, file: StoredFile) -> None:
        self.file = file

    @property
    def folder(self) -> Path:
        return self.file.path.parent

    def number(self, position: int) -> int:
        return position + 1


class _JsonFile(_Beside):
    """A JSON array of records, or one record, held in memory."""

    def __init__(self, file: StoredFile, name: str) -> None:
        super().__init__(file)
        data = file.using(lambda stream: stream.read())
        try:
            value = decode_json(data, name, "correct it, or name the file .jsonl if each line is a record of its own")
        except RecordError as error:
            whole = isinstance(error.__cause__, json.JSONDecodeError | UnicodeDecodeError)
            items = None if whole else _items(data)
            if items is None:
                raise
            # Decode each item on its own, so that only the records that cannot be held are errors.
            value = items
        if not isinstance(value, list | dict):
            raise RecordError(f"{name}: {type(value).__name__} where a list is expected; write an array of records")
        self._records = value if isinstance(value, list) else [value]

    def __len__(self) -> int:
        return len(self._records)

    def read(self, position: int, place: str) -> Any:
        record = self._records[position]
        return decode_json(record, place, "correct it") if isinstance(record, bytes) else record


_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)


def _items(data: bytes) -> list[bytes] | None:
    """Cut a JSON array into its items; an object is the only item; None if the brackets do not pair."""
    data = data.removeprefix(_BYTE_ORDER_MARK).strip()
    if data.startswith(b"{"):
        return [data]
    items: list[bytes] = []
    depth, start = 0, 1
    for token in _JSON_TOKEN.finditer(data):
        what = token[0]
        if what in b"[{":
            depth += 1
        elif what in b"]}":
            depth -= 1
        if (what == b"," and depth == 1) or depth == 0:
            items.append(data[start : token.start()].strip())
            start = token.end()
        if depth == 0:
            break
    return items if data.startswith(b"[") and depth == 0 and start == len(data) and all(items) else None


class _JsonLinesFile(_Beside):
    """JSON Lines, indexed by where each line starts; a record's number is its line."""

    def __init__(self, file: StoredFile) -> None:
        super().__init__(file)
        self._lines = index_lines(file)

    def __len__(self) -> int:
        return len(self._lines)

    def number(self, position: int) -> int:
        return position + 1 + int(np.searchsorted(self._lines.blanks, position, side="right"))

    def read(self, position: int, place: str) -> Any:
        data = self.file.read(*self._lines.span(position))
        line = data.partition(b"\n")[0]  # blank lines may follow
        return decode_json(line.rstrip(b"\r"), place, "write one JSON object on the line")


class _ParquetFile(_Beside):
    """Parquet, read a row group at a time."""

    def __init__(self, file: StoredFile, name: str) -> None:
        import pyarrow as pa

        super().__init__(file)
        try:
            sizes = file.using(_row_group_sizes)
        except RemoteError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise RecordError(f"{name}: not a readable Parquet file ({error}); copy or write it again") from error
        self._ends = np.cumsum([0, *sizes], dtype=np.int64)[1:]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, position: int, place: str) -> Any:
        import pyarrow as pa

        group = int(np.searchsorted(self._ends, position, side="right"))
        first = int(self._ends[group - 1]) if group else 0
        try:
            table = _row_group(self.file, group)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise RecordError(f"{place}: the row cannot be read ({error}); write the Parquet file again") from error
        return _row(table, position - first, place)


def _row(table: pa.Table, position: int, place: str) -> dict[str, Any]:
    """Convert a row to Python values, column by column, so that an error names the field."""
    import pyarrow as pa

    row: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in row:
            raise RecordError(
                f"{place}, field '{printable(name)}': the table has this column twice, and only one could count; "
                "remove the other"
            )
        try:
            row[name] = column[position].as_py()
        # dates beyond Python's calendar, unknown time zones, bytes that are not UTF-8, structs that repeat a field
        except (pa.ArrowException, ValueError, ArithmeticError, LookupError, TypeError, OSError) as error:
            raise RecordError(
                f"{place}, field '{printable(name)}': the value of type {column.type} cannot be read ({error}); write "
                "it as text, a number or a list"
            ) from error
    return row


def _row_group_sizes(stream: BinaryIO) -> list[int]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(stream) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]


@lru_cache(maxsize=_ROW_GROUPS_KEPT)
def _row_group(file: StoredFile, group: int) -> pa.Table:
    """Read a row group; the file's version keeps a rewritten file from being served from the cache."""
    import pyarrow.parquet as pq

    def read(stream: BinaryIO) -> pa.Table:
        with pq.ParquetFile(stream) as parquet:
            # without Arrow's thread pool, which does not survive a fork
            return parquet.read_row_group(group, use_threads=False)

    return file.using(read)


class _ArrowFile(_Beside):
    """Arrow, as `datasets` saves it: memory-mapped, so that only requested rows are read; remote files are copied."""

    def __init__(self, file: StoredFile, name: str) -> None:
        import pyarrow as pa

        super().__init__(file)
        try:
            self._length = int(_arrow_table(file).num_rows)
        except RemoteError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise RecordError(f"{name}: not a readable Arrow file ({error}); copy or save it again") from error

    def __len__(self) -> int:
        return self._length

    def read(self, position: int, place: str) -> Any:
        import pyarrow as pa

        try:
            table = _arrow_table(self.file)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise RecordError(f"{place}: the row cannot be read ({error}); save the Arrow file again") from error
        return _row(table, position, place)


@lru_cache(maxsize=_ARROW_TABLES_KEPT)
def _arrow_table(file: StoredFile) -> pa.Table:
    """Map an Arrow file; its version keeps a rewritten file from being served from the cache."""
    import pyarrow as pa

    mapped = pa.memory_map(str(file.local()))
    opener = pa.ipc.open_file if mapped.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC else pa.ipc.open_stream
    mapped.seek(0)
    # without Arrow's thread pool, which does not survive a fork
    return opener(mapped, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()


class _TarFile:
    """A tar shard of records and their media; see `tar_shards`."""

    def __init__(self, file: StoredFile) -> None:
        self.file = file
        self._spans = tar_members(file).records()

    @property
    def folder(self) -> Path:
        return member_folder(self.file)

    def __len__(self) -> int:
        return len(self._spans)

    def number(self, position: int) -> int:
        return position + 1

    def read(self, position: int, place: str) -> Any:
        start, stop = map(int, self._spans[position])
        with self.file.local().open("rb") as stream:
            stream.seek(start)
            return decode_json(stream.read(stop - start), place, "pack the records again")
