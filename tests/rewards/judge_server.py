"""An OpenAI-compatible chat endpoint on 127.0.0.1 that misbehaves on purpose, and a judge that asks it."""

import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from futurel1.rewards import AnswerItem, Judge, ResponseItem

KEY = "sk-test-4f9d2c81aa07"


@dataclass
class Reply:
    """What the server sends. `content` is what the judge says, `body` replaces the whole body."""

    content: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    delay_s: float = 0.0
    byte_delay_s: float = 0.0
    drop: bool = False
    finish_reason: str = "stop"

    def bytes(self) -> bytes:
        if self.body is not None:
            return self.body.encode()
        message = {"role": "assistant", "content": self.content}
        return json.dumps({"choices": [{"message": message, "finish_reason": self.finish_reason}]}).encode()


@dataclass
class Request:
    """What the server was sent."""

    body: dict[str, Any]
    authorization: str | None
    path: str
    received_at: float
    attempt: int

    @property
    def text(self) -> str:
        """All text of the user message."""
        content = self.body["messages"][1]["content"]
        return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)

    @property
    def number(self) -> int:
        """The N of `[item N]`, which the tests write at the start of every question."""
        found = re.search(r"\[item (\d+)\]", self.text)
        assert found is not None
        return int(found[1])


class JudgeServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, respond: Callable[[Request], Reply], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.respond = respond
        self.requests: list[Request] = []
        self.most_in_flight = 0
        self.in_flight = 0
        self.lock = threading.Lock()
        self.attempts: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Two small writes per response would each wait for the other side's delayed acknowledgement.
    disable_nagle_algorithm = True
    server: JudgeServer

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}"
        server = self.server
        with server.lock:
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
            key = raw.decode() + self.path
            server.attempts[key] += 1
            attempt = server.attempts[key]
            request = Request(json.loads(raw), self.headers["Authorization"], self.path, time.monotonic(), attempt)
            server.requests.append(request)
        try:
            reply = server.respond(request)
            time.sleep(reply.delay_s)
        finally:
            with server.lock:
                server.in_flight -= 1
        if reply.drop:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = reply.bytes()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not reply.byte_delay_s:
            self.wfile.write(body)
            return
        for byte in body:
            time.sleep(reply.byte_delay_s)
            self.wfile.write(bytes([byte]))

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def serving(respond: Callable[[Request], Reply]) -> Iterator[JudgeServer]:
    with JudgeServer(respond) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


FAULTS: tuple[Callable[[float], Reply], ...] = (
    lambda timeout_s: Reply("yes", delay_s=timeout_s * 1.5),
    lambda timeout_s: Reply(drop=True),
    lambda timeout_s: Reply(status=429, body='{"error": "yes"}', headers={"Retry-After": "0"}),
    lambda timeout_s: Reply(status=500, body="yes"),
    lambda timeout_s: Reply(body="<html><body>yes</body></html>", headers={"Content-Type": "text/html"}),
    lambda timeout_s: Reply(body='{"choices": [{"message": {"content": "yes", "score": [5, 5]'),
    lambda timeout_s: Reply('{"reasoning": "too good", "score": [9, 1]}'),
)


def fault(number: int, attempt: int, seed: int, rate: float = 0.3) -> int | None:
    """Which fault, if any, this attempt meets; it does not depend on the order in which requests arrive."""
    generator = random.Random(f"{seed}/{number}/{attempt}")
    return generator.randrange(len(FAULTS)) if generator.random() < rate else None


def make_judge(server: JudgeServer | str, **settings: Any) -> Judge:
    url = server if isinstance(server, str) else server.url
    quick = {"wait_base_s": 0.005, "wait_max_s": 0.02, "timeout_s": 20.0, "max_failure_rate": 1.0}
    return Judge(url, "judge-model", **{**quick, **settings})


def answer(number: int, prediction: str = "He opens the gate.") -> AnswerItem:
    return AnswerItem(f"[item {number}] What happens next?", "He opens the gate.", prediction)


def response(number: int, **fields: Any) -> ResponseItem:
    values = {"ground_truth": "He opens the gate.", "reasoning": "He walks to it.", "answer": "He opens it."}
    return ResponseItem(f"[item {number}] What happens next?", **{**values, **fields})


def is_right(number: int) -> bool:
    """The server's own rule."""
    return number * 7 % 3 == 0


def scores(number: int) -> tuple[int, int]:
    return number % 6, number * 5 % 6


def tell_truth(request: Request) -> Reply:
    number = request.number
    if "strict evaluator" in request.body["messages"][0]["content"]:
        return Reply(json.dumps({"reasoning": f"seen {number}", "score": scores(number)}))
    return Reply("Yes." if is_right(number) else "no")


def misbehave(seed: int, timeout_s: float) -> Callable[[Request], Reply]:
    """Tell the truth, but for the faults of this seed; the slow one outlasts `timeout_s`."""

    def respond(request: Request) -> Reply:
        kind = fault(request.number, request.attempt, seed)
        return tell_truth(request) if kind is None else FAULTS[kind](timeout_s)

    return respond


def judged(judge: Judge, kind: str, count: int) -> tuple[list[Any], list[Any]]:
    """Verdicts about so many answers or responses (`kind`), and the values that the server's own rule gives."""
    numbers = range(count)
    if kind == "answer":
        return judge.judge_answers([answer(i) for i in numbers]), [is_right(i) for i in numbers]
    return judge.score_responses([response(i) for i in numbers]), [scores(i) for i in numbers]
