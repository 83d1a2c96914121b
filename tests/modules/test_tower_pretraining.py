"""TowerPretrainModule: the tower learns to see, nothing else changes, and what it learnt can be loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dots import DotWorld
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from futurel1.cli.trainer import run_trainer
from futurel1.datamodules import SceneFramesDataModule
from futurel1.datamodules.scene_frames import FrameBatch
from futurel1.errors import ConfigError
from futurel1.models import LatentReasoner
from futurel1.models.backbones.tiny import tiny_model
from futurel1.modules import HuggingFaceExport, TowerPretrainModule
from futurel1.modules.optimization import parts_of
from futurel1.worlds import CODE_SIZE

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

QUICK: dict[str, Any] = {"vision_depth": 1, "vision_width": 64, "text_depth": 1, "lr_schedule": "constant"}


def make_module(kind: type[TowerPretrainModule] = TowerPretrainModule, **options: Any) -> Any:
    return kind(**{**QUICK, **options})


def make_data(**options: Any) -> SceneFramesDataModule:
    defaults = {"num_batches": 100, "num_val_batches": 2, "batch_size": 16, "frame_sizes": [32], "num_workers": 0}
    return SceneFramesDataModule(**{**defaults, **options})


def make_trainer(folder: Path, **options: Any) -> Trainer:
    defaults = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder, "max_steps": 2, "log_every_n_steps": 1,
        "num_sanity_val_steps": 0, "limit_val_batches": 0,
    }  # fmt: skip
    return Trainer(**{**defaults, **options})


class Recorder(TowerPretrainModule):
    """Keeps the loss of every step, and the last batch."""

    losses: list[float]

    def training_step(self, batch: FrameBatch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses = [*getattr(self, "losses", []), float(loss.detach())]
        self.batch = batch
        return loss


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.reasoner.named_parameters()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A module after 60 steps on the same eight frames, and its run folder with an export."""
    run = tmp_path_factory.mktemp("run")
    module = make_module(Recorder, learning_rate=3e-3)
    options: dict[str, Any] = {"max_epochs": -1, "gradient_clip_val": 1.0, "callbacks": [HuggingFaceExport()]}
    make_trainer(run, max_steps=60, **options).fit(module, make_data(num_batches=1, batch_size=8))
    return module, run


# --- the target -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [128, 96])
def test_targets_have_the_scale_of_latents_and_hold_the_code(tmp_path: Path, width: int) -> None:
    module = make_module(Recorder, text_width=width)
    make_trainer(tmp_path, max_steps=1).fit(module, make_data(batch_size=256, frame_sizes=[32]))
    with torch.no_grad():
        features, target = module._features(module.batch)
    assert features.shape == target.shape == (256, width)
    assert float(target.square().mean().sqrt()) == pytest.approx(1, abs=0.05)
    assert float(target.mean(dim=0).square().mean().sqrt()) < 0.2  # centred
    rotation = module.rotation
    assert rotation.shape == (CODE_SIZE, width)
    assert torch.allclose(rotation @ rotation.T, torch.eye(CODE_SIZE), atol=1e-5)
    read = target @ rotation.T / module.scale + module.mean
    assert torch.allclose(read, module.batch.codes, atol=1e-5)


def test_every_feature_of_a_frame_has_the_target_of_the_frame(tmp_path: Path) -> None:
    module = make_module(Recorder)
    make_trainer(tmp_path, max_steps=1).fit(module, make_data(batch_size=4, frame_sizes=[64]))
    features, target = module._features(module.batch)
    assert features.shape == (4 * 4, 128)
    per_frame = target.view(4, 4, 128)
    assert (per_frame == per_frame[:, :1]).all()
    assert len(torch.unique(per_frame[:, 0], dim=0)) == 4


