"""`--overwrite`: which folders may be replaced, and what becomes of them."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from futurel1.cli.replaced_run import Replaced
from futurel1.errors import ConfigError
from leaving import leave_half

SAVED = {"runs_dir": "runs", "run_dir": None, "model": {}, "trainer": {}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "base"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_text("weights")
    (folder / "config.yaml").write_text(yaml.safe_dump(SAVED))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def test_a_run_waits_aside_and_comes_back_or_goes(run: Path) -> None:
    before = names(run)
    replaced = Replaced.set_aside(run, Namespace())
    assert not run.exists()
    replaced.restore()
    assert names(run) == before
    Replaced.set_aside(run, Namespace()).remove()
    assert list(run.parent.iterdir()) == []


def break_config(run: Path) -> None:
    (run / "config.yaml").write_text("some: project\n")


def lose_config(run: Path) -> None:
    (run / "config.yaml").unlink()


def hold_others(run: Path) -> None:
    (run / "other").mkdir()
    (run / "other" / "config.yaml").write_text("")


def link(run: Path) -> None:
    run.rename(run.parent / "elsewhere")
    run.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_config, "no config.yaml of a run"),
        (lose_config, "no config.yaml of a run"),
        (hold_others, "holds other run folders"),
        (link, "a link or a file"),
    ],
)
def test_only_a_run_folder_is_replaced(run: Path, change: Callable[[Path], None], message: str) -> None:
    change(run)
    before = names(run.parent)
    with pytest.raises(ConfigError, match=message):
        Replaced.set_aside(run, Namespace())
    assert names(run.parent) == before


def test_a_run_that_was_killed_before_its_first_step_is_replaced(run: Path) -> None:
    for path in (run / "checkpoints" / "last.ckpt", run / "config.yaml"):
        path.unlink()
    (run / "metrics.csv").write_text("step,val/accuracy\n0,0.1\n")
    (run / "job.json").write_text("{}")
    (run / "rollouts.jsonl").write_text("{}\n")
    leave_half(run / "config.yaml")
    Replaced.set_aside(run, Namespace()).restore()
    (run / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"no config.yaml of a run"):
        Replaced.set_aside(run, Namespace())


@pytest.mark.parametrize("name", ["base", "x" * 60])
def test_a_run_comes_back_though_the_first_that_replaced_it_was_killed(run: Path, name: str) -> None:
    run = run.rename(run.parent / name)
    (run.parent / ".base2.01234567.replaced").mkdir()
    before = names(run)
    Replaced.set_aside(run, Namespace())
    run.mkdir()
    (run / "rollouts.jsonl").write_text("{}\n")  # and then killed
    second = Replaced.set_aside(run, Namespace())
    if name == "base":
        assert names(second.aside) == before
        second.restore()
        assert names(run) == before
        assert sorted(path.name for path in run.parent.iterdir()) == [".base2.01234567.replaced", "base"]
    else:  # the name aside is cut, and may be that of another run
        assert names(second.aside) == ["rollouts.jsonl"]
        assert len(list(run.parent.iterdir())) == 3


def test_the_working_folder_is_not_replaced(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / "checkpoints")
    with pytest.raises(ConfigError, match="the working folder"):
        Replaced.set_aside(run, Namespace())
    assert (run / "config.yaml").is_file()


@pytest.mark.parametrize("relative", [False, True])
def test_what_the_new_run_reads_is_not_replaced(run: Path, relative: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    start = "base" if relative else str(run / "checkpoints" / "last.ckpt")
    model: Any = Namespace(class_path="LatentSFTModule", init_args=Namespace(freeze=["vision"], init_from=start))
    with pytest.raises(ConfigError, match=r"the new run reads model\.init_args\.init_from="):
        Replaced.set_aside(run, Namespace(run_name="base", model=model))
    assert run.is_dir()


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_folder_in_which_a_process_works_is_not_replaced(run: Path, kind: str) -> None:
    (run / ".lock").write_text("123")
    code = f"import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.{kind}(f, 2); print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="another process works in"):
        Replaced.set_aside(run, Namespace())
    holder.communicate("\n")
    with (run / ".lock").open("r+") as stream:  # the check itself leaves no lock behind
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    Replaced.set_aside(run, Namespace()).restore()
