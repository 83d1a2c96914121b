"""The code of the documents runs, and their commands are ones that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from futurel1.cli import main
from futurel1.cli.tools import TOOLS
from futurel1.cli.trainer import TRAINER_COMMANDS
from futurel1.models import BACKBONES
from futurel1.worlds import write_world

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    (str(document.relative_to(ROOT)), number, code)
    for document in DOCUMENTS
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL))
]


def test_readme_has_a_short_example() -> None:
    code = next(code for name, _, code in BLOCKS if name == "README.md")
    statements = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert "EventPredictor" in code
    assert len(statements) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clips that blocks ask about."""
    folder = tmp_path_factory.mktemp("blocks")
    write_world(folder / "runs" / "world", train=0, test=3, size=64, kinds=["zone"], progress=False)
    return folder


@pytest.mark.parametrize(("name", "number", "code"), BLOCKS, ids=[f"{name}-{number}" for name, number, _ in BLOCKS])
def test_python_blocks_run(
    name: str, number: int, code: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    space: dict[str, object] = {}
    known = dict(BACKBONES)
    try:
        exec(compile(code, f"{name}-{number}", "exec"), space)
    finally:  # a block may register a backbone
        BACKBONES.clear()
        BACKBONES.update(known)
    expected = re.findall(r"print\(.*\)  # (.*)", code)
    assert capsys.readouterr().out.splitlines() == expected


def command_block(document: str) -> str:
    """The first block of commands of a document that train."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    return next(block for block in blocks if "futurel1 fit" in block)


@pytest.mark.slow
def test_commands_of_reinforcement_learning_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SFT, LA-DAPO and test as they stand, only shorter."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    steps = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    few = ["--model.init_args.rollout.batch_size", "2", "--model.init_args.sampling.max_new_tokens", "8"]
    shorter = {
        "world": ["--train", "12", "--test", "4", "--rl", "4"],
        "next-sft": steps,
        "next-rl": [*steps, *few, "--model.init_args.rollout.filter_key", "none"],
        "test": ["--model.init_args.sampling.max_new_tokens", "8"],
    }
    ran = []
    for line in command_block("docs/reinforcement.md").splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "futurel1"
        main([*words[1:], *shorter.get(words[-1] if words[1] == "fit" else words[1], [])])
        ran.append(words[1])
    assert ran.count("fit") == ran.count("test") == 2
    run = tmp_path / "runs" / "next-rl"
    assert (run / "huggingface" / "model.safetensors").is_file()
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert {"val/accuracy", "reward/total", "train/log_prob_gap"} <= set(header.split(","))
    assert len(rows) >= 3


@pytest.mark.slow
def test_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command as it stands, only shorter: fewer clips and steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    block = command_block("README.md")
    shorter = {
        "world": ["--train", "12", "--test", "4", "--footage", "false"],
        "fit": ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--data.init_args.num_workers", "0"],
    }
    shorter["validate"] = shorter["test"] = shorter["predict"] = ["--data.init_args.num_workers", "0"]
    shorter["curate"] = ["--rollouts", "2", "--sampling.max_new_tokens", "8", "--prompts.num_workers", "0"]
    shorter["diagnose"] = ["--count", "3"]
    ran = []
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "futurel1"
        options = list(shorter.get(words[1], []))
        if words[1] == "fit" and "--resume" not in words:
            file = tmp_path / "short.yaml"
            train = {"data": {"init_args": {"train": "runs/world/train.jsonl"}}}
            checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1}}
            file.write_text(yaml.safe_dump({**train, "trainer": {"callbacks": [checkpoint, "HuggingFaceExport"]}}))
            options += ["--config", str(file)]
        if words[1:3] == ["fit", "--resume"]:
            options = ["--trainer.max_steps", "3"]
        if words[1:3] == ["predict", "--resume"]:
            options = []
        main([*words[1:], *options])
        ran.append(words[1])
    assert ran.count("fit") == 2
    assert {"world", "validate", "predict", "ask", "curves", "curate", "scores"} <= set(ran)
    assert (tmp_path / "runs" / "first" / "curves.png").is_file()
    assert len((tmp_path / "runs" / "answers" / "predictions.jsonl").read_text().splitlines()) == 4


def test_commands_and_files_of_the_readme_exist() -> None:
    text = DOCUMENTS[0].read_text()
    commands = re.findall(r"^futurel1 (\w+)", text, re.MULTILINE)
    assert set(commands) <= {*TRAINER_COMMANDS, *TOOLS}
    for target in re.findall(r"\]\(([\w./]+)\)", text) + re.findall(r"(configs/[\w/]+\.yaml)", text):
        assert (ROOT / target).is_file(), target
    makefile = (ROOT / "Makefile").read_text()
    for goal in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{goal}:" in makefile
