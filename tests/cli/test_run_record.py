"""What a run writes about itself; a resume that changes settings, and one that is refused."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_checks import fails, metrics

from futurel1.cli import main
from futurel1.cli.replaced_run import FolderAsItWas
from futurel1.cli.run_record import changed_settings


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def run(settings: list[str], tmp_path: Path) -> Path:
    """A run of three steps with a checkpoint of each, inside of its first epoch of six."""
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1, "save_last": True}}
    file = tmp_path / "checkpoint.yaml"
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": [checkpoint], "max_steps": 3}}))
    main(["fit", *settings, "--config", str(file), "--run_name", "first"])
    return tmp_path / "runs" / "first"


def saved(run: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return config


def test_settings_of_a_resume_act_and_are_recorded(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"learning_rate": 1e-5, "weight_decay": 0.5, "latent_weight": 7.0, "lr_schedule": "linear"}
    with caplog.at_level(logging.INFO, "futurel1"):
        given = [part for name, value in options.items() for part in (f"--model.init_args.{name}", str(value))]
        main(["fit", "--resume", str(run), "--trainer.max_steps", "5", *given])
    rows = metrics(run, "step", "train/lr", "train/ce", "train/latent", "train/loss")
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    # linear from 1e-5 at step 0 to 0 at step 5
    assert [float(row[1]) for row in rows[3:]] == pytest.approx([0.4e-5, 0.2e-5])
    for _, _, ce, latent, loss in rows[3:]:
        assert float(loss) == pytest.approx(float(ce) + 7.0 * float(latent), rel=1e-5)
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    decays = {group["weight_decay"] for group in state["optimizer_states"][0]["param_groups"]}
    assert decays == {0.5, 0.0}  # norms and biases are not decayed
    assert state["hyper_parameters"]["latent_weight"] == 7.0
    init_args = saved(run)["model"]["init_args"]
    assert {name: init_args[name] for name in options} == options
    (line,) = map(json.loads, (run / "resumes.jsonl").read_text().splitlines())
    assert (line["step"], line["checkpoint"]) == (3, "last.ckpt")
    assert line["changes"]["model.init_args.weight_decay"] == [0.1, 0.5]
    assert line["changes"]["trainer.max_steps"] == [3, 5]
    assert set(line["changes"]) == {"trainer.max_steps", *(f"model.init_args.{name}" for name in options)}
    assert "this resume changes model.init_args.latent_weight: 0.1 -> 7.0" in caplog.text


def test_settings_go_before_those_of_a_checkpoint(run: Path, settings: list[str], tmp_path: Path) -> None:
    checkpoint = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--trainer.limit_val_batches", "1"]
    main(["validate", *settings, *checkpoint, "--model.init_args.latent_weight", "7.0", "--run_name", "checked"])
    ((ce, latent, loss),) = metrics(tmp_path / "runs" / "checked", "val/ce", "val/latent", "val/loss")
    assert float(loss) == pytest.approx(float(ce) + 7.0 * float(latent), rel=1e-5)
    assert saved(tmp_path / "runs" / "checked")["model"]["init_args"]["latent_weight"] == 7.0


REFUSED = {
    "data": (["--data.init_args.batch_size", "3"], "are not those of the interrupted run"),
    "trained parts": (["--model.init_args.freeze", "[vision,head]"], r"freeze: .* -> \['vision', 'head'\]"),
    "weights": (["--model.init_args.projection_head", "swiglu"], "projection_head: .* -> 'swiglu'"),
    "start": (["--model.init_args.init_from", "nowhere"], "nowhere"),
    "parser": (["--model.init_args.learning_rate", "fast"], ""),
}


def test_a_resume_that_is_refused_leaves_the_folder_as_it_was(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(run)
    for name, (options, reason) in REFUSED.items():
        with pytest.raises(SystemExit) as caught:
            main(["fit", "--resume", str(run), "--trainer.max_steps", "5", *options])
        assert caught.value.code in (1, 2), name
        error = capsys.readouterr().err
        assert re.search(reason, error), (name, error)
        assert snapshot(run) == before, name
    main(["fit", "--resume", str(run), "--trainer.max_steps", "4"])
    assert [row[0] for row in metrics(run, "step", "train/loss")] == ["0", "1", "2", "3"]


def test_a_start_folder_can_have_moved(run: Path, settings: list[str], tmp_path: Path) -> None:
    main(["fit", *settings, "--model.init_args.init_from", str(run), "--run_name", "second",
          "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.init_args.every_n_train_steps=1"])  # fmt: skip
    moved = run.rename(tmp_path / "moved")
    second = tmp_path / "runs" / "second"
    main(["fit", "--resume", str(second), "--trainer.max_steps", "3", "--model.init_args.init_from", str(moved)])
    assert [row[0] for row in metrics(second, "step", "train/loss")] == ["0", "1", "2"]


def test_a_run_that_fails_before_its_first_step_leaves_no_folder(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nowhere" in fails(capsys, "fit", *settings, "--data.init_args.train", "nowhere.jsonl", "--run_name", "a")
    assert not (tmp_path / "runs" / "a").exists()
    own = tmp_path / "own"
    (own / "notes").mkdir(parents=True)
    (own / "notes" / "a.txt").write_text("kept")
    fails(capsys, "fit", *settings, "--data.init_args.train", "nowhere.jsonl", "--run_dir", str(own))
    assert snapshot(own) == {"notes/a.txt": b"kept"}


def test_changed_settings() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None, "gone": {"x": 1}}
    now = {"a": {"b": 2, "c": [1, 2]}, "d": {}, "new": 3}
    assert changed_settings(before, now) == {"a.b": (1, 2), "d": (None, {}), "new": (None, 3), "gone.x": (1, None)}


def test_a_folder_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "empty").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "b.txt").write_text("b")
    state = FolderAsItWas(folder)
    (folder / "a.txt").write_text("changed")
    (folder / "b.txt").unlink()
    (folder / "new" / "deep").mkdir(parents=True)
    (folder / "new" / "deep" / "c.txt").write_text("c")
    state.restore()
    assert snapshot(folder) == {"a.txt": b"a", "b.txt": b"b"}
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.txt", "empty"]
