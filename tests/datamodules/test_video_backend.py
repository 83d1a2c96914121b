"""The decoder of videos is chosen by one setting, which every data module with videos has."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from futurel1 import datamodules
from futurel1.datamodules import (
    FutureBenchDataModule,
    PromptDataModule,
    RolloutPromptDataModule,
    VideoHintDataModule,
)
from futurel1.errors import ConfigError

MODULES: dict[type[Any], str] = {
    FutureBenchDataModule: "records",
    PromptDataModule: "predict",
    RolloutPromptDataModule: "train",
    VideoHintDataModule: "train",
}
"""Data modules with videos, and the setting that names their records."""


def test_these_are_all_that_read_videos() -> None:
    with_videos = {
        module
        for module in map(vars(datamodules).get, datamodules.__all__)
        if inspect.isclass(module) and {"video_max_frames", "num_frames"} & set(inspect.signature(module).parameters)
    }
    assert with_videos == set(MODULES)


@pytest.mark.parametrize("backend", ["auto", "pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("module", MODULES)
def test_the_backend_reaches_the_encoder(tmp_path: Path, module: type[Any], backend: str) -> None:
    data = module(**{MODULES[module]: str(tmp_path)}, processor="tiny@random", video_backend=backend)
    assert data.encoder.video_backend == backend
    assert data.hparams["video_backend"] == backend


@pytest.mark.parametrize("module", MODULES)
def test_a_wrong_backend_lists_the_choices(tmp_path: Path, module: type[Any]) -> None:
    data = module(**{MODULES[module]: str(tmp_path)}, processor="tiny@random", video_backend="opencv")
    with pytest.raises(ConfigError, match="video_backend must be one of auto, pyav, decord, torchcodec, got 'opencv'"):
        _ = data.encoder
