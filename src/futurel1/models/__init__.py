"""The latent reasoner and its parts, in plain PyTorch without Lightning."""

from futurel1.models.backbones import BACKBONES, Backbone, Vision, VisionFeatures, VisualRows
from futurel1.models.checkpoints import load_processor
from futurel1.models.heads import HeadKind, build_head
from futurel1.models.hub import push_folder
from futurel1.models.interventions import (
    FutureLatents,
    LatentBank,
    LatentIntervention,
    LatentPlaces,
    MeanLatents,
    NoiseLatents,
    OtherLatents,
    ZeroLatents,
)
from futurel1.models.model_card import TrainingRun
from futurel1.models.reasoner import LatentReasoner
from futurel1.models.settings import LatentSettings
from futurel1.models.spans import IGNORE, Spans, find_spans, learned_latents, longest_chain, previous, put_latents
from futurel1.models.tokens import LATENT, LATENT_END, LATENT_START, LATENT_TOKENS, LatentTokens, SpanBudget

__all__ = [
    "BACKBONES",
    "IGNORE",
    "LATENT",
    "LATENT_END",
    "LATENT_START",
    "LATENT_TOKENS",
    "Backbone",
    "FutureLatents",
    "HeadKind",
    "LatentBank",
    "LatentIntervention",
    "LatentPlaces",
    "LatentReasoner",
    "LatentSettings",
    "LatentTokens",
    "MeanLatents",
    "NoiseLatents",
    "OtherLatents",
    "SpanBudget",
    "Spans",
    "TrainingRun",
    "Vision",
    "VisionFeatures",
    "VisualRows",
    "ZeroLatents",
    "build_head",
    "find_spans",
    "learned_latents",
    "load_processor",
    "longest_chain",
    "previous",
    "push_folder",
    "put_latents",
]
