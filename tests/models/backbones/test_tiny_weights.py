"""The pretrained tiny backbone that the package ships: it reads and imagines the world of events."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from futurel1 import LatentReasoner
from futurel1.data import open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import Fetched, SFTCollator
from futurel1.data.prompts import PromptCollator, parse_prompt
from futurel1.losses import LatentSFTLoss, LatentSFTOutput, hint_retrieval
from futurel1.models.checkpoint_folders import TINY_FOLDER
from futurel1.models.transcript import Transcript, transcripts
from futurel1.modules import TowerPretrainModule
from futurel1.worlds import make_event_episodes, read_code, write_world
from futurel1.worlds.pretraining import pretraining_records

CLIPS = 48


@pytest.fixture(scope="module")
def tiny() -> LatentReasoner:
    return LatentReasoner.from_pretrained("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of every kind about clips that pretraining has not seen."""
    made = tmp_path_factory.mktemp("events")
    write_world(made, train=CLIPS, test=0, seed=991, size=64, progress=False)
    for episode in make_event_episodes("train", CLIPS, seed=991, size=64):
        for kind, record in pretraining_records(episode, f"videos/{episode.id}.mp4").items():
            with (made / f"{kind}.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
    return made


def test_it_is_small_and_complete(tiny: LatentReasoner) -> None:
    assert sum(file.stat().st_size for file in TINY_FOLDER.iterdir()) < 8e6
    assert sum(parameter.numel() for parameter in tiny.parameters()) < 4e6
    names = {file.name for file in TINY_FOLDER.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "LICENSE", "system_prompt.txt"} <= names
    card = (TINY_FOLDER / "README.md").read_text()
    assert "{" not in card
    assert "configs/tiny/pretrain.yaml" in card
    assert tiny.backbone.lm_head.weight.dtype == torch.float32  # stored in half of that


def answered(tiny: LatentReasoner, file: Path) -> tuple[list[Transcript], list[str]]:
    """Greedy responses to the prompts of a file, and the answers expected."""
    source = open_records(str(file), parse=parse_prompt)
    encoder = ChatEncoder(tiny.processor)
    samples = [source[number] for number in range(len(source))]
    prompts = PromptCollator(encoder.pad_token_id)([Fetched([encoder.encode_prompt(s) for s in samples], [])])
    with torch.no_grad():
        rollout = tiny.generate(prompts, max_new_tokens=128)
    return transcripts(rollout, tiny.processor.tokenizer), [str(sample.info.answer) for sample in samples]


def shared_words(text: str, expected: str) -> float:
    """Share of the words expected that stand in their place in an answer."""
    told, true = (part.replace(",", " ").replace(";", " ").split() for part in (text, expected))
    return float(np.mean([word == told[place] if place < len(told) else False for place, word in enumerate(true)]))


def answer_of(text: str) -> str:
    return text.partition("<answer>")[2].partition("</answer>")[0]


def test_it_describes_frames(tiny: LatentReasoner, folder: Path) -> None:
    texts, expected = answered(tiny, folder / "describe.jsonl")
    assert np.mean([shared_words(answer_of(text.text), true) for text, true in zip(texts, expected, strict=True)]) > 0.6


def test_it_imagines_as_many_frames_as_it_is_told_and_describes_them(tiny: LatentReasoner, folder: Path) -> None:
    texts, expected = answered(tiny, folder / "tell.jsonl")
    assert np.mean([len(text.spans) == 1 + place % 3 for place, text in enumerate(texts)]) > 0.9
    shares = [shared_words(answer_of(text.text), true) for text, true in zip(texts, expected, strict=True)]
    of_another = [shared_words(answer_of(text.text), true) for text, true in zip(texts, expected[1:], strict=False)]
    assert np.mean(shares) > np.mean(of_another) + 0.1


def imagined(tiny: LatentReasoner, folder: Path) -> LatentSFTOutput:
    """What it makes of all clips: three frames after four, each from its own latents before."""
    source = open_records(str(folder / "imagine.jsonl"))
    encoder = ChatEncoder(tiny.processor, max_latent_tokens=1, fixed_latents=True, max_hint_tokens=4)
    batch = SFTCollator(encoder.pad_token_id)(
        [Fetched([encoder.encode(source.sample(number)) for number in range(len(source))], [])]
    )
    with torch.no_grad():
        return LatentSFTLoss(1.0, latent_feedback="self", feedback_passes=3)(tiny, batch)


def test_its_latents_are_of_the_frames_to_come(tiny: LatentReasoner, folder: Path) -> None:
    own = imagined(tiny, folder)
    assert float(own.latent) < 0.7  # always the mean: 1
    retrieved = hint_retrieval(own.predicted, own.target, own.span)
    assert float(retrieved.mean()) > 10 / len(retrieved)  # chance: 1


def test_its_latents_know_better_than_the_last_frame_where_shapes_will_be(tiny: LatentReasoner, folder: Path) -> None:
    own = imagined(tiny, folder)
    clips = list(make_event_episodes("train", CLIPS, seed=991, size=64))
    patches = tiny.processor.image_processor(
        images=[Image.fromarray(clip.render([4])[0]) for clip in clips], do_resize=False, return_tensors="pt"
    )
    with torch.no_grad():
        last = tiny.encode_hints(patches["pixel_values"], patches["image_grid_thw"])
    last_seen = torch.stack([rows.mean(dim=0) for rows in last.embeds.split(list(last.counts))])

    tower = TowerPretrainModule()
    tower.configure_model()
    rotation, mean, scale = (tower.get_buffer(name) for name in ("rotation", "mean", "scale"))

    by_pair = [np.argsort(np.array(clip.last_colours) % 3) for clip in clips]
    true = np.stack([clip.states.positions[5:8][:, order] for clip, order in zip(clips, by_pair, strict=True)])
    hidden = np.stack([clip.states.hidden[4:8][:, order] for clip, order in zip(clips, by_pair, strict=True)])
    seen = ~hidden[:, 1:] & ~hidden[:, :1]

    def errors(latents: torch.Tensor) -> list[float]:
        """How far off shapes are after one, two and three steps in what (N, 3, H) latents say."""
        told = read_code((latents.flatten(0, 1) @ rotation.T / scale + mean).numpy()).positions
        off = np.linalg.norm(told.reshape(true.shape) - true, axis=-1)
        return [float(off[:, step][seen[:, step]].mean()) for step in range(3)]

    own_errors, copied = (
        errors(latents.view(CLIPS, -1, tiny.hidden_size).expand(-1, 3, -1)) for latents in (own.predicted, last_seen)
    )
    assert max(errors(own.target.view(CLIPS, 3, -1))) < 0.06  # what can be read from true frames
    assert all(mine < 0.9 * stale for mine, stale in zip(own_errors, copied, strict=True)), (own_errors, copied)
