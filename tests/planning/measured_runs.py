"""Steps that really run, and the most memory that PyTorch's profiler saw in them."""

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from futurel1.models import LatentReasoner, LatentSettings, LatentTokens
from futurel1.models.backbones import Qwen3VLBackbone
from futurel1.models.backbones.tiny import tiny_model


def peak_of(step: Callable[[], None]) -> int:
    """Most bytes that the CPU's allocator held at once for what a step allocated."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    results = seen.profiler
    assert results is not None
    events = results.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak


def require_close(predicted: int, real: int) -> None:
    """Both numbers in the output, for the table of docs/plan.md; they differ by less than 15%."""
    print(f"predicted {predicted / 1e6:.1f} MB, measured {real / 1e6:.1f} MB: {predicted / real:.2f}")
    assert predicted == pytest.approx(real, rel=0.15)


def medium_reasoner(tied: bool = True) -> LatentReasoner:
    """8 layers of width 512 with a vocabulary of 16,384: 34 million weights, or 42 million."""
    model = tiny_model(
        hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        head_dim=64, vocab_size=16384, tie_word_embeddings=tied,
        rope_scaling={"rope_type": "default", "mrope_section": [12, 10, 10], "mrope_interleaved": True},
    )  # fmt: skip
    return LatentReasoner(Qwen3VLBackbone(model), LatentTokens(16381, 16382, 16383), LatentSettings())


def on_meta(reasoner: LatentReasoner) -> LatentReasoner:
    """The same model without values; tied weights are tied again."""
    reasoner = reasoner.to(torch.device("meta"))
    reasoner.backbone.model.tie_weights()
    return reasoner
