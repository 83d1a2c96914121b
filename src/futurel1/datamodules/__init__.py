"""LightningDataModules, which connect records, encoders and loaders."""

from futurel1.datamodules.event_clips import EventClipsDataModule
from futurel1.datamodules.event_frames import EventFramesDataModule
from futurel1.datamodules.events import BouncingEventsDataModule
from futurel1.datamodules.futurebench import FutureBenchDataModule
from futurel1.datamodules.loading import PlannedLoader, plan_batches
from futurel1.datamodules.prompts import PromptDataModule, PromptLoader
from futurel1.datamodules.rollout_prompts import RolloutPromptDataModule
from futurel1.datamodules.twiffbench import TwiFFBenchDataModule
from futurel1.datamodules.video_hint import VideoHintDataModule

__all__ = [
    "BouncingEventsDataModule",
    "EventClipsDataModule",
    "EventFramesDataModule",
    "FutureBenchDataModule",
    "PlannedLoader",
    "PromptDataModule",
    "PromptLoader",
    "RolloutPromptDataModule",
    "TwiFFBenchDataModule",
    "VideoHintDataModule",
    "plan_batches",
]
