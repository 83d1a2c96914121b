"""LightningDataModules, which connect records, encoders and loaders."""

from futurel1.datamodules.events import BouncingEventsDataModule
from futurel1.datamodules.futurebench import FutureBenchDataModule
from futurel1.datamodules.loading import PlannedLoader, plan_batches
from futurel1.datamodules.prompts import PromptDataModule, PromptLoader
from futurel1.datamodules.rollout_prompts import RolloutPromptDataModule
from futurel1.datamodules.scene_clips import SceneClipsDataModule
from futurel1.datamodules.scene_frames import SceneFramesDataModule
from futurel1.datamodules.twiffbench import TwiFFBenchDataModule
from futurel1.datamodules.video_hint import VideoHintDataModule

__all__ = [
    "BouncingEventsDataModule",
    "FutureBenchDataModule",
    "PlannedLoader",
    "PromptDataModule",
    "PromptLoader",
    "RolloutPromptDataModule",
    "SceneClipsDataModule",
    "SceneFramesDataModule",
    "TwiFFBenchDataModule",
    "VideoHintDataModule",
    "plan_batches",
]
