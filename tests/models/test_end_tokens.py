"""Which tokens end a response: all that a checkpoint names, wherever it names them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CONFIGS

from futurel1.data import PromptBatch
from futurel1.models import LatentReasoner, LatentTokens
from futurel1.models.backbones import backbone_class
from futurel1.models.checkpoints import TINY_FOLDER
from futurel1.models.transcript import transcripts
from futurel1.rollout.policy_models import frozen_copy

IM_END, ENDOFTEXT, OTHER = 1014, 1015, 300
"""`<|im_end|>`, which the tiny tokenizer names as its end, `<|endoftext|>`, its padding, and a word."""


def checkpoint(folder: Path, generation: Any = None, config: Any = None, text_config: Any = None) -> Path:
    """The tiny checkpoint with an `eos_token_id` in the places given; without generation_config.json for `"absent"`."""
    shutil.copytree(TINY_FOLDER, folder)
    file = folder / "generation_config.json"
    if generation == "absent":
        file.unlink()
    elif generation is not None:
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": generation}))
    values = json.loads((folder / "config.json").read_text())
    if config is not None:
        values["eos_token_id"] = config
    if text_config is not None:
        values["text_config"]["eos_token_id"] = text_config
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def end_in_step(reasoner: LatentReasoner, step: int, ends: list[int]) -> Any:
    """Make row i write `ends[i]` in a 0-based step; all rows have to be there still."""
    calls = []

    def hook(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        calls.append(len(logits))
        if len(calls) == step + 1:
            logits = logits.clone()
            logits.view(len(ends), -1)[torch.arange(len(ends)), ends] = 1e4
        return logits

    return reasoner.backbone.lm_head.register_forward_hook(hook)


def prompts(reasoner: LatentReasoner, rows: int) -> PromptBatch:
    ids = reasoner.processor.tokenizer("What next?", return_tensors="pt").input_ids.repeat(rows, 1)
    return PromptBatch(ids, torch.ones_like(ids))


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        ({}, [IM_END]),
        ({"generation": [IM_END, ENDOFTEXT]}, [IM_END, ENDOFTEXT]),
        ({"generation": [ENDOFTEXT, IM_END]}, [ENDOFTEXT, IM_END]),
        ({"generation": [ENDOFTEXT, ENDOFTEXT, OTHER]}, [ENDOFTEXT, OTHER, IM_END]),
        # a turn of the chat format ends with the tokenizer's id, whatever else is named
        ({"generation": ENDOFTEXT}, [ENDOFTEXT, IM_END]),
        ({"generation": [ENDOFTEXT]}, [ENDOFTEXT, IM_END]),
        ({"generation": []}, [IM_END]),
        ({"generation": [151645, 151643]}, [IM_END]),
        ({"generation": "absent"}, [IM_END]),
        ({"generation": "absent", "config": ENDOFTEXT}, [ENDOFTEXT, IM_END]),
        ({"generation": "absent", "text_config": [ENDOFTEXT, OTHER]}, [ENDOFTEXT, OTHER, IM_END]),
        ({"config": [IM_END, ENDOFTEXT]}, [IM_END, ENDOFTEXT]),
        ({"text_config": ENDOFTEXT}, [ENDOFTEXT, IM_END]),
        ({"generation": [IM_END, ENDOFTEXT], "config": OTHER, "text_config": OTHER}, [IM_END, ENDOFTEXT]),
    ],
)
def test_all_ids_that_a_checkpoint_names_end_a_response(
    tmp_path: Path, places: dict[str, Any], wanted: list[int]
) -> None:
    reasoner = LatentReasoner.from_pretrained(checkpoint(tmp_path / "stock", **places))
    assert reasoner.end_token_ids == wanted
    rows = len(wanted)
    hook = end_in_step(reasoner, 2, wanted)
    rollout = reasoner.generate(prompts(reasoner, rows), max_new_tokens=6)
    hook.remove()
    assert rollout.finish_reasons == ["eos"] * rows
    assert rollout.responses[:, 2].tolist() == wanted
    assert rollout.response_mask.sum(dim=1).tolist() == [3] * rows
    # the end is not part of what was written, whichever it is
    tokenizer = reasoner.processor.tokenizer
    for row, text in enumerate(transcripts(rollout, tokenizer)):
        assert (text.text, text.tokens) == (tokenizer.decode(rollout.responses[row, :2]), 3)
    # our own checkpoints name the same ids, and so does the copy that samples under FSDP2
    assert frozen_copy(reasoner).end_token_ids == wanted
    again = reasoner.save_pretrained(tmp_path / "own")
    assert (again / "generation_config.json").is_file()
    assert LatentReasoner.from_pretrained(again).end_token_ids == wanted


def test_stock_generate_stops_where_ours_does(tmp_path: Path) -> None:
    reasoner = LatentReasoner.from_pretrained(checkpoint(tmp_path / "stock", generation=[IM_END, ENDOFTEXT]))
    batch = prompts(reasoner, 1)
    ours = {}
    for end in (IM_END, ENDOFTEXT):
        hook = end_in_step(reasoner, 3, [end])
        ours[end] = reasoner.generate(batch, max_new_tokens=8).responses[0].tolist()
        hook.remove()
        hook = end_in_step(reasoner, 3, [end])
        stock = reasoner.backbone.model.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=8, do_sample=False
        )
        hook.remove()
        assert stock[0, batch.input_ids.shape[1] :].tolist() == ours[end]
    assert [len(ids) for ids in ours.values()] == [4, 4]


@pytest.mark.parametrize("given", [OTHER, [OTHER], (OTHER,)])
def test_ids_that_are_given_are_the_only_ones(tmp_path: Path, given: Any) -> None:
    reasoner = LatentReasoner.from_pretrained(checkpoint(tmp_path / "stock", generation=[IM_END, ENDOFTEXT]))
    hook = end_in_step(reasoner, 1, [IM_END, ENDOFTEXT, OTHER])
    rollout = reasoner.generate(prompts(reasoner, 3), max_new_tokens=2, eos_token_id=given)
    hook.remove()
    assert rollout.finish_reasons == ["length", "length", "eos"]


@pytest.mark.parametrize("model_type", CONFIGS)
def test_ids_that_the_vocabulary_lacks_are_no_end(model_type: str) -> None:
    """Stock configurations name 151645 by default, which these models of 128 tokens could never write."""
    import transformers

    stock = getattr(transformers, backbone_class(model_type).stock_class)(CONFIGS[model_type]())
    tokens = LatentTokens(start_id=111, latent_id=110, end_id=112)
    assert LatentReasoner(backbone_class(model_type)(stock), tokens).end_token_ids == []
