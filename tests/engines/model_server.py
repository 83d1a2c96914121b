"""A chat endpoint on 127.0.0.1 that serves a pretended model as vLLM would, with faults on demand."""

from __future__ import annotations

import base64
import json
import random
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from judge_server import Reply, Request
from PIL import Image

from futurel1.engines import Server

MODEL = "stock"
Respond = Callable[[Request], Reply]


class PretendedModel:
    """Answers as a function of the seed and the pictures; counts prompt tokens with the processor's chat template.

    Args:
        processor: the processor of the served model.
        takes_n: whether several responses to one request are returned; "refused" with HTTP 400, "ignored", or "yes".
        counts: whether usage is told; a number is added to its prompt tokens.
        tokenizes: whether `/tokenize` exists; a number is added to its count.
    """

    def __init__(
        self, processor: Any, *, takes_n: str = "yes", counts: int | None = 0, tokenizes: int | None = None
    ) -> None:
        self.processor = processor
        self.takes_n, self.counts, self.tokenizes = takes_n, counts, tokenizes
        self.lock = threading.Lock()  # tokenizers of transformers change while they are used

    def __call__(self, request: Request) -> Reply:
        body = request.body
        if request.path == "/v1/models":
            return Reply(body=json.dumps({"object": "list", "data": [{"id": MODEL}]}))
        if request.path == "/tokenize":
            if self.tokenizes is None:
                return Reply(status=404, body="no such path")
            return Reply(body=json.dumps({"count": len(self.ids(body["messages"], whole=False)) + self.tokenizes}))
        number = body.get("n", 1)
        if number > 1 and self.takes_n != "yes":
            if self.takes_n == "refused":
                return Reply(status=400, body='{"error": "n must be 1"}')
            number = 1
        places = list(range(number))
        random.Random(str(body.get("seed"))).shuffle(places)  # replies name their places, in any order
        said = [{"role": "assistant", "content": self.text(body, place)} for place in places]
        choices = [
            {"index": place, "finish_reason": "stop", "message": message}
            for place, message in zip(places, said, strict=True)
        ]
        reply: dict[str, Any] = {"object": "chat.completion", "choices": choices}
        if self.counts is not None:
            reply["usage"] = {"prompt_tokens": len(self.ids(body["messages"], whole=True)) + self.counts}
        return Reply(body=json.dumps(reply))

    def text(self, body: dict[str, Any], place: int) -> str:
        """More pictures make right answers (B) more likely."""
        shown = len(pictures(body))
        if "seed" not in body:
            return "Greedy. <answer>B</answer>"
        draw = random.Random(f"{body['seed'] + place} {shown}").random()
        return f"Seen {shown}. <answer>{'B' if draw < 0.2 * shown else 'C'}</answer>"

    def ids(self, messages: list[dict[str, Any]], *, whole: bool) -> list[int]:
        """The prompt's token ids, pictures as one token each or as all of theirs."""
        shown = [{**message, "content": _parts(message["content"])} for message in messages]
        with self.lock:
            if not whole:
                text = self.processor.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
                ids: list[int] = self.processor.tokenizer(text)["input_ids"]
                return ids
            made = self.processor.apply_chat_template(
                shown, tokenize=True, add_generation_prompt=True, return_dict=True
            )
            return list(made["input_ids"][0])


def pictures(body: dict[str, Any]) -> list[Image.Image]:
    """The pictures of a request, as its server decodes them."""
    contents = [message["content"] for message in body["messages"] if isinstance(message["content"], list)]
    return [
        picture(part["image_url"]["url"]) for content in contents for part in content if part["type"] == "image_url"
    ]


def picture(url: str) -> Image.Image:
    """A picture by its URL, decoded without any correction."""
    data = Path(unquote(urlsplit(url).path)).read_bytes() if url.startswith("file:") else _inline(url)
    return Image.open(BytesIO(data)).convert("RGB")


def _inline(url: str) -> bytes:
    head, _, data = url.partition(";base64,")
    assert head in ("data:image/png", "data:image/jpeg", "data:image/webp")
    return base64.b64decode(data)


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [
        part if part["type"] == "text" else {"type": "image", "image": picture(part["image_url"]["url"])}
        for part in content
    ]


FAULTS: tuple[Callable[[], Reply], ...] = (
    lambda: Reply(status=429, headers={"Retry-After": "0"}),
    lambda: Reply(status=503, body="overloaded"),
    lambda: Reply(drop=True),
    lambda: Reply(body='{"choices": [{"index": 0, "message": {"content": "<answer>B"'),
    lambda: Reply(body='{"choices": [{"message": {"content": "<answer>B"}, "finish_reason": "abort"}]}'),
)


def faulty(model: Respond, rate: float = 0.3) -> Respond:
    """The same model behind a network and a load that fail now and then, and change the order of replies."""

    def respond(request: Request) -> Reply:
        draw = random.Random(f"{json.dumps(request.body)[-200:]} {request.attempt}")
        if request.path != "/v1/models" and draw.random() < rate:
            return draw.choice(FAULTS)()
        reply = model(request)
        reply.delay_s = 0.02 * draw.random()
        return reply

    return respond


def make_server(url: str, **settings: Any) -> Server:
    """A server engine's settings with short waits."""
    quick = {"wait_base_s": 0.005, "wait_max_s": 0.02, "timeout_s": 30.0, "concurrency": 16, "max_attempts": 12}
    return Server(url, MODEL, **{**quick, **settings})
