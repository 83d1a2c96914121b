"""Keys that used to be flat, and files in which there are none."""

from pathlib import Path

import pytest

from futurel1.cli.flat_keys import refuse_flat_keys
from futurel1.errors import ConfigError


@pytest.mark.parametrize("text", [
    "", "[1]", "model:", "model: LADAPOModule", "model: {class_path: LADAPOModule}",
    "model:\n  class_path: LADAPOModule\n  init_args:", "model: {init_args: {seed: 1}}", "model: {",
])  # fmt: skip
def test_a_file_without_flat_keys_is_left_to_the_parser(tmp_path: Path, text: str) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(text)
    refuse_flat_keys(["fit", "--config", str(file)])
    refuse_flat_keys(["fit", "--config", str(tmp_path / "missing.yaml")])


def test_a_flat_key_of_prediction_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no setting 'seed'; it is 'sampling\.seed' now"):
        refuse_flat_keys(["predict", "--model", "LatentPredictor", "--model.seed", "3"])