def test_rotation_and_weights_are_seeded_apart_from_each_other_and_from_the_global_state() -> None:
    def built(**options: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        torch.rand(3)
        module = make_module(**options)
        module.configure_model()
        tower = torch.cat([p.detach().flatten() for p in module.reasoner.backbone.vision_tower.parameters()])
        return module.rotation, module.mean, tower

    first, again, rotated, seeded = built(), built(), built(rotation_seed=1), built(seed=1)
    assert all(map(torch.equal, first, again))
    assert [torch.equal(a, b) for a, b in zip(first, rotated, strict=True)] == [False, False, True]
    assert [torch.equal(a, b) for a, b in zip(first, seeded, strict=True)] == [True, True, False]
    before = torch.random.get_rng_state()
    built_again = make_module()
    built_again.configure_model()
    assert torch.equal(torch.random.get_rng_state(), before)
    reasoner = built_again.reasoner
    built_again.configure_model()
    assert built_again.reasoner is reasoner  # Lightning calls it for every stage


# --- training -------------------------------------------------------------------------------------------------------


def test_the_loss_falls(trained: tuple[Any, Path]) -> None:
    losses = trained[0].losses
    assert len(losses) == 60
    assert 1.2 < losses[0] < 4  # features and target are unrelated and both of rms 1
    assert losses[-1] < 0.1  # what knows the mean alone, and nothing of a frame, has 1


def test_the_tower_changes_and_the_language_model_does_not(trained: tuple[Any, Path]) -> None:
    module, _ = trained
    fresh = make_module()
    fresh.configure_model()
    before, after = weights(fresh), weights(module)
    names = {id(parameter): name for name, parameter in module.reasoner.named_parameters()}
    parts = {part: {names[id(p)] for p in found} for part, found in parts_of(module.reasoner).items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # A feature is what comes out of the merger: DeepStack's mergers feed the language model alone.
    deepstack = {name for name in parts["merger"] if "deepstack" in name}
    assert deepstack
    assert changed == (parts["vision"] | parts["merger"]) - deepstack
    assert {name for name, p in module.reasoner.named_parameters() if p.requires_grad} == parts["vision"] | parts[
        "merger"
    ]
    assert module.training


def test_the_export_has_the_same_features_and_the_untouched_language_model(trained: tuple[Any, Path]) -> None:
    module, run = trained
    loaded = LatentReasoner.from_pretrained(run / "huggingface")
    batch = module.batch
    with torch.no_grad():
        ours = module.reasoner.backbone.encode_images(batch.pixel_values, batch.image_grid_thw).embeds
        theirs = loaded.backbone.encode_images(batch.pixel_values, batch.image_grid_thw).embeds
    assert torch.equal(ours, theirs)
    assert loaded.processor is not None
    vision = {"depth": 1, "hidden_size": 64, "intermediate_size": 128}
    stock = tiny_model(0, vision, num_hidden_layers=1, hidden_size=128, intermediate_size=384)
    for name, value in stock.model.language_model.state_dict().items():
        assert torch.equal(loaded.backbone.model.model.language_model.state_dict()[name], value)
    assert (loaded.backbone.config.vision_config.depth, loaded.backbone.config.text_config.num_hidden_layers) == (1, 1)


def test_a_run_that_was_killed_ends_with_the_same_weights(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class Dies(TowerPretrainModule):
        def on_train_batch_start(self, batch: FrameBatch, batch_idx: int) -> None:
            if self.global_step == 3:
                raise Killed

    options: dict[str, Any] = {"lr_schedule": "cosine", "warmup_ratio": 0.2}
    whole = make_module(**options)
    make_trainer(tmp_path, max_steps=5).fit(whole, make_data(batch_size=4))
    keep = ModelCheckpoint(dirpath=tmp_path, filename="kept", every_n_train_steps=3)
    with pytest.raises(Killed):
        make_trainer(tmp_path, max_steps=5, callbacks=[keep], enable_checkpointing=True).fit(
            make_module(Dies, **options), make_data(batch_size=4)
        )
    torch.manual_seed(7)
    resumed = make_module(**options)
    make_trainer(tmp_path, max_steps=5).fit(resumed, make_data(batch_size=4), ckpt_path=tmp_path / "kept.ckpt")
    assert resumed.global_step == 5
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    loaded = TowerPretrainModule.load_from_checkpoint(tmp_path / "kept.ckpt", map_location="cpu")
    assert torch.equal(loaded.rotation, whole.rotation)


def test_another_world_takes_a_configuration_alone(tmp_path: Path) -> None:
    world = {"class_path": "dots.DotWorld", "init_args": {"fastest": 2}}
    frames = {"num_batches": 10, "num_val_batches": 2, "batch_size": 16, "frame_sizes": [32], "num_workers": 0}
    config = {
        "model": {"class_path": "TowerPretrainModule", "init_args": {**QUICK, "text_width": 64, "world": world}},
        "data": {"class_path": "SceneFramesDataModule", "init_args": {**frames, "world": world}},
        "trainer": {
            "accelerator": "cpu", "max_steps": 10, "max_epochs": 1, "enable_progress_bar": False,
            "callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"save_last": True}}],
        },
    }  # fmt: skip
    file, run = tmp_path / "dots.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(config))
    run_trainer("fit", ["--config", str(file), "--run_dir", str(run)], resume=None, own_process=False)
    module = TowerPretrainModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    assert module.world == DotWorld(fastest=2)
    assert module.get_buffer("rotation").shape == (3, 64)
    trainer = make_trainer(tmp_path, limit_val_batches=1.0)
    (told,) = trainer.validate(module, make_data(world=module.world), verbose=False)
    assert 0 < told["val/position_error"] < 0.3  # sides of the frame; 0.26 for the middle, whatever is seen
    assert told["val/visible_accuracy"] == told["val/class_accuracy"] == 1  # the dot is always there


# --- validation -----------------------------------------------------------------------------------------------------


def test_validation_reads_exact_codes_perfectly(tmp_path: Path) -> None:
    class Sees(TowerPretrainModule):
        """What it sees is what there is to see."""

        def _features(self, batch: FrameBatch) -> tuple[torch.Tensor, torch.Tensor]:
            _, target = super()._features(batch)
            return target, target

    data = make_data(frame_sizes=[32, 64], num_val_batches=4)
    (told,) = make_trainer(tmp_path, limit_val_batches=1.0).validate(make_module(Sees), data, verbose=False)
    assert told["val/loss"] == 0
    assert told["val/position_error"] < 1e-4
    assert told["val/class_accuracy"] == told["val/visible_accuracy"] == 1
    assert told["val/rms"] == pytest.approx(1, abs=0.1)


def test_validation_tells_a_tower_that_knows_the_frames_from_one_that_does_not(
    trained: tuple[Any, Path], tmp_path: Path
) -> None:
    frames: Any = DataLoader([trained[0].batch], batch_size=None)  # type: ignore[arg-type]

    def validate(module: Any) -> dict[str, float]:
        (told,) = make_trainer(tmp_path, limit_val_batches=1.0).validate(module, frames, verbose=False)
        return dict(told)

    random, learnt = validate(make_module()), validate(trained[0])
    names = {"loss", "rms", "position_error", "class_accuracy", "visible_accuracy"}
    assert set(random) == set(learnt) == {f"val/{name}" for name in names}
    assert random["val/loss"] > 1.2
    assert random["val/position_error"] > 0.2
    assert learnt["val/loss"] < 0.1
    assert learnt["val/position_error"] < 0.03
    assert learnt["val/class_accuracy"] == learnt["val/visible_accuracy"] == 1


# --- refusals -------------------------------------------------------------------------------------------------------


def test_settings_that_cannot_work_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"text_width=64.*{CODE_SIZE}"):
        make_module(text_width=64)
    with pytest.raises(ConfigError, match="max_steps"):
        make_trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(make_module(), make_data())
    with pytest.raises(ConfigError, match="warmup_ratio"):
        make_trainer(tmp_path).fit(make_module(warmup_ratio=2.0), make_data())
    with pytest.raises(ConfigError, match="lr_schedule"):
        make_trainer(tmp_path).fit(make_module(lr_schedule="steps"), make_data())
