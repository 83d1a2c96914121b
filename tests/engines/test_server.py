"""A server as an engine: what it is asked, what happens when it fails, and that answers do not depend on either."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer, Reply, Request, serving
from model_server import PretendedModel, faulty, make_server

from futurel1.data import Frame, Sample, Turn
from futurel1.data.chat import ChatEncoder
from futurel1.endpoints import EndpointError
from futurel1.engines import Answers, Decoding, Server, ServerEngine, ServerPrompt, Unanswered
from futurel1.errors import ConfigError
from futurel1.rollout import SamplingSettings

EIGHT = Decoding(SamplingSettings(max_new_tokens=20, seed=3), num_branches=8)


@pytest.fixture
def ask(encoder: ChatEncoder, picture_file: Path) -> Callable[..., list[Answers]]:
    """Ask a server about so many records of one picture."""

    def asked(url: str, number: int = 1, decoding: Decoding = EIGHT, **settings: Any) -> list[Answers]:
        with make_server(url, **settings).engine("tiny@random", encoder, decoding) as engine:
            return engine.begin(prompts(engine, picture_file, number))()

    return asked


def prompts(engine: ServerEngine, file: Path, number: int) -> list[ServerPrompt]:
    parts = (Frame(file, None), "What is next?")
    return [
        engine.encoder.encode_prompt(Sample(f"r.jsonl:{place + 1}", (Turn("user", parts),), None, {}))
        for place in range(number)
    ]


def texts(answers: Sequence[Answers]) -> list[list[str]]:
    assert not [each for each in answers if isinstance(each, Unanswered)]
    return [[response.text for response in each] for each in answers]  # type: ignore[union-attr]


def chats(server: JudgeServer) -> list[Request]:
    return [request for request in server.requests if request.path == "/v1/chat/completions"]


def test_one_request_holds_a_prompt_and_its_branches(processor: Any, ask: Callable[..., list[Answers]]) -> None:
    with serving(PretendedModel(processor)) as server:
        [answer] = ask(server.url, extra_body={"top_k": -1})
    [request] = chats(server)
    body = request.body
    assert {name: body[name] for name in ("model", "n", "temperature", "top_p", "max_tokens", "top_k")} == {
        "model": "stock", "n": 8, "temperature": 0.9, "top_p": 0.99, "max_tokens": 20, "top_k": -1,
    }  # fmt: skip
    assert 0 <= body["seed"] < 2**31 - 8
    assert body["messages"][0] == {"role": "system", "content": "Think."}
    assert [part["type"] for part in body["messages"][1]["content"]] == ["image_url", "text"]
    assert isinstance(answer, tuple)
    assert len(answer) == 8
    assert {response.finish_reason for response in answer} == {"eos"}
    said = [len(processor.tokenizer(response.text)["input_ids"]) + 1 for response in answer]
    assert [response.tokens for response in answer] == said
    assert len({response.text for response in answer}) == 2


def test_greedy_decoding_sends_no_seed(processor: Any, ask: Callable[..., list[Answers]]) -> None:
    with serving(PretendedModel(processor)) as server:
        answers = ask(server.url, 2, Decoding(SamplingSettings(), 1, do_sample=False))
    assert texts(answers) == [["Greedy. <answer>B</answer>"]] * 2
    for request in chats(server):
        assert request.body["temperature"] == 0
        assert not {"seed", "n", "top_p"} & set(request.body)


def test_faults_delays_and_concurrency_change_no_answer(processor: Any, ask: Callable[..., list[Answers]]) -> None:
    with serving(PretendedModel(processor)) as server:
        alone = ask(server.url, 40, concurrency=1)
        assert len({request.body["seed"] for request in chats(server)}) == 40
    with serving(faulty(PretendedModel(processor))) as server:
        assert ask(server.url, 40) == alone
        assert len(chats(server)) > 48
    assert len(set(map(str, texts(alone)))) > 20


def test_requests_in_flight_are_bounded_and_the_first_goes_alone(
    processor: Any, ask: Callable[..., list[Answers]]
) -> None:
    model, alone = PretendedModel(processor, counts=None, tokenizes=0), []

    def slow(request: Request) -> Reply:
        alone.append(server.in_flight)
        reply = model(request)
        reply.delay_s = 0.15 if "n" in request.body else 0.0
        return reply

    with serving(slow) as server:
        ask(server.url, 20, concurrency=5)
        assert server.most_in_flight == 5
    assert alone[:3] == [1, 1, 1]  # the models, the first chat, its tokens


@pytest.mark.parametrize("takes_n", ["refused", "ignored"])
def test_without_n_each_branch_is_asked_for_alone(
    processor: Any, ask: Callable[..., list[Answers]], takes_n: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(PretendedModel(processor)) as server:
        whole = ask(server.url, 5)
    with serving(PretendedModel(processor, takes_n=takes_n)) as server:
        assert ask(server.url, 5) == whole
        assert len(chats(server)) == 1 + 5 * 8
    said = [record.message for record in caplog.records if "does not return n=8" in record.message]
    assert len(said) == 1


# Starting


def test_a_server_may_start_slowly(processor: Any, ask: Callable[..., list[Answers]]) -> None:
    """First nobody listens, then it is loading, then it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model, loading = PretendedModel(processor), [2]

    def respond(request: Request) -> Reply:
        if loading[0]:
            loading[0] -= 1
            return Reply(status=503, body="loading")
        return model(request)

    def start() -> None:
        started.append(JudgeServer(respond, port))
        started[0].serve_forever(poll_interval=0.02)

    started: list[JudgeServer] = []
    timer = threading.Timer(0.2, start)
    timer.start()
    try:
        answers = ask(f"http://127.0.0.1:{port}/v1", 6)
    finally:
        timer.join(0.3)
        started[0].shutdown()
        started[0].server_close()
    assert len(texts(answers)) == 6
    assert [request.path for request in started[0].requests[:3]] == ["/v1/models"] * 3


