"""Experience of a policy: prompts are sampled, scored, filtered and handed out in micro-batches."""

from futurel1.rollout.collector import PromptSource, RolloutCollector, RolloutSampler
from futurel1.rollout.experience import Experience, Group, join_groups, split_rollout
from futurel1.rollout.loading import ExperienceLoader

__all__ = [
    "Experience",
    "ExperienceLoader",
    "Group",
    "PromptSource",
    "RolloutCollector",
    "RolloutSampler",
    "join_groups",
    "split_rollout",
]
