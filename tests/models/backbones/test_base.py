"""Each adapter gives the logits of its stock model; counts, blocks and positions are checked."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from families import IMAGE, TOKENS, VIDEO, VISION_END, VISION_START
from transformers import DynamicCache

from futurel1.errors import BatchError, CheckpointError
from futurel1.models import BACKBONES, Vision, VisualRows
from futurel1.models.backbones import backbone_class
from rounding import assert_same_but_rounding

pytestmark = pytest.mark.numerics

# Rows of different lengths, so that all but the longest are padded.
ROWS = {
    "text": [[5, 6, 7, 8, 9, 10], [11, 12, 13]],
    "images": [[5, ("image", 4, 4), 6, ("image", 2, 6), 7], [8, 9, ("image", 6, 4)]],
    "videos": [[5, ("video", 3, 4, 4), 6], [7, ("video", 2, 2, 6), 8, 9, ("video", 1, 4, 4)]],
    "mixed batch": [[5, ("image", 4, 6), 6], [7, 8], [9, ("video", 2, 4, 4), 10]],
    "mixed row": [[5, ("video", 2, 4, 4), 6, ("image", 2, 4), 7], [8, ("image", 4, 4), ("video", 1, 2, 4), 9]],
}


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_logits_equal_the_stock_model(family, rows, padding):
    batch = family.batch(rows, padding)
    real = batch.attention_mask.bool()
    assert not real.all()
    ours, stock = family.logits(batch)[real], family.stock_logits(batch)[real]
    assert stock.std() > 0.3
    assert_same_but_rounding(ours, stock)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_logits_depend_on_the_pixels(family, kind):
    rows = [[5, (kind, 4, 4) if kind == "image" else (kind, 2, 4, 4), 6]]
    one, other = (family.logits(family.batch(rows, seed=seed))[0, -1] for seed in (0, 1))
    assert (one - other).abs().max() > 0.01


def test_seconds_per_grid_equal_the_stock_model(families):
    family = families["qwen2_5_vl"]
    batch = family.batch([[5, ("video", 3, 4, 4), 6], [7, ("video", 2, 4, 4)]])
    seconds = torch.tensor([2.0, 3.0])  # whole ones, to which older transformers cut them
    timed = replace(batch, video_seconds_per_grid=seconds)
    real = batch.attention_mask.bool()
    ours, stock = family.logits(timed), family.stock_logits(batch, second_per_grid_ts=seconds)
    assert_same_but_rounding(ours[real], stock[real])
    assert (ours - family.logits(batch))[real].abs().max() > 0.1
    positions = family.reasoner.backbone.positions(batch.input_ids, batch.attention_mask, family.reasoner.encode(timed))
    # tokens_per_second is 2: temporal patches of the first video start at 2 + 0, 2 + 4, 2 + 8.
    first = positions[0, 0][batch.input_ids[0] == VIDEO]
    assert first.unique().tolist() == [2, 6, 10]


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("steps", [[1, 1, 1, 1], [3, 1]])
def test_cache_equals_one_run(family, padding, steps):
    rows = [[5, ("image", 4, 4), 6, ("video", 2, 2, 4), 7, 8, 9, 10, 11]]
    if padding == "left":
        rows.append([12, 13, ("image", 2, 4), 14, 15, 16, 17])
    batch = family.batch(rows, "left")
    model, backbone = family.reasoner, family.reasoner.backbone
    mask = batch.attention_mask
    with torch.no_grad():
        vision = model.encode(batch)
        embeds, visual = model.embed(batch.input_ids, vision)
        positions = backbone.positions(batch.input_ids, mask, vision)
        whole = backbone.run(embeds, positions, mask, visual)
        cache = DynamicCache(config=backbone.config)
        end = embeds.shape[1] - sum(steps)
        prefix = None if visual is None else VisualRows(visual.mask[:, :end], visual.deepstack)
        parts = [backbone.run(embeds[:, :end], positions[..., :end], mask[:, :end], prefix, cache)]
        for step in steps:
            place = slice(end, end + step)
            end += step
            parts.append(backbone.run(embeds[:, place], positions[..., place], mask[:, :end], cache=cache))
    assert cache.get_seq_length() == embeds.shape[1]
    real = mask.bool()
    assert_same_but_rounding(torch.cat(parts, dim=1)[real], whole[real])


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_padding_reaches_nothing(family, rows, padding):
    """Whatever stands at padded positions, the rest is the same to the bit: it enters no attention and no state."""
    batch = family.batch(rows, padding)
    backbone, mask = family.reasoner.backbone, batch.attention_mask
    real = mask.bool()
    with torch.no_grad():
        vision = family.reasoner.encode(batch)
        embeds, visual = family.reasoner.embed(batch.input_ids, vision)
        positions = backbone.positions(batch.input_ids, mask, vision)
        hidden = backbone.run(embeds, positions, mask, visual)
        for size in (1.0, 1e4):
            noise = size * torch.randn(embeds.shape, generator=torch.Generator().manual_seed(0))
            other = torch.where(real[..., None], embeds, noise)
            assert torch.equal(backbone.run(other, positions, mask, visual)[real], hidden[real])


def test_a_prompt_can_be_shared_where_all_layers_are_attention():
    assert {name: backbone.shares_prompt for name, backbone in BACKBONES.items()} == {
        "qwen3_vl": True,
        "qwen2_5_vl": True,
        "qwen3_5": False,
    }


@pytest.mark.parametrize("model_type", ["qwen3_vl", "qwen2_5_vl"])
def test_run_takes_a_four_dimensional_mask(families, model_type):
    """A packed mask: two branches that share a prompt and do not see each other."""
    backbone = families[model_type].reasoner.backbone
    prompt, branch_a, branch_b = [5, 6, 7], [8, 9], [10, 11]
    packed = torch.tensor([prompt + branch_a + branch_b])
    positions = torch.tensor([0, 1, 2, 3, 4, 3, 4]).expand(3, 1, -1)
    allowed = torch.ones(7, 7).tril().bool()
    allowed[5:, 3:5] = False
    with torch.no_grad():
        hidden = backbone.run(backbone.embed_tokens(packed), positions, allowed[None, None])
        for branch, place in ((branch_a, slice(3, 5)), (branch_b, slice(5, 7))):
            row = torch.tensor([prompt + branch])
            alone = backbone.run(backbone.embed_tokens(row), torch.arange(5).expand(3, 1, -1), None)
            assert_same_but_rounding(hidden[0, place], alone[0, 3:])


# ---------------------------------------------------------------------- positions


def test_latents_take_text_positions(family):
    start, latent, end = TOKENS.start_id, TOKENS.latent_id, TOKENS.end_id
    batch = family.batch([[5, ("image", 4, 4), start, latent, latent, latent, end, 6]])
    vision = family.reasoner.encode(batch)
    positions = family.reasoner.backbone.positions(batch.input_ids, batch.attention_mask, vision)
    # 5 and vision start are at 0 and 1, the 2 by 2 image spans 2..3, vision end is at 4.
    assert positions[:, 0, -6:].tolist() == [[5, 6, 7, 8, 9, 10]] * 3
    assert positions[:, 0, 2:6].tolist() == [[2, 2, 2, 2], [2, 2, 3, 3], [2, 3, 2, 3]]
    types = family.reasoner.backbone.visual_type_ids(batch.input_ids)
    assert types[0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_positions_do_not_depend_on_padding(family):
    rows = ROWS["mixed row"]
    left, right = family.batch(rows, "left"), family.batch(rows, "right")
    vision = family.reasoner.encode(left)
    by_side = [
        family.reasoner.backbone.positions(b.input_ids, b.attention_mask, vision)[:, b.attention_mask.bool()]
        for b in (left, right)
    ]
    assert torch.equal(*by_side)


# ---------------------------------------------------------------------- features


def test_features_of_images(family):
    backbone = family.reasoner.backbone
    batch = family.batch([[("image", 4, 4), ("image", 2, 6)]])
    features = backbone.encode_images(batch.pixel_values, batch.image_grid_thw)
    assert features.counts == (4, 3)
    assert features.embeds.shape == (7, backbone.hidden_size)
    levels = 2 if family.model_type == "qwen3_vl" else 0
    assert [tuple(level.shape) for level in features.deepstack] == [(7, backbone.hidden_size)] * levels
    assert len(backbone.mergers()) == 1 + levels
    inside = {id(parameter) for parameter in backbone.vision_tower.parameters()}
    of_mergers = {id(parameter) for merger in backbone.mergers() for parameter in merger.parameters()}
    assert of_mergers < inside
    detached = features.detach()
    assert features.embeds.requires_grad
    assert not detached.embeds.requires_grad
    assert not any(level.requires_grad for level in detached.deepstack)


@pytest.mark.parametrize("whole", [True, False], ids=["transformers 5.17", "5.18 and later"])
def test_deepstack_features_may_come_whole_or_by_image(families, monkeypatch, whole):
    backbone = families["qwen3_vl"].reasoner.backbone
    batch = families["qwen3_vl"].batch([[("image", 4, 4), ("image", 2, 6)]])
    expected = backbone.encode_images(batch.pixel_values, batch.image_grid_thw)
    get = backbone.model.get_image_features

    def features(*args):
        output = get(*args)
        levels = expected.deepstack
        output.deepstack_features = list(levels) if whole else [level.split(expected.counts) for level in levels]
        return output

    monkeypatch.setattr(backbone.model, "get_image_features", features)
    found = backbone.encode_images(batch.pixel_values, batch.image_grid_thw)
    assert len(found.deepstack) == 2
    assert all(map(torch.equal, found.deepstack, expected.deepstack))


# ---------------------------------------------------------------------- batches that contradict themselves


@pytest.mark.parametrize("kind", ["image", "video"])
def test_placeholders_and_features_differ(family, kind):
    row = [5, (kind, 4, 4) if kind == "image" else (kind, 1, 4, 4), 6]
    batch = family.batch([row])
    token = IMAGE if kind == "image" else VIDEO
    fewer = batch.input_ids.clone()
    fewer[fewer == token] = torch.tensor([token, token, token, 7])
    vision = family.reasoner.encode(batch)
    with pytest.raises(BatchError, match=rf"3 {kind} placeholders .* {kind}s give 4 visual tokens"):
        family.reasoner.embed(fewer, vision)
    with pytest.raises(BatchError, match=rf"4 {kind} placeholders .* {kind}s give 0 visual tokens"):
        family.reasoner.embed(batch.input_ids, Vision())


@pytest.mark.parametrize("kind", ["image", "video"])
def test_patches_and_grids_differ(family, kind):
    pixels, grid = torch.zeros(15, 3 * 2 * 8 * 8), torch.tensor([[1, 4, 4]])
    encode = family.reasoner.backbone.encode_images if kind == "image" else family.reasoner.backbone.encode_videos
    with pytest.raises(BatchError, match=rf"{kind} grids \[\[1, 4, 4\]\] need 16 patches, pixel values have 15"):
        encode(pixels, grid)


def test_two_images_without_a_token_between(family):
    """In number the placeholders fit, but the two blocks run together."""
    batch = family.batch([[("image", 2, 4), ("image", 2, 4)]])
    ids = torch.tensor([[VISION_START, *[IMAGE] * 4, VISION_END]])
    vision = family.reasoner.encode(batch)
    with pytest.raises(BatchError, match=r"1 blocks of \[4\] tokens, the image grids need 2 blocks of \[2, 2\]"):
        family.reasoner(ids, torch.ones_like(ids), vision)


def test_images_in_the_wrong_order(family):
    batch = family.batch([[("image", 4, 4), 5, ("image", 2, 4)]])
    swapped = replace(batch, image_grid_thw=batch.image_grid_thw.flip(0))
    with pytest.raises(BatchError, match=r"blocks of \[4, 2\] tokens, the image grids need 2 blocks of \[2, 4\]"):
        family.logits(swapped)


def test_a_video_in_the_blocks_of_another_family(families):
    one, split = families["qwen2_5_vl"], families["qwen3_vl"]
    row = [[5, ("video", 2, 4, 4), 6]]
    with pytest.raises(BatchError, match=r"1 blocks of \[8\] tokens, the video grids need 2 blocks of \[4, 4\]"):
        split.logits(one.batch(row))
    with pytest.raises(BatchError, match=r"2 blocks of \[4, 4\] tokens, the video grids need 1 blocks of \[8\]"):
        one.logits(split.batch(row))


def test_unknown_family():
    with pytest.raises(CheckpointError, match=r"'llava'; there are \['qwen2_5_vl', 'qwen3_5', 'qwen3_vl'\]"):
        backbone_class("llava")


# ---------------------------------------------------------------------- casting


def test_rotary_frequencies_stay_float32(family):
    """A cast to bfloat16 (here, or by a Trainer with bf16-true) must not round the frequencies."""
    from copy import deepcopy

    reasoner = deepcopy(family.reasoner)
    before = {name: buffer.clone() for name, buffer in reasoner.named_buffers()}
    assert any(name.endswith("inv_freq") for name in before)
    for cast in (torch.bfloat16, torch.float16, torch.float32):
        reasoner.to(cast)
        assert all(parameter.dtype == cast for parameter in reasoner.parameters())
        after = dict(reasoner.named_buffers())
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)


# ---------------------------------------------------------------------- the stock model stays as it is


UNTOUCHED = """
import importlib, inspect, sys
from pathlib import Path

