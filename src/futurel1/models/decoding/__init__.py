"""Interleaved decoding of text and latents, and scoring of decoded responses."""

from futurel1.models.decoding.decoding_settings import DecodingSettings
from futurel1.models.decoding.generation import generate, generate_each
from futurel1.models.decoding.prompts import PromptSource
from futurel1.models.decoding.protocol import PromptLike, Reasoner, VisualBatch
from futurel1.models.decoding.rollout import DecodingError, DecodingStep, FinishReason, Rollout, RolloutScores
from futurel1.models.decoding.sampling import Sampling
from futurel1.models.decoding.scoring import continue_log_prob, score

__all__ = [
    "DecodingError",
    "DecodingSettings",
    "DecodingStep",
    "FinishReason",
    "PromptLike",
    "PromptSource",
    "Reasoner",
    "Rollout",
    "RolloutScores",
    "Sampling",
    "VisualBatch",
    "continue_log_prob",
    "generate",
    "generate_each",
    "score",
]
