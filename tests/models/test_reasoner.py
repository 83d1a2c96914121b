"""The reasoner: the reference's losses, what it encodes and embeds, and which tokens end a response."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CONFIGS, IMAGE, TOKENS
from safetensors.torch import load_file

from futurel1.data import PromptBatch, SFTBatch
from futurel1.errors import BatchError
from futurel1.losses import LatentSFTLoss
from futurel1.models import LatentReasoner, LatentTokens, Vision, put_latents
from futurel1.models.backbones import backbone_class
from futurel1.models.checkpoint_folders import TINY_FOLDER
from futurel1.models.transcript import transcripts
from futurel1.rollout.policy_models import frozen_copy
from rounding import assert_same_but_rounding

IM_END, ENDOFTEXT, OTHER = 1014, 1015, 300
"""`<|im_end|>`, which the tiny tokenizer names as its end, `<|endoftext|>`, its padding, and a word."""


@pytest.mark.parametrize("name", ["public_mse", "public_end"])
def test_sft_losses_equal_the_reference(golden, name):
    values = load_file(golden / name / "golden.safetensors")
    reasoner = LatentReasoner.from_pretrained(golden / name)
    settings = reasoner.settings
    loss = LatentSFTLoss(latent_weight=settings.latent_lambda, alignment=settings.latent_loss)
    batch = SFTBatch(
        values["sft.input_ids"],
        values["sft.attention_mask"],
        values["sft.labels"],
        values["sft.pixel_values"],
        values["sft.image_grid_thw"],
        hint_pixel_values=values["sft.pixel_values_latent"],
        hint_grid_thw=values["sft.image_grid_thw_latent"],
    )
    with torch.no_grad():
        out = loss(reasoner, batch)
    assert out.num_latents > 0
    assert float(out.ce) == pytest.approx(float(values["sft.ce_loss"]), rel=1e-5)
    assert float(out.latent) == pytest.approx(float(values["sft.latent_loss"]), rel=1e-5)
    assert float(out.loss) == pytest.approx(float(values["sft.loss"]), rel=1e-5)


# ---------------------------------------------------------------------- what is seen


def test_a_frozen_tower_is_run_without_gradient(families):
    reasoner = families["qwen3_vl"].reasoner
    batch = families["qwen3_vl"].batch([[("image", 4, 4)]])
    assert reasoner.vision_is_trainable
    assert reasoner.encode(batch).images.embeds.requires_grad
    assert not reasoner.encode_hints(batch.pixel_values, batch.image_grid_thw).embeds.requires_grad
    reasoner.backbone.vision_tower.requires_grad_(False)
    try:
        assert not reasoner.vision_is_trainable
        assert not reasoner.encode(batch).images.embeds.requires_grad
    finally:
        reasoner.backbone.vision_tower.requires_grad_(True)


def test_pixels_and_grids_belong_together(families):
    family = families["qwen3_vl"]
    batch = family.batch([[("image", 4, 4)]])
    with pytest.raises(BatchError, match="image pixel values and image grids belong together"):
        family.reasoner.encode(replace(batch, image_grid_thw=None))
    with pytest.raises(BatchError, match="video pixel values and video grids belong together"):
        family.reasoner.encode(replace(batch, video_grid_thw=torch.tensor([[1, 4, 4]])))
    with pytest.raises(BatchError, match="need 0 patches, pixel values have 16"):
        family.reasoner.encode(replace(batch, image_grid_thw=torch.zeros(0, 3, dtype=torch.long)))


def test_an_empty_batch_of_images_is_no_image(families):
    family = families["qwen3_vl"]
    batch = family.batch([[5, 6]])
    empty = replace(batch, pixel_values=torch.zeros(0, 384), image_grid_thw=torch.zeros(0, 3, dtype=torch.long))
    assert family.reasoner.encode(empty) == Vision()


@pytest.mark.numerics
def test_prompt_batches_move_through_encode_as_they_are(families):
    """Text-only prompts need no visual field at all."""
    family = families["qwen3_5"]
    ids = torch.tensor([[5, 6, 7]])
    batch = PromptBatch(ids, torch.ones_like(ids))
    assert_same_but_rounding(family.logits(batch), family.stock_logits(batch))


# ---------------------------------------------------------------------- latents enter by embeddings


@pytest.mark.numerics
def test_embed_puts_latents_only_inside_spans(family):
    reasoner = family.reasoner
    start, latent, end = TOKENS.start_id, TOKENS.latent_id, TOKENS.end_id
    batch = family.batch([[5, latent, start, latent, latent, end, 6], [start, latent, end, ("image", 2, 4), latent]])
    vision = reasoner.encode(batch)
    latents = torch.randn(3, reasoner.hidden_size, requires_grad=True)
    plain, _ = reasoner.embed(batch.input_ids, vision)
    embeds, visual = reasoner.embed(batch.input_ids, vision, latents)
    slots = [(0, 3), (0, 4), (1, 1)]
    for row, (b, t) in enumerate(slots):
        assert torch.equal(embeds[b, t], latents[row])
    elsewhere = torch.ones_like(batch.input_ids, dtype=torch.bool)
    elsewhere[tuple(zip(*slots, strict=True))] = False
    assert torch.equal(embeds[elsewhere], plain[elsewhere])
    table = reasoner.backbone.embed_tokens(torch.tensor([latent]))[0]
    assert torch.equal(embeds[0, 1], table)
    assert torch.equal(embeds[1, -1], table)
    if family.model_type == "qwen3_vl":
        assert torch.equal(visual.mask, batch.input_ids == IMAGE)
    else:
        assert visual is None
    # Each latent is read by what comes after it.
    hidden = reasoner(batch.input_ids, batch.attention_mask, vision, latents)
    (gradient,) = torch.autograd.grad(hidden[0, -1].sum(), latents)
    assert (gradient.abs().sum(dim=-1) > 0).tolist() == [True, True, False]


def test_latents_in_other_numbers_than_slots():
    embeds, mask = torch.zeros(1, 4, 8), torch.tensor([[False, True, True, False]])
    with pytest.raises(BatchError, match=r"2 latent slots .* \(2, 8\), got \(3, 8\)"):
        put_latents(embeds, mask, torch.zeros(3, 8))
    with pytest.raises(BatchError, match=r"\(2, 8\), got \(2, 4\)"):
        put_latents(embeds, mask, torch.zeros(2, 4))


def test_predict_latents_and_logits_are_head_and_lm_head(families):
    reasoner = families["qwen3_vl"].reasoner
    hidden = torch.randn(2, reasoner.hidden_size)
    assert torch.equal(reasoner.predict_latents(hidden), hidden)
    assert torch.equal(reasoner.logits(hidden), hidden @ reasoner.backbone.lm_head.weight.T)


# ---------------------------------------------------------------------- which tokens end a response


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
