"""Which tokens end a response, and which one pads it."""

from collections.abc import Sequence
from typing import Any

from futurel1.errors import ConfigError
from futurel1.models.backbones import Backbone


def end_token_ids(backbone: Backbone, processor: Any) -> list[int]:
    """Ids of the tokens that end a response according to a checkpoint, without duplicates; may be empty.

    They come from `generation_config.json` (one id, or a list as for Qwen3-VL) or else from `config.json`, and from the
    tokenizer, whose end token ends a turn of the chat format.
    """
    model = backbone.model
    config = model.config
    places = (model.generation_config, config, config.get_text_config())
    named = next((ids for place in places if (ids := _token_ids(place))), [])
    tokenizer = [] if processor is None else _token_ids(processor.tokenizer)
    # Stock configurations default to their family's id, which a smaller vocabulary does not have.
    return [token for token in dict.fromkeys([*named, *tokenizer]) if token < backbone.vocab_size]


def chosen_end_tokens(
    backbone: Backbone, processor: Any, eos: int | Sequence[int] | None, pad: int | None
) -> tuple[list[int], int]:
    """Ids that end a response and the id that pads it: those given, or else the checkpoint's.

    Raises:
        ConfigError: neither is known.
    """
    tokenizer = None if processor is None else processor.tokenizer
    if eos is None:
        eos = end_token_ids(backbone, processor)
        if not eos:
            raise ConfigError(
                "this checkpoint names no end-of-response token, neither in generation_config.json nor in "
                "config.json nor in a tokenizer: give eos_token_id, and pad_token_id"
            )
    ids = [eos] if isinstance(eos, int) else list(eos)
    if pad is None:
        pad = None if tokenizer is None else tokenizer.pad_token_id
    if pad is None:
        if not ids:
            raise ConfigError("with no eos_token_id and no padding token in the tokenizer, give pad_token_id")
        pad = ids[0]
    return ids, pad


def _token_ids(place: Any) -> list[int]:
    """The `eos_token_id` of a configuration or a tokenizer as a list; empty where there is none."""
    ids = getattr(place, "eos_token_id", None)
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else [int(token) for token in ids]
