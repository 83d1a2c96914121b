"""Run folders: new ones, and those that are resumed."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_checks import fails, metrics, python
from jsonargparse import Namespace

from futurel1.cli import main
from futurel1.cli.run_folder import RUN_VARIABLE, RunFolder, choose_run_folder, resume_arguments, unique_run_dir
from futurel1.errors import ConfigError, MissingFileError
from futurel1.launch import Launch

JOB = Launch(job="77")
RESTARTED = Launch(job="77", restarts=1)


def test_run_folders_are_unique(tmp_path: Path) -> None:
    assert [unique_run_dir(tmp_path / "runs", "a").name for _ in range(3)] == ["a", "a-1", "a-2"]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a configuration as it is parsed, with other options."""
    monkeypatch.setenv(RUN_VARIABLE, "{}")  # restored at the end

    def make(**changed: Any) -> Namespace:
        trainer = Namespace(fast_dev_run=False, num_nodes=1)
        names = {"runs_dir": str(tmp_path / "runs"), "run_name": None, "run_dir": None, "ckpt_path": None}
        plain = {"config": ["configs/quick.yaml"], **names, "overwrite": False, "trainer": trainer}
        return Namespace({**plain, **changed})

    return make


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def test_a_taken_name_is_refused_with_the_ways_on(given: Any, tmp_path: Path) -> None:
    first = choose_run_folder(given(run_name="base"), "fit", Launch())
    assert (first.path, first.created) == (tmp_path / "runs" / "base", True)
    with pytest.raises(
        ConfigError, match=r"runs/base exists; replace it with --overwrite, or choose another --run_name"
    ):
        choose_run_folder(given(run_name="base"), "fit", Launch())
    write(first.path, "config.yaml")
    with pytest.raises(
        ConfigError, match=r"continue it with futurel1 fit --resume .*/base, replace it with --overwrite"
    ):
        choose_run_folder(given(run_name="base"), "fit", Launch())
    with pytest.raises(ConfigError, match=r"exists; replace it"):  # a test is not resumed
        choose_run_folder(given(run_name="base"), "test", Launch())
    names = {choose_run_folder(given(), "fit", Launch()).path.name for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("quick-2") for name in names)


@pytest.mark.parametrize(
    ("command", "holds", "allowed"),
    [
        ("fit", [], True),
        ("fit", ["stage.json"], True),
        ("fit", ["config.yaml", "metrics.csv"], True),  # killed before its first checkpoint
        ("fit", ["checkpoints/last.ckpt"], False),
        ("fit", ["hpc_ckpt_1.ckpt"], False),
        ("fit", ["huggingface/config.json"], False),
        ("predict", ["predictions.jsonl"], True),  # goes on
        ("predict", ["checkpoints/last.ckpt"], False),
        ("test", ["samples.jsonl"], True),
        ("test", ["predictions.jsonl"], False),
        ("validate", ["checkpoints/last.ckpt"], False),
    ],
)
def test_run_dir_takes_a_folder_unless_it_holds_results_of_others(
    given: Any, tmp_path: Path, command: str, holds: list[str], allowed: bool
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder, *holds)
    if allowed:
        chosen = choose_run_folder(given(run_dir=str(folder)), command, Launch())
        assert (chosen.path, chosen.created) == (folder, False)
        chosen.close()
        assert folder.is_dir()
    else:
        with pytest.raises(ConfigError, match=r"--run_dir .*mine: .*mine exists"):
            choose_run_folder(given(run_dir=str(folder)), command, Launch())
    resumed = choose_run_folder(given(run_dir=str(folder)), command, Launch(), resumed=True)
    assert resumed.path == folder
    from_checkpoint = given(run_dir=str(folder), ckpt_path=f"{folder}/checkpoints/last.ckpt")
    assert choose_run_folder(from_checkpoint, command, Launch()).path == folder
    with pytest.raises(ConfigError, match="--overwrite would remove"):
        choose_run_folder(given(run_dir=str(folder), overwrite=True), command, Launch(), resumed=True)


def test_a_folder_goes_only_if_nothing_began_and_nothing_is_kept(tmp_path: Path) -> None:
    def closed(*names: str, begun: bool = False, created: bool = True) -> bool:
        folder = RunFolder(tmp_path / "run", created=created)
        folder.path.mkdir(exist_ok=True)
        write(folder.path, *names)
        if begun:
            folder.begin()
        folder.close()
        return not (tmp_path / "run").exists()

    started = [
        "config.yaml",
        "job.json",
        "metrics.csv",
        "events.out.tfevents.1.a",
        "skipped.jsonl",
        ".lock",
        "run.lock",
    ]
    assert closed()
    assert closed(*started, "lightning_logs/version_0/hparams.yaml")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "predictions.jsonl").touch()  # no line yet
    assert closed(*started)
    assert not closed(begun=True)
    assert not closed(created=False)
    for kept in ("checkpoints/last.ckpt", "huggingface/config.json", "predictions.jsonl", "samples.jsonl", "own.txt"):
        assert not closed(*started, kept), kept
        (tmp_path / "run" / kept).unlink()
    assert closed(*started)


