from __future__ import annotations

import json

import pytest

from futurel1.cli.tools import TOOLS
from futurel1.cli.trainer import TRAINER_COMMANDS
from website import commands

TRAINER_HELP = """usage: - [options] fit [--trainer.devices DEVICES]

Runs the full optimization routine.

options:
  --runs_dir RUNS_DIR   folder that holds the run folders

Customize every aspect of training via flags:
  --trainer CONFIG      Path to a configuration file.
  --trainer.devices DEVICES
                        The devices to use.

<class 'lightning.pytorch.core.module.LightningModule'>:
  --model.help [CLASS_PATH_OR_NAME]
                        Show the help.
"""


@pytest.fixture
def pages(tmp_path):
    """Pages from texts as commands print them, found where earlier builds left them."""
    printed = {"futurel1": "usage: futurel1", **{name: f"usage: {name}" for name in TOOLS}}
    printed |= dict.fromkeys(TRAINER_COMMANDS, TRAINER_HELP)
    printed["futurel1.modules.LatentSFTModule"] = "usage: -\n\nHelp for X\n\nLatent SFT:\n  --model.backbone BACKBONE\n"
    printed["futurel1.datamodules.VideoHintDataModule"] = "usage: -\n\nHelp for Y\n\nRecords:\n  --data.train TRAIN\n"
    (tmp_path / f"commands-{commands.digest()}.json").write_text(json.dumps(printed))
    return commands.command_pages(tmp_path)


def test_every_command_has_a_page(pages):
    names = {f"commands/{name}.md" for name in (*TRAINER_COMMANDS, *TOOLS)}
    assert set(pages) == names | {"commands/index.md", "commands/models.md", "commands/datamodules.md"}
    assert "usage: ask" in pages["commands/ask.md"]
    assert TOOLS["ask"].example in pages["commands/ask.md"]


def test_a_page_of_the_trainer_has_its_own_options_first(pages):
    own, _, rest = pages["commands/fit.md"].partition("## Classes")
    assert "--runs_dir" in own
    assert "--trainer.devices" not in own
    assert "[`LatentSFTModule`][futurel1.modules.LatentSFTModule]" in rest
    assert "\n--trainer.devices\n" in rest
    assert "The devices to use." not in rest


def test_settings_of_classes_have_no_prefix(pages):
    assert "Latent SFT:\n  backbone BACKBONE" in pages["commands/models.md"]
    assert "Records:\n  train TRAIN" in pages["commands/datamodules.md"]


def test_help_is_what_a_command_prints():
    text = commands.help_of("ask", "--help")
    assert text.startswith("usage: futurel1 ask")
    assert all(sign.isprintable() for line in text.splitlines() for sign in line)
