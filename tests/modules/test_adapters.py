"""LoRA adapters merged for an export: into a copy that holds nothing twice but what they change."""

import pytest
import torch

from futurel1.models import LatentReasoner, LatentTokens
from futurel1.models.backbones import Qwen3VLBackbone
from futurel1.models.backbones.tiny import tiny_model
from futurel1.modules.adapters import LANGUAGE_MODEL_LINEARS, add_lora, merged
from rounding import assert_same_but_rounding

IDS = torch.tensor([[5, 1021, 1022, 1023, 6]])


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_copy_shares_what_no_adapter_changes(tied):
    model = tiny_model(num_hidden_layers=2, tie_word_embeddings=tied)
    reasoner = LatentReasoner(Qwen3VLBackbone(model), LatentTokens(1021, 1022, 1023)).eval()
    lora = add_lora(reasoner, rank=2, alpha=4, dropout=0.0, targets=LANGUAGE_MODEL_LINEARS)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name or "trainable_tokens_delta" in name:
                parameter.normal_(std=0.1)
    before = {name: value.clone() for name, value in reasoner.state_dict().items()}
    copied = merged(lora, reasoner)
    # the policy still trains: its weights are as they were, with the adapters beside them
    assert all(torch.equal(value, before[name]) for name, value in reasoner.state_dict().items())
    own = {parameter.data_ptr() for parameter in reasoner.parameters()}
    layers = {name for name, parameter in copied.named_parameters() if parameter.data_ptr() not in own}
    assert all("_proj." in name or "embed_tokens" in name or "lm_head" in name for name in layers)
    assert len(layers) == 2 * 7 + (1 if tied else 2)
    assert copied.backbone.ties_embeddings == tied
    with torch.no_grad():
        logits = [model.logits(model(IDS, torch.ones_like(IDS))) for model in (copied, reasoner)]
    assert_same_but_rounding(*logits)
