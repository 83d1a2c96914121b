"""Model cards: what they say, that their examples run, and whose cards are kept."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from futurel1.models import LatentReasoner, TrainingRun
from futurel1.models.model_card import (
    ANY_FOLDER,
    Described,
    base_model_of,
    describe,
    is_generated,
    model_card,
    renamed,
)

TRAINING = TrainingRun(
    module="LatentSFTModule",
    steps=1200,
    settings={"init_from": "/home/me/runs/first", "betas": (0.9, 0.95), "freeze": ["vision"], "dtype": torch.float32},
    data={"class": "VideoHintDataModule", "train": [r"C:\clips\train.jsonl", "runs/world/train.jsonl"], "``` ": None},
    metrics={"val/ce": 0.123456789, "train/loss": 2.0},
)


@pytest.fixture(scope="module")
def reasoner() -> LatentReasoner:
    return LatentReasoner.from_pretrained("tiny@random", projection_head="swiglu", projection_hidden_dim=8)


def described(reasoner: LatentReasoner, base_model: str | None) -> Described:
    found = describe(reasoner, TRAINING)
    return Described(**{**vars(found), "base_model": base_model})


def test_the_metadata_is_the_hubs(reasoner: LatentReasoner) -> None:
    data = ModelCard(model_card(described(reasoner, "Qwen/Qwen3-VL-8B-Instruct"))).data.to_dict()
    assert data["base_model"] == "Qwen/Qwen3-VL-8B-Instruct"
    assert (data["library_name"], data["pipeline_tag"]) == ("futurel1", "video-text-to-text")
    assert "latent-reasoning" in data["tags"]
    assert "license" not in data  # whose weights these are decides, and nobody said it
    assert "base_model" not in ModelCard(model_card(described(reasoner, None))).data.to_dict()
    tiny = ModelCard(model_card(described(reasoner, "tiny"))).data.to_dict()  # no repository of the hub
    assert "base_model" not in tiny
    assert tiny["futurel1_backbone"] == "tiny"


def test_the_text_tells_model_latents_run_and_metrics(reasoner: LatentReasoner) -> None:
    text = model_card(described(reasoner, "Qwen/Qwen3-VL-8B-Instruct"))
    count = sum(parameter.numel() for parameter in reasoner.parameters())
    assert f"`Qwen3VLForConditionalGeneration` with {count:,} parameters" in text
    assert f"`<|latent|>` {reasoner.tokens.latent_id}," in text
    assert "Latents of a span when decoding: at most 8." in text
    assert "Projection head: `swiglu`." in text
    assert "It does not load the projection head" in text
    assert "`LatentSFTModule`, 1,200 optimizer steps." in text
    assert "| `train/loss` | 2 |\n| `val/ce` | 0.123457 |" in text
    settings = yaml.safe_load(text.partition("````yaml\n")[2].partition("````\n")[0])
    assert settings["model"] == {
        "init_from": ".../first", "betas": [0.9, 0.95], "freeze": ["vision"], "dtype": "torch.float32"
    }  # fmt: skip
    assert settings["data"]["train"] == [".../train.jsonl", "runs/world/train.jsonl"]
    for private in ("/home/me", "clips"):
        assert private not in text


def test_a_card_without_a_run_says_nothing_of_training(reasoner: LatentReasoner) -> None:
    text = model_card(describe(reasoner, None))
    assert "## Training" not in text
    assert "## Metrics" not in text
    assert "It started from random weights, `tiny@random`" in text
    assert "The run logged none." in model_card(describe(reasoner, TrainingRun("LatentSFTModule", 0)))


def test_the_examples_of_a_saved_card_run(reasoner: LatentReasoner, tmp_path: Path) -> None:
    folder = reasoner.save_pretrained(tmp_path / "out")
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    found: dict[str, object] = {}
    for block in blocks:
        assert ANY_FOLDER in block
        exec(block.replace(ANY_FOLDER, str(folder)), found)
    again, stock = found["reasoner"], found["model"]
    assert isinstance(again, LatentReasoner)
    assert isinstance(stock, torch.nn.Module)
    assert again.state_dict().keys() == reasoner.state_dict().keys()
    theirs = stock.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in again.backbone.model.state_dict().items())
    assert found["processor"] is not None


def test_a_generated_card_is_replaced_and_any_other_kept(
    reasoner: LatentReasoner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = reasoner.save_pretrained(tmp_path) / "README.md"
    generated = file.read_text()
    with caplog.at_level(logging.WARNING, "futurel1"):
        reasoner.save_pretrained(tmp_path, training=TRAINING)
        assert "1,200 optimizer steps" in file.read_text()
        assert not caplog.records
        for text in ("# Mine\n", generated.replace("# Latent reasoner", "# Best reasoner"), generated + "More.\n"):
            caplog.clear()
            file.write_text(text)
            reasoner.save_pretrained(tmp_path)
            assert file.read_text() == text
            assert f"{file} was not written by futurel1, or was edited since: it is kept" in caplog.text
    assert (tmp_path / "model.safetensors").is_file()


def test_a_card_survives_the_line_ends_of_other_systems(reasoner: LatentReasoner) -> None:
    card = model_card(describe(reasoner, None))
    assert is_generated(card)
    assert is_generated(card.replace("\n", "\r\n"))
    pushed = renamed(card.replace("\n", "\r\n"), "me/imagines")
    assert pushed == model_card(describe(reasoner, None), "me/imagines")
    assert renamed("# Mine, path/to/this/folder\n", "me/imagines") == "# Mine, path/to/this/folder\n"


def test_the_base_model_is_handed_on(reasoner: LatentReasoner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reasoner.base_model == "tiny@random"
    folder = reasoner.save_pretrained(tmp_path)
    assert LatentReasoner.from_pretrained(folder).base_model == "tiny@random"
    (folder / "README.md").write_text(model_card(described(reasoner, "Qwen/Qwen3-VL-8B-Instruct")))
    assert base_model_of(folder) == "Qwen/Qwen3-VL-8B-Instruct"
    # The card of a snapshot names the model that the snapshot started from.
    (folder / "README.md").write_text("---\nbase_model: Qwen/Qwen3-VL-8B-Base\n---\n# Qwen3-VL\n")
    assert base_model_of(folder) is None
    (folder / "README.md").unlink()
    assert base_model_of(folder) is None
    assert base_model_of("Qwen/Qwen3-VL-8B-Instruct") == "Qwen/Qwen3-VL-8B-Instruct"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert base_model_of("tiny") == "tiny"  # the packaged one, whatever folders there are
    assert "huggingface.co/tinylab/vl" in model_card(described(reasoner, "tinylab/vl"))
