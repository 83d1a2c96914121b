"""Which weights a run folder, a checkpoint or a name means."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from futurel1.errors import CheckpointError, ConfigError, MissingFileError
from futurel1.runs import (
    Start,
    find_start,
    load_reasoner,
    newest_checkpoint,
    own_gpu,
    start_checkpoint,
    start_of,
    usable_device,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with three checkpoints; that of the most steps is neither the newest file nor the last name."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for age, name, step in ((20, "last.ckpt", 6), (40, "step=8.ckpt", 8), (10, "step=4.ckpt", 4)):
        torch.save({"state_dict": {}, "global_step": step}, folder / name)
        os.utime(folder / name, (time.time() - age, time.time() - age))
    return tmp_path / "run"


def test_the_checkpoint_of_the_most_steps_counts(run: Path, tmp_path: Path) -> None:
    assert newest_checkpoint(run).name == "step=8.ckpt"
    torch.save({"global_step": 8}, run / "checkpoints" / "last-v1.ckpt")  # as far, and written later
    assert newest_checkpoint(run).name == "last-v1.ckpt"
    torch.save({"global_step": 9}, run / "hpc_ckpt_1.ckpt")  # Lightning's, before SLURM requeues the job
    assert newest_checkpoint(run).name == "hpc_ckpt_1.ckpt"
    sharded = run / "checkpoints" / "sharded.ckpt"
    sharded.mkdir()
    torch.save({"global_step": 10}, sharded / "meta.pt")
    assert newest_checkpoint(run).name == "hpc_ckpt_1.ckpt"  # killed before its metadata was written
    (sharded / ".metadata").touch()
    assert newest_checkpoint(run).name == "sharded.ckpt"
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    with pytest.raises(MissingFileError, match="before its first checkpoint"):
        newest_checkpoint(tmp_path / "other")


def test_a_damaged_checkpoint_gives_way_to_an_older_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"state_dict": {}, "global_step": 4}, folder / "step=4.ckpt")
    whole = (folder / "step=4.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    os.utime(folder / "step=4.ckpt", (1, 1))
    (folder / "sharded.ckpt").mkdir()  # killed before its metadata was written
    assert newest_checkpoint(tmp_path / "run").name == "step=4.ckpt"
    assert "last.ckpt is damaged" in caplog.text
    (folder / "step=4.ckpt").unlink()
    with pytest.raises(CheckpointError, match="all checkpoints"):
        newest_checkpoint(tmp_path / "run")


def test_a_run_means_its_export_or_else_its_newest_checkpoint(run: Path) -> None:
    assert start_checkpoint(str(run)) == run / "checkpoints" / "step=8.ckpt"
    assert find_start("base", str(run)).folder == "base"
    export = load_reasoner("tiny@random", device="cpu").save_pretrained(run / "huggingface")
    assert start_checkpoint(str(run)) is None
    assert find_start("base", str(run)) == Start(str(export))
    aside = export.rename(run / ".huggingface.machine-4242-0123abcd.aside")  # killed between two renames
    assert start_checkpoint(str(run)) is None
    assert find_start("base", str(run)) == Start(str(aside))


def test_a_part_of_an_export_gives_way_to_a_checkpoint(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = load_reasoner("tiny@random", device="cpu").save_pretrained(tmp_path / "whole")
    checkpoint = run / "checkpoints" / "step=8.ckpt"

    def cut(name: str) -> None:
        data = (run / "huggingface" / name).read_bytes()
        (run / "huggingface" / name).write_bytes(data[: len(data) // 2])

    for damage in (
        lambda: cut("model.safetensors"),
        lambda: cut("config.json"),
        lambda: (run / "huggingface" / "model.safetensors").unlink(),
        lambda: [(run / "huggingface" / name).unlink() for name in ("README.md", "tokenizer_config.json")],
    ):
        caplog.clear()
        shutil.rmtree(run / "huggingface", ignore_errors=True)
        shutil.copytree(whole, run / "huggingface")
        assert start_checkpoint(str(run)) is None
        damage()
        assert start_checkpoint(str(run)) == checkpoint
        assert "huggingface is not whole" in caplog.text
        assert find_start("base", str(run)) == Start("base", checkpoint, ({},))
    shutil.rmtree(run / "checkpoints")
    assert start_checkpoint(str(run)) is None  # whoever loads it names the damaged file


def save(file: Path, step: int, **hparams: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {}, "global_step": step, "hyper_parameters": hparams}, file)
    return file


def test_what_a_checkpoint_started_from_is_followed(tmp_path: Path) -> None:
    sft = {"backbone": "tiny@random", "projection_head": "lvr", "max_latent_tokens": 3, "lora_alpha": 8}
    save(tmp_path / "sft" / "checkpoints" / "last.ckpt", 3, init_from=None, **sft)
    rl = save(tmp_path / "rl.ckpt", 5, backbone="tiny", init_from=str(tmp_path / "sft"), projection_head=None)
    start = find_start("other", str(rl))
    assert (start.folder, start.checkpoint, len(start.lineage)) == ("tiny@random", rl, 2)
    assert [start.last(name) for name in ("projection_head", "lora_alpha", "freeze")] == ["lvr", 8, None]
    assert start_of(rl, "given", replaced=True) == Start("given", rl, start.lineage[1:])
    export = load_reasoner("tiny@random", device="cpu").save_pretrained(tmp_path / "sft" / "huggingface")
    assert find_start("other", str(rl)) == Start(str(export), rl, start.lineage[1:])


def test_checkpoints_that_start_from_each_other_are_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.ckpt", tmp_path / "two.ckpt"
    save(one, 1, init_from=str(two))
    save(two, 1, init_from=str(one))
    with pytest.raises(CheckpointError, match="does not say what its run started from"):
        find_start("base", str(one))
    unknown = save(tmp_path / "unknown.ckpt", 1, backbone="")  # a model that Python code had loaded
    with pytest.raises(CheckpointError, match="futurel1 export --backbone"):
        start_of(unknown, "")


def test_a_link_counts_as_what_it_names(run: Path) -> None:
    folder = run / "checkpoints"
    (folder / "last.ckpt").unlink()
    (folder / "last.ckpt").symlink_to("step=8.ckpt")
    assert newest_checkpoint(run).name == "step=8.ckpt"
    (folder / "step=8.ckpt").unlink()  # killed before the link was made anew
    assert newest_checkpoint(run).name == "step=4.ckpt"
    (folder / "step=4.ckpt").rename(run / "elsewhere.ckpt")
    with pytest.raises(MissingFileError, match="before its first checkpoint"):
        newest_checkpoint(run)
    (folder / "last.ckpt").unlink()
    (folder / "last.ckpt").symlink_to(run / "elsewhere.ckpt")
    assert newest_checkpoint(run).name == "last.ckpt"


def test_a_name_means_itself() -> None:
    assert start_checkpoint(None) is None
    assert find_start("base", None) == Start("base")
    assert find_start("base", "organisation/model") == Start("organisation/model")


def test_the_shipped_models_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny@random" / "huggingface").mkdir(parents=True)  # no folder takes their names
    reasoner = load_reasoner("tiny@random", dtype="float16", device="cpu")
    weight = reasoner.backbone.lm_head.weight
    assert (weight.dtype, weight.device.type, reasoner.training) == (torch.float16, "cpu", False)
    assert load_reasoner("tiny@random", device="cpu").backbone.lm_head.weight.dtype == torch.float32


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype is auto or one of float32"):
        load_reasoner("tiny@random", dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(MissingFileError, match="nowhere"):
        load_reasoner(str(tmp_path / "nowhere"))
    load_reasoner("tiny@random", device="cpu").save_pretrained(tmp_path / "bare")
    for file in (tmp_path / "bare").glob("*token*"):
        file.unlink()
    with pytest.raises(ConfigError, match="has no tokenizer"):
        load_reasoner(str(tmp_path / "bare"), device="cpu")


def test_devices_are_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable_device("auto") == usable_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="no usable GPU"):
        usable_device("cuda")
    with pytest.raises(ConfigError, match="--device tpu-x"):
        usable_device("tpu-x")


def test_processes_of_a_launcher_get_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert [own_gpu(rank) for rank in (0, 5)] == ["cuda:0", "cuda:5"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # srun --gpus-per-task=1 shows each task its own
    assert own_gpu(5) == "cuda:0"
