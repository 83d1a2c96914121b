"""Reading sharded checkpoints in one process: what describes them is data, weights come one by one.

`ModelParallelStrategy` (FSDP2) writes a folder in the format of `torch.distributed.checkpoint`: shards (`*.distcp`),
their description (`.metadata`, a pickle) and the rest of the checkpoint (`meta.pt`). PyTorch unpickles the description
and single values of the shards without limits; here both are read as data first.
"""

import io
import math
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from futurel1.errors import CheckpointError
from futurel1.refused_pickles import unusable

__all__ = ["META_FILE", "ShardedWeights", "check_shards", "is_sharded", "read_description"]

META_FILE = "meta.pt"
"""What a sharded checkpoint holds besides weights and optimizers."""
_SHARDS_FILE = ".metadata"
_WEIGHTS = "state_dict."
"""Prefix of the module's weights among all values of a checkpoint."""
_ALLOWED = {
    "builtins": {"set"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "WindowsPath"},
    "torch": {"Size", "device", *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
}  # fmt: skip
"""What the description of shards is made of."""


def is_sharded(path: Path) -> bool:
    """Whether a path is a whole sharded checkpoint: its description is what is written last but one."""
    return (path / _SHARDS_FILE).is_file() and (path / META_FILE).is_file()


def read_description(folder: Path) -> Metadata:
    """Read which tensors and values a sharded checkpoint holds, and where.

    Args:
        folder: the checkpoint.

    Raises:
        CheckpointError: there is no such description, or it is damaged, asks for code, or names files elsewhere.
    """
    file = folder / _SHARDS_FILE
    try:
        with file.open("rb") as stream:
            found = _ShardsUnpickler(stream).load()
        if not isinstance(found, Metadata):
            raise TypeError(f"it holds {type(found).__name__}")
        _check_places(folder, found)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no whole checkpoint: it has no {_SHARDS_FILE}; name another") from None
    except (OSError, CheckpointError):
        raise
    except Exception as error:  # a damaged or hostile pickle raises whatever it likes
        raise unusable(file, error) from error
    return found


def check_shards(folder: Path) -> None:
    """Refuse shards that ask for code to be run; PyTorch would load their single values without limits.

    Raises:
        CheckpointError: the checkpoint is damaged, or holds more than tensors and plain values.
    """
    description = read_description(folder)
    places: dict[str, list[Any]] = {}
    for name, entry in description.state_dict_metadata.items():
        if isinstance(entry, BytesStorageMetadata):
            place = description.storage_data[MetadataIndex(name)]
            places.setdefault(place.relative_path, []).append(place)
    for file, values in places.items():
        try:
            with (folder / file).open("rb") as stream:
                for place in values:
                    stream.seek(place.offset)
                    _plain(stream.read(place.length))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} has no {file}; copy the rest of the checkpoint") from None
        except OSError:
            raise
        except Exception as error:  # as above
            raise unusable(folder / file, error) from error


class ShardedWeights(Mapping[str, Tensor]):
    """The weights of a sharded checkpoint by name, put together from their shards when they are asked for.

    Args:
        folder: the checkpoint.

    Attributes:
        shapes: shape of each weight.

    Raises:
        CheckpointError: the checkpoint is damaged, or asks for code.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        description = read_description(folder)
        self._tensors = {
            name.removeprefix(_WEIGHTS): entry
            for name, entry in description.state_dict_metadata.items()
            if name.startswith(_WEIGHTS) and isinstance(entry, TensorStorageMetadata)
        }
        self.shapes = {name: tuple(entry.size) for name, entry in self._tensors.items()}
        self._reader = _DescribedReader(folder, description)

    def __getitem__(self, name: str) -> Tensor:
        entry = self._tensors[name]
        weight = torch.empty(entry.size, dtype=entry.properties.dtype)
        self.copy_into(weight, name)
        return weight

    def copy_into(self, weight: Tensor, name: str) -> None:
        """Read a weight shard by shard into another, which may have another dtype.

        Raises:
            CheckpointError: its shards are damaged.
        """
        try:
            with warnings.catch_warnings(action="ignore"):  # torch says that it reads in a single process
                load(
                    {f"{_WEIGHTS}{name}": weight},
                    storage_reader=self._reader,
                    planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                    no_dist=True,
                )
        except (Exception, CheckpointException) as error:  # which is no Exception, and holds what each rank raised
            raise CheckpointError(
                f"{self.folder} is damaged: {name} cannot be read ({_cause(error)}); use an older checkpoint, or copy "
                "it again"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class _DescribedReader(FileSystemReader):
    """Reads shards by a description that was read as data, once."""

    def __init__(self, folder: Path, description: Metadata) -> None:
        super().__init__(folder)
        self._description = description

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._description


class _ShardsUnpickler(pickle.Unpickler):
    """Reads the description of shards, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


def _check_places(folder: Path, description: Metadata) -> None:
    """Refuse shards elsewhere, shards that have to be transformed, and tensors with gaps."""
    for place in description.storage_data.values():
        file = place.relative_path
        if not PurePosixPath(file).name == PureWindowsPath(file).name == file:
            raise CheckpointError(f"{folder / _SHARDS_FILE} names {file!r}: only files of its own folder are read")
        if getattr(place, "transform_descriptors", None):
            raise CheckpointError(f"{folder} is compressed, and such shards are not read; save it without extensions")
    for name, entry in description.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            stored = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
            if stored != math.prod(entry.size):
                raise CheckpointError(
                    f"{folder} is damaged: it holds {stored} of {math.prod(entry.size)} numbers of {name}; use an "
                    "older checkpoint, or copy it again"
                )


def _plain(data: bytes) -> None:
    with warnings.catch_warnings(action="ignore"):  # torch warns about pickles that it goes on to refuse
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _cause(error: BaseException) -> str:
    """What an error says in one line, without its tracebacks."""
    found = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
    return f"{type(found).__name__}: {' '.join(str(found).split())[:200]}"
