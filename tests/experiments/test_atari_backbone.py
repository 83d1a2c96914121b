"""The backbone of the Atari world tells what it sees and imagines what comes, in clips that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from futurel1 import LatentReasoner
from futurel1.data import open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import Fetched, SFTCollator
from futurel1.data.prompts import PromptCollator, parse_prompt
from futurel1.losses import LatentSFTLoss, hint_retrieval
from futurel1.models.transcript import transcripts
from futurel1.worlds import AtariWorld, write_clips

BACKBONE = Path(__file__).parents[2] / "experiments" / "atari" / "backbone"
CLIPS = 24  # a block of questions


@pytest.fixture(scope="module")
def backbone() -> LatentReasoner:
    return LatentReasoner.from_pretrained(BACKBONE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("atari")
    write_clips(made, AtariWorld(seed=991), {"pretrain": CLIPS}, progress=False)
    return made


def test_it_tells_the_zones_of_ball_and_paddles(backbone: LatentReasoner, folder: Path) -> None:
    source = open_records(str(folder / "pretrain_describe.jsonl"), parse=parse_prompt)
    encoder = ChatEncoder(backbone.processor)
    samples = [source[number] for number in range(CLIPS)]
    prompts = PromptCollator(encoder.pad_token_id)([Fetched([encoder.encode_prompt(one) for one in samples], [])])
    with torch.no_grad():
        rollout = backbone.generate(prompts, max_new_tokens=96)
    right = []
    for said, sample in zip(transcripts(rollout, backbone.processor.tokenizer), samples, strict=True):
        answer = said.text.partition("<answer>")[2].partition("</answer>")[0]
        told, true = (text.replace(";", ",").split(", ") for text in (answer, str(sample.info.answer)))
        right += [place < len(told) and told[place] == phrase for place, phrase in enumerate(true)]
    assert np.mean(right) > 0.85  # paddles nearly always, the ball less often


def test_its_latents_are_of_the_frames_to_come(backbone: LatentReasoner, folder: Path) -> None:
    source = open_records(str(folder / "pretrain_imagine.jsonl"))
    encoder = ChatEncoder(backbone.processor, max_latent_tokens=1, fixed_latents=True, max_hint_tokens=4)
    batch = SFTCollator(encoder.pad_token_id)(
        [Fetched([encoder.encode(source.sample(number)) for number in range(CLIPS)], [])]
    )
    with torch.no_grad():
        own = LatentSFTLoss(1.0, latent_feedback="self", feedback_passes=3)(backbone, batch)
    clips = own.target.view(CLIPS, -1, own.target.shape[-1])
    of_mean_frames = (clips - clips.mean(dim=0)).square().mean()
    assert (own.predicted - own.target).square().mean() < 0.5 * of_mean_frames
    retrieved = hint_retrieval(own.predicted, own.target, own.span)
    assert float(retrieved.mean()) > 5 / len(retrieved)  # chance: 1
