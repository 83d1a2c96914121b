"""Compare the prompt tokens that a server counts with those of our own encoder."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from futurel1.endpoints import CallFailure, ChatClient, EndpointError
from futurel1.engines.replies import read_count
from futurel1.engines.requests import ServerPrompt
from futurel1.errors import ConfigError

if TYPE_CHECKING:
    import httpx

__all__ = ["TokenParity"]

logger = logging.getLogger(__name__)
CHECKED_PROMPTS = 16


class TokenParity:
    """Checks the first prompts of a run.

    Args:
        client: sends requests.
        model: name of the model at the server.
        required: raise for a difference; False: warn once.
    """

    def __init__(self, client: ChatClient, model: str, *, required: bool) -> None:
        self._client = client
        self._model = model
        self._required = required
        self._left = CHECKED_PROMPTS

    async def check(self, session: httpx.AsyncClient, prompt: ServerPrompt, prompt_tokens: int | None) -> None:
        """Compare the counts of one prompt.

        Args:
            session: open connections.
            prompt: what was asked.
            prompt_tokens: what the server counted; None if it does not tell: then `/tokenize` is asked.

        Raises:
            ConfigError: the counts differ.
        """
        if self._left <= 0 or prompt_tokens == prompt.tokens:
            self._left -= 1
            return
        rendered = await self._tokenized(session, prompt)
        if prompt_tokens is None and rendered in (prompt.text_tokens, prompt.tokens):
            self._left -= 1
            return
        if prompt_tokens is None and rendered is None:
            self._left = 0
            logger.warning(
                "the server %s counts no prompt tokens, so nobody knows whether its chat template and its picture "
                "sizes are ours", self._client.endpoint.base_url,
            )  # fmt: skip
            return
        self._left = 0
        message = (
            f"{prompt.sample_id}: the server {self._client.endpoint.base_url} counts {prompt_tokens or rendered} "
            f"prompt tokens, and our own encoder {prompt.tokens}: {_cause(prompt, rendered)}. Correct that, or allow "
            "it by require_same_tokens false"
        )
        if self._required:
            raise ConfigError(message)
        logger.warning("%s (allowed: require_same_tokens is false)", message)

    async def _tokenized(self, session: httpx.AsyncClient, prompt: ServerPrompt) -> int | None:
        """Tokens of the prompt by the server's chat template alone; None if the server has no `/tokenize` for chats."""
        rest = json.dumps({"model": self._model, "add_generation_prompt": True}).encode("ascii")
        body = b'{"messages": ' + prompt.messages + b", " + rest[1:]
        label = f"{prompt.sample_id}, tokenized"
        try:
            count, _ = await self._client.ask(session, body, read_count, label, path="../tokenize", within_s=5.0)
        except EndpointError as error:
            logger.debug("no /tokenize: %s", error)
            return None
        return None if isinstance(count, CallFailure) else count


def _cause(prompt: ServerPrompt, rendered: int | None) -> str:
    """What differs, as far as `/tokenize` tells: it counts a picture as one token, or as all of its own."""
    if rendered is None:
        return "the chat template, the system turn or the sizes of pictures differ"
    if rendered in (prompt.text_tokens, prompt.tokens):
        return "the chat templates agree, so pictures or videos get other sizes (min_pixels, max_pixels, frames)"
    return f"its chat template gives {rendered} tokens of text, ours {prompt.text_tokens}, so the chat templates differ"