def test_what_is_replaced_comes_back_unless_the_new_run_begins(given: Any, tmp_path: Path) -> None:
    base = tmp_path / "runs" / "base"
    write(base, "checkpoints/last.ckpt", "metrics.csv")
    (base / "config.yaml").write_text(yaml.safe_dump(dict.fromkeys(("runs_dir", "run_dir", "model", "trainer"))))
    before = snapshot(base)
    failing = choose_run_folder(given(run_name="base", overwrite=True), "fit", Launch())
    write(failing.path, "config.yaml", "skipped.jsonl")
    failing.close()
    assert snapshot(base) == before
    working = choose_run_folder(given(run_dir=str(base), overwrite=True), "fit", Launch())
    write(working.path, "config.yaml")
    working.begin()
    working.close()
    assert list(snapshot(base)) == ["config.yaml"]
    assert list((tmp_path / "runs").iterdir()) == [base]


def test_processes_of_a_launch_take_one_folder(given: Any, tmp_path: Path) -> None:
    launches = [Launch("srun", rank=n, local_rank=n, world_size=3, id="srun-7-0") for n in range(3)]

    def choose(launch: Launch) -> Any:
        try:
            return choose_run_folder(given(run_name="base"), "fit", launch)
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        chosen = list(pool.map(choose, launches))
        assert [folder.path for folder in chosen] == [tmp_path / "runs" / "base"] * 3
        assert [folder.created for folder in chosen] == [True, False, False]
        errors = set(pool.map(choose, launches))
    assert len(errors) == 1
    assert "--run_name base" in errors.pop()
    with pytest.raises(ConfigError, match=r"no name in common .* give --run_dir"):
        choose_run_folder(given(), "fit", Launch("mpi", rank=1, local_rank=1, world_size=2))
    other = choose_run_folder(given(run_dir=str(tmp_path / "x")), "fit", Launch("mpi", rank=1, world_size=2))
    assert not other.path.exists()  # the first process makes it


