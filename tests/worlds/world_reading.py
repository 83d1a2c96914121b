"""Reads what worlds wrote, on purpose without the library's own code."""

import json

import decord
import numpy as np

TRAIN, TEST = 384, 256  # episodes in the fixtures `train` and `test`


def records_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pool_of(num_frames):
    """The 8-frame pool, as docs describe it."""
    start = 0 if num_frames <= 2 else 1
    end = num_frames - 2 if num_frames - 2 > start else num_frames - 1
    middles = min(6, end - start)
    edges = np.trunc(np.linspace(start + 1, end, middles + 1)).astype(int).tolist()
    pool = [start, *[(edges[i] + edges[i + 1] - 1) // 2 for i in range(middles)], end]
    return pool + [pool[-1]] * (8 - len(pool))


def decoded(path, indices=None):
    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(range(len(reader)) if indices is None else indices).asnumpy()


def decoded_pool(path):
    return decoded(path, pool_of(len(decord.VideoReader(str(path), num_threads=1))))


def zone_name(position, side=1.0):
    x, y = position
    return f"{'top' if y < side / 2 else 'bottom'} {'left' if x < side / 2 else 'right'}"


def window_of(episode):
    """Steps that a question about an event asks about."""
    hop = int(episode.question_type[3:])
    return range(5, 9) if hop == 5 else range(4 + hop, 5 + hop)
