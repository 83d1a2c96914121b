"""The scripts of the page about clusters are shell scripts, and their options are ones that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from futurel1.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"
SCRIPTS = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)


def commands(script: str) -> list[list[str]]:
    """The options of each futurel1 command, with variables of the script put in."""
    variables = dict(re.findall(r'^(\w+)="(.*)"$', script, re.MULTILINE))
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name} ", f"{value} ")
        words = shlex.split(line, comments=True)
        for start in ("futurel1", "futurel1.cli"):
            if start in words:
                found.append(words[words.index(start) + 1 :])
    return found


def test_scripts_are_valid() -> None:
    assert len(SCRIPTS) >= 6
    for script in SCRIPTS:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


ALL = [words for script in SCRIPTS for words in commands(script)]


@pytest.mark.parametrize("words", ALL, ids=[f"{number}-{words[0]}" for number, words in enumerate(ALL)])
def test_options_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--print_config"])
    assert ended.value.code in (None, 0), capsys.readouterr().err
    given = {word.rpartition(".")[2] for word in words if word.startswith("--")} - {"--config"}
    printed = capsys.readouterr().out
    for name in given:
        assert f"{name.removeprefix('--')}: " in printed


def test_commands_are_all_looked_at() -> None:
    assert {words[0] for words in ALL} == {"fit", "test", "predict", "curate"}
    assert len(ALL) == sum(
        len(re.findall(r"futurel1(?:\.cli)? (?:fit|test|predict|curate) ", text)) for text in SCRIPTS
    )
