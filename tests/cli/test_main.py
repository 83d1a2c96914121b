"""The overview, and errors on one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_checks import fails

from futurel1.cli import main
from futurel1.cli.errors import CommandLineError
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
    (["fti"], "there is no command 'fti'; did you mean fit? known: fit, validate, test, predict, ask, "),
    ([], "which command? fit, validate, test, predict, ask, "),
    (["fit", "--resume"], "--resume: expected one argument"),
    (["fit", "--resume", "--debug"], "--resume: expected one argument"),
    (["curves"], "futurel1 curves needs run, such as: futurel1 curves runs/sft"),
    (["world", "--colour", "red"], "--colour: futurel1 world has no option 'colour'"),
    (["world", "--tran", "3"], "--tran: futurel1 world has no option 'tran'; did you mean train?"),
    (["world", "--trai", "3"], "did you mean train?"),  # no abbreviations
    (["ask", "a.mp4", "Q", "--sampling.max_token", "2"], "did you mean sampling.max_new_tokens?"),
    (["ask", "a.mp4", "Q", "more"], "'more' belongs to no option of futurel1 ask"),
    (["ask", "a.mp4"], "futurel1 ask needs question, such as: futurel1 ask clip.mp4"),
    (["ask", "a.mp4", "Q", "--branches", "few"], "--branches is 'few'; expected an integer"),
    (["ask", "a.mp4", "Q", "--dtype", "float3"], "--dtype is 'float3'; expected one of auto, float32, bfloat16"),
    (["world", "--kinds", "zone"], "--kinds is 'zone'; expected a list, such as [a, b] or null"),
    (["world", "--kinds", "[zon]"], "expected one of zone, event, pair, gate; did you mean zone?"),
    (["world", "--train"], "--train needs a value"),
    (["world", "--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
])  # fmt: skip
def test_a_command_line_that_cannot_be_read(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "--debug" in args:
        with pytest.raises(CommandLineError, match=message):
            main(args)
        return
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("futurel1: error: ")
    assert message in line


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
from futurel1.cli.errors import CommandLineError
try:
    main(["--help"])
finally:
    print(sorted({"torch", "transformers", "lightning", "jsonargparse", "rich"} & set(sys.modules)))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "[]"
