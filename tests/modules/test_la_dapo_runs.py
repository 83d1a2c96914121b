"""LA-DAPO from the command line: killed runs, evaluation, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_checks import fails, metrics
from safetensors.torch import load_file

from futurel1.cli import main
from processes import Command


@pytest.fixture
def settings(rl_world: Path, opening: str, tmp_path: Path) -> list[str]:
    """A configuration for runs of a few seconds, and where they go."""
    reward = {"rewards": {"toy": "toy_rewards:rare", "format": {"class_path": "futurel1.rewards.FormatReward"}},
              "weights": {"toy": 1.0, "format": 0.1}}  # fmt: skip
    config: dict[str, Any] = {
        "seed_everything": 0,
        "model": {
            "class_path": "LADAPOModule",
            "init_args": {
                "backbone": opening, "reward": {"class_path": "futurel1.rewards.CompositeReward", "init_args": reward},
                "rollout": {
                    "num_rollouts": 4, "batch_size": 4, "generation_batch_size": 4, "filter_key": "toy",
                    "filter_low": 0.05,
                },
                "sampling": {"max_new_tokens": 6, "span_budget": "loose", "span_latents": 2},
                "learning_rate": 1e-3,
            },
        },
        "data": {
            "class_path": "RolloutPromptDataModule",
            "init_args": {
                "train": str(rl_world / "rl.jsonl"), "val": str(rl_world / "test.jsonl"), "num_workers": 0,
                "system_prompt": str(rl_world / "prompt.txt"), "batch_size": 4,
            },
        },
        "trainer": {
            "accelerator": "cpu", "max_steps": 2, "max_epochs": -1, "log_every_n_steps": 1,
            "gradient_clip_val": 1.0, "limit_val_batches": 0, "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }  # fmt: skip
    file = tmp_path / "quick.yaml"
    file.write_text(yaml.safe_dump(config))
    return ["--config", str(file), "--runs_dir", str(tmp_path / "runs")]


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize(("options", "every"), [
    (["--trainer.accumulate_grad_batches", "2"], 6),
    (["--model.init_args.rollout.num_minibatches=2", "--model.init_args.rollout.num_epochs=2",
      "--model.init_args.sampling.seed=1", "--model.init_args.lora_rank=2", "--model.init_args.lora_dropout=0.1"], 6),
], ids=["leftovers", "inside-a-rollout-batch"])  # fmt: skip
def test_a_killed_run_resumes_to_the_very_same_weights(
    settings: list[str], tmp_path: Path, options: list[str], every: int
) -> None:
    file = tmp_path / "checkpoints.yaml"
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": every, "save_last": True}}
    trainer = {"max_steps": 10, "callbacks": [checkpoint, {"class_path": "HuggingFaceExport"}]}
    file.write_text(yaml.safe_dump({"trainer": trainer}))
    options = ["fit", *settings, "--config", str(file), *options, "--model.init_args.log_samples_every", "1"]
    main([*options, "--run_name", "whole"])
    runs = tmp_path / "runs"
    killed = Command([*options, "--run_name", "killed"], tmp_path / "killed.log", [Path(__file__).parent])
    table = runs / "killed" / "metrics.csv"
    # Killed one step or more after a checkpoint, with rows of the log that are computed once more.
    killed.kill_when(lambda: table.is_file() and len(metrics(table.parent, "train/loss")) >= 8)
    assert not (runs / "killed" / "huggingface").exists()
    state = torch.load(runs / "killed" / "checkpoints" / "last.ckpt", weights_only=True)
    held = state["RolloutPromptDataModule"]["experience"]["collector"]
    assert held["leftovers"]
    assert held["current"]
    assert not [name for name in state["state_dict"] if not name.startswith("reasoner.")]
    main(["fit", "--resume", str(runs / "killed")])
    for name in ("model.safetensors", "projection_head.safetensors"):
        one, two = (load_file(runs / run / "huggingface" / name) for run in ("whole", "killed"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    columns = ("epoch", "step", "rollout/response_length", "reward/toy", "prompts/sampled", "train/ratio", "train/loss")
    assert metrics(runs / "killed", *columns) == metrics(runs / "whole", *columns)
    assert len(metrics(runs / "whole", *columns)) == 10
    whole_lines, lines = ((runs / run / "rollouts.jsonl").read_bytes() for run in ("whole", "killed"))
    assert lines == whole_lines


def test_validate_test_and_predict(
    settings: list[str], rl_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", *settings, "--trainer.callbacks+=HuggingFaceExport", "--run_name", "first"])
    runs = tmp_path / "runs"
    # a run's configuration, without its training records
    start = ["--model.init_args.init_from", str(runs / "first"), "--data.init_args.train", "null"]
    start += ["--trainer.limit_val_batches", "1.0"]
    main(["validate", *settings, *start, "--run_name", "validated"])
    columns = ("toy", "format", "reward", "response_length", "spans")
    ((*validated,),) = metrics(runs / "validated", *(f"val/{name}" for name in columns))
    main(["test", *settings, *start, "--run_name", "tested"])
    assert metrics(runs / "tested", *(f"test/{name}" for name in columns)) == [validated]
    toy, form, reward = (float(value) for value in validated[:3])
    assert reward == pytest.approx(toy + 0.1 * form)
    capsys.readouterr()
    error = fails(capsys, "predict", *settings, *start, "--run_name", "predicted")
    assert "use LatentPredictor, with model.init_args.init_from" in error


def test_errors_are_one_line(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    down = tmp_path / "down.yaml"
    reward = {"init_args": {"rewards": {"toy": "toy_rewards:down"}, "weights": {"toy": 1.0}}}
    down.write_text(yaml.safe_dump({"model": {"init_args": {"reward": reward}}}))
    assert "16 of 16 rollouts have no reward" in fails(capsys, "fit", *settings, "--config", str(down))
    error = fails(capsys, "fit", *settings, "--model.init_args.rollout.filter_key", "accuracy")
    assert "filter_key='accuracy' is no reward part; there are total, format, toy" in error


@pytest.mark.parametrize(("key", "value", "home"), [
    ("clip_low", 0.1, "objective.clip_low"), ("rollout_batch_size", 4, "rollout.batch_size"),
    ("temperature", 1.0, "sampling.temperature"),
])  # fmt: skip
def test_a_flat_key_is_refused_with_the_name_of_the_nested_one(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: float, home: str
) -> None:
    file = tmp_path / "flat.yaml"
    file.write_text(yaml.safe_dump({"model": {"init_args": {key: value}}}))
    for given in (["--config", str(file)], [f"--model.init_args.{key}={value}"], [f"--model.{key}", str(value)]):
        error = fails(capsys, "fit", *settings, *given)
        assert f"no setting {key!r}; it is {home!r} now" in error
    assert not (tmp_path / "runs").exists()


def test_a_run_resumed_with_other_rollout_settings_stops_with_one_line(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "checkpoints.yaml"
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 3}}
    file.write_text(yaml.safe_dump({"trainer": {"max_steps": 3, "callbacks": [checkpoint]}}))
    main(
        ["fit", *settings, "--config", str(file), "--model.init_args.rollout.num_minibatches=2", "--run_name", "first"]
    )
    again = ["--resume", str(tmp_path / "runs" / "first"), "--trainer.max_steps", "6"]
    assert "Resume with the same rollout.batch_size" in fails(
        capsys, "fit", *again, "--trainer.accumulate_grad_batches=2"
    )
    main(["fit", *again, "--trainer.accumulate_grad_batches=1"])
    assert len(metrics(tmp_path / "runs" / "first", "train/loss")) == 6
