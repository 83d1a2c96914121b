"""Checkpoints of a Trainer are data: whichever way one comes in, nothing of it runs and one line says what is wrong."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from command_checks import fails
from lightning.pytorch.strategies import Strategy

from futurel1.cli import main
from futurel1.errors import CheckpointError, MissingFileError
from futurel1.modules import LatentSFTModule
from futurel1.trainer_checkpoints import check_checkpoint, read_checkpoint
from futurel1.worlds import write_world

MARK = "it-ran"


class Evil:
    """A pickle of this makes a folder when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / MARK
    assert not (tmp_path / MARK).exists()


def in_an_archive(file: Path, mark: Path) -> None:
    torch.save({"state_dict": {"weight": Evil(mark)}, "global_step": 3}, file)


def in_the_old_format(file: Path, mark: Path) -> None:
    torch.save({"state_dict": Evil(mark)}, file, _use_new_zipfile_serialization=False)


def as_a_bare_pickle(file: Path, mark: Path) -> None:
    file.write_bytes(pickle.dumps(Evil(mark)))


def by_eval(file: Path, mark: Path) -> None:
    code = f"__import__('os').mkdir('{mark}')"
    file.write_bytes(b"c__builtin__\neval\n(V" + code.encode() + b"\ntR.")


def with_a_module(file: Path, mark: Path) -> None:
    torch.save({"state_dict": {}, "model": torch.nn.Linear(2, 2)}, file)


HOSTILE: list[Callable[[Path, Path], None]] = [
    in_an_archive, in_the_old_format, as_a_bare_pickle, by_eval, with_a_module,
]  # fmt: skip


@pytest.mark.parametrize("write", HOSTILE)
def test_code_is_refused(tmp_path: Path, mark: Path, write: Callable[[Path, Path], None]) -> None:
    file = tmp_path / "evil.ckpt"
    write(file, mark)
    for read in (read_checkpoint, check_checkpoint, LatentSFTModule.load_from_checkpoint):
        with pytest.raises(CheckpointError) as caught:
            read(file)
        assert "\n" not in str(caught.value)
        told = "Unsupported operand" if write is as_a_bare_pickle else "can run code, so nothing of it was loaded"
        assert told in str(caught.value)
    assert not mark.exists()


def test_what_is_asked_for_is_named(tmp_path: Path, mark: Path) -> None:
    in_an_archive(tmp_path / "evil.ckpt", mark)
    with pytest.raises(CheckpointError, match=r"evil\.ckpt asks for posix\.mkdir, which is neither a tensor nor"):
        read_checkpoint(tmp_path / "evil.ckpt")


def cut(file: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(1000)}}, file)
    file.write_bytes(file.read_bytes()[:2000])


def empty_archive(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda file: file.touch(), "is damaged or no checkpoint of a Trainer"),
    "text": (lambda file: file.write_text("hello there"), "is damaged or no checkpoint of a Trainer"),
    "cut": (cut, "is damaged or no checkpoint of a Trainer"),
    "another archive": (empty_archive, "is damaged or no checkpoint of a Trainer"),
    "a list": (lambda file: torch.save([1], file), "holds list, no checkpoint of a Trainer"),
    "a folder": (lambda file: file.mkdir(), "is no whole checkpoint"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_one_line(tmp_path: Path, kind: str) -> None:
    make, told = DAMAGED[kind]
    make(tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError, match=told) as caught:
        read_checkpoint(tmp_path / "odd.ckpt")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"there is no checkpoint .*gone\.ckpt"):
        read_checkpoint(tmp_path / "gone.ckpt")


# ---------------------------------------------------------------------- shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A sharded checkpoint as `ModelParallelStrategy` writes it."""
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    weights: dict[str, Any] = {**model.state_dict(), "half": torch.ones(3, dtype=torch.bfloat16)}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(
            {"state_dict": weights, "optimizer_0": optimizer.state_dict()},
            checkpoint_id=tmp_path / "sharded.ckpt", no_dist=True,
        )  # fmt: skip
    torch.save({"global_step": 3, "hyper_parameters": {"betas": (0.9, 0.95)}}, tmp_path / "sharded.ckpt" / "meta.pt")
    return tmp_path / "sharded.ckpt"


def test_shards_of_our_own_are_accepted(shards: Path) -> None:
    check_checkpoint(shards)


def test_the_description_of_shards_is_read_as_data(shards: Path, mark: Path) -> None:
    """PyTorch itself reads this file without `weights_only`."""
    whole = (shards / ".metadata").read_bytes()
    (shards / ".metadata").write_bytes(pickle.dumps({"a": Evil(mark)}))
    with pytest.raises(CheckpointError, match=r"\.metadata asks for posix\.mkdir"):
        check_checkpoint(shards)
    (shards / ".metadata").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"\.metadata is damaged"):
        check_checkpoint(shards)
    (shards / ".metadata").write_bytes(b"cnumpy.testing._private.utils\nrunstring\n(Vx=1\n}tR.")
    with pytest.raises(CheckpointError, match=r"asks for numpy\.testing\._private\.utils\.runstring"):
        check_checkpoint(shards)
    (shards / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="is no whole checkpoint"):
        check_checkpoint(shards)


