"""Finding, loading and saving checkpoint folders: weights, configuration, processor, head. Safetensors only."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from futurel1.errors import CheckpointError, MissingFileError
from futurel1.files import set_mode
from futurel1.models.backbones import Backbone, backbone_class
from futurel1.models.heads import HeadKind
from futurel1.models.settings import LatentSettings
from futurel1.models.tokens import LATENT_TOKENS, LatentTokens

logger = logging.getLogger(__name__)
TINY = "tiny"
"""Name of this package's pretrained tiny backbone, accepted wherever a checkpoint folder is."""
TINY_RANDOM = "tiny-random"
"""Name of a tiny backbone with random weights, which is built in memory."""
TINY_FOLDER = Path(__file__).parent / "backbones" / "tiny_weights"
HEAD_FILE = "projection_head.safetensors"
MODEL_PREFIX = "backbone.model."
"""Prefix of the stock model's weight names within a reasoner."""
HEAD_PREFIX = "projection_head."
DUAL_HEADS = ("projection_head_orig.", "projection_head_render.")
SYSTEM_PROMPT_FILE = "system_prompt.txt"
"""Optional file in a checkpoint folder: the system turn that the model was trained with."""
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"


def checkpoint_folder(path: str | Path) -> Path:
    """Find the folder of a checkpoint: a local folder as it is, a hub name through the hub's local cache.

    Args:
        path: a folder with `config.json` and safetensors, or a repository name such as ``Qwen/Qwen3-VL-8B-Instruct``,
            or ``"tiny"``.

    Raises:
        MissingFileError: neither a folder nor an available repository.
        CheckpointError: a folder without configuration, or with missing or damaged files.
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
    """Names of the files with the model's weights; a single file takes precedence over shards, as in `transformers`."""
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
        The `transformers` processor, or None if the folder has no tokenizer. Its attribute `system_prompt` holds the
        folder's `system_prompt.txt`, if there is one, without the final line break.

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
            # the final line break that `save_pretrained` adds is not part of the prompt
            processor.system_prompt = (folder / SYSTEM_PROMPT_FILE).read_bytes().decode().removesuffix("\n")
    register_tokens(processor.tokenizer)
    return processor


def register_tokens(tokenizer: Any) -> int:
    """Add the latent tokens that a tokenizer lacks, as ordinary added tokens in the released order.

    Args:
        tokenizer: a `transformers` tokenizer, changed in place.

    Returns:
        Number of added tokens.
    """
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    missing = [AddedToken(token, normalized=False) for token in LATENT_TOKENS if token not in known]
    return int(tokenizer.add_tokens(missing)) if missing else 0


def read_head(folder: Path) -> dict[str, Tensor]:
    """Read the projection head from its own file or from the main weights; names come without their prefix.

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


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: the stock model, its embedding table large enough for the tokenizer.
        tokens: ids of START, LATENT and END.
        settings: latent settings, with the requested head.
        processor: the processor; None without a tokenizer.
        head: stored tensors of the projection head, names without their prefix; empty without one.
    """

    model: Any
    tokens: LatentTokens
    settings: LatentSettings
    processor: Any
    head: dict[str, Tensor]


def load_checkpoint(
    path: str | Path,
    *,
    dtype: torch.dtype,
    attn_implementation: str,
    tokens: LatentTokens | None,
    projection_head: HeadKind | None,
    projection_hidden_dim: int | None,
) -> Checkpoint:
    """Load all parts of a reasoner; see :meth:`futurel1.models.LatentReasoner.from_pretrained`.

    Raises:
        MissingFileError: no such checkpoint.
        CheckpointError: weights, configuration or tokenizer contradict each other.
    """
    processor = load_processor(path)
    model, head = _load_model(path, dtype, attn_implementation)
    settings = LatentSettings.from_config(model.config)
    if projection_head is not None:
        settings = replace(settings, projection_head_type=projection_head)
    if projection_hidden_dim is not None:
        settings = replace(settings, projection_hidden_dim=projection_hidden_dim)
    tokens = tokens or LatentTokens.from_config(model.config)
    if tokens is None and processor is not None:
        tokens = LatentTokens.from_tokenizer(processor.tokenizer)
    if tokens is None:
        raise CheckpointError(
            f"{path} has no tokenizer and its config.json no latent_id, latent_start_id, latent_end_id; "
            f"add the tokenizer files, or give tokens=LatentTokens(...) for {LATENT_TOKENS}"
        )
    if processor is not None:
        _fit_embeddings(model, processor.tokenizer)
    return Checkpoint(model, tokens, settings, processor, head)


def _load_model(path: str | Path, dtype: torch.dtype, attn_implementation: str) -> tuple[Any, dict[str, Tensor]]:
    """The stock model of a checkpoint and the tensors of its projection head."""
    import transformers
    from safetensors import SafetensorError

    if str(path) == TINY_RANDOM:
        from futurel1.models.backbones.tiny import tiny_model

        model = tiny_model()
        model.set_attn_implementation(attn_implementation)
        return model, {}
    folder = checkpoint_folder(path)
    stock = getattr(transformers, backbone_class(model_type(folder)).stock_class)
    head = read_head(folder)
    try:
        with quiet_transformers():
            model, info = stock.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported by _check_loading, with the names
                output_loading_info=True,
            )
    except SafetensorError as error:
        raise unreadable(folder, error) from error
    _check_loading(folder, info)
    return model, head


