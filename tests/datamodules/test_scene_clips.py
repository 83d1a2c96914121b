"""SceneClipsDataModule: unlabelled clips in the layout of records, the same ones however often a run was stopped."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dots import DotWorld
from PIL import Image

from futurel1.data import SFTBatch
from futurel1.data.chat import ChatEncoder
from futurel1.data.samples import Frame, Sample, Turn
from futurel1.datamodules import SceneClipsDataModule
from futurel1.errors import ConfigError
from futurel1.losses import LatentSFTLoss
from futurel1.models import LatentReasoner, load_processor
from futurel1.worlds import make_event_scenes
from futurel1.worlds.event_layouts import layouts_of
from futurel1.worlds.look import COLOURS, FORMS, palette

SMALL: dict[str, Any] = {"num_batches": 3, "num_val_batches": 2, "batch_size": 2, "frame_size": 32, "num_workers": 0}
PROCESSOR = load_processor("tiny@random")


def batches(stage: str = "train", done: int = 0, **options: Any) -> list[SFTBatch]:
    """The batches of a pass that begins after some that are done."""
    data = SceneClipsDataModule(**{**SMALL, **options})
    module = SimpleNamespace(processor=PROCESSOR)
    trainer: Any = SimpleNamespace(lightning_module=module, fit_loop=SimpleNamespace(batch_idx=done - 1))
    data.trainer = trainer
    return list(data.train_dataloader() if stage == "train" else data.val_dataloader())


def same(one: SFTBatch, other: SFTBatch) -> bool:
    names = ("input_ids", "labels", "pixel_values", "hint_pixel_values", "hint_grid_thw")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def picture(pixels: np.ndarray) -> Frame:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Frame(Path("frame.png"), None, file.getvalue())


def test_a_batch_is_what_the_encoder_makes_of_the_frames_of_its_scenes() -> None:
    (batch,) = batches(num_batches=1, noise=0.0, observed=3, imagined=7, frame_size=64)
    scenes = make_event_scenes(np.random.default_rng(np.random.SeedSequence([0, 0, 0])), 2, size=64, split="pretrain")
    encoder = ChatEncoder(PROCESSOR, max_latent_tokens=1, fixed_latents=True, max_hint_tokens=4)
    wanted = []
    for scene in scenes:
        frames = tuple(map(picture, scene.render(range(10))))
        wanted.append(
            encoder.encode(Sample("a:1", (Turn("user", frames[:3]), Turn("assistant", frames[3:])), None, {}))
        )
    assert torch.equal(batch.input_ids, torch.stack([sample.input_ids for sample in wanted]))
    assert torch.equal(batch.labels, torch.stack([sample.labels for sample in wanted]))
    for name in ("pixel_values", "image_grid_thw", "hint_pixel_values", "hint_grid_thw"):
        assert torch.equal(getattr(batch, name), torch.cat([getattr(sample, name) for sample in wanted])), name
    assert int((batch.input_ids == encoder.tokens.latent_id).sum()) == 2 * 7


def test_clips_of_another_world_are_as_long_as_its_own() -> None:
    world = DotWorld()
    (batch,) = batches(num_batches=1, noise=0.0, observed=2, imagined=4, frame_size=64, world=world)
    scenes = world.scenes(np.random.default_rng(np.random.SeedSequence([0, 0, 0])), 2, split="pretrain", size=64)
    shown = [Image.fromarray(frame) for scene in scenes for frame in scene.render(range(2))]
    wanted = PROCESSOR.image_processor(images=shown, do_resize=False, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch.pixel_values, wanted)
    with pytest.raises(ConfigError, match="the 6 frames of a clip"):
        batches(observed=3, imagined=4, world=world)


def test_pixel_noise_is_as_large_as_it_says() -> None:
    clean, noisy = (batches(num_batches=1, noise=noise)[0].pixel_values for noise in (0.0, 3.0))
    inside = (clean > -0.9) & (clean < 0.9)  # nothing is cut off there
    assert pytest.approx(float((noisy - clean)[inside].std()) * 127.5, rel=0.05) == 3.0


def test_scenes_of_a_split_keep_to_its_combinations_and_layouts() -> None:
    colours = list(COLOURS)
    for split in ("pretrain", "test"):
        scenes = make_event_scenes(np.random.default_rng(0), 64, size=32, split=split)
        assert {scene.layout for scene in scenes} <= set(layouts_of(split))
        looks = {(colours[c], form) for scene in scenes for c, form in zip(scene.last_colours, FORMS, strict=True)}
        assert looks == set(palette(split))


def test_a_batch_depends_on_the_seed_and_its_number_alone() -> None:
    torch.manual_seed(1)
    first = batches()
    torch.manual_seed(2)
    for other in (batches(), batches(num_batches=9), batches(num_workers=1)):
        assert all(map(same, first, other))
    assert all(map(same, first[2:], batches(done=2)))
    drawn = [*first, *batches(seed=1), *batches("val"), *batches("val", seed=1)]
    assert len({batch.pixel_values.numpy().tobytes() for batch in drawn}) == len(drawn) == 3 + 3 + 2 + 2


def test_every_imagined_frame_has_its_latents() -> None:
    reasoner = LatentReasoner.from_pretrained("tiny@random")
    (batch,) = batches(num_batches=1, observed=2, imagined=4, frame_size=64)
    with pytest.raises(ConfigError, match="Trainer"):
        SceneClipsDataModule(**SMALL).train_dataloader()
    reasoner.settings = replace(reasoner.settings, fixed_latent_budget=True)
    output = LatentSFTLoss(alignment="mse")(reasoner, batch)
    assert output.num_latents == 2 * 4
    assert len(set(batch.sample_ids)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size are at least 1"),
        ({"observed": 4, "imagined": 7}, "observed=4 and imagined=7"),
        ({"imagined": 0}, "imagined=0"),
        ({"frame_size": 48}, "frame_size=48"),
        ({"noise": -1.0}, "noise"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SceneClipsDataModule(**{**SMALL, **options})
