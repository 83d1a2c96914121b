"""A Qwen3-VL of about one million parameters with a real tokenizer and processor, built without any download.

For tests, demos and other projects' smoke runs: classes, token layout and processors are those of the 8B model, only
smaller.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from futurel1.models.tokens import LATENT_TOKENS

TEXT_WORDS = """
you are a multimodal reasoning assistant capable of thinking in textual and visual modes use the following tags to
switch your mode process for logical analysis planning verbal thought mental visualization imagination simulation
output rules after all is complete place the final answer inside Your Final Answer Textual Visual Mode Use After For
the a an it and or of to at on will what where which when who how many happens next frame video question option options
answer reason then goes moves moving move stays still left right up down top bottom middle center corner wall edge zone
region hits hit bounces bounce off turns back passes behind in front opens closes gate red green blue yellow purple
orange white black circle square triangle ball shape object one two three four five first second third last step steps
event events predict future observed scene man woman person people car street dog cat rabbit bird tree grass flower
water hand head face walks runs looks looking sits stands smiles talks holds picks puts takes rides bike toward away
from into out over under near slowly fast again same different direction keeps continues stops starts because so
before between during until while not no yes is was be has have does do can THOUGHT
"""
"""Words that the tokenizer is trained on; other text falls back to shorter pieces and to bytes."""

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAG_PIECES = ("<reason>", "</reason>", "<answer>", "</answer>", "A.", "B.", "C.", "D.", "1.", "2.", "3.")
VOCAB_SIZE = 1024


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level pieces and merges learned from `TEXT_WORDS`, the same on every machine."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = re.findall(r"\S+", TEXT_WORDS)
    # Every word with and without the usual leading space; tags without it.
    corpus = [text for word in words for text in (word, f" {word}", f" {word}", f" {word.capitalize()}")]
    corpus += [tag for tag in TAG_PIECES for _ in range(8)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(CONTROL_TOKENS) - len(LATENT_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of the Qwen family with 1,024 pieces; latent tokens are not registered yet."""
    from transformers import AddedToken, Qwen2Tokenizer

    vocab, merges = _vocabulary()
    copied: Any = list(merges)
    tokenizer = Qwen2Tokenizer(vocab=dict(vocab), merges=copied, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken(token, special=True) for token in CONTROL_TOKENS])
    return tokenizer


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def qwen3_vl_processor(tokenizer: Any, image_size: dict[str, int], video_size: dict[str, int]) -> Any:
    """A `Qwen3VLProcessor`: 16-pixel patches, merged 2 by 2, two frames of a video in one.

    Args:
        tokenizer: with the control tokens.
        image_size: `shortest_edge` and `longest_edge`, the pixels of an image at least and at most.
        video_size: the same of all frames of a video.
    """
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    common: dict[str, Any] = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    half = [0.5, 0.5, 0.5]
    return Qwen3VLProcessor(  # type: ignore[no-untyped-call]
        image_processor=Qwen2VLImageProcessor(size=image_size, image_mean=half, image_std=half, **common),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=video_size, cap_pixels_per_frame=False, **common),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_processor() -> Any:
    """A `Qwen3VLProcessor` with :func:`tiny_tokenizer`, at most 64 visual tokens per image."""
    return qwen3_vl_processor(
        tiny_tokenizer(),
        {"shortest_edge": 32 * 32, "longest_edge": 64 * 32 * 32},
        {"shortest_edge": 32 * 32, "longest_edge": 16 * 64 * 32 * 32},
    )


def tiny_config(vision: Mapping[str, Any] | None = None, **text_overrides: Any) -> Any:
    """Configuration of the tiny backbone.

    Args:
        vision: replacements for fields of the vision configuration, such as ``{"depth": 3}``.
        text_overrides: replacements for fields of the text configuration, such as ``num_hidden_layers=2``.
    """
    from transformers import Qwen3VLConfig

    tokenizer = tiny_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in CONTROL_TOKENS}
    text = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 32768,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
        "tie_word_embeddings": True,
        **text_overrides,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": text["hidden_size"],
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            **(vision or {}),
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=text["tie_word_embeddings"],
    )


def tiny_model(seed: int = 0, vision: Mapping[str, Any] | None = None, **text_overrides: Any) -> Any:
    """A stock ``Qwen3VLForConditionalGeneration`` of about one million parameters with seeded random weights.

    Args:
        seed: seed of the initial weights; the global random state does not change.
        vision: replacements for fields of the vision configuration.
        text_overrides: replacements for fields of the text configuration.
    """
    from transformers import Qwen3VLForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = Qwen3VLForConditionalGeneration(tiny_config(vision, **text_overrides))
    # Latents are aligned with post-merger features. At the usual initial scale those are too small (rms 0.06) for the
    # output of the language model's final norm to match; this factor brings them to an rms near 1.
    with torch.no_grad():
        model.model.visual.merger.linear_fc2.weight.mul_(17.0)
    return model.eval()
