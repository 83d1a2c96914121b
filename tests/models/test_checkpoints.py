"""Loading and saving: what comes out is what went in, and what cannot be used is a named error with a remedy."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from families import IMAGE, TOKENS, edit_config, edit_weights, write_stock
from safetensors.torch import load_file, save_file

from futurel1.errors import CheckpointError, ConfigError, MissingFileError
from futurel1.models import (
    LATENT_TOKENS,
    LatentReasoner,
    LatentSettings,
    LatentTokens,
    SpanBudget,
    build_head,
    load_processor,
)
from futurel1.models.backbones import backbone_class
from futurel1.models.backbones.tiny import tiny_model
from rounding import assert_same_but_rounding

HIDDEN = 64  # of the golden checkpoints


@pytest.fixture
def released(golden, tmp_path):
    """A released-like checkpoint: configuration with ids, weights, no tokenizer. Writable."""
    folder = tmp_path / "released"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(golden / "public_mse" / name, folder / name)
    return folder


def add_head(folder, kind, prefix="projection_head.", inner=24):
    """Put a head with known weights into model.safetensors; returns its tensors."""
    torch.manual_seed(7)
    head = {name: torch.randn_like(tensor) for name, tensor in build_head(kind, HIDDEN, inner).state_dict().items()}
    edit_weights(folder, lambda weights: weights.update({prefix + name: tensor for name, tensor in head.items()}))
    return head


def shard(folder):
    """Split model.safetensors in two, heads in the second."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights, key=lambda name: (name.startswith("projection_head"), name))
    files = {"model-00001-of-00002.safetensors": names[: len(names) // 2]}
    files["model-00002-of-00002.safetensors"] = names[len(names) // 2 :]
    for file, part in files.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in files.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def text_logits(reasoner):
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        return reasoner.logits(reasoner(ids, torch.ones_like(ids)))


def assert_same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------- the tiny backbone


def test_tiny_is_deterministic_and_leaves_the_random_state_alone(tiny):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = LatentReasoner.from_pretrained("tiny@random")
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_weights(tiny, again)
    assert not again.training
    assert 0.8e6 < sum(parameter.numel() for parameter in again.parameters()) < 1.6e6


def test_tiny_keeps_the_attention_that_was_asked_for(tiny):
    eager = LatentReasoner.from_pretrained("tiny@random", attn_implementation="eager")
    assert eager.backbone.config._attn_implementation == "eager"
    assert eager.backbone.language_model.config._attn_implementation == "eager"
    assert tiny.backbone.language_model.config._attn_implementation == "sdpa"
    assert_same_but_rounding(text_logits(eager), text_logits(tiny))


def test_tiny_with_a_new_head():
    reasoner = LatentReasoner.from_pretrained("tiny@random", projection_head="swiglu", projection_hidden_dim=12)
    assert reasoner.projection_head.state_dict()["projection.1.weight"].shape == (12, reasoner.hidden_size)
    assert (reasoner.settings.projection_head_type, reasoner.settings.projection_hidden_dim) == ("swiglu", 12)


def test_weights_have_the_permissions_of_the_other_files(tmp_path):
    reasoner = LatentReasoner.from_pretrained("tiny@random", projection_head="swiglu", projection_hidden_dim=12)
    folder = reasoner.save_pretrained(tmp_path / "saved")
    weights = sorted(folder.glob("*.safetensors"))
    assert len(weights) == 2  # backbone and head
    modes = {file.name: file.stat().st_mode for file in folder.iterdir()}
    assert set(modes.values()) == {modes["config.json"]}, modes


# ---------------------------------------------------------------------- latent tokens and the embedding table


def test_stock_checkpoint_gets_the_tokens_in_the_released_order(stock_folder, stock_tiny):
    reasoner = LatentReasoner.from_pretrained(stock_folder)
    tokenizer = reasoner.processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(list(LATENT_TOKENS)) == [1021, 1022, 1023]
    assert reasoner.tokens == LatentTokens(latent_id=1021, start_id=1022, end_id=1023)
    assert reasoner.settings == LatentSettings()
    # They fit into the 1,024 rows: the table is the stock one.
    assert torch.equal(reasoner.backbone.model.get_input_embeddings().weight, stock_tiny.get_input_embeddings().weight)


def test_tokens_that_the_tokenizer_has_keep_their_ids(stock_folder):
    processor = load_processor(stock_folder)
    ids = processor.tokenizer.convert_tokens_to_ids(list(LATENT_TOKENS))
    processor.save_pretrained(stock_folder)
    again = load_processor(stock_folder)
    assert again.tokenizer.convert_tokens_to_ids(list(LATENT_TOKENS)) == ids
    assert len(again.tokenizer) == len(processor.tokenizer)


@pytest.mark.parametrize("tied", [True, False])
def test_table_grows_only_when_the_tokenizer_outgrows_it(tmp_path, tied):
    stock = tiny_model(vocab_size=1022, tie_word_embeddings=tied)
    folder = write_stock(tmp_path / "stock", stock)
    loaded = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        loaded.append(LatentReasoner.from_pretrained(folder))
        assert torch.equal(torch.get_rng_state(), before)
    first, second = loaded
    assert first.tokens == LatentTokens(latent_id=1021, start_id=1022, end_id=1023)
    assert first.backbone.vocab_size == 1024
    assert first.backbone.config.text_config.vocab_size == 1024
    table = first.backbone.model.get_input_embeddings().weight
    assert torch.equal(table[:1022], stock.get_input_embeddings().weight)
    assert table.isfinite().all()
    assert first.backbone.lm_head.weight.shape == (1024, 128)
    assert (first.backbone.lm_head.weight is table) is tied
    # The new rows do not depend on the global random state: every process gets the same.
    assert_same_weights(first, second)
    assert text_logits(first).shape == (1, 5, 1024)


def test_a_table_with_spare_rows_is_left_alone(tmp_path):
    """Qwen3-VL has 151,936 rows for 151,672 tokens; the spare ones belong to the stock checkpoint."""
    stock = tiny_model(vocab_size=1100)
    reasoner = LatentReasoner.from_pretrained(write_stock(tmp_path / "stock", stock))
    assert reasoner.backbone.vocab_size == 1100
    assert torch.equal(reasoner.backbone.model.get_input_embeddings().weight, stock.get_input_embeddings().weight)


def test_golden_checkpoints_load_without_a_tokenizer(golden):
    for name in ("public_mse", "public_end"):
        reasoner = LatentReasoner.from_pretrained(golden / name)
        assert reasoner.processor is None
        assert reasoner.tokens == LatentTokens(start_id=311, latent_id=310, end_id=312)
        assert reasoner.settings.max_latent_tokens == 4
        assert reasoner.settings.latent_lambda == 0.2
        stored = load_file(golden / name / "model.safetensors")
        assert all(torch.equal(reasoner.backbone.model.state_dict()[key], stored[key]) for key in stored)


def test_tokens_can_be_given(released):
    edit_config(released, latent_id=None, latent_start_id=None, latent_end_id=None)
    with pytest.raises(CheckpointError, match=r"no latent_id, .* add the tokenizer files, or give tokens="):
        LatentReasoner.from_pretrained(released)
    tokens = LatentTokens(start_id=311, latent_id=310, end_id=312)
    assert LatentReasoner.from_pretrained(released, tokens=tokens).tokens == tokens


@pytest.mark.parametrize("name", ["SwimBird_Qwen3VL", "FutureL1_Qwen3VL", "RICE_Qwen3VL"])
def test_released_architectures_load_as_the_stock_class(released, name):
    reasoner = LatentReasoner.from_pretrained(edit_config(released, architectures=[name]))
    assert type(reasoner.backbone.model) is transformers.Qwen3VLForConditionalGeneration
    assert reasoner.settings.force_initial_latent_mode is (name == "RICE_Qwen3VL")


def test_rice_stays_rice_after_saving(released, tmp_path):
    reasoner = LatentReasoner.from_pretrained(edit_config(released, architectures=["RICE_Qwen3VL"]))
    again = LatentReasoner.from_pretrained(reasoner.save_pretrained(tmp_path / "out"))
    assert again.settings.force_initial_latent_mode


# ---------------------------------------------------------------------- heads


@pytest.mark.parametrize("kind", ["swiglu", "lvr"])
@pytest.mark.parametrize("sharded", [False, True])
def test_released_head_loads(released, kind, sharded):
    head = add_head(released, kind)
    edit_config(released, use_projection_head=True, projection_head_type=kind, projection_hidden_dim=24)
    if sharded:
        shard(released)
    reasoner = LatentReasoner.from_pretrained(released)
    assert reasoner.settings.projection_head_type == kind
    loaded = reasoner.projection_head.state_dict()
    assert loaded.keys() == head.keys()
    assert all(torch.equal(loaded[name], head[name]) for name in head)


def test_one_file_goes_before_the_index_of_older_shards(released):
    """As in `transformers`, so that weights and head come from the same save."""
    whole = (released / "model.safetensors").read_bytes()
    add_head(released, "lvr")
    shard(released)
    (released / "model.safetensors").write_bytes(whole)
    assert LatentReasoner.from_pretrained(released).projection_head.state_dict() == {}


def test_head_of_another_width(released):
    add_head(released, "swiglu", inner=24)
    edit_config(released, use_projection_head=True, projection_head_type="swiglu", projection_hidden_dim=32)
    with pytest.raises(CheckpointError, match=r"\(32, 64\).*\(24, 64\).*correct projection_head_type and projection_h"):
        LatentReasoner.from_pretrained(released)
    assert LatentReasoner.from_pretrained(released, projection_hidden_dim=24).settings.projection_hidden_dim == 24


def test_head_that_is_missing(released):
    edit_config(released, use_projection_head=True, projection_head_type="lvr")
    with pytest.raises(CheckpointError, match=r"'lvr' projection head .*the weights have none; .* projection_head="):
        LatentReasoner.from_pretrained(released)
    assert LatentReasoner.from_pretrained(released, projection_head="lvr").projection_head.state_dict()


def test_head_that_nobody_asked_for(released, caplog):
    add_head(released, "lvr")
    with pytest.raises(CheckpointError, match=r"asks for none; set use_projection_head .* projection_head='none'"):
        LatentReasoner.from_pretrained(released)
    without = LatentReasoner.from_pretrained(released, projection_head="none")
    assert without.projection_head.state_dict() == {}
    assert "not used" in caplog.text


def test_dual_heads(released):
    add_head(released, "lvr", prefix="projection_head_orig.")
    with pytest.raises(CheckpointError, match=r"dual heads are not supported; keep one of the two"):
        LatentReasoner.from_pretrained(released)
    shard(released)
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.*dual heads are not supported"):
        LatentReasoner.from_pretrained(released)


def test_head_of_an_unknown_kind(released):
    edit_config(released, use_projection_head=True, projection_head_type="moe")
    with pytest.raises(ConfigError, match="'none', 'swiglu', 'lvr' or 'constant', got 'moe'"):
        LatentReasoner.from_pretrained(released)


# ---------------------------------------------------------------------- folders that cannot be used


def test_missing_folder(tmp_path):
    with pytest.raises(MissingFileError, match=r"no checkpoint folder .*a repository name, 'tiny' or 'tiny@random'"):
        LatentReasoner.from_pretrained(tmp_path / "nothing")
    with pytest.raises(MissingFileError, match="no checkpoint folder 'someone/nothing'"):
        LatentReasoner.from_pretrained("someone/nothing")
    with pytest.raises(FileNotFoundError):
        load_processor(tmp_path / "nothing")


def test_no_config(released):
    (released / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config.json: give the folder that holds config.json"):
        LatentReasoner.from_pretrained(released)


def test_broken_config(released):
    (released / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is not JSON .* copy it again"):
        LatentReasoner.from_pretrained(released)


@pytest.mark.parametrize("model_type", ["llama", "qwen99_vl", None])
def test_unknown_family(released, model_type):
    edit_config(released, model_type=model_type)
    with pytest.raises(CheckpointError, match=f"no backbone adapter for model_type '{model_type}'; there are"):
        LatentReasoner.from_pretrained(released)


def test_pickled_weights_are_never_loaded(released):
    torch.save(load_file(released / "model.safetensors"), released / "pytorch_model.bin")
    (released / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"'pytorch_model.bin'.*pickled weights are never loaded, convert them"):
        LatentReasoner.from_pretrained(released)


def test_a_head_alone_is_no_checkpoint(released):
    (released / "model.safetensors").rename(released / "projection_head.safetensors")
    with pytest.raises(CheckpointError, match=r"has no model.safetensors"):
        LatentReasoner.from_pretrained(released)


def test_a_shard_is_missing(released):
    shard(released)
    (released / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model-00001-of-00002.safetensors .* copy the rest"):
        LatentReasoner.from_pretrained(released)


@pytest.mark.parametrize("sharded", [False, True])
def test_damaged_weights(released, sharded):
    if sharded:
        shard(released)
    file = sorted(released.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cannot be read .* copy it again"):
        LatentReasoner.from_pretrained(released)


def test_weights_of_another_shape(released):
    key = "model.language_model.layers.1.mlp.up_proj.weight"
    edit_weights(released, lambda weights: weights.update({key: weights[key][:7].contiguous()}))
    with pytest.raises(CheckpointError, match=rf"mismatched .*{key}.*use the config.json that was saved with them"):
        LatentReasoner.from_pretrained(released)


def test_weights_that_are_missing(released):
    key = "model.visual.merger.norm.weight"
    edit_weights(released, lambda weights: weights.pop(key))
    with pytest.raises(CheckpointError, match=rf"missing \['{key}'\] \(1 in all\)"):
        LatentReasoner.from_pretrained(released)


def test_tokenizer_without_processor(stock_folder):
    (stock_folder / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"processor cannot be loaded .* copy the checkpoint's processor files"):
        LatentReasoner.from_pretrained(stock_folder)


def test_tokenizer_and_config_disagree(stock_folder):
    edit_config(stock_folder, latent_id=5, latent_start_id=6, latent_end_id=7)
    with pytest.raises(CheckpointError, match=r"latent_id=5.*latent_id=1021.*Copy the tokenizer files .* or remove"):
        LatentReasoner.from_pretrained(stock_folder)


def test_config_with_part_of_the_ids(released):
    with pytest.raises(CheckpointError, match="only part of the latent token ids"):
        LatentReasoner.from_pretrained(edit_config(released, latent_end_id=None))


def test_ids_outside_the_table(released):
    with pytest.raises(CheckpointError, match=r"'latent_id': 320.* do not fit the model's 320 embedding rows; add"):
        LatentReasoner.from_pretrained(edit_config(released, latent_id=320))


@pytest.mark.parametrize("key", ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"])
def test_ids_that_clash(released, key):
    edit_config(released, **{key: 311})
    with pytest.raises(CheckpointError, match=rf"clash with {{'{key}': 311}} .*; correct latent_id"):
        LatentReasoner.from_pretrained(released)


def test_ids_given_by_hand_that_clash(families):
    tokens = LatentTokens(start_id=IMAGE, latent_id=1, end_id=2)
    with pytest.raises(CheckpointError, match="clash"):
        LatentReasoner(families["qwen3_5"].reasoner.backbone, tokens)


# ---------------------------------------------------------------------- dtype


def test_dtype_is_what_was_asked_for_not_what_was_stored(released, tmp_path):
    add_head(released, "lvr")
    edit_config(released, use_projection_head=True, projection_head_type="lvr", dtype="bfloat16")
    edit_weights(released, lambda weights: weights.update({k: v.bfloat16() for k, v in weights.items()}))
    stored = load_file(released / "model.safetensors")
    default = LatentReasoner.from_pretrained(released)
    assert {parameter.dtype for parameter in default.parameters()} == {torch.float32}
    key = "model.language_model.norm.weight"
    assert torch.equal(default.backbone.model.state_dict()[key], stored[key].float())
    half = LatentReasoner.from_pretrained(released, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    saved = load_file(half.save_pretrained(tmp_path / "half") / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


def test_bfloat16_at_far_positions_equals_the_stock_model(released):
    ours = LatentReasoner.from_pretrained(released, dtype=torch.bfloat16)
    stock = transformers.Qwen3VLForConditionalGeneration.from_pretrained(released, dtype=torch.bfloat16)
    ids = torch.arange(5, 25)[None]
    positions = (torch.arange(20) * 150 + 1000).expand(3, 1, -1)
    with torch.no_grad():
        hidden = ours.backbone.run(ours.backbone.embed_tokens(ids), positions, torch.ones_like(ids))
        expected = stock(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions).logits
        assert torch.equal(ours.logits(hidden), expected)


# ---------------------------------------------------------------------- saving


FILES = {".json", ".md", ".safetensors", ".jinja", ".txt"}


def stock_without_complaints(folder: Path):
    """Load a folder with plain transformers; every key has to find its place."""
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, trust_remote_code=False
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("head", ["none", "swiglu"])
def test_round_trip_of_each_family(family, tmp_path, head):
    settings = LatentSettings(
        max_latent_tokens=6, infer_latent_multiplier=1.5, projection_head_type=head, projection_hidden_dim=8
    )
    reasoner = LatentReasoner(family.reasoner.backbone, TOKENS, settings)
    folder = reasoner.save_pretrained(tmp_path / "out")
    assert {file.suffix for file in folder.iterdir()} <= FILES
    assert (folder / "projection_head.safetensors").is_file() is (head != "none")

    again = LatentReasoner.from_pretrained(folder)
    assert_same_weights(reasoner, again)
    assert again.settings == settings
    assert again.tokens == TOKENS
    assert again.settings.budget() == SpanBudget.loose(9)
    batch = family.batch([[5, ("image", 4, 4), 6, ("video", 2, 4, 4), 7, 8]])
    with torch.no_grad():
        logits = again.logits(again(batch.input_ids, batch.attention_mask, again.encode(batch)))
    assert torch.equal(logits, family.logits(batch))

    stock = stock_without_complaints(folder)
    assert type(stock) is type(family.stock)
    assert stock.config.architectures == [type(family.stock).__name__]
    ours = SimpleNamespace(stock=stock)
    assert torch.equal(type(family).stock_logits(ours, batch), family.stock_logits(batch))


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_of_tied_and_untied_embeddings(tmp_path, tied):
    model = tiny_model(tie_word_embeddings=tied)
    tokens = LatentTokens(latent_id=1021, start_id=1022, end_id=1023)
    reasoner = LatentReasoner(backbone_class("qwen3_vl")(model), tokens)
    folder = reasoner.save_pretrained(tmp_path / "out")
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not tied
    again = LatentReasoner.from_pretrained(folder)
    assert_same_weights(reasoner, again)
    assert (again.backbone.lm_head.weight is again.backbone.model.get_input_embeddings().weight) is tied
    assert torch.equal(text_logits(again), text_logits(reasoner))
    stock = stock_without_complaints(folder)
    assert torch.equal(stock(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits, text_logits(reasoner))


def test_tokenizer_and_processor_are_saved(stock_folder, tmp_path):
    reasoner = LatentReasoner.from_pretrained(stock_folder)
    folder = reasoner.save_pretrained(tmp_path / "deep" / "out")
    assert {file.suffix for file in folder.iterdir()} <= FILES
    again = LatentReasoner.from_pretrained(folder)
    assert again.tokens == reasoner.tokens
    assert again.processor.tokenizer.get_vocab() == reasoner.processor.tokenizer.get_vocab()
    assert again.processor.chat_template == reasoner.processor.chat_template
    assert type(again.processor) is type(reasoner.processor)
    config = json.loads((folder / "config.json").read_text())
    assert (config["latent_id"], config["latent_start_id"], config["latent_end_id"]) == (1021, 1022, 1023)
    assert config["use_projection_head"] is False
    stock_without_complaints(folder)


def test_grown_table_survives(tmp_path):
    folder = write_stock(tmp_path / "stock", tiny_model(vocab_size=1022))
    reasoner = LatentReasoner.from_pretrained(folder)
    again = LatentReasoner.from_pretrained(reasoner.save_pretrained(tmp_path / "out"))
    assert_same_weights(reasoner, again)


@pytest.mark.parametrize("tied", [True, False])
def test_saving_a_given_state_dict(tmp_path, tied):
    """As sharded training gives it: copies of everything, tied weights twice, values unlike those in memory."""
    model = tiny_model(tie_word_embeddings=tied)
    tokens = LatentTokens(latent_id=1021, start_id=1022, end_id=1023)
    settings = LatentSettings(projection_head_type="lvr")
    reasoner = LatentReasoner(backbone_class("qwen3_vl")(model), tokens, settings)
    state = {name: tensor.clone() + 1.0 for name, tensor in reasoner.state_dict().items()}
    folder = reasoner.save_pretrained(tmp_path / "out", state_dict=state)
    again = LatentReasoner.from_pretrained(folder).state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    stock_without_complaints(folder)


def test_a_state_dict_of_a_wrapper_is_refused(tiny, tmp_path):
    wrapped = {f"reasoner.{name}": tensor for name, tensor in tiny.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"unexpected \['reasoner.backbone.*strip what a wrapper put before"):
        tiny.save_pretrained(tmp_path / "out", state_dict=wrapped)
    assert not (tmp_path / "out").exists()


def test_saving_over_another_checkpoint(released, golden):
    """Nothing of what was there is picked up: neither an old head nor old shards."""
    add_head(released, "lvr")
    edit_config(released, use_projection_head=True, projection_head_type="lvr")
    LatentReasoner.from_pretrained(released).save_pretrained(released)
    assert (released / "projection_head.safetensors").is_file()
    shard(released)
    plain = LatentReasoner.from_pretrained(golden / "public_end")
    plain.save_pretrained(released)
    again = LatentReasoner.from_pretrained(released)
    assert again.settings.projection_head_type == "none"
    assert_same_weights(plain, again)
    stock_without_complaints(released)


def test_saving_does_not_touch_the_weights_in_memory(golden, tmp_path):
    reasoner = LatentReasoner.from_pretrained(golden / "public_mse")
    before = {name: tensor.clone() for name, tensor in reasoner.state_dict().items()}
    pointers = [parameter.data_ptr() for parameter in reasoner.parameters()]
    reasoner.save_pretrained(tmp_path / "out")
    assert all(torch.equal(reasoner.state_dict()[name], before[name]) for name in before)
    assert [parameter.data_ptr() for parameter in reasoner.parameters()] == pointers
