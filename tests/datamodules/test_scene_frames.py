"""SceneFramesDataModule: frames with their codes, the same ones however often a run was stopped."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dots import DotWorld
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from futurel1.datamodules import SceneFramesDataModule
from futurel1.datamodules.scene_frames import FrameBatch
from futurel1.errors import ConfigError
from futurel1.models import load_processor
from futurel1.worlds import CODE_SIZE, EventsWorld, look, read_code

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

COLOURS = np.array(list(look.COLOURS.values()))
SMALL: dict[str, Any] = {
    "num_batches": 4,
    "num_val_batches": 2,
    "batch_size": 2,
    "frame_sizes": [32],
    "num_workers": 0,
}
PROCESSOR = load_processor("tiny@random")


class Raw:
    """Stands for an image processor: the pixels as they are."""

    def __call__(self, images: list[np.ndarray], **options: Any) -> dict[str, torch.Tensor]:
        assert options == {"do_resize": False, "return_tensors": "pt"}
        side = len(images[0])
        grid = torch.tensor([[1, side // 16, side // 16]] * len(images))
        return {"pixel_values": torch.from_numpy(np.stack(images)), "image_grid_thw": grid}


def batches(
    stage: str = "train", image_processor: Any = PROCESSOR.image_processor, done: int = 0, **options: Any
) -> list[FrameBatch]:
    """The batches of a pass that begins after some that are done."""
    data = SceneFramesDataModule(**{**SMALL, **options})
    module = SimpleNamespace(processor=SimpleNamespace(image_processor=image_processor))
    trainer: Any = SimpleNamespace(lightning_module=module, fit_loop=SimpleNamespace(batch_idx=done - 1))
    data.trainer = trainer
    return list(data.train_dataloader() if stage == "train" else data.val_dataloader())


def same(one: FrameBatch, other: FrameBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- batches --------------------------------------------------------------------------------------------------------


def test_batches_hold_patches_grids_and_codes() -> None:
    drawn = batches(num_batches=12, batch_size=6, frame_sizes=[32, 64])
    assert len(drawn) == 12
    sides = []
    for batch in drawn:
        side = int(batch.image_grid_thw[0, 1])
        assert batch.image_grid_thw.tolist() == [[1, side, side]] * 6
        assert batch.pixel_values.shape == (6 * side * side, 3 * 2 * 16 * 16)  # a still is two equal frames
        assert batch.codes.shape == (6, CODE_SIZE)
        assert batch.codes.dtype == torch.float32
        sides.append(16 * side)
    assert set(sides) == {32, 64}


def test_a_size_that_is_listed_twice_is_drawn_more_often() -> None:
    drawn = batches(num_batches=40, frame_sizes=[32, 32, 32, 64], image_processor=Raw())
    small = sum(batch.pixel_values.shape[1] == 32 for batch in drawn)
    assert 22 <= small <= 38


def test_a_batch_depends_on_the_seed_and_its_number_alone() -> None:
    torch.manual_seed(1)
    first = batches()
    torch.manual_seed(2)
    np.random.seed(3)
    for other in (batches(), batches(num_batches=9), batches(num_workers=1), batches(num_val_batches=5)):
        assert all(map(same, first, other))
    assert all(map(same, first[3:], batches(done=3)))
    numbers = [*first, *batches(seed=1), *batches("val"), *batches("val", seed=1)]
    assert len({batch.pixel_values.numpy().tobytes() for batch in numbers}) == 4 + 4 + 2 + 2


def test_drawing_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    batches()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_validation_is_the_same_every_time_wherever_training_stands() -> None:
    assert all(map(same, batches("val"), batches("val", done=3)))
    assert len(batches("val", done=3)) == 2


def test_codes_say_what_the_frames_show() -> None:
    right = []
    for batch in batches(num_batches=2, batch_size=48, frame_sizes=[96], image_processor=Raw(), noise=0.0):
        positions, visible, colours = read_code(batch.codes.numpy())
        for frame, places, told, seen in zip(batch.pixel_values.numpy(), positions, colours, visible, strict=True):
            for pair in np.flatnonzero(seen):
                x, y = np.floor(places[pair] * 96).astype(int)
                right.append(bool(np.abs(frame[y, x] - COLOURS[3 * told[pair] + pair]).max() < 16))
    assert len(right) > 200
    assert np.mean(right) > 0.95  # but for the edge of the pillar
    steps_apart = [not np.array_equal(batch.codes[0], batch.codes[1]) for batch in batches()]
    assert all(steps_apart)  # the two frames of a scene are of different steps


def test_the_world_of_events_is_what_is_drawn_where_none_is_named() -> None:
    assert all(map(same, batches(), batches(world=EventsWorld(seed=5, size=64, kinds=("zone",)))))


def test_another_world_has_its_own_frames_and_codes() -> None:
    world = DotWorld(fastest=2)
    data = SceneFramesDataModule(world=world)
    kept = {"class_path": "dots.DotWorld", "init_args": {"size": 32, "fastest": 2}}
    for batch in batches(num_batches=2, batch_size=8, image_processor=Raw(), noise=0.0, world=world):
        assert batch.codes.shape == (8, world.code_size)
        places = np.floor(world.read_code(batch.codes.numpy()).positions[:, 0] * 32).astype(int)
        frames = batch.pixel_values.numpy()
        assert all((frame[y, x] == 200).all() for frame, (x, y) in zip(frames, places, strict=True))
    assert data.world is world
    # A checkpoint holds plain values; an object of another package goes by its name, one of this package by its recipe.
    assert data.hparams["world"] == "dots.DotWorld"
    assert SceneFramesDataModule(world=EventsWorld(size=64)).hparams["world"]["init_args"]["size"] == 64
    assert SceneFramesDataModule(world=kept).world == world  # type: ignore[arg-type]  # as a checkpoint has it


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    options: dict[str, Any] = {"num_batches": 1, "batch_size": 8, "frame_sizes": [64], "image_processor": Raw()}
    (clean,), (noisy,) = batches(noise=0.0, **options), batches(noise=4.0, **options)
    assert torch.equal(clean.codes, noisy.codes)
    inside = (clean.pixel_values > 20) & (clean.pixel_values < 235)  # nothing is cut off there
    added = (noisy.pixel_values.double() - clean.pixel_values.double())[inside]
    assert float(added.std()) == pytest.approx(4, rel=0.05)
    assert float(added.mean()) == pytest.approx(0, abs=0.1)


def test_patches_are_those_of_a_picture_in_a_record() -> None:
    from PIL import Image

    (raw,) = batches(num_batches=1, image_processor=Raw())
    (cut,) = batches(num_batches=1)
    pictures = [Image.fromarray(frame) for frame in raw.pixel_values.numpy()]
    inputs = PROCESSOR.image_processor(images=pictures, return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], cut.pixel_values)


# --- resuming -------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a process that dies."""


