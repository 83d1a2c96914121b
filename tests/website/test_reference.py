from __future__ import annotations

import importlib
from pathlib import Path

import griffe
import pytest

import futurel1
from website.reference import PACKAGES, Roles, exported, page_name, plain_summary, public_names, reference_pages

INTERNAL = {"futurel1.integrations", "futurel1.integrations.lmms_tasks"}
"""Packages whose names are for other programs."""


@pytest.fixture(scope="module")
def names():
    return public_names()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_is_there(names, package):
    module = importlib.import_module(package)
    listed = {name.path.rpartition(".")[2] for name in names[package]}
    assert listed
    if hasattr(module, "__all__"):
        assert listed == set(module.__all__)
    assert all(hasattr(module, name) for name in listed)


def test_every_package_is_there():
    root = Path(futurel1.__file__).parent
    found = {
        ".".join(("futurel1", *file.parent.relative_to(root).parts))
        for file in root.rglob("__init__.py")
        if "__all__" in file.read_text()
    }
    assert found - INTERNAL <= set(PACKAGES)


def test_objects_are_documented_once(names):
    homes = [name.home for listed in names.values() for name in listed if name.home == name.path]
    assert len(homes) == len(set(homes)) > 150
    assert {name.home for listed in names.values() for name in listed} == set(homes)
    reasoner = next(name for name in names["futurel1"] if name.path == "futurel1.LatentReasoner")
    assert reasoner.home == "futurel1.models.LatentReasoner"


def test_pages(names):
    pages = reference_pages()
    assert set(pages) == {"reference/index.md", *map(page_name, PACKAGES)}
    losses = pages["reference/losses.md"]
    assert "| [`LatentSFTLoss`][futurel1.losses.LatentSFTLoss] | " in losses
    assert "\n::: futurel1.losses.LatentSFTLoss\n" in losses
    assert "::: futurel1.LatentReasoner\n" not in pages["reference/futurel1.md"]


def test_summaries_fit_a_cell():
    assert plain_summary("One of\n``a`` | :class:`~b.C`.") == "One of `a` \\| `b.C`."


def test_docstrings_are_markdown(tmp_path):
    code = 'def f():\n    """See :func:`g`.\n\n    Example:\n        >>> [1][0]\n        1\n    """\n'
    (tmp_path / "m.py").write_text(code)
    module = griffe.load("m", search_paths=[tmp_path], extensions=griffe.load_extensions(Roles))
    assert module["f"].docstring.value == "See `g`.\n\nExamples:\n    >>> [1][0]\n    1"


def test_without_all_what_a_module_defines_is_public():
    code = 'import os\n\nLIMIT = 1\n"""Most."""\n_HIDDEN = 2\n"""Not."""\n\n\ndef f():\n    """Do."""\n'
    assert exported(griffe.visit("m", Path("m.py"), code)) == ["LIMIT", "f"]