def _check_loading(folder: Path, info: dict[str, Any]) -> None:
    missing = sorted(info.get("missing_keys", ()))
    mismatched = sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing or mismatched:
        raise CheckpointError(
            f"{folder}: weights do not fit config.json; missing {missing[:5]} ({len(missing)} in all), "
            f"mismatched {mismatched[:5]} ({len(mismatched)} in all); use the config.json that was saved with them"
        )
    unexpected = [key for key in info.get("unexpected_keys", ()) if not key.startswith("projection_head")]
    if unexpected:
        logger.warning("%s: %d weights have no place in the model, e.g. %s", folder, len(unexpected), unexpected[:3])


def _fit_embeddings(model: Any, tokenizer: Any) -> None:
    """Add embedding rows for tokens beyond the table; every process gets the same rows."""
    needed = max(tokenizer.get_vocab().values()) + 1
    table = model.get_input_embeddings().weight
    if needed <= table.shape[0]:
        return
    # `transformers` samples the new rows around the mean of the old ones, and logs a long message about it.
    forked = torch.random.fork_rng(devices=[table.device] if table.is_cuda else [])
    with forked, quiet_transformers():
        torch.manual_seed(0)
        model.resize_token_embeddings(needed)


def load_head(head: nn.Module, checkpoint: Checkpoint, path: str, *, replaced: bool) -> None:
    """Put a checkpoint's head weights into a new projection head.

    Args:
        head: the head, changed in place.
        checkpoint: the loaded checkpoint.
        path: name of the checkpoint in messages.
        replaced: whether the caller asked for this head; stored weights that do not fit are then ignored.

    Raises:
        CheckpointError: weights that do not fit the head.
    """
    stored, kind = checkpoint.head, checkpoint.settings.projection_head_type
    wanted = head.state_dict()
    if stored.keys() == wanted.keys() and all(stored[name].shape == wanted[name].shape for name in wanted):
        head.load_state_dict(stored)
    elif wanted and not replaced:
        raise CheckpointError(
            f"{path}: config.json asks for a {kind!r} projection head with "
            f"{ {name: tuple(tensor.shape) for name, tensor in wanted.items()} }, the weights have "
            f"{ {name: tuple(tensor.shape) for name, tensor in stored.items()} or 'none' }; correct "
            "projection_head_type and projection_hidden_dim, or pass projection_head=... to start a new head"
        )
    elif stored and not replaced:
        raise CheckpointError(
            f"{path}: the weights have a projection head ({sorted(stored)}) but config.json asks for none; set "
            "use_projection_head and projection_head_type in config.json, or pass projection_head='none' to go "
            "without"
        )
    elif stored:
        logger.warning(
            "%s has projection head weights %s that are not used: the head asked for is %r",
            path, sorted(stored), kind,
        )  # fmt: skip


def require_names(state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raise a `CheckpointError` unless a state dict has the names of a reasoner's `own` weights."""
    if state.keys() != own.keys():
        raise CheckpointError(
            f"state_dict does not name this reasoner's weights: missing {sorted(own.keys() - state.keys())[:3]}, "
            f"unexpected {sorted(state.keys() - own.keys())[:3]}; strip what a wrapper put before the names"
        )


def save_checkpoint(
    path: str | Path,
    state: dict[str, Tensor],
    backbone: Backbone,
    tokens: LatentTokens,
    settings: LatentSettings,
    processor: Any,
) -> Path:
    """Write a checkpoint folder that :func:`load_checkpoint` reads.

    Args:
        path: folder to write into; created if missing.
        state: state dict of a reasoner.
        backbone: backbone with the stock model's configuration and class.
        tokens: ids of START, LATENT and END, for the configuration.
        settings: latent settings, for the configuration.
        processor: the processor, if there is one.

    Returns:
        The folder.
    """
    from safetensors.torch import save_file

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config = backbone.config
    config.latent_id, config.latent_start_id, config.latent_end_id = tokens.latent_id, tokens.start_id, tokens.end_id
    settings.write_config(config)
    if backbone.ties_embeddings:
        # gathered or copied state dicts hold the tied table twice
        state = {name: value for name, value in state.items() if name != f"{MODEL_PREFIX}lm_head.weight"}
    weights = {name.removeprefix(MODEL_PREFIX): value for name, value in state.items() if name.startswith(MODEL_PREFIX)}
    with quiet_transformers():
        backbone.model.save_pretrained(folder, state_dict=weights, safe_serialization=True)
    head = {name: value.contiguous() for name, value in state.items() if name.startswith(HEAD_PREFIX)}
    (folder / HEAD_FILE).unlink(missing_ok=True)
    if head:
        save_file(head, folder / HEAD_FILE, metadata={"format": "pt"})
    for file in folder.glob("*.safetensors"):
        set_mode(file, (folder / "config.json").stat().st_mode)
    if processor is not None:
        processor.save_pretrained(folder)
        prompt = getattr(processor, "system_prompt", None)
        if prompt is not None:
            (folder / SYSTEM_PROMPT_FILE).write_bytes(f"{prompt}\n".encode())
    return folder


def is_stale(name: str) -> bool:
    """Whether a file of a checkpoint folder belongs to the weights in it, and goes with them when they are replaced.

    Args:
        name: path of the file, relative to the folder.
    """
    weights = (".safetensors", ".safetensors.index.json")
    return "/" not in name and (name.endswith(weights) or name == SYSTEM_PROMPT_FILE)


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for weights that are truncated or not safetensors."""
    return CheckpointError(f"{path} cannot be read ({error}); copy it again, the file is damaged or incomplete")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the load report of `transformers`, which calls a projection head unexpected; our own code checks keys."""
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
