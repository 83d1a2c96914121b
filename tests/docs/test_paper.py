"""The index of the paper names what exists, and the settings of its hyperparameters are those of the configurations."""

from __future__ import annotations

import importlib
import re

import pytest
import yaml
from pages import ROOT

from futurel1.cli.tools import TOOLS
from futurel1.cli.trainer import TRAINER_COMMANDS

TEXT = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`((?:[a-z_]+\.)+[A-Za-z_]+)`", TEXT)) - {"reward.init_args.weights"})
TABLES = re.findall(r"in \[`(configs/[\w/.]+)`\].*?\n\n(\|.*?)\n\n", TEXT, re.DOTALL)


def found(name: str) -> object:
    """What an import path below the package leads to."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            here: object = importlib.import_module(".".join(("futurel1", *parts[:length])))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            here = getattr(here, part)
        return here
    raise AssertionError(name)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("futurel1.")])
def test_names_exist(name):
    assert found(name) is not None


def test_enough_is_indexed():
    assert len(NAMES) > 35
    for part in ("3.1", "3.2", "3.3", *(f"Eq. {number}" for number in (1, 2, 3, 4, 6, 7))):
        assert f"\n| {part}" in TEXT, part
    for number in range(1, 10):
        assert f"Table {number}" in TEXT


def test_commands_exist():
    named = set(re.findall(r"`futurel1 (\w+)", TEXT))
    assert named <= {*TRAINER_COMMANDS, *TOOLS}
    assert {"fit", "test", "curate"} <= named


def settings_of(config: object) -> list[tuple[str, object]]:
    """Keys and values of a configuration, at every depth."""
    if not isinstance(config, dict):
        return []
    return [pair for key, value in config.items() for pair in ((key, value), *settings_of(value))]


@pytest.mark.parametrize(("config", "table"), TABLES, ids=[config for config, _ in TABLES])
def test_hyperparameters_are_those_of_the_configuration(config, table):
    written = settings_of(yaml.safe_load((ROOT / config).read_text()))
    named = [pair for cell in re.findall(r"`(\w+: [^`]+)`", table) for pair in settings_of(yaml.safe_load(cell))]
    assert len(named) > 10
    assert [pair for pair in named if pair not in written] == []


def test_both_tables_of_hyperparameters_are_checked():
    assert [config for config, _ in TABLES] == ["configs/qwen3_vl_8b/sft.yaml", "configs/qwen3_vl_8b/la_dapo.yaml"]


def test_settings_of_the_ablations_exist():
    rows = re.findall(r"\]\(\.\./(configs/[\w/.]+)\):((?: `\w+`,?)+)", TEXT)
    assert rows
    for config, names in rows:
        keys = {key for key, _ in settings_of(yaml.safe_load((ROOT / config).read_text()))}
        assert set(re.findall(r"`(\w+)`", names)) <= keys
