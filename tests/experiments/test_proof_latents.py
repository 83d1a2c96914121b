"""Imagined spans against true frames."""

from __future__ import annotations

import pytest
import torch

from experiments.proof.latents import answers_held, asked_about, retrieval, strip
from futurel1.worlds import make_event_episode, make_event_episodes


def test_retrieval_counts_own_frames() -> None:
    frames = [torch.eye(3)[:2], torch.eye(3)[2:]]
    # The second span should show the second frame, and shows the first; the last one has no frame of its own.
    spans = [{0: torch.tensor([1.0, 0, 0]), 1: torch.tensor([1.0, 0, 0])}, {0: torch.eye(3)[2], 1: torch.eye(3)[1]}]
    found = retrieval(spans, frames)
    assert (found["spans"], found["compared"], found["frames"]) == (4, 3, 3)
    assert found["retrieval"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["chance"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["cosine"] == pytest.approx(2 / 3, abs=1e-3)
    assert found["cosine_others"] == pytest.approx(1 / 6, abs=1e-3)


def test_pictures_are_of_the_nearest_training_frames() -> None:
    questions = [
        {"id": f"q{number}", "question_type": "hop2", "image": [1], "reasoning_image": [5]} for number in "abc"
    ]
    training = [{"id": "one", "reasoning_image": [5, 6]}, {"id": "two", "reasoning_image": [7]}, {"id": "beyond"}]
    frames = [torch.eye(3)[:2], torch.eye(3)[2:]]
    spans = [{0: torch.eye(3)[2], 2: torch.eye(3)[1]}, {}, {0: torch.eye(3)[0]}]
    found = strip(spans, frames, questions, training)
    assert [(sample["id"], sample["nearest"]) for sample in found] == [("qa", [["two", 7], ["one", 6]]), ("qb", [])]


def test_answers_are_read_from_the_frame_that_is_asked_about() -> None:
    episodes = list(make_event_episodes("train", 32, kinds=("zone",)))
    questions = [episode.record("clip.mp4") for episode in episodes]
    codes = [dict(enumerate(torch.from_numpy(episode.code(episode.asked.hints)))) for episode in episodes]
    for question, episode in zip(questions, episodes, strict=True):
        asked = episode.asked
        step = asked.arrival if asked.hop == 5 else asked.hop
        pair = asked.colours[asked.target] % 3
        assert asked_about(question) == (step - 1, pair)
    held = answers_held(codes, questions)
    visible = [
        not episode.states.hidden[4 + asked_about(question)[0] + 1, episode.asked.target]
        for question, episode in zip(questions, episodes, strict=True)
    ]
    assert [value for value, seen in zip(held, visible, strict=True) if seen] == [True] * sum(visible)
    shifted = [{number + 3: code for number, code in own.items()} for own in codes]  # frames that nobody asks about
    assert answers_held(shifted, questions) == [None] * len(questions)
    others = [
        {number: next(iter(other.values())) for number in own} for own, other in zip(codes, codes[::-1], strict=True)
    ]
    assert answers_held(others, questions).count(True) < len(questions) * 0.7
    with pytest.raises(ValueError, match="does not ask for a zone"):
        asked_about(make_event_episode("train", 0).record("clip.mp4") | {"conversations": [{"value": "What?"}] * 2})
