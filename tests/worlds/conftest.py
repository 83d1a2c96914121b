"""Episodes, scenes and files that the tests of all modules share: they take seconds to make."""

import numpy as np
import pytest
from world_reading import TEST, TRAIN

from futurel1.worlds import make_event_episodes, make_event_scenes, write_world


@pytest.fixture(scope="session")
def train():
    return list(make_event_episodes("train", TRAIN))


@pytest.fixture(scope="session")
def test():
    return list(make_event_episodes("test", TEST))


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("events"), train=8, test=5, rl=2, progress=False)


@pytest.fixture(scope="session")
def scenes():
    return make_event_scenes(np.random.default_rng(0), 1000)