def test_a_folder_that_cannot_be_made_is_one_line(given: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for changed in ({}, {"run_name": "a"}, {"run_dir": f"{tmp_path}/file/a"}):
        with pytest.raises(ConfigError, match=r"the run folder cannot be made: .*; choose another --runs_dir"):
            choose_run_folder(given(runs_dir=f"{tmp_path}/file", **changed), "fit", Launch())


def test_nodes_started_by_hand_need_run_dir(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_RANK", "1")
    with pytest.raises(ConfigError, match="give --run_dir"):
        choose_run_folder(given(trainer=Namespace(fast_dev_run=False, num_nodes=2)), "fit", Launch.detect())


def test_only_children_of_a_process_inherit_its_choice(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Launch("environment", rank=1, local_rank=1, world_size=2)
    told = {"process": os.getppid(), "folder": "runs/parent", "checkpoint": "runs/parent/checkpoints/last.ckpt"}
    monkeypatch.setenv(RUN_VARIABLE, json.dumps(told))
    chosen = choose_run_folder(given(), "fit", child)
    assert (chosen.path, chosen.checkpoint) == (Path("runs/parent"), Path("runs/parent/checkpoints/last.ckpt"))
    monkeypatch.setenv(RUN_VARIABLE, json.dumps({**told, "process": os.getpid()}))  # of an earlier run
    assert choose_run_folder(given(run_dir=str(tmp_path / "own")), "fit", child).path == tmp_path / "own"


def test_a_requeued_job_finds_its_run(given: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = choose_run_folder(given(run_name="x"), "fit", JOB)
    write(first.path, "config.yaml")
    for other in (JOB, Launch(job="78", restarts=1), Launch()):
        with pytest.raises(ConfigError, match="exists"):
            choose_run_folder(given(run_name="x"), "fit", other)
    with pytest.raises(ConfigError, match="exists"):  # the job's script runs a test of that name too
        choose_run_folder(given(run_name="x"), "test", RESTARTED)
    again = choose_run_folder(given(run_name="x"), "fit", RESTARTED)
    assert (again.path, again.created, again.checkpoint) == (first.path, False, None)
    assert f"SLURM has restarted job 77: going on with {first.path}\n" in capsys.readouterr().out
    (first.path / "checkpoints").mkdir()
    torch.save({"global_step": 3}, first.path / "checkpoints" / "last.ckpt")
    again = choose_run_folder(given(run_name="x"), "fit", RESTARTED)
    assert again.checkpoint == first.path / "checkpoints" / "last.ckpt"
    assert f"going on with {first.path} from last.ckpt" in capsys.readouterr().out
    assert choose_run_folder(given(run_name="x", overwrite=True), "fit", RESTARTED).checkpoint == again.checkpoint
    # with --run_dir, and by what Lightning saves when SLURM announces the end of a job
    (first.path / "hpc_ckpt_1.ckpt").write_bytes((first.path / "checkpoints" / "last.ckpt").read_bytes())
    assert choose_run_folder(given(run_dir=str(first.path)), "fit", JOB).checkpoint is not None
    # of predictions, the writer finds what is done
    made = choose_run_folder(given(run_name="answers"), "predict", JOB)
    assert choose_run_folder(given(run_name="answers"), "predict", RESTARTED).path == made.path


def test_a_requeued_job_finds_a_run_without_a_name(given: Any) -> None:
    made = [choose_run_folder(given(), "fit", Launch(job="77", step=step)).path for step in ("0", "1")]
    again = [choose_run_folder(given(), "fit", Launch(job="77", step=step, restarts=1)).path for step in ("0", "1")]
    assert again == made
    assert choose_run_folder(given(config=["other.yaml"]), "fit", RESTARTED).path not in made
    for _ in range(2):
        choose_run_folder(given(), "fit", JOB)
    with pytest.raises(ConfigError, match="give each of its runs a --run_name"):
        choose_run_folder(given(), "fit", RESTARTED)


def test_resume_arguments(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(MissingFileError, match=r"no config\.yaml"):
        resume_arguments("fit", [], str(run))
    (run / "config.yaml").write_text("{}")
    with pytest.raises(MissingFileError, match="before its first checkpoint"):
        resume_arguments("fit", [], str(run))
    torch.save({"global_step": 1}, run / "checkpoints" / "last.ckpt")
    expected = ["--config", f"{run}/config.yaml", "--trainer.max_steps", "9", "--run_dir", str(run),
                "--ckpt_path", f"{run}/checkpoints/last.ckpt"]  # fmt: skip
    assert resume_arguments("fit", ["--trainer.max_steps", "9"], str(run)) == expected
    assert resume_arguments("predict", [], str(run)) == ["--config", f"{run}/config.yaml", "--run_dir", str(run)]
    for command in ("validate", "test"):
        with pytest.raises(ConfigError, match=r"init_args\.init_from"):
            resume_arguments(command, [], str(run))
    for option in ("--config", "--ckpt_path"):
        with pytest.raises(ConfigError, match="leave --config"):
            resume_arguments("fit", [option, "x"], str(run))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_saved_configuration_starts_a_run_of_its_own(settings: list[str], tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.yaml"
    callback = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1, "save_last": True}}
    checkpoint.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    runs = tmp_path / "runs"
    main(["fit", *settings, "--config", str(checkpoint), "--run_name", "first"])
    before = snapshot(runs / "first")
    assert "checkpoints/last.ckpt" in before
    main(["fit", "--config", str(runs / "first" / "config.yaml"), "--run_name", "second"])
    assert snapshot(runs / "first") == before
    assert (runs / "second" / "checkpoints" / "last.ckpt").is_file()
    # a run that was moved goes on where it is now
    (runs / "first").rename(runs / "moved")
    main(["fit", "--resume", str(runs / "moved"), "--trainer.max_steps", "3"])
    assert not (runs / "first").exists()
    assert [row[0] for row in metrics(runs / "moved", "step", "train/loss")] == ["0", "1", "2"]
    main(["fit", "--resume", str(runs / "moved"), "--trainer.max_steps", "4"])
    assert [row[0] for row in metrics(runs / "moved", "step", "train/loss")] == ["0", "1", "2", "3"]


def test_a_resume_that_fails_keeps_the_curves(
    settings: list[str], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint.yaml"
    callback = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1}}
    checkpoint.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    main(["fit", *settings, "--config", str(checkpoint), "--run_name", "first"])
    run = tmp_path / "runs" / "first"
    before = (run / "metrics.csv").read_bytes()
    fails(capsys, "fit", "--resume", str(run), "--trainer.max_steps", "4", "--data.init_args.train", "nowhere.jsonl")
    assert (run / "metrics.csv").read_bytes() == before


@pytest.mark.slow
def test_processes_of_torchrun_share_one_run_folder(settings: list[str], tmp_path: Path) -> None:
    processes = ["--standalone", "--nproc_per_node", "2", "-m", "futurel1.cli"]
    options = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.init_args.batch_size", "2"]
    python("torch.distributed.run", *processes, "fit", *settings, *options, "--run_name", "together")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["together"]
    assert len(metrics(tmp_path / "runs" / "together", "train/loss")) == 2
