"""The command `futurel1 pack`: records and their media as tar shards, read one record after the other."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from futurel1.data.record_fields import RecordFields
from futurel1.data.records import RecordSource, check_outside, open_records
from futurel1.data.remote import ensure_local, media_folder
from futurel1.data.stored_files import local_file
from futurel1.data.tar_shards import INDEX_SUFFIX, PACKING, RECORD_MEMBER, TarMembers, scan_members, tar_members
from futurel1.errors import ConfigError, RecordError
from futurel1.files import replacing, writable, write_whole
from futurel1.json_lines import json_line, plain_value
from futurel1.locks import one_writer
from futurel1.progress import record_progress

__all__ = ["Packed", "pack"]

MEDIA_FIELDS = ("video", "image", "reasoning_image", "videos", "images", "video_path", "question_images",
                "reasoning_images")  # fmt: skip
"""Fields of all kinds of records that name media."""


@dataclass(frozen=True)
class Packed:
    """Shards that were written.

    Attributes:
        folder: their folder.
        records: records in all.
        shards: number of shards.
        size: bytes of the shards.
    """

    folder: Path
    records: int
    shards: int
    size: int

    def __str__(self) -> str:
        return f"{self.folder}: {self.records:,} records in {self.shards:,} shards, {self.size / 1e6:,.1f} MB"


def pack(
    records: str | list[str], out: str = "runs/packed", *, shard_size: float = 256.0, data_root: str | None = None
) -> Packed:
    """Write records and their media as tar shards, which are read one record after the other without unpacking.

    Members are named as WebDataset names them: 000000012.json is a record, 000000012.video0.mp4 its clip. Each shard is
    read back and compared before it gets its name. A call that was killed goes on with the next shard. The folder is
    named wherever records are: `futurel1 check OUT`, `data.train: OUT`.

    Args:
        records: Records of any kind: file, folder, pattern, address or list of them.
        out: Folder of the shards.
        shard_size: Megabytes after which a shard is closed.
        data_root: Folder that no record's path may leave.

    Raises:
        ConfigError: OUT holds something else, or all of these records already.
        MissingFileError: No such records.
        RecordError: A record that cannot be packed, or a shard that does not read back as it was written.
    """
    if not shard_size > 0:
        raise ConfigError(f"shard_size is above 0 megabytes, got {shard_size}")
    check_outside(records, out)
    folder, limit = Path(out), int(shard_size * 1e6)
    source = open_records(records)
    root = media_folder("data_root", data_root)
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with one_writer(folder), record_progress() as bar:
        settings = {"records": [[file.place, file.size, file.version] for file in source.files], "shard_bytes": limit}
        _settle(folder, settings)
        shards, done = _finished(folder)
        line = bar.add_task("packing records", total=len(source), completed=done)
        while done < len(source):
            shard = _Shard(folder / f"shard-{shards:05d}.tar", limit)
            done = shard.write(source, done, root)
            shards += 1
            bar.update(line, completed=done)
        write_whole(folder / PACKING, json.dumps({**settings, "packed": len(source)}, indent=2) + "\n")
    return Packed(folder, len(source), shards, sum(file.stat().st_size for file in folder.glob("shard-*.tar")))


def _settle(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note what is packed here, or check that it is what was begun."""
    note = folder / PACKING
    if not note.is_file():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ConfigError(f"{folder} is not empty, and nothing in it is overwritten; choose another --out")
        write_whole(note, json.dumps(settings, indent=2) + "\n")
        return
    begun = json.loads(note.read_text(encoding="utf-8"))
    if {name: begun.get(name) for name in settings} != settings:
        raise ConfigError(f"{folder} holds shards of other records or of another --shard_size; choose another --out")
    if "packed" in begun:
        raise ConfigError(f"{folder} holds all {begun['packed']} records already; choose another --out")


def _finished(folder: Path) -> tuple[int, int]:
    """Numbers of the shards and of the records that an earlier call has packed."""
    shards = sorted(folder.glob("shard-*.tar"))
    if not shards:
        return 0, 0
    last = tar_members(local_file(shards[-1])).names[-1]
    return len(shards), int(last.partition(b".")[0]) + 1


class _Shard:
    """One shard that is being written.

    Args:
        file: its name when it is whole.
        limit: bytes after which it is closed.
    """

    def __init__(self, file: Path, limit: int) -> None:
        self._file, self._limit = file, limit
        self._digests: dict[str, str] = {}

    def write(self, source: RecordSource, first: int, root: Path | None) -> int:
        """Write records from number `first` on; returns the number of the next one."""
        with replacing(self._file) as partial:
            number = first
            with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as shard:
                while number < len(source) and shard.offset < self._limit:
                    for name, data in _members(source, number, root):
                        self._add(shard, name, data)
                    number += 1
            with partial.open("rb") as stream:
                members = scan_members(stream)
            self._compare(partial, members)
            index = self._file.with_name(self._file.name + INDEX_SUFFIX)
            with replacing(index) as beside, beside.open("wb") as stream:
                members.save(stream, partial.stat().st_size)
        return number

    def _add(self, shard: tarfile.TarFile, name: str, data: bytes | Path) -> None:
        if isinstance(data, Path):
            ensure_local(data)
            data = data.read_bytes()
        self._digests[name] = hashlib.sha256(data).hexdigest()
        info = tarfile.TarInfo(name)
        info.size = len(data)
        shard.addfile(info, io.BytesIO(data))

    def _compare(self, written: Path, members: TarMembers) -> None:
        """Refuse a shard that does not read back as it was written."""
        file = local_file(written)
        found = {
            name.decode(): hashlib.sha256(file.read(*map(int, span))).hexdigest()
            for name, span in zip(members.names.tolist(), members.spans, strict=True)
        }
        wrong = sorted(
            name for name in self._digests.keys() | found.keys() if self._digests.get(name) != found.get(name)
        )
        if wrong:
            raise RecordError(
                f"{self._file}: {wrong[0]} does not read back as it was written; check the disk, and pack again"
            )


def _members(source: RecordSource, number: int, root: Path | None) -> Iterator[tuple[str, bytes | Path]]:
    """The members of a record: first the record, which names the others."""
    record = source.raw(number)
    fields = RecordFields(record.raw, file=record.name, number=record.number, folder=record.folder, data_root=root)
    key = f"{number:09d}"
    names: dict[Path, str] = {}

    def named(field: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [named(field, item) for item in value]
        if isinstance(value, bytes):
            return {"bytes": value}
        if isinstance(value, Mapping) and value.get("bytes") is None:
            return {**value, **{inner: named(field, value[inner]) for inner in ("path",) if inner in value}}
        if not isinstance(value, str):
            return value
        path = fields.media_path(field, value)
        return names.setdefault(path, f"{key}.{field}{len(names)}{path.suffix.lower()}")

    def turn(field: str, value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(value.get("content"), list):
            return value
        return {**value, "content": [part(field, item) for item in value["content"]]}

    def part(field: str, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, Mapping) else None
        if kind not in ("image", "video"):
            return value
        return {name: named(kind, item) if name in (kind, "path", "url") else item for name, item in value.items()}

    packed = {name: named(name, value) if name in MEDIA_FIELDS else value for name, value in record.raw.items()}
    for field in ("messages", "conversations"):
        if isinstance(packed.get(field), list):
            packed[field] = [turn(field, value) for value in packed[field]]
    try:
        yield key + RECORD_MEMBER, json_line(packed, default=plain_value)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{fields.place}: cannot be written as JSON: {error}") from error
    yield from ((name, path) for path, name in names.items())
