from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_built_package_holds_every_data_file() -> None:
    """An editable installation reads them from here whatever is declared; others have what is declared."""
    package = ROOT / "src" / "futurel1"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    declared = {file for pattern in settings["package-data"]["futurel1"] for file in package.glob(pattern)}
    files = {file for file in package.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert sorted(files - declared) == []
    assert package / "models" / "backbones" / "tiny_weights" / "model.safetensors" in declared
