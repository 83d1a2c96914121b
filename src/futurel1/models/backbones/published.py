"""Published configurations of Qwen3-VL as plain data: the shapes of real backbones without a download.

The numbers are those of the configuration files of Qwen/Qwen3-VL-{2B,4B,8B}-Instruct.
"""

from typing import Any

NUM_PIECES = 151643
"""Byte-pair pieces of the tokenizer; the control tokens follow them."""
_CONTROL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
    "<tool_call>", "</tool_call>",
    "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
    "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
CONTROL_TOKENS = {token: NUM_PIECES + place for place, token in enumerate(_CONTROL)}
"""Ids of the control tokens, in the order of tokenizer_config.json."""
PLAIN_TOKENS = frozenset(_CONTROL[_CONTROL.index("<tool_call>") :])
"""Control tokens that are not special: they stay in a text that is decoded without special tokens."""
CONTEXT_LENGTH = 262_144
"""Most tokens of a sequence."""
IMAGE_SIZE = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
"""Pixels of an image, from preprocessor_config.json."""
VIDEO_SIZE = {"shortest_edge": 4_096, "longest_edge": 25_165_824}
"""Pixels of all frames of a video, from video_preprocessor_config.json."""

GENERATION = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "repetition_penalty": 1.0,
    "bos_token_id": CONTROL_TOKENS["<|endoftext|>"],
    "eos_token_id": [CONTROL_TOKENS["<|im_end|>"], CONTROL_TOKENS["<|endoftext|>"]],
    "pad_token_id": CONTROL_TOKENS["<|endoftext|>"],
}
"""generation_config.json, the same for all sizes."""


def _qwen3_vl(text: dict[str, Any], vision: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """A configuration: what differs between the sizes, and what they share."""
    return {
        "model_type": "qwen3_vl",
        "text_config": {
            "vocab_size": 151936,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.02,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "max_position_embeddings": CONTEXT_LENGTH,
            "rope_theta": 5_000_000.0,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
            "bos_token_id": CONTROL_TOKENS["<|endoftext|>"],
            "eos_token_id": CONTROL_TOKENS["<|im_end|>"],
            "tie_word_embeddings": tied,
            **text,
        },
        "vision_config": {
            "num_heads": 16,
            "in_channels": 3,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "num_position_embeddings": 2304,
            "hidden_act": "gelu_pytorch_tanh",
            "initializer_range": 0.02,
            "out_hidden_size": text["hidden_size"],
            **vision,
        },
        "image_token_id": CONTROL_TOKENS["<|image_pad|>"],
        "video_token_id": CONTROL_TOKENS["<|video_pad|>"],
        "vision_start_token_id": CONTROL_TOKENS["<|vision_start|>"],
        "vision_end_token_id": CONTROL_TOKENS["<|vision_end|>"],
        "tie_word_embeddings": tied,
    }


_SMALL_TOWER = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen3-vl-2b": _qwen3_vl(
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
        _SMALL_TOWER,
        tied=True,
    ),
    "qwen3-vl-4b": _qwen3_vl(
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
        _SMALL_TOWER,
        tied=True,
    ),
    "qwen3-vl-8b": _qwen3_vl(
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
        {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]},
        tied=False,
    ),
}
"""Keyword arguments of the stock configuration class, by name."""
