"""Experience for training a policy: rollouts are sampled, scored, filtered and batched."""

from futurel1.rollout.collector import PromptSource, RolloutCollector, RolloutSampler
from futurel1.rollout.experience import Experience, Group, join_groups, split_rollout
from futurel1.rollout.loading import ExperienceLoader
from futurel1.rollout.policy_models import PolicyModels
from futurel1.rollout.sample_log import SampleLog
from futurel1.rollout.sampler import GroupSampler
from futurel1.rollout.settings import RolloutSettings, SamplingSettings

__all__ = [
    "Experience",
    "ExperienceLoader",
    "Group",
    "GroupSampler",
    "PolicyModels",
    "PromptSource",
    "RolloutCollector",
    "RolloutSampler",
    "RolloutSettings",
    "SampleLog",
    "SamplingSettings",
    "join_groups",
    "split_rollout",
]
