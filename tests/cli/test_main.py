"""The overview, and errors on one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_checks import fails

from futurel1.cli import main
from futurel1.errors import MissingFileError


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "ask", "world", "curves", "curate", "--resume", "--debug"):
        assert command in text
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("futurel1 0.")


@pytest.mark.parametrize(("args", "message"), [
    (["train"], "invalid choice: 'train' (choose from"),
    ([], "required: COMMAND"),
    (["fit", "--resume"], "--resume: expected one argument"),
    (["curves"], "the following arguments are required: run"),
    (["world", "--colour", "red"], "--colour"),
])  # fmt: skip
def test_a_command_line_that_cannot_be_read(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_debug_shows_the_exception(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such folder"):
        main(["curves", str(tmp_path / "nowhere"), "--debug"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_record_ends_in_one_line_without_traceback(
    settings: list[str], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], num_workers: int
) -> None:
    bad = world / f"bad{num_workers}.jsonl"
    record = json.loads((world / "train.jsonl").read_text().splitlines()[0])
    bad.write_text(json.dumps({**record, "reasoning_image": [9]}) + "\n")
    error = fails(
        capsys, "fit", *settings, "--data.init_args.train", str(bad), f"--data.init_args.num_workers={num_workers}"
    )
    assert bad.name in error
    assert "9" in error
    assert "reasoning_image" in error


@pytest.mark.parametrize("option", ["--data.init_args.val_fraction=2", "--model.init_args.feedback_share=2"])
def test_what_a_constructor_refuses_is_one_line_and_leaves_no_folder(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    error = fails(capsys, "fit", *settings, option)
    assert option.split(".")[-1].split("=")[0] in error
    assert not list((tmp_path / "runs").iterdir())


def test_help_names_what_the_parser_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    assert "--resume RUN" in text
    assert "--debug" in text
    assert "Example: futurel1 fit --config configs/tiny/sft.yaml" in " ".join(text.split())
    assert "--optimizer" not in text  # modules make their own


def test_missing_checkpoint_and_data_are_named(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "no/such/model" in fails(capsys, "fit", *settings, "--model.init_args.backbone", "no/such/model")
    assert "nowhere.jsonl" in fails(capsys, "fit", *settings, "--data.init_args.train", "nowhere.jsonl")


def test_the_overview_imports_nothing_heavy() -> None:
    code = """
import sys
from futurel1.cli import main
try:
    main(["--help"])
finally:
    print(sorted({"torch", "transformers", "lightning", "jsonargparse", "rich"} & set(sys.modules)))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "[]"
