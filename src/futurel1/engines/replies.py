"""Read what a chat endpoint replies: responses with their ends, prompt tokens, models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from futurel1.endpoints import ReplyError
from futurel1.models.decoding import FinishReason

__all__ = ["Choice", "Reply", "read_count", "read_models", "read_reply"]

_ENDS: dict[str, FinishReason] = {
    "stop": "eos", "eos_token": "eos", "stop_sequence": "stop", "length": "length", "max_tokens": "length",
}  # fmt: skip
"""Finish reasons by the words of vLLM, SGLang, llama.cpp and TGI."""


@dataclass(frozen=True)
class Choice:
    """One response: its text without the end-of-turn token, and why it ended."""

    text: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class Reply:
    """The responses of a chat completion, in order.

    Attributes:
        choices: the responses.
        prompt_tokens: tokens of the prompt; None if the endpoint does not tell.
    """

    choices: tuple[Choice, ...]
    prompt_tokens: int | None


def read_reply(body: str) -> Reply:
    """Read a chat completion.

    Raises:
        ReplyError: it is none, or a response broke off.
    """
    reply = _object(body)
    try:
        choices = sorted(reply["choices"], key=lambda choice: choice.get("index") or 0)
        found = [(choice["message"].get("content"), choice.get("finish_reason")) for choice in choices]
    except (KeyError, TypeError, AttributeError):
        raise ReplyError("no choices[].message.content") from None
    if not found:
        raise ReplyError("no choices")
    for content, reason in found:
        if not isinstance(content, str | None) or reason not in _ENDS:
            raise ReplyError(f"a response that is no text or did not end (finish_reason {reason!r})")
    usage = reply.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    ended = tuple(Choice(content or "", _ENDS[reason]) for content, reason in found)
    return Reply(ended, tokens if isinstance(tokens, int) and tokens > 0 else None)


def read_models(body: str) -> list[str]:
    """Names of the models that an endpoint lists.

    Raises:
        ReplyError: the body is no list of models.
    """
    try:
        return [str(model["id"]) for model in _object(body)["data"]]
    except (KeyError, TypeError):
        raise ReplyError("no data[].id") from None


def read_count(body: str) -> int | None:
    """Number of tokens in a reply of `/tokenize`; None if it does not say."""
    count = _object(body).get("count")
    return count if isinstance(count, int) and count > 0 else None


def _object(body: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise ReplyError("the body is not JSON") from None
    if not isinstance(found, dict):
        raise ReplyError("the body is no JSON object")
    return found