class Recorder(LightningModule):
    """Learns nothing and remembers what it was shown; it dies when it is told to."""

    def __init__(self, dies_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.processor = PROCESSOR
        self.seen: list[bytes] = []
        self.dies_after = dies_after

    def training_step(self, batch: FrameBatch, batch_idx: int) -> torch.Tensor:
        if len(self.seen) == self.dies_after:
            raise Killed
        assert isinstance(batch, FrameBatch)
        self.seen.append(batch.pixel_values.numpy().tobytes())
        return self.weight.sum()

    def validation_step(self, batch: FrameBatch, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, module: Recorder, ckpt: Path | None = None, workers: int = 0, **options: Any) -> list[bytes]:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, **{"enable_checkpointing": False, "max_epochs": 2, **options},
    )  # fmt: skip
    trainer.fit(module, SceneFramesDataModule(**{**SMALL, "num_workers": workers}), ckpt_path=ckpt)
    return module.seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    seen = fit(tmp_path_factory.mktemp("whole"), Recorder())
    assert seen[:4] == seen[4:]
    assert len(set(seen)) == 4
    return seen


@pytest.mark.parametrize(("steps", "workers"), [(1, 0), (2, 1), (3, 0), (4, 0), (4, 1), (6, 0)])
def test_a_run_that_stopped_and_went_on_sees_what_one_that_did_not_sees(
    whole: list[bytes], tmp_path: Path, steps: int, workers: int
) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path, filename="kept", every_n_train_steps=steps)
    killed = Recorder(dies_after=steps)
    with pytest.raises(Killed):
        fit(tmp_path, killed, workers=workers, callbacks=[keep], enable_checkpointing=True)
    resumed = fit(tmp_path, Recorder(), tmp_path / "kept.ckpt", workers)
    assert killed.seen == whole[:steps]
    assert resumed == whole[steps:]


def test_a_run_that_failed_in_a_batch_sees_it_again(whole: list[bytes], tmp_path: Path) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path, filename="failed", save_on_exception=True)
    with pytest.raises(Killed):
        fit(tmp_path, Recorder(dies_after=2), callbacks=[keep], enable_checkpointing=True)
    (ckpt,) = tmp_path.glob("*.ckpt")
    assert fit(tmp_path, Recorder(), ckpt) == whole[2:]


def test_a_finished_run_goes_on_with_another_epoch(whole: list[bytes], tmp_path: Path) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path, filename="end")
    fit(tmp_path, Recorder(), max_epochs=1, callbacks=[keep], enable_checkpointing=True)
    assert fit(tmp_path, Recorder(), tmp_path / "end.ckpt") == whole[4:]


@pytest.mark.filterwarnings("error:You're resuming from a checkpoint")
def test_resuming_does_not_warn_of_a_loader_that_cannot(tmp_path: Path) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path, filename="kept", every_n_train_steps=1)
    fit(tmp_path, Recorder(), max_steps=1, callbacks=[keep], enable_checkpointing=True)
    assert fit(tmp_path, Recorder(), tmp_path / "kept.ckpt", max_steps=2)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_batches": 0}, "num_batches"),
        ({"num_val_batches": 0}, "num_val_batches"),
        ({"batch_size": 3}, "even number"),
        ({"batch_size": 0}, "even number"),
        ({"frame_sizes": []}, "multiples of 32"),
        ({"frame_sizes": [64, 48]}, "multiples of 32"),
        ({"frame_sizes": [0]}, "multiples of 32"),
        ({"noise": -1.0}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"seed": -1}, "seed"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SceneFramesDataModule(**settings)


def test_frames_are_loaded_inside_a_trainer() -> None:
    with pytest.raises(ConfigError, match="inside a Trainer"):
        SceneFramesDataModule().train_dataloader()
