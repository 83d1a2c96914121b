"""Configurations by name: listed, copied, and found by --config from any folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from futurel1.cli import main
from futurel1.data.chat_text import system_prompt_of
from futurel1.errors import ConfigError, MissingFileError
from futurel1.shipped_configs import config_file, configs, resolve_config_options, shipped_file

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_configuration_is_listed_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    listed = dict(line.split(maxsplit=1) for line in lines)
    assert list(listed) == [file.relative_to(ROOT / "configs").with_suffix("").as_posix() for file in FILES]
    assert listed["tiny/sft"] == (
        "Latent SFT of the tiny backbone on clips of the world of events and real footage: CPU, fp32, a few minutes."
    )
    assert listed["qwen3_vl_8b/sft"].startswith("Future-L1 SFT as in the paper (arXiv 2606.05769): Qwen3-VL-8B")
    # A sentence may go on in the second line of the comment, and another one may follow it.
    assert listed["tiny/pretrain"].endswith("and to answer questions about what it is shown.")
    assert all(summary.endswith(".") and ". " not in summary for summary in listed.values())


def test_one_is_printed_or_copied(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = ROOT / "configs" / "tiny" / "sft.yaml"
    main(["configs", "tiny/sft"])
    assert capsys.readouterr().out == shipped.read_text()
    main(["configs", "tiny/sft", "--out", "my.yaml"])
    assert capsys.readouterr().out == "my.yaml\n"
    assert (empty / "my.yaml").read_bytes() == shipped.read_bytes()
    main(["configs", "--name", "configs/tiny/sft.yaml", "--out", "new/folder", "--json"])
    assert json.loads(capsys.readouterr().out)["copied_to"] == "new/folder/sft.yaml"
    assert (empty / "new" / "folder" / "sft.yaml").read_bytes() == shipped.read_bytes()
    configs("tiny/grpo", out=empty)
    assert (empty / "grpo.yaml").is_file()


def test_a_copy_replaces_nothing(empty: Path) -> None:
    (empty / "my.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"my\.yaml is there already; give another name"):
        configs("tiny/sft", out="my.yaml")
    assert (empty / "my.yaml").read_text() == "mine"
    with pytest.raises(ConfigError, match="say which configuration to copy"):
        configs(out="my.yaml")


@pytest.mark.parametrize("name", ["tiny/sft", "tiny/sft.yaml", "configs/tiny/sft.yaml", "configs/tiny/sft"])
def test_a_name_is_found_from_any_folder(name: str, empty: Path) -> None:
    assert Path(config_file(name)) == ROOT / "configs" / "tiny" / "sft.yaml"


def test_a_file_goes_first(empty: Path) -> None:
    (empty / "tiny").mkdir()
    (empty / "tiny" / "sft").write_text("model:")
    assert config_file("tiny/sft") == "tiny/sft"
    assert Path(config_file("tiny/sft.yaml")) == ROOT / "configs" / "tiny" / "sft.yaml"
    (empty / "tiny" / "sft.yaml").write_text("model:")
    assert config_file("tiny/sft.yaml") == "tiny/sft.yaml"


@pytest.mark.parametrize(
    "text", ["model: LatentSFTModule", "{trainer: {max_steps: 3}}", "trainer:\n  max_steps: 3", ""]
)
def test_settings_in_the_place_of_a_file_are_left_alone(text: str) -> None:
    assert config_file(text) == text


def test_every_config_option_is_resolved() -> None:
    sft, grpo = (str(ROOT / "configs" / "tiny" / f"{name}.yaml") for name in ("sft", "grpo"))
    given = [
        "fit",
        "--config",
        "tiny/sft",
        "--config=tiny/grpo",
        "-c",
        "tiny/sft",
        "--run_name",
        "tiny/sft",
        "--config",
    ]
    resolved = ["fit", "--config", sft, f"--config={grpo}", "-c", sft, "--run_name", "tiny/sft", "--config"]
    assert resolve_config_options(given) == resolved


@pytest.mark.parametrize(("name", "near"), [
    ("sft", "tiny/sft"), ("tiny/stf", "tiny/sft"), ("tiny/la-dapo.yaml", "tiny/la_dapo"), ("tiny", "tiny/sft"),
    ("qwen3_8b/sft", "qwen3_vl_8b/sft"), ("TINY/SFT", "tiny/sft"),
])  # fmt: skip
def test_an_unknown_name_is_answered_with_similar_ones(name: str, near: str, empty: Path) -> None:
    with pytest.raises(MissingFileError) as caught:
        config_file(name)
    meant = str(caught.value).partition("did you mean ")[2].partition("?")[0].split(", ")
    assert near in meant
    assert len(meant) <= 4


def test_a_name_like_none_is_told_where_they_are_listed(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["fit", "--config", "zzz/qqq.yaml"], ["configs", "zzz/qqq.yaml"]):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "zzz/qqq.yaml" in error
        assert "did you mean" not in error
        assert "`futurel1 configs` lists all" in error


@pytest.mark.parametrize("name", ["", ".", "..", "../pyproject.toml", "/etc/hosts", "configs", "configs/../README.md"])
def test_nothing_outside_of_the_folder_is_shipped(name: str) -> None:
    assert shipped_file(name) is None


def test_files_that_configurations_name_are_found_from_any_folder(empty: Path) -> None:
    shipped = (ROOT / "configs" / "tiny" / "brief.txt").read_text()
    assert system_prompt_of("configs/tiny/brief.txt", None) == shipped
    (empty / "configs" / "tiny").mkdir(parents=True)
    (empty / "configs" / "tiny" / "brief.txt").write_text("Mine.")
    assert system_prompt_of("configs/tiny/brief.txt", None) == "Mine."
    with pytest.raises(MissingFileError, match=r"no system prompt file configs/tiny/other\.txt"):
        system_prompt_of("configs/tiny/other.txt", None)
