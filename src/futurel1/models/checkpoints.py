"""Loading and saving checkpoint folders: weights, configuration, processor, head. Safetensors only."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from futurel1.errors import CheckpointError
from futurel1.files import set_mode
from futurel1.models.backbones import Backbone, backbone_class
from futurel1.models.backbones.random_weights import RandomBackbone, is_random
from futurel1.models.checkpoint_folders import (
    WEIGHTS_FILE,
    checkpoint_folder,
    model_type,
    shortened,
    stored_dtype,
    weight_map,
)
from futurel1.models.heads import HeadKind
from futurel1.models.settings import LatentSettings
from futurel1.models.tokens import LATENT_TOKENS, LatentTokens

logger = logging.getLogger(__name__)
HEAD_FILE = "projection_head.safetensors"
LARGEST_FILE = "5GB"
"""Size of a file of weights; a larger model has several."""
MODEL_PREFIX = "backbone.model."
"""Prefix of the stock model's weight names within a reasoner."""
HEAD_PREFIX = "projection_head."
DUAL_HEADS = ("projection_head_orig.", "projection_head_render.")
SYSTEM_PROMPT_FILE = "system_prompt.txt"
"""Optional file in a checkpoint folder: the system turn that the model was trained with."""


def load_processor(path: str | Path) -> Any:
    """Load the processor (tokenizer, image and video processor) of a checkpoint, with latent tokens registered.

    Args:
        path: as for :func:`checkpoint_folder`, or a name of :mod:`futurel1.models.backbones.random_weights`.

    Returns:
        The `transformers` processor, or None if the folder has no tokenizer. Its attribute `system_prompt` holds the
        folder's `system_prompt.txt`, if there is one, without the final line break.

    Raises:
        MissingFileError: no such checkpoint.
        CheckpointError: a tokenizer without its image and video processor, or files that cannot be read.
    """
    if is_random(path):
        processor = RandomBackbone.parse(path).processor()
    else:
        folder = checkpoint_folder(path)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json")):
            return None
        processor = _stock_processor(folder)
        if (folder / SYSTEM_PROMPT_FILE).is_file():
            # the final line break that `save_pretrained` adds is not part of the prompt
            try:
                processor.system_prompt = (folder / SYSTEM_PROMPT_FILE).read_bytes().decode().removesuffix("\n")
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{folder / SYSTEM_PROMPT_FILE} is not UTF-8 ({error}); write it anew") from error
    register_tokens(processor.tokenizer)
    return processor


