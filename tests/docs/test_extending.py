"""What `docs/extending.md` says can be done works; `tests/test_readme.py` runs its Python blocks."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib

import pytest
import yaml
from pages import ROOT, blocks

from futurel1.cli import make_cli
from futurel1.models import BACKBONES
from futurel1.models.backbones import ENTRY_POINT_GROUP

TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in TEXT.split("\n## ")[1:]}
FRAGMENTS = [block for block in blocks(TEXT, "yaml") if block.startswith("# for ")]
"""Parts of a configuration, each for the shipped one that its first line names."""


def modules():
    """Source of the modules that the page's configurations name, by their name."""
    named = (re.match(r"# (\w+)\.py\n", code) for code in blocks(TEXT, "python"))
    return {name[1]: code for name, code in zip(named, blocks(TEXT, "python"), strict=True) if name}


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """The page's modules, importable."""
    for name, code in modules().items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    known = dict(BACKBONES)
    yield tmp_path
    BACKBONES.clear()
    BACKBONES.update(known)
    for name in modules():
        sys.modules.pop(name, None)


def test_every_extension_has_an_example_and_the_files_to_touch():
    assert list(SECTIONS) == [
        "A backbone", "A reward", "A latent policy", "A metric", "A dataset", "A benchmark", "A world"
    ]  # fmt: skip
    for name, section in SECTIONS.items():
        assert "| in this repository | |" in section, name
        assert blocks(section, "python")


def test_the_files_to_touch_exist():
    paths = set(re.findall(r"^\| `((?:src|tests|docs|configs)/[^`]*)`", TEXT, re.MULTILINE))
    assert len(paths) > 20
    assert not {path for path in paths if not (ROOT / path).exists()}


def test_the_names_to_extend_exist():
    assert "CONFIGS: dict" in (ROOT / "tests" / "models" / "families.py").read_text()
    assert "METRICS = [" in (ROOT / "tests" / "metrics" / "test_metric_contract.py").read_text()
    assert "_FILES = {" in (ROOT / "src" / "futurel1" / "metrics" / "__init__.py").read_text()


def test_the_entry_point_is_of_the_group_that_is_read():
    declared = tomllib.loads(blocks(SECTIONS["A backbone"], "toml")[0])["project"]["entry-points"]
    assert list(declared) == [ENTRY_POINT_GROUP]
    ((name, value),) = declared[ENTRY_POINT_GROUP].items()
    code = blocks(SECTIONS["A backbone"], "python")[0]
    assert f'model_type = "{name}"' in code
    assert f"class {value.partition(':')[2]}(Backbone)" in code


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda text: re.findall(r"class_path: (\S+?)[,}\n]", text)[-1])
def test_configurations_are_instantiated(fragment, on_path, capsys):
    """As `PYTHONPATH=FOLDER futurel1 fit --config SHIPPED --config FRAGMENT` does."""
    shipped = ROOT / fragment.partition("\n")[0].removeprefix("# for ")
    (on_path / "fragment.yaml").write_text(fragment)
    options = ["--config", str(shipped), "--config", str(on_path / "fragment.yaml"), "--trainer.accelerator", "cpu"]
    cli = make_cli([*options, "--runs_dir", str(on_path)], run=False)
    wanted = yaml.safe_load(fragment)
    if "data" in wanted:
        assert type(cli.datamodule).__name__ == "QuizDataModule"
        assert cli.datamodule.hparams["train"] == wanted["data"]["init_args"]["train"]
    else:
        settings = wanted["model"]["init_args"]
        if "latent_policy" in settings:
            assert type(cli.model.latent_policy).__name__ == "LaplaceLatents"
            assert cli.model.latent_policy.scale == 0.1
        if "reward" in settings:
            assert cli.model.reward.rewards["few_latents"].most == 8
            assert cli.model.reward.weights["few_latents"] == 0.1


def test_there_are_three_configurations():
    assert len(FRAGMENTS) == 3
    assert set(modules()) == {"my_rewards", "my_policies", "quiz"}
