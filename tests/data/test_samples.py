"""Samples: what they show and imagine, and that processes can pass them on."""

import pickle

import pytest
from example_records import CHAT, CLIP, SHAPES, parse

from futurel1.data.samples import Frame


@pytest.mark.parametrize("shape", ["frame-indexed", "upstream"])
def test_observed_and_hints(shape):
    sample = parse(SHAPES[shape])
    assert sample.observed == (Frame(CLIP, 1), Frame(CLIP, 2))
    assert sample.hints == (Frame(CLIP, 4), Frame(CLIP, 7))


def test_chat_has_no_hints():
    assert parse(CHAT).hints == ()


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_can_be_sent_between_processes(shape):
    sample = parse(SHAPES[shape])
    assert pickle.loads(pickle.dumps(sample)) == sample
