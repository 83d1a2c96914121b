"""Backbones with random weights by name: published shapes without memory, fewer layers, names that are wrong."""

import pytest
import torch

from futurel1.errors import ConfigError, MissingFileError
from futurel1.models import LatentReasoner, load_processor
from futurel1.models.backbones import random_weights
from futurel1.models.backbones.random_weights import SHAPES, RandomBackbone, is_random

PARAMETERS = {"qwen3-vl-2b": 2_127_532_032, "qwen3-vl-4b": 4_437_815_808, "qwen3-vl-8b": 8_767_123_696}
"""Of the published weights: bytes that their indices name, halved."""


@pytest.fixture(autouse=True)
def _without_the_vocabulary(monkeypatch):
    """Building the real tokenizer takes seconds; it has its own tests."""
    monkeypatch.setattr(random_weights, "qwen_table", lambda: None)


# ---------------------------------------------------------------------- published shapes


@pytest.mark.parametrize("shape", PARAMETERS)
def test_published_shape_on_the_meta_device(shape):
    with torch.device("meta"):
        reasoner = LatentReasoner.from_pretrained(f"{shape}@random", dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in reasoner.parameters()) == PARAMETERS[shape]
    assert {parameter.dtype for parameter in reasoner.parameters()} == {torch.bfloat16}
    assert reasoner.device.type == "meta"
    assert reasoner.backbone.vocab_size == 151_936
    assert reasoner.backbone.ties_embeddings == (shape != "qwen3-vl-8b")
    assert len(reasoner.backbone.mergers()) == 4  # merger and three DeepStack mergers
    assert reasoner.base_model == f"{shape}@random"


def test_every_shape_has_a_configuration():
    assert set(SHAPES) == {"tiny", *PARAMETERS}
    for shape in PARAMETERS:
        config = RandomBackbone(shape).config()
        text, vision = config.text_config, config.vision_config
        assert vision.out_hidden_size == text.hidden_size
        assert text.rope_parameters["rope_theta"] == 5e6
        assert text.rope_parameters["mrope_section"] == [24, 20, 20]
        assert sum(text.rope_parameters["mrope_section"]) * 2 == text.head_dim
        assert vision.num_position_embeddings == 48**2


# ---------------------------------------------------------------------- fewer layers


@pytest.mark.parametrize(
    ("options", "layers", "depth", "levels"),
    [
        (":layers=1,vision_layers=1", 1, 1, [0]),
        (":vision_layers=1", 36, 1, [0]),
        (":layers=2", 2, 27, [8, 16]),  # a level is added after each layer of the language model
        (":vision_layers=20", 36, 20, [8, 16]),
        ("", 36, 27, [8, 16, 24]),
    ],
)
def test_layers_are_left_out(options, layers, depth, levels):
    config = RandomBackbone.parse(f"qwen3-vl-8b@random{options}").config()
    assert config.text_config.num_hidden_layers == layers
    assert config.vision_config.depth == depth
    assert config.vision_config.deepstack_visual_indexes == levels


def test_layers_of_the_tiny_backbone():
    whole = LatentReasoner.from_pretrained("tiny@random")
    small = LatentReasoner.from_pretrained("tiny@random:layers=1,vision_layers=1")
    assert len(whole.backbone.language_model.layers) == 4
    assert len(small.backbone.language_model.layers) == 1
    assert len(small.backbone.vision_tower.blocks) == 1


def test_saved_as_an_ordinary_checkpoint(tmp_path):
    reasoner = LatentReasoner.from_pretrained("tiny@random:layers=1", projection_head="lvr")
    folder = reasoner.save_pretrained(tmp_path / "saved")
    again = LatentReasoner.from_pretrained(folder)
    assert again.base_model == "tiny@random:layers=1"  # the model card says where it comes from
    for name, value in reasoner.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


# ---------------------------------------------------------------------- names


def test_what_names_random_weights():
    assert is_random("tiny@random")
    assert is_random("qwen3-vl-8b@random:layers=1")
    assert is_random("anything@random")
    assert not is_random("tiny")
    assert not is_random("runs/model@random")  # a folder
    assert not is_random("tiny@randomly")


@pytest.mark.parametrize("load", [load_processor, LatentReasoner.from_pretrained])
def test_an_unknown_shape_lists_the_known_ones(load):
    with pytest.raises(
        MissingFileError, match=r"no backbone 'qwen3-vl-9b@random' .*there are tiny@random, .*8b@random$"
    ):
        load("qwen3-vl-9b@random")


@pytest.mark.parametrize(
    "options", ["", "layer=1", "layers=one", "layers=1,layers=2", "layers=-1", "layers", "layers=1,"]
)
def test_unknown_options(options):
    with pytest.raises(ConfigError, match=r"after the colon write layers=N, .*tiny@random:layers=1,vision_layers=1"):
        RandomBackbone.parse(f"tiny@random:{options}")


@pytest.mark.parametrize("layers", [0, 37])
def test_layers_that_there_are_not(layers):
    with pytest.raises(ConfigError, match=r"qwen3-vl-8b has 36 layers, give layers=1 to layers=36"):
        RandomBackbone.parse(f"qwen3-vl-8b@random:layers={layers}")
    with pytest.raises(ConfigError, match=r"tiny has 2 vision_layers"):
        RandomBackbone.parse("tiny@random:vision_layers=3")


# ---------------------------------------------------------------------- without the published vocabulary


def test_the_small_tokenizer_stands_in(caplog):
    with caplog.at_level("INFO"):
        processor = load_processor("qwen3-vl-8b@random")
    assert "tokenizer of 1,024 pieces, since dashscope is not installed" in caplog.text
    config = RandomBackbone("qwen3-vl-8b").config()
    assert config.image_token_id == processor.image_token_id < 1024
    assert config.video_token_id == processor.video_token_id
    assert processor.tokenizer.convert_tokens_to_ids("<|vision_start|>") == config.vision_start_token_id
    assert config.text_config.vocab_size == 151_936
