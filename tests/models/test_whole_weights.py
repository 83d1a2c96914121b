"""Whole weights under stock names: of a model with adapters as peft merges them, or as they were without."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from adapted import adapt, small_reasoner
from futurel1 import LatentReasoner
from futurel1.errors import ConfigError
from futurel1.models.whole_weights import fill, skeleton, whole_copy, whole_state
from rounding import assert_same_but_rounding

IDS = torch.tensor([[5, 6, 1022, 1021, 1023, 7]])


def logits(reasoner: LatentReasoner) -> torch.Tensor:
    with torch.no_grad():
        return reasoner.logits(reasoner(IDS, torch.ones_like(IDS)))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_copies_have_the_adapters_merged_or_not(tied: bool) -> None:
    reasoner = small_reasoner(tied=tied)
    base, before = logits(reasoner), {name: p.clone() for name, p in reasoner.state_dict().items()}
    lora = adapt(reasoner)
    trained = logits(reasoner)
    assert (trained - base).abs().max() > 0.1
    stock = skeleton(reasoner, torch.float32, lora)
    assert all(parameter.is_meta for parameter in stock.parameters())
    assert not any(buffer.is_meta for buffer in stock.buffers())
    copied = whole_copy(reasoner, stock, torch.float32)
    assert copied.backbone.ties_embeddings == tied
    fill(copied, reasoner)
    assert_same_but_rounding(logits(copied), trained)
    fill(copied, reasoner, merged=False)
    assert torch.equal(logits(copied), base)
    assert all(torch.equal(value, before[name]) for name, value in copied.state_dict().items())
    assert torch.equal(logits(reasoner), trained)

    state = whole_state(reasoner, stock, torch.float32)
    assert state.keys() == before.keys()
    by_peft = copy.deepcopy((lora.adapted, reasoner))[0].merge_and_unload()
    layer = "model.language_model.layers.0.mlp.down_proj.weight"
    assert_same_but_rounding(state[f"backbone.model.{layer}"], by_peft.state_dict()[layer])
    assert not torch.equal(state[f"backbone.model.{layer}"], before[f"backbone.model.{layer}"])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_peft_loads_a_saved_adapter_on_the_start_weights(tied: bool, tmp_path: Path) -> None:
    from peft import PeftModel

    reasoner = small_reasoner(tied=tied)
    start = copy.deepcopy(reasoner.backbone.model)
    lora = adapt(reasoner)
    lora.save(tmp_path, lora.state(), whole_state(reasoner, skeleton(reasoner, torch.float32, lora), torch.float32))
    adapted = PeftModel.from_pretrained(start, str(tmp_path)).eval()
    with torch.no_grad():
        by_peft = adapted(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    assert_same_but_rounding(by_peft, logits(reasoner))
    with lora.disabled():
        assert (logits(reasoner) - by_peft).abs().max() > 0.1


def test_merged_weights_keep_their_dtype() -> None:
    reasoner = small_reasoner(tied=False, dtype=torch.bfloat16)
    lora = adapt(reasoner)
    assert {p.dtype for p in reasoner.parameters() if p.requires_grad} == {torch.float32}
    state = whole_state(reasoner, skeleton(reasoner, torch.bfloat16, lora), torch.bfloat16)
    assert {value.dtype for value in state.values()} == {torch.bfloat16}


def test_adapters_go_into_linear_layers_only() -> None:
    with pytest.raises(ConfigError, match=r"matches model\.visual\.patch_embed\.proj, which is no linear layer"):
        adapt(small_reasoner(tied=True), r".*patch_embed\.proj")