def test_a_server_that_never_starts_and_a_model_that_it_lacks(
    processor: Any, ask: Callable[..., list[Answers]], encoder: ChatEncoder
) -> None:
    with pytest.raises(EndpointError, match=r"did not answer within start_timeout_s=0\.1 s .*start it"):
        ask("http://127.0.0.1:9/v1", start_timeout_s=0.1)
    with serving(PretendedModel(processor)) as server:
        other = Server(server.url, "other").engine("tiny@random", encoder, EIGHT)
        with other, pytest.raises(ConfigError, match="has no model 'other', only stock"):
            other.begin([ServerPrompt("r:1", b"[]", 1, 1)])()
    with serving(lambda request: Reply(status=401, body="no")) as server, pytest.raises(EndpointError, match="401"):
        ask(server.url)


# Failures


def test_what_a_server_refuses_is_not_asked_again(processor: Any, ask: Callable[..., list[Answers]]) -> None:
    model = PretendedModel(processor)

    def respond(request: Request) -> Reply:
        """The third chat is refused, whatever its n."""
        ids.setdefault(request.body.get("seed", -1), len(ids))
        return Reply(status=400, body="too long") if ids[request.body.get("seed", -1)] == 3 else model(request)

    ids: dict[int, int] = {}
    with serving(respond) as server:
        answers = ask(server.url, 6, concurrency=1)
        assert len(chats(server)) == 6
    [refused] = [each for each in answers if isinstance(each, Unanswered)]
    assert refused.refused
    assert refused.reason.startswith(f"r.jsonl:{answers.index(refused) + 1}: the server at {server.url} answered HTTP")
    assert "too long" in refused.reason


def test_too_many_failures_stop_the_run(processor: Any, ask: Callable[..., list[Answers]]) -> None:
    model = PretendedModel(processor)

    def broken(request: Request) -> Reply:
        return model(request) if request.path == "/v1/models" else Reply(status=500, body="out of memory")

    with serving(broken) as server:
        some = ask(server.url, 4, max_attempts=2)
        with pytest.raises(EndpointError, match=r"failed 20 of the latest 20 calls.*out of memory.*same command"):
            ask(server.url, 60, max_attempts=2)
    assert all(isinstance(each, Unanswered) and not each.refused and "HTTP 500" in each.reason for each in some)


# Parity of prompts


@pytest.mark.parametrize(
    ("counts", "tokenizes", "cause"),
    [
        (7, None, "the chat template, the system turn or the sizes of pictures differ"),
        (7, 7, r"gives \d+ tokens of text, ours \d+, so the chat templates differ"),
        (7, 0, r"the chat templates agree, so pictures or videos get other sizes"),
        (None, 7, "so the chat templates differ"),
    ],
)
def test_other_prompt_tokens_stop_the_run_unless_allowed(
    processor: Any, ask: Callable[..., list[Answers]], counts: int | None, tokenizes: int | None, cause: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with serving(PretendedModel(processor, counts=counts, tokenizes=tokenizes)) as server:
        with pytest.raises(ConfigError, match=rf"r\.jsonl:1: .* counts \d+ prompt tokens.*{cause}.*require_same_tok"):
            ask(server.url, 30)
        assert len(chats(server)) == 1
        assert len(texts(ask(server.url, 30, require_same_tokens=False))) == 30
    assert sum("allowed: require_same_tokens is false" in record.message for record in caplog.records) == 1


def test_a_server_that_counts_nothing_is_asked_to_tokenize(
    processor: Any, ask: Callable[..., list[Answers]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with serving(PretendedModel(processor, counts=None, tokenizes=0)) as server:
        ask(server.url, 3)
        assert not caplog.records
    with serving(PretendedModel(processor, counts=None)) as server:
        ask(server.url, 3)
    assert [record.message.partition(" counts ")[2][:16] for record in caplog.records] == ["no prompt tokens"]


# Settings


def test_settings_that_cannot_work_are_refused(encoder: ChatEncoder) -> None:
    for wrong, message in (
        ({"model": ""}, "name of the model"),
        ({"media": "files"}, "'data' or 'paths'"),
        ({"extra_body": {"n": 3}}, "must not set n"),
        ({"concurrency": 0}, "concurrency must be"),
        ({"start_timeout_s": 0}, "start_timeout_s"),
        ({"base_url": "localhost:8000"}, "must look like http"),
    ):
        with pytest.raises(ConfigError, match=message):
            Server(**{"base_url": "http://h/v1", "model": "m", **wrong})  # type: ignore[arg-type]
    latents = Decoding(SamplingSettings(span_budget="fixed"), 2)
    with pytest.raises(ConfigError, match="a server's model has none"):
        make_server("http://h/v1").engine("tiny@random", encoder, latents)
    one, other = (Server(url, "m", concurrency=count).identity() for url, count in (("http://a", 1), ("http://b", 2)))
    assert one == other
