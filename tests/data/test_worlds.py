"""The former name of the worlds."""

import importlib

import pytest

from futurel1 import worlds


def test_the_former_name_gives_the_same_objects_and_no_second_copy_of_a_module():
    former = importlib.import_module("futurel1.data.worlds")
    assert all(getattr(former, name) is getattr(worlds, name) for name in worlds.__all__)
    with pytest.raises(ModuleNotFoundError, match="not a package"):
        importlib.import_module("futurel1.data.worlds.events")
