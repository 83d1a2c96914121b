"""Finding checkpoint folders, and what they may name: safetensors of their own, and no code.

A checkpoint is data from somewhere else. What it names besides is refused before `transformers` sees it.
"""

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from futurel1.errors import CheckpointError, MissingFileError

TINY = "tiny"
"""Name of this package's pretrained tiny backbone, accepted wherever a checkpoint folder is."""
TINY_FOLDER = Path(__file__).parent / "backbones" / "tiny_weights"
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
ADAPTER_FILE = "adapter_config.json"
"""With this file in a folder, `transformers` would load an adapter besides the weights, also a pickled one."""
_MESSAGE = 300
_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Names of safetensors for what weights are stored as, the widest first."""


def checkpoint_folder(path: str | Path) -> Path:
    """Find the folder of a checkpoint: a local folder as it is, a hub name through the hub's local cache.

    Args:
        path: a folder with `config.json` and safetensors, or a repository name such as ``Qwen/Qwen3-VL-8B-Instruct``,
            or ``"tiny"``.

    Raises:
        MissingFileError: neither a folder nor an available repository.
        CheckpointError: a folder without configuration, with missing or damaged files, or one that names weights
            elsewhere or in another format.
    """
    folder = TINY_FOLDER if str(path) == TINY else Path(path).expanduser()
    if not folder.is_dir():
        folder = _from_hub(str(path))
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json: give the folder that holds config.json and *.safetensors")
    if _read_json(folder / "config.json").get("transformers_weights") is not None:
        raise CheckpointError(
            f"{folder / 'config.json'} names its weights by transformers_weights, which is not followed; call them "
            f"{WEIGHTS_FILE}, or name their shards in {INDEX_FILE}"
        )
    if (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"{folder} has {ADAPTER_FILE}: adapters are not loaded; merge the adapter into the weights with peft "
            "(merge_and_unload, save_pretrained), or move its files out of the folder"
        )
    for file in weight_files(folder):
        if not (folder / file).is_file():
            raise CheckpointError(
                f"{folder} has no {file} (found {sorted(file.name for file in folder.iterdir())}): copy the rest of "
                "the checkpoint; pickled weights are never loaded, convert them with safetensors first"
            )
    return folder


def weight_files(folder: Path) -> list[str]:
    """Names of the files with the model's weights; a single file takes precedence over shards, as in `transformers`."""
    if (folder / WEIGHTS_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        return [WEIGHTS_FILE]
    return sorted(set(weight_map(folder).values()))


def weight_map(folder: Path) -> dict[str, str]:
    """The files that an index names, by weights; only safetensors of the index's own folder."""
    index = folder / INDEX_FILE
    content = _read_json(index)
    files, metadata = content.get("weight_map"), content.get("metadata")
    if not isinstance(files, dict) or not files or not isinstance(metadata, dict):
        raise CheckpointError(
            f"{index} has no weight_map (weights to files) and metadata (an object); copy it again from the checkpoint"
        )
    for name, file in files.items():
        # links are followed: the hub's cache consists of them
        plain = isinstance(file, str) and PurePosixPath(file).name == PureWindowsPath(file).name == file
        if not plain or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names {shortened(file)} for {shortened(name)}: only *.safetensors of the same folder are "
                "loaded, never pickled weights and nothing elsewhere; put the shards beside it, as safetensors"
            )
    return files


def stored_dtype(folder: Path) -> torch.dtype:
    """The widest dtype among a checkpoint's stored weights, whatever its configuration says."""
    from safetensors import safe_open

    found: set[str] = set()
    for file in weight_files(folder):
        with safe_open(folder / file, framework="pt") as handle:
            found |= {handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118 (no mapping)
    return next((dtype for name, dtype in _FLOATS.items() if name in found), torch.float32)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON ({error}); copy it again from the checkpoint") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds {type(content).__name__}, no object; copy it again from the checkpoint")
    return content


def shortened(given: object) -> str:
    """A value from a checkpoint or an error, for a message: one line of moderate length."""
    text = " ".join(str(given)[: 4 * _MESSAGE].split())[:_MESSAGE]
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def model_type(folder: Path) -> str:
    """`model_type` of a checkpoint folder's configuration."""
    return str(_read_json(folder / "config.json").get("model_type"))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise MissingFileError(
            f"no checkpoint folder {name!r}, and no such model in the hub or its local cache "
            f"({type(error).__name__}); give a folder, a repository name, 'tiny' or 'tiny@random'"
        ) from error
