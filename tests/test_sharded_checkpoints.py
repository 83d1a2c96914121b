"""Reading sharded checkpoints in one process, as data."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import MetadataIndex

from futurel1.errors import CheckpointError
from futurel1.sharded_checkpoints import ShardedWeights, check_shards, is_sharded, read_description


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.mark),)


def save(folder: Path, values: dict[str, Any]) -> Path:
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(values, checkpoint_id=folder, no_dist=True)
    torch.save({"global_step": 3}, folder / "meta.pt")
    return folder


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    return {
        "reasoner.a.weight": torch.randn(5, 3, generator=made),
        "reasoner.b": torch.randn(7, generator=made).bfloat16(),
        "scale": torch.tensor(2.0),
    }


@pytest.fixture
def shards(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    optimizer = {"param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "name": "llm"}], "state": {"a": torch.ones(5)}}
    return save(tmp_path / "step=3.ckpt", {"state_dict": weights, "optimizer_0": optimizer})


def rewrite(folder: Path, change: Any) -> None:
    description = pickle.loads((folder / ".metadata").read_bytes())
    change(description)
    (folder / ".metadata").write_bytes(pickle.dumps(description))


def test_weights_are_read_by_name(shards: Path, weights: dict[str, torch.Tensor]) -> None:
    found = ShardedWeights(shards)
    assert set(found) == set(weights)
    assert found.shapes == {"reasoner.a.weight": (5, 3), "reasoner.b": (7,), "scale": ()}
    for name, weight in weights.items():
        assert found[name].dtype == weight.dtype
        assert torch.equal(found[name], weight)
    with pytest.raises(KeyError):
        found["optimizer_0"]
    assert is_sharded(shards)
    check_shards(shards)


def test_single_values_of_shards_run_no_code(tmp_path: Path, shards: Path) -> None:
    """PyTorch loads them without `weights_only`."""
    mark = tmp_path / "mark"
    evil = save(tmp_path / "evil.ckpt", {"state_dict": {"a": torch.ones(2)}, "optimizer_0": {"lr": Evil(mark)}})
    with pytest.raises(CheckpointError, match=r"asks for posix\.mkdir, .* can run code, so nothing of it was loaded"):
        check_shards(evil)
    assert not mark.exists()
    assert torch.equal(ShardedWeights(evil)["a"], torch.ones(2))  # of which it is no part
    assert not mark.exists()
    with pytest.warns(UserWarning, match="single process"):
        dcp.load({"optimizer_0": {"lr": None}}, checkpoint_id=evil, no_dist=True)
    assert mark.is_dir()  # by PyTorch alone


def test_shards_elsewhere_and_gaps_are_refused(shards: Path) -> None:
    whole = (shards / ".metadata").read_bytes()
    place = MetadataIndex("state_dict.reasoner.a.weight", torch.Size([0, 0]), 0)
    for file in ("../other.distcp", "/etc/passwd", "..\\other.distcp"):
        rewrite(shards, lambda found, file=file: setattr(found.storage_data[place], "relative_path", file))
        with pytest.raises(CheckpointError, match="only files of its own folder"):
            ShardedWeights(shards)
        (shards / ".metadata").write_bytes(whole)
    rewrite(shards, lambda found: setattr(found.storage_data[place], "transform_descriptors", ["stream.zstd"]))
    with pytest.raises(CheckpointError, match="is compressed"):
        check_shards(shards)
    (shards / ".metadata").write_bytes(whole)
    rewrite(shards, lambda found: found.state_dict_metadata["state_dict.reasoner.a.weight"].chunks.clear())
    with pytest.raises(CheckpointError, match=r"holds 0 of 15 numbers of state_dict\.reasoner\.a\.weight"):
        read_description(shards)


def test_damaged_shards_are_one_line(shards: Path) -> None:
    (file,) = shards.glob("*.distcp")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        {name: ShardedWeights(shards)[name] for name in ShardedWeights(shards)}
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read .*FileNotFound"):
        ShardedWeights(shards)["reasoner.b"]
    with pytest.raises(CheckpointError, match=rf"has no {file.name}"):
        check_shards(shards)
    (shards / "meta.pt").unlink()
    assert not is_sharded(shards)
