"""Clients of OpenAI-compatible endpoints: what judges and serving engines have in common."""

from futurel1.endpoints.chat_client import ChatClient, EndpointSettings, excerpt, require_packages, run_to_end
from futurel1.endpoints.failures import (
    CallCounts,
    CallFailure,
    EndpointError,
    FailureLimit,
    RecentCalls,
    ReplyError,
)

__all__ = [
    "CallCounts",
    "CallFailure",
    "ChatClient",
    "EndpointError",
    "EndpointSettings",
    "FailureLimit",
    "RecentCalls",
    "ReplyError",
    "excerpt",
    "require_packages",
    "run_to_end",
]