def test_what_stands_beside_shards_is_read_as_data(shards: Path, mark: Path) -> None:
    torch.save({"global_step": Evil(mark)}, shards / "meta.pt")
    with pytest.raises(CheckpointError, match=r"meta\.pt asks for posix\.mkdir"):
        check_checkpoint(shards)


# ---------------------------------------------------------------------- ways in


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A configuration for runs of a few seconds, and a run of it with a checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    write_world(folder / "world", train=4, test=2, size=64, progress=False)
    config: dict[str, Any] = {
        "model": {"class_path": "LatentSFTModule", "init_args": {"learning_rate": 1e-3, "warmup_ratio": 0.0}},
        "data": {
            "class_path": "VideoHintDataModule",
            "init_args": {
                "train": str(folder / "world/train.jsonl"), "val": str(folder / "world/test.jsonl"), "num_workers": 0,
            },
        },
        "trainer": {
            "accelerator": "cpu", "max_steps": 1, "limit_val_batches": 1, "enable_progress_bar": False,
            "enable_model_summary": False, "logger": False,
            "callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"save_last": True}}],
        },
    }  # fmt: skip
    (folder / "quick.yaml").write_text(yaml.safe_dump(config))
    settings = ["--config", str(folder / "quick.yaml"), "--runs_dir", str(folder / "runs")]
    main(["fit", *settings, "--run_name", "first"])
    return settings, folder / "runs" / "first"


def test_checkpoints_of_runs_are_plain_and_load(trained: tuple[list[str], Path]) -> None:
    """What a run writes holds nothing but tensors and plain values, so that every way in can insist on that."""
    settings, run = trained
    file = run / "checkpoints" / "last.ckpt"
    assert read_checkpoint(file)["global_step"] == 1
    assert LatentSFTModule.load_from_checkpoint(file).hparams["learning_rate"] == 1e-3
    main(["validate", *settings, "--run_name", "checked", "--ckpt_path", str(file)])
    main(["validate", *settings, "--run_name", "started", "--model.init_args.init_from", str(file)])


def test_no_way_in_runs_code(
    trained: tuple[list[str], Path], tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, run = trained
    evil = tmp_path / "evil.ckpt"
    in_an_archive(evil, mark)
    told = "can run code, so nothing of it was loaded"
    assert told in fails(capsys, "fit", *settings, "--run_name", "a", "--ckpt_path", str(evil))
    for command in ("validate", "test", "predict"):
        assert told in fails(capsys, command, *settings, "--run_name", "b", "--ckpt_path", str(evil))
    assert told in fails(capsys, "fit", *settings, "--run_name", "c", "--model.init_args.init_from", str(evil))
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    for file in (copied / "checkpoints").glob("*.ckpt"):
        in_an_archive(file, mark)
    shutil.rmtree(copied / "huggingface", ignore_errors=True)
    before = {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()}
    assert told in fails(capsys, "fit", "--resume", str(copied))
    assert told in fails(capsys, "fit", *settings, "--run_name", "d", "--model.init_args.init_from", str(copied))
    assert {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()} == before


def test_weights_that_do_not_fit_are_one_line(
    trained: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, run = trained
    content = read_checkpoint(run / "checkpoints" / "last.ckpt")
    start = ["fit", *settings, "--run_name", "e", "--model.init_args.init_from", str(tmp_path / "odd.ckpt")]
    weights = content["state_dict"]
    name = min(weights)
    for odd, told in (
        ({"state_dict": [1]}, "holds no weights"),
        ({}, "holds no weights"),
        ({"state_dict": {name: weights[name]}}, "was trained with another model"),
        ({"state_dict": {**weights, name: weights[name][..., :1]}}, f"e.g. {name.removeprefix('reasoner.')}: "),
        ({"state_dict": {**weights, name: "text"}}, f"e.g. {name.removeprefix('reasoner.')}: () there"),
    ):
        torch.save(odd, tmp_path / "odd.ckpt")
        assert told in fails(capsys, *start)


def test_the_trainer_is_told_to_read_data(trained: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, Lightning reads checkpoints at an address with all they ask for."""
    settings, run = trained
    told: list[Any] = []
    read = Strategy.load_checkpoint

    def spy(strategy: Strategy, path: Any, weights_only: bool | None = None) -> Any:
        told.append(weights_only)
        return read(strategy, path, weights_only=weights_only)

    monkeypatch.setattr(Strategy, "load_checkpoint", spy)
    main(["validate", *settings, "--run_name", "told", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")])
    assert told == [True]
