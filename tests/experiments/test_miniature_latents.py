"""Imagined spans against true frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.miniature.latents import (
    Frames,
    ImaginedSpans,
    answers_held,
    asked_about,
    imagined_spans,
    retrieval,
)
from futurel1.models import LatentBank
from futurel1.worlds import make_event_episode, make_event_episodes


def test_spans_are_cut_as_they_were_decoded() -> None:
    rows = torch.eye(4)
    bank = LatentBank.from_responses(["t:1", "t:2"], [rows[:3], rows[3:]])
    spans = imagined_spans(bank, [{"id": "t:1", "spans": [2, 0, 1]}, {"id": "t:2", "spans": [1]}])
    assert spans.record.tolist() == [0, 0, 1]
    assert spans.hint.tolist() == [0, 2, 0]
    half = 0.5  # mean of two
    assert torch.allclose(spans.means, torch.tensor([[half, half, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))


def test_retrieval_counts_own_frames() -> None:
    frames = Frames(torch.eye(3), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]))
    means = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]])
    # The second span should show the second frame, and shows the first; the last one has no frame of its own.
    spans = ImaginedSpans(means, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
    found = retrieval(spans, frames)
    assert (found["spans"], found["compared"], found["frames"]) == (4, 3, 3)
    assert found["retrieval"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["chance"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["cosine"] == pytest.approx(2 / 3, abs=1e-3)
    assert found["cosine_others"] == pytest.approx(1 / 6, abs=1e-3)


def test_answers_are_read_from_the_frame_that_is_asked_about() -> None:
    episodes = list(make_event_episodes("train", 32, kinds=("zone",)))
    questions = [episode.record("clip.mp4") for episode in episodes]
    rows = [(number, hint) for number, episode in enumerate(episodes) for hint in range(len(episode.asked.hints))]
    codes = np.concatenate([episode.code(episode.asked.hints) for episode in episodes])
    record, hint = torch.tensor(rows).T
    of = Frames(torch.zeros(len(rows), 1), record, hint)
    for question, episode in zip(questions, episodes, strict=True):
        asked = episode.asked
        step = asked.arrival if asked.hop == 5 else asked.hop
        pair = asked.colours[asked.target] % 3
        assert asked_about(question) == (step - 1, pair)
    held = answers_held(torch.from_numpy(codes), of, questions)
    visible = [
        not episode.states.hidden[4 + asked_about(question)[0] + 1, episode.asked.target]
        for question, episode in zip(questions, episodes, strict=True)
    ]
    assert [value for value, seen in zip(held, visible, strict=True) if seen] == [True] * sum(visible)
    shifted = Frames(of.features, record, hint + 3)  # frames that nobody asks about
    assert answers_held(torch.from_numpy(codes), shifted, questions) == [None] * len(questions)
    wrong = torch.from_numpy(codes).view(len(rows), -1).flip(0)
    assert answers_held(wrong, of, questions).count(True) < len(questions) * 0.7
    with pytest.raises(ValueError, match="does not ask for a zone"):
        asked_about(make_event_episode("train", 0).record("clip.mp4") | {"conversations": [{"value": "What?"}] * 2})