folder = sys.argv[1]
names = [f"transformers.models.{family}.modeling_{family}" for family in ("qwen3_vl", "qwen2_5_vl", "qwen3_5")]
names += ["transformers.modeling_utils", "transformers.generation.utils", "transformers.masking_utils"]
modules = [importlib.import_module(name) for name in names]


def state():
    found = {}
    for module in modules:
        for name, value in vars(module).items():
            found[module.__name__, name] = value
            if inspect.isclass(value):
                for method, function in vars(value).items():
                    found[module.__name__, name, method] = function
    return {key: value for key, value in found.items() if callable(value) or isinstance(value, (property, classmethod))}


before = state()
import torch
import futurel1.data, futurel1.losses, futurel1.models
try:
    import futurel1.modules
except ImportError:
    pass
from futurel1.models import BACKBONES, LatentReasoner
from safetensors.torch import load_file

reasoner = LatentReasoner.from_pretrained(folder)
v = load_file(Path(folder) / "golden.safetensors")
batch = futurel1.data.SFTBatch(
    v["sft.input_ids"], v["sft.attention_mask"], v["sft.labels"], v["sft.pixel_values"], v["sft.image_grid_thw"],
    hint_pixel_values=v["sft.pixel_values_latent"], hint_grid_thw=v["sft.image_grid_thw_latent"],
)
futurel1.losses.LatentSFTLoss()(reasoner, batch).loss.backward()
after = state()
assert before.keys() == after.keys(), before.keys() ^ after.keys()
changed = [key for key in before if before[key] is not after[key]]
assert not changed, changed
checked = 0
for module in modules[:3]:
    for name, cls in vars(module).items():
        if inspect.isclass(cls) and cls.__module__ == module.__name__:
            for method, function in vars(cls).items():
                if inspect.isfunction(function) and not method.startswith("__"):
                    plain = inspect.unwrap(function)
                    assert plain.__module__.split(".")[0] in ("transformers", "dataclasses"), (name, method)
                    assert "futurel1" not in inspect.getsourcefile(plain), (name, method)
                    assert plain.__qualname__.rpartition(".")[2] == method or "<locals>" in plain.__qualname__
                    checked += 1
# Instances are not patched either: no module has a forward of its own.
assert not [name for name, part in reasoner.backbone.model.named_modules() if "forward" in vars(part)]
assert type(reasoner.backbone.model).__module__ == modules[0].__name__
print(checked)
"""


@pytest.mark.slow
def test_nothing_of_transformers_is_patched(golden):
    command = [sys.executable, "-W", "ignore", "-c", UNTOUCHED, str(golden / "public_mse")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout) > 50
