"""Checkpoints of runs as Hugging Face folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from futurel1 import export as package
from futurel1.cli import main
from futurel1.errors import CheckpointError, ConfigError, MissingFileError
from futurel1.export import export
from futurel1.models import LatentReasoner
from futurel1.modules import HuggingFaceExport, LatentSFTModule
from futurel1.worlds import write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, train=4, test=1, size=64, progress=False)
    return folder


def train(run: Path, world: Path, **options: Any) -> Path:
    """A finished run of two steps with LoRA or without; `huggingface/` is moved to `finished/`."""
    from futurel1.datamodules import VideoHintDataModule

    module = LatentSFTModule(learning_rate=1e-2, warmup_ratio=0.0, max_latent_tokens=3, **options)
    data = VideoHintDataModule(
        train=str(world / "train.jsonl"), batch_size=2, num_workers=0, max_latent_tokens=3,
        cache_dir=str(world / "cache"),
    )  # fmt: skip
    keep = ModelCheckpoint(run / "checkpoints", every_n_train_steps=1, save_top_k=-1, save_last="link")
    Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=2,
        default_root_dir=run, callbacks=[keep, HuggingFaceExport()],
    ).fit(module, data)  # fmt: skip
    (run / "huggingface").rename(run / "finished")
    return run


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("run"), world, projection_head="lvr")


def files(folder: Path) -> dict[str, Any]:
    """Contents of a folder's files, safetensors as their tensors."""
    found = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {name: load_file(file) if ".safetensors" in name else file.read_bytes() for name, file in found.items()}


def assert_same_files(found: Path, wanted: Path) -> None:
    one, two = files(found), files(wanted)
    assert one.keys() == two.keys()
    for name, content in two.items():
        if isinstance(content, dict):
            assert one[name].keys() == content.keys()
            for key, weight in content.items():
                assert one[name][key].dtype == weight.dtype, (name, key)
                assert torch.equal(one[name][key], weight), (name, key)
        else:
            assert one[name] == content, name


def test_it_is_what_the_run_itself_exports(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", str(run)])
    told = capsys.readouterr()
    assert told.out.startswith(f"{run / 'huggingface'}: step 2 (epoch=0-step=2.ckpt), float32, ")
    assert "reading weights" in told.err
    assert_same_files(run / "huggingface", run / "finished")
    assert set(files(run / "finished")) >= {"README.md", "projection_head.safetensors", "tokenizer.json"}
    with pytest.raises(SystemExit):
        main(["export", str(run)])
    assert "huggingface exists; replace it with --overwrite true, or name another" in capsys.readouterr().err
    main(["export", str(run), "--overwrite", "true", "--dtype", "bfloat16", "--json"])
    assert json.loads(capsys.readouterr().out)["dtype"] == "bfloat16"
    assert load_file(run / "huggingface" / "model.safetensors")["model.language_model.norm.weight"].dtype == (
        torch.bfloat16
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_merged_as_peft_merges_them(world: Path, tmp_path: Path, dtype: Any) -> None:
    lora = train(tmp_path / "lora", world, lora_rank=2, lora_alpha=8, dtype=dtype)
    found = export(str(lora))
    assert found.dtype == dtype
    assert_same_files(found.folder, lora / "finished")
    assert "adapter/adapter_model.safetensors" in files(found.folder)
    content = torch.load(lora / "checkpoints" / "last.ckpt", weights_only=True)
    shards = {"state_dict": content.pop("state_dict")}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(shards, checkpoint_id=tmp_path / "sharded.ckpt", no_dist=True)
    torch.save(content, tmp_path / "sharded.ckpt" / "meta.pt")
    assert_same_files(export(str(tmp_path / "sharded.ckpt"), str(tmp_path / "out")).folder, lora / "finished")
    shutil.rmtree(found.folder)
    merged = LatentReasoner.from_pretrained(lora / "finished").state_dict()
    for options in ({}, {"lora_rank": 4}):  # the next stage starts from the merged weights, with adapters of its own
        module = LatentSFTModule(init_from=str(lora), **options)
        module.configure_model()
        own = module.reasoner.state_dict()
        frozen = {name.replace(".token_adapter", "").replace(".base_layer", ""): own[name] for name in own}
        assert all(torch.equal(frozen[name], weight) for name, weight in merged.items())


def test_any_checkpoint_can_be_named(run: Path, tmp_path: Path) -> None:
    one, two = "epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt"
    steps = {
        export(str(run), str(tmp_path / str(number)), **options).step: number
        for number, options in enumerate(({"checkpoint": one}, {"checkpoint": str(run / "checkpoints" / two)}))
    }
    assert steps == {1: 0, 2: 1}
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("0", "1"))
    assert any(not torch.equal(first[name], weight) for name, weight in second.items())
    assert export(str(run / "checkpoints" / one), str(tmp_path / "2")).step == 1
    assert_same_files(tmp_path / "2", tmp_path / "0")
    with pytest.raises(MissingFileError, match=rf"no checkpoint other in .*; it has {one}, {two}, last\.ckpt"):
        export(str(run), str(tmp_path / "3"), checkpoint="other")
    with pytest.raises(MissingFileError, match="no run folder or checkpoint nowhere"):
        export("nowhere")
    lost = shutil.copyfile(run / "checkpoints" / one, tmp_path / one)
    with pytest.raises(ConfigError, match="lies in no run folder; name the folder to write by --out"):
        export(str(lost))


def test_only_exports_are_replaced(run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "models" / "mine.safetensors"
    kept.parent.mkdir()
    kept.write_text("weights")
    for place in (kept, kept.parent, run):
        with pytest.raises(ConfigError, match=r"exists and is no export .*; name another folder by --out"):
            export(str(run), str(place), overwrite=True)
    assert kept.read_text() == "weights"


def test_a_start_that_is_gone_can_be_named_anew(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    content["hyper_parameters"] |= {"backbone": str(tmp_path / "gone"), "init_from": str(tmp_path / "gone too")}
    torch.save(content, tmp_path / "moved.ckpt")
    with pytest.raises(
        MissingFileError, match=r"moved\.ckpt was trained from .*gone too, which is not here: .*--backbone FOLDER"
    ):
        export(str(tmp_path / "moved.ckpt"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    export(str(tmp_path / "moved.ckpt"), str(tmp_path / "out"), backbone="tiny")
    weights, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", run / "finished"))
    assert all(torch.equal(weights[name], weight) for name, weight in wanted.items())
    golden = Path(__file__).parent / "golden" / "public_mse"
    with pytest.raises(CheckpointError, match="was trained with another model, LoRA or head than that of"):
        export(str(run), str(tmp_path / "other"), backbone=str(golden))


def test_nothing_half_written_gets_the_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    export(str(run), str(out))
    before = files(out)

    class Killed(BaseException):
        """Ends the export as a kill does."""

    def dies(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(package, "_save_adapter", dies)  # after the weights
    for folder in (out, tmp_path / "new"):
        with pytest.raises(Killed):
            export(str(run), str(folder), dtype="bfloat16", overwrite=True)
    assert files(out).keys() == before.keys()
    assert files(out)["config.json"] == before["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
