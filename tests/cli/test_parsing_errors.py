"""What jsonargparse refuses, in one line: these tests pin its wordings, as messages of ours are made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from futurel1.cli import main
from futurel1.cli.errors import CommandLineError
from futurel1.cli.parsing_errors import Command, explain

DATA = "data: {class_path: VideoHintDataModule}\n"
SFT = f"{DATA}model:\n  class_path: LatentSFTModule\n  init_args:\n    "
GOOD = f"{SFT}latent_weight: 1.0"
RL = f"{DATA}model:\n  class_path: LADAPOModule\n  init_args:\n    "


@pytest.mark.parametrize(("text", "options", "parts"), [
    (None, [], ["futurel1 fit needs --config FILE that sets model and data, such as `futurel1 fit --config tiny/sft`"]),
    (GOOD, ["--config"], ["--config needs a value"]),
    ("model: {class_path: LatentSFTModule}", [], ["needs --config FILE that sets data"]),
    # unknown options
    (SFT + "learning_rat: 1", [],
     ["line 5: LatentSFTModule has no option 'learning_rat'; did you mean learning_rate? known: alignment, "]),
    (RL + "sampling: {max_token: 3}", [],
     ["line 5: LADAPOModule has no option 'sampling.max_token'; did you mean sampling.max_new_tokens? known: "]),
    (RL + "reward: {class_path: futurel1.rewards.CompositeReward.preset, init_args: {nam: paper}}", [],
     ["line 5: rewards.CompositeReward.preset has no option 'nam'; did you mean name? known: judge, name, "]),
    (DATA + "modle: {class_path: LatentSFTModule}", [],
     ["line 2: futurel1 fit has no option 'modle'; did you mean model? known: ckpt_path, config, data, export, "]),
    (DATA + "trainer: {max_step: 3}", [], ["trainer.max_step", "did you mean trainer.max_steps?"]),
    (GOOD, ["--model.init_args.learning_rat", "1"],
     ["--model.init_args.learning_rat: LatentSFTModule has no option 'learning_rat'; did you mean learning_rate?"]),
    (GOOD, ["--trainer.max_step", "3"],
     ["--trainer.max_step: futurel1 fit has no option 'trainer.max_step'; did you mean trainer.max_steps?"]),
    (GOOD, ["--learning_rate", "3"], ["did you mean model.init_args.learning_rate?"]),
    (GOOD, ["stray"], ["'stray' belongs to no option of futurel1 fit"]),
    # unknown classes
    (DATA + "model: {class_path: LatentSFT}", [],
     ["line 2: there is no LightningModule 'LatentSFT'; did you mean LatentSFTModule? known: ", "LADAPOModule, "]),
    (DATA + "model:\n  class_path: futurel1.modules.Foo", [],
     ["line 3: there is no LightningModule 'futurel1.modules.Foo'"]),
    (DATA + "model: my_models.Mine", [],
     ["there is no module 'my_models' for my_models.Mine; put its folder on PYTHONPATH"]),
    (DATA + "model: json.JSONDecoder", [], ["line 2: json.JSONDecoder is no LightningModule; ", "LADAPOModule, "]),
    ("data: {class_path: VideoDataModule}\nmodel: LatentSFTModule", [], ["line 1: there is no LightningDataModule"]),
    (DATA + "trainer:\n  callbacks:\n  - class_path: ModelCheckpoin", [],
     ["line 4: there is no Callback 'ModelCheckpoin'; did you mean ModelCheckpoint? "]),
    (RL + "latent_policy: {class_path: GaussLatents}", [],
     ["there is no LatentPolicy 'GaussLatents'; did you mean GaussianLatents?"]),
    (GOOD, ["--trainer.logger", "WandbLog"],
     ["--trainer.logger: there is no Logger 'WandbLog'; did you mean WandbLogger?"]),
    # classes that are called later
    (SFT + "optimizer: no_such_package.AdamW8bit", [],
     ["there is no module 'no_such_package' for no_such_package.AdamW8bit; put its folder on PYTHONPATH, or install"]),
    (GOOD, ["--model.init_args.optimizer", "torch.optim.SDG"],
     ["--model.init_args.optimizer: there is no Optimizer 'torch.optim.SDG'; did you mean SGD?"]),
    (SFT + "optimizer: torch.nn.Linear", [], ["line 5: torch.nn.Linear is no Optimizer; known: ", "AdamW, "]),
    (SFT + "optimizer: {class_path: torch.optim.SGD, init_args: {momentom: 0.9}}", [],
     ["torch.optim.SGD has no option 'momentom'; did you mean momentum?"]),
    # wrong values
    (DATA + "trainer: {max_steps: many}", [], ["line 2: trainer.max_steps is 'many'; expected an integer"]),
    (SFT + "learning_rate: fast", [], ["line 5: model.learning_rate is 'fast'; expected a number"]),
    (SFT + "freeze: [visoin]", [],
     ["model.freeze is 'visoin'; expected one of vision, merger, llm, head; did you mean vision?"]),
    (DATA + "model: 3", [], ["line 2: model is '3'; expected LightningModule"]),
    (GOOD, ["--seed_everything", "abc"], ["--seed_everything is 'abc'; expected true or false or an int"]),
    (GOOD, ["--trainer.precision", "bf17"], ["--trainer.precision is 'bf17'; expected one of transf"]),
])  # fmt: skip
def test_one_line_that_says_what_is_wrong_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    text: str | None, options: list[str], parts: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("my.yaml").write_text(f"{text}\n")
        options = ["--config", "my.yaml", *options]
    with pytest.raises(SystemExit) as caught:
        main(["fit", *options])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("futurel1: error: ")
    for part in parts:
        assert part in line
    assert "class '" not in line
    assert not Path("runs").exists()


def test_a_wording_that_is_not_known_stays_on_one_line() -> None:
    error = explain("Something else:\n  went\n    wrong", Command("fit", [], [], ""))
    assert isinstance(error, CommandLineError)
    assert str(error) == "Something else: went wrong; `futurel1 fit --help` explains all options"
