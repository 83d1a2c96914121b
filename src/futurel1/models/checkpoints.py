"""Finding, reading and writing checkpoint folders: configuration, processor, projection head. Safetensors only."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from futurel1.errors import CheckpointError, MissingFileError

TINY = "tiny"
"""Name that stands for the tiny backbone of this package, wherever a checkpoint folder is expected."""
TINY_RANDOM = "tiny-random"
"""The same for one with random weights, which is made in memory."""
TINY_FOLDER = Path(__file__).parent / "backbones" / "tiny_weights"
HEAD_FILE = "projection_head.safetensors"
HEAD_PREFIX = "projection_head."
DUAL_HEADS = ("projection_head_orig.", "projection_head_render.")
SYSTEM_PROMPT_FILE = "system_prompt.txt"
"""Optional file of a checkpoint folder: the system turn that the model was trained with."""
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"


def checkpoint_folder(path: str | Path) -> Path:
    """The folder of a checkpoint: a local one as it is, a hub name through the hub's local cache.

    Args:
        path: a folder with `config.json` and safetensors, or a repository name such as ``Qwen/Qwen3-VL-8B-Instruct``,
            or ``"tiny"``.

    Raises:
        MissingFileError: neither a folder nor a repository that can be had.
        CheckpointError: a folder without configuration, or whose files are missing or damaged.
    """
    folder = TINY_FOLDER if str(path) == TINY else Path(path).expanduser()
    if not folder.is_dir():
        folder = _from_hub(str(path))
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json: give the folder that holds config.json and *.safetensors")
    _read_json(folder / "config.json")
    for file in _weight_files(folder):
        if not (folder / file).is_file():
            raise CheckpointError(
                f"{folder} has no {file} (found {sorted(file.name for file in folder.iterdir())}): copy the rest of "
                "the checkpoint; pickled weights are never loaded, convert them with safetensors first"
            )
    return folder


def _weight_files(folder: Path) -> list[str]:
    """Names of the files that hold the model's weights; one file goes before shards, as in `transformers`."""
    if (folder / WEIGHTS_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        return [WEIGHTS_FILE]
    return sorted(set(_weight_map(folder).values()))


def _weight_map(folder: Path) -> dict[str, str]:
    weight_map: dict[str, str] = _read_json(folder / INDEX_FILE)["weight_map"]
    return weight_map


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}); copy it again from the checkpoint") from error
    return content


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
            f"({type(error).__name__}); give a folder, a repository name, 'tiny' or 'tiny-random'"
        ) from error


def load_processor(path: str | Path) -> Any:
    """Load the processor (tokenizer, image and video processor) of a checkpoint, with latent tokens registered.

    Args:
        path: as for :func:`checkpoint_folder`, or ``"tiny-random"``.

    Returns:
        The `transformers` processor, or None when the folder has no tokenizer. Its attribute `system_prompt` holds the
        folder's `system_prompt.txt`, if there is one, without its last line break.

    Raises:
        MissingFileError: no such checkpoint.
        CheckpointError: a tokenizer without its image and video processor, or files that cannot be read.
    """
    if str(path) == TINY_RANDOM:
        from futurel1.models.backbones.tiny import tiny_processor

        processor = tiny_processor()
    else:
        folder = checkpoint_folder(path)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json")):
            return None
        from transformers import AutoProcessor

        try:
            processor = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder} has a tokenizer but its processor cannot be loaded ({error}); copy the checkpoint's "
                "processor files (preprocessor_config.json, video_preprocessor_config.json or processor_config.json), "
                "or remove the tokenizer files to load the weights alone"
            ) from error
        if (folder / SYSTEM_PROMPT_FILE).is_file():
            # `save_pretrained` ends it with a line break, which is no part of the prompt
            processor.system_prompt = (folder / SYSTEM_PROMPT_FILE).read_bytes().decode().removesuffix("\n")
    register_tokens(processor.tokenizer)
    return processor


def register_tokens(tokenizer: Any) -> int:
    """Add the latent tokens that a tokenizer lacks, as ordinary added tokens in the released order.

    Args:
        tokenizer: a `transformers` tokenizer, changed in place.

    Returns:
        Number of tokens that were added.
    """
    from transformers import AddedToken

    from futurel1.models.tokens import LATENT_TOKENS

    known = tokenizer.get_vocab()
    missing = [AddedToken(token, normalized=False) for token in LATENT_TOKENS if token not in known]
    return int(tokenizer.add_tokens(missing)) if missing else 0


def read_head(folder: Path) -> dict[str, Tensor]:
    """Tensors of the projection head, names without their prefix; from the head's own file or from the main weights.

    Raises:
        CheckpointError: the checkpoint has two heads (dual-MSE training), which has no counterpart here, or a file
            cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if (folder / HEAD_FILE).is_file():
        files = [HEAD_FILE]
    elif (folder / WEIGHTS_FILE).is_file():
        files = [WEIGHTS_FILE]
    else:
        files = sorted({file for name, file in _weight_map(folder).items() if name.startswith("projection_head")})
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 (safe_open is not a mapping)
                    if name.startswith(DUAL_HEADS):
                        raise CheckpointError(
                            f"{folder / file} has {name}: checkpoints with dual heads are not supported; keep one of "
                            f"the two, renamed to {HEAD_PREFIX}*"
                        )
                    if name.startswith(HEAD_PREFIX):
                        tensors[name.removeprefix(HEAD_PREFIX)] = handle.get_tensor(name)
        except SafetensorError as error:
            raise unreadable(folder / file, error) from error
    return tensors


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for weights that are cut off or not safetensors at all."""
    return CheckpointError(f"{path} cannot be read ({error}); copy it again, the file is damaged or incomplete")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the load report of `transformers`, which calls a projection head unexpected; we check keys ourselves."""
    from transformers.utils import logging as untyped

    logging: Any = untyped

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