def stored_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a checkpoint as it is stored: latent tokens are registered only if the checkpoint has them.

    Args:
        path: as for :func:`load_processor`.

    Raises:
        MissingFileError: no such checkpoint.
        CheckpointError: files that cannot be read.
    """
    processor = RandomBackbone.parse(path).processor() if is_random(path) else _stock_processor(checkpoint_folder(path))
    return processor.tokenizer


def _stock_processor(folder: Path) -> Any:
    """A processor of `transformers`; classes that a checkpoint brings itself are never imported."""
    from transformers import AutoProcessor

    try:
        with _nobody_is_asked():
            processor: Any = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                folder, trust_remote_code=False, local_files_only=True
            )
        lacking = [part for part in ("tokenizer", "image_processor") if not hasattr(processor, part)]
        if lacking:
            raise ValueError(f"{type(processor).__name__} has no {lacking[0]}")
    except Exception as error:  # tokenizers raises plain `Exception`, and wrong values whatever they lead to
        own_code = "trust_remote_code" in str(error)
        reason = "it asks for code of its own, and such code is never run" if own_code else shortened(error)
        raise CheckpointError(
            f"{folder} has a tokenizer but its processor cannot be loaded ({reason}); copy the checkpoint's "
            "processor files (preprocessor_config.json, video_preprocessor_config.json or processor_config.json), "
            "or remove the tokenizer files to load the weights alone"
        ) from error
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
        files = sorted({file for name, file in weight_map(folder).items() if name.startswith("projection_head")})
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
    dtype: torch.dtype | None,
    attn_implementation: str,
    tokens: LatentTokens | None,
    projection_head: HeadKind | None,
    projection_hidden_dim: int | None,
    with_weights: bool = True,
) -> Checkpoint:
    """Load all parts of a reasoner; see :meth:`futurel1.models.LatentReasoner.from_pretrained`.

    `with_weights`: False leaves all weights unwritten, for a caller that fills them.

    Raises:
        MissingFileError: no such checkpoint.
        CheckpointError: weights, configuration or tokenizer contradict each other.
    """
    place: str | Path = path
    if not is_random(path):
        place = checkpoint_folder(path)
        backbone_class(model_type(place))  # before anything else is read of a checkpoint that nobody can load
    processor = load_processor(place)
    if with_weights or is_random(place):
        model, head = _load_model(place, dtype, attn_implementation)
    else:
        model, head = _make_model(Path(place), dtype, attn_implementation), {}
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
        _fit_embeddings(model, processor.tokenizer, around_mean=with_weights)
    return Checkpoint(model, tokens, settings, processor, head)


def _load_model(path: str | Path, dtype: torch.dtype | None, attn_implementation: str) -> tuple[Any, dict[str, Tensor]]:
    """The stock model of a checkpoint and the tensors of its projection head."""
    import transformers

    if is_random(path):
        model = RandomBackbone.parse(path).model(dtype or torch.float32, attn_implementation)
        model.config.name_or_path = str(path)  # as the stock loader does: modules remember where a reasoner is from
        return model, {}
    folder = checkpoint_folder(path)
    stock = getattr(transformers, backbone_class(model_type(folder)).stock_class)
    head = read_head(folder)
    with _told_in_one_line(folder, stock.__name__), quiet_transformers(), _nobody_is_asked():
        model, info = stock.from_pretrained(
            folder,
            dtype=stored_dtype(folder) if dtype is None else dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported by _check_loading, with the names
            output_loading_info=True,
        )
    _check_loading(folder, info)
    return model, head


def _make_model(folder: Path, dtype: torch.dtype | None, attn_implementation: str) -> Any:
    """The stock model of a checkpoint without its weights: memory that is not written yet."""
    import transformers
    from transformers.initialization import no_init_weights

    stock = getattr(transformers, backbone_class(model_type(folder)).stock_class)
    with _told_in_one_line(folder, stock.__name__), quiet_transformers(), _nobody_is_asked():
        config = stock.config_class.from_pretrained(folder, local_files_only=True)
        config.name_or_path = str(folder)
        with no_init_weights():
            own = stored_dtype(folder) if dtype is None else dtype
            model = stock._from_config(config, dtype=own, attn_implementation=attn_implementation)
        model.tie_weights()
        if (folder / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


@contextmanager
def _told_in_one_line(folder: Path, stock: str) -> Iterator[None]:
    """Turn what a configuration or weights lead to within the block into a `CheckpointError`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise unreadable(folder, error) from error
    except torch.OutOfMemoryError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise CheckpointError(
            f"{folder}: {stock} cannot be made of config.json ({type(error).__name__}: {shortened(error)}); "
            "use the config.json that was saved with the weights"
        ) from error


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


def _fit_embeddings(model: Any, tokenizer: Any, *, around_mean: bool = True) -> None:
    """Add embedding rows for tokens beyond the table; every process gets the same rows."""
    needed = max(tokenizer.get_vocab().values()) + 1
    table = model.get_input_embeddings().weight
    if needed <= table.shape[0]:
        return
    # `transformers` samples the new rows around the mean of the old ones, and logs a long message about it.
    forked = torch.random.fork_rng(devices=[table.device] if table.is_cuda else [])
    with forked, quiet_transformers():
        torch.manual_seed(0)
        model.resize_token_embeddings(needed, mean_resizing=around_mean)


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
    dtype: torch.dtype,
) -> Path:
    """Write a checkpoint folder that :func:`load_checkpoint` reads.

    Args:
        path: folder to write into; created if missing.
        state: state dict of a reasoner.
        backbone: backbone with the stock model's configuration and class.
        tokens: ids of START, LATENT and END, for the configuration.
        settings: latent settings, for the configuration.
        processor: the processor, if there is one.
        dtype: dtype of the written weights.

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
    weights = {
        name.removeprefix(MODEL_PREFIX): value.to(dtype)
        for name, value in state.items()
        if name.startswith(MODEL_PREFIX)
    }
    with quiet_transformers():
        backbone.model.save_pretrained(folder, state_dict=weights, safe_serialization=True, max_shard_size=LARGEST_FILE)
    _name_dtype(folder / "config.json", dtype)
    head = {name: value.to(dtype).contiguous() for name, value in state.items() if name.startswith(HEAD_PREFIX)}
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


def _name_dtype(config: Path, dtype: torch.dtype) -> None:
    """Have a configuration name the dtype of the weights, for which `transformers` takes that in memory."""
    content = json.loads(config.read_text(encoding="utf-8"))
    for part in (content, *(part for part in content.values() if isinstance(part, dict))):
        if "dtype" in part:
            part["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
def _nobody_is_asked() -> Iterator[None]:
    """Have `transformers` raise an error where it would ask whether to run code of a checkpoint.

    It forgets `trust_remote_code=False` between a processor and its parts.
    """
    from transformers import dynamic_module_utils as untyped

    module: Any = untyped

    seconds = module.TIME_OUT_REMOTE_CODE
    module.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        module.TIME_OUT_REMOTE_CODE = seconds


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
