"""Engines, which run the model that many records are asked of: the own loop, a server, or Ray (`docs/curation.md`)."""

from futurel1.engines.answered import answered_batch, prompt_block
from futurel1.engines.base import Answers, Block, Decoding, Engine, EngineSettings, Unanswered
from futurel1.engines.own_loop import OwnLoop, SampledResponses
from futurel1.engines.ray_data import Ray, RayEngine
from futurel1.engines.requests import RequestEncoder, ServerPrompt
from futurel1.engines.server import Server, ServerEngine

__all__ = [
    "Answers",
    "Block",
    "Decoding",
    "Engine",
    "EngineSettings",
    "OwnLoop",
    "Ray",
    "RayEngine",
    "RequestEncoder",
    "SampledResponses",
    "Server",
    "ServerEngine",
    "ServerPrompt",
    "Unanswered",
    "answered_batch",
    "prompt_block",
]
