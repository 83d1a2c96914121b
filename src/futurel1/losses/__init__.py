"""Objectives as `nn.Module`s and plain functions, without Lightning."""

from futurel1.losses.alignment import Alignment, alignment_sum, hint_features, hint_retrieval, pool_to
from futurel1.losses.cross_entropy import CrossEntropyPath, choose_path, linear_cross_entropy
from futurel1.losses.latent_sft import LatentFeedback, LatentGradient, LatentSFTLoss, LatentSFTOutput
from futurel1.losses.policy import Advantage, PolicyLoss, PolicyLossOutput, PolicyTerm, group_advantages

__all__ = [
    "Advantage",
    "Alignment",
    "CrossEntropyPath",
    "LatentFeedback",
    "LatentGradient",
    "LatentSFTLoss",
    "LatentSFTOutput",
    "PolicyLoss",
    "PolicyLossOutput",
    "PolicyTerm",
    "alignment_sum",
    "choose_path",
    "group_advantages",
    "hint_features",
    "hint_retrieval",
    "linear_cross_entropy",
    "pool_to",
]
