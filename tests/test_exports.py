"""The names that `from futurel1 import ...` knows."""

import subprocess
import sys
from importlib import import_module

import pytest

import futurel1


def test_every_name_is_the_one_of_its_module() -> None:
    for module, names in futurel1._EXPORTS.items():
        home = import_module(module)
        for name in names:
            assert getattr(futurel1, name) is getattr(home, name)
    assert {*futurel1._HOMES, "FutureL1Error", "__version__"} == set(futurel1.__all__) <= set(dir(futurel1))


def test_subpackages_are_attributes() -> None:
    code = "import futurel1; print(futurel1.models.LatentReasoner.__name__, futurel1.worlds.world.__name__)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["LatentReasoner", "write_world"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'EventPredicter'"):
        _ = futurel1.EventPredicter


def test_import_is_light() -> None:
    code = "import futurel1, sys; print(sorted({'torch', 'transformers', 'lightning', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
