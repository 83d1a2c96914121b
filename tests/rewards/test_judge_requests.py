"""What is sent to an endpoint, when it is sent again, and where its key goes."""

import json
import logging
import os
import pickle
import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from judge_server import KEY, Reply, Request, answer, is_right, make_judge, response, serving, tell_truth

from futurel1.endpoints.chat_client import AttemptError, retry_after_s
from futurel1.errors import ConfigError
from futurel1.rewards import Judge, JudgeError


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(drop=True), "connection: "),
        (Reply(status=503, body="overloaded"), "HTTP 503: overloaded"),
        (Reply(status=408, body=""), "HTTP 408: empty body"),
        (Reply(status=429, body="slow down"), "HTTP 429: slow down"),
        (Reply(body="<html>yes</html>"), "unparseable reply: the body is not JSON in <html>yes</html>"),
        (Reply(body="[]"), "no choices[0].message.content"),
        (Reply(body='{"error": {"message": "no capacity"}}'), 'no choices[0].message.content in {"error": '),
        (Reply(body='{"choices": "yes"}'), "no choices[0].message.content"),
        (Reply(None), "an empty reply (finish_reason 'stop')"),
        (Reply("I cannot tell."), "neither yes nor no comes first"),
    ],
)
def test_what_is_retried_and_what_a_failed_verdict_says(reply: Reply, reason: str) -> None:
    with serving(lambda request: reply) as server:
        judge = make_judge(server, max_attempts=3)
        [verdict] = judge.judge_answers([answer(0)])
        assert len(server.requests) == 3
    assert verdict.failed
    assert verdict.value is None
    assert reason in verdict.reason
    assert judge.stats.retries.total() == 2


def test_nothing_listens() -> None:
    with serving(tell_truth) as server:
        url = server.url
    judge = make_judge(url, max_attempts=3)
    [verdict] = judge.judge_answers([answer(0)])
    assert (verdict.failed, verdict.attempts) == (True, 3)
    assert "connection: ConnectError" in verdict.reason


def test_a_trickling_reply_ends_at_the_timeout() -> None:
    """The limit is on the whole request: an endpoint that sends a byte now and then cannot hold a place for ever."""

    with serving(lambda request: Reply("yes", byte_delay_s=0.05)) as server:
        [verdict] = make_judge(server, timeout_s=0.3, max_attempts=1).judge_answers([answer(0)])
    assert verdict.reason == "timeout: no reply within 0.3 s"


# Waiting


def test_retry_after_is_honoured() -> None:
    def busy_once(request: Request) -> Reply:
        return Reply(status=429, headers={"Retry-After": "1"}) if request.attempt == 1 else tell_truth(request)

    with serving(busy_once) as server:
        [verdict] = make_judge(server).judge_answers([answer(0)])
        first, second = (request.received_at for request in server.requests)
    assert verdict.value is True
    assert 1.0 <= second - first < 5.0


def test_a_retry_after_beyond_reason_ends_the_call() -> None:
    with serving(lambda request: Reply(status=429, headers={"Retry-After": "3600"})) as server:
        [verdict] = make_judge(server).judge_answers([answer(0)])
    assert (verdict.failed, verdict.attempts) == (True, 1)
    assert "Retry-After 3600 s" in verdict.reason


def test_retry_after_forms() -> None:
    assert retry_after_s(None) == 0
    assert retry_after_s("2.5") == 2.5
    assert retry_after_s("-3") == retry_after_s("soon") == retry_after_s("nan") == retry_after_s("") == 0
    now = datetime.now(UTC)
    assert 58 < retry_after_s(format_datetime(now + timedelta(seconds=60), usegmt=True)) <= 60
    assert retry_after_s(format_datetime(now - timedelta(seconds=60), usegmt=True)) == 0


def test_waits_grow_and_are_jittered_without_touching_the_global_generator() -> None:
    judge = make_judge("http://127.0.0.1:9/v1", wait_base_s=1.0, wait_max_s=4.0)

    class State:
        def __init__(self, attempt_number: int) -> None:
            self.attempt_number = attempt_number
            self.outcome = self
            self.exception = lambda: AttemptError("HTTP 500", "")

    random.seed(0)
    before = random.getstate()
    longest = [max(judge._client._wait(State(attempt)) for _ in range(300)) for attempt in (1, 2, 3, 4)]  # type: ignore[arg-type]
    assert random.getstate() == before
    for limit, value in zip((1, 2, 4, 4), longest, strict=True):
        assert 0.8 * limit < value <= limit


# Stopping


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (400, "its length, its images"),
        (401, "environment variable OPENAI_API_KEY"),
        (404, "Check base_url"),
        (302, "Check base_url"),
    ],
)
def test_a_refusal_stops_at_once(status: int, remedy: str) -> None:
    reply = Reply(status=status, body='{"error": "cannot do that"}', headers={"Location": "/elsewhere"})
    with serving(lambda request: reply) as server:
        judge = make_judge(server, concurrency=1)
        with pytest.raises(JudgeError, match=f"HTTP {status} to item 0: .*cannot do that") as error:
            judge.judge_answers([answer(i) for i in range(50)])
        assert len(server.requests) == 1
    assert remedy in str(error.value)


# Concurrency


def test_requests_in_flight_are_bounded() -> None:
    def slow(request: Request) -> Reply:
        reply = tell_truth(request)
        reply.delay_s = 0.1
        return reply

    with serving(slow) as server:
        verdicts = make_judge(server, concurrency=5).judge_answers([answer(i) for i in range(40)])
        assert server.most_in_flight == 5
    assert [verdict.value for verdict in verdicts] == [is_right(i) for i in range(40)]


# The key


def test_the_key_is_sent_and_shown_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Even when the endpoint echoes it, at any place of a long body."""
    caplog.set_level(logging.DEBUG)
    padding = "x" * 280

    def echo(request: Request) -> Reply:
        assert request.authorization is not None
        if request.number == 0:
            return Reply(f"yes {padding}{request.authorization}")
        if request.number == 1:
            return Reply(json.dumps({"reasoning": request.authorization, "score": [1, 2]}))
        if request.number == 2:
            return Reply(f"perhaps {request.authorization}")
        return Reply(status=500 if request.number == 3 else 400, body=f"{padding}{request.authorization}")

    shown: list[str] = []
    with serving(echo) as server:
        judge = make_judge(server, cache_dir=tmp_path, max_attempts=2, min_calls_for_rate=1, progress=True)
        verdicts = judge.judge_answers([answer(0), answer(2), answer(3)]) + judge.score_responses([response(1)])
        with pytest.raises(JudgeError) as refused:
            judge.judge_answers([answer(4)])
        strict = make_judge(server, max_attempts=2, min_calls_for_rate=1, max_failure_rate=0.0)
        with pytest.raises(JudgeError) as stopped:
            strict.judge_answers([answer(3)])
        assert {request.authorization for request in server.requests} == {f"Bearer {KEY}"}
    assert [verdict.failed for verdict in verdicts] == [False, True, True, False]
    shown += [repr(verdicts), repr(judge), str(vars(judge)), str(vars(judge._client)), str(judge.stats), caplog.text]
    shown += [f"{error.value!s} {error.value!r} {error.value.__cause__!r}" for error in (refused, stopped)]
    shown += [file.read_text() for file in tmp_path.rglob("*.json")]
    shown.append(pickle.dumps(judge).decode("latin-1"))
    assert "HTTP 500" in caplog.text
    for text in shown:
        assert KEY[:8] not in text


@pytest.mark.parametrize("key", ["sk-secret\nvalue", "sk-secret value", "sk-secret\u2026", "sk-secret\x00"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "JUDGE_KEY": key})
    with pytest.raises(ConfigError, match="JUDGE_KEY") as error:
        Judge("http://127.0.0.1:9/v1", "m", api_key_env="JUDGE_KEY")
    assert "secret" not in str(error.value)


def test_keys_may_be_missing_only_when_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " \n")
    with pytest.raises(ConfigError, match=r"OPENAI_API_KEY .* api_key_env to null"):
        Judge("http://127.0.0.1:9/v1", "m")
    with serving(tell_truth) as server:
        assert make_judge(server, api_key_env=None).judge_answers([answer(0)])[0].value is True
        assert server.requests[0].authorization is None
        monkeypatch.setenv("OTHER_KEY", f"{KEY}\n")
        make_judge(server, api_key_env="OTHER_KEY").judge_answers([answer(0)])
        assert server.requests[1].authorization == f"Bearer {KEY}"


def test_a_password_in_the_address_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="api_key_env") as error:
        Judge("https://me:hunter2@host/v1", "m")
    assert "hunter2" not in str(error.value)


def test_the_address_may_end_in_a_slash_or_the_method() -> None:
    for ending in ("/", "/chat/completions", ""):
        with serving(tell_truth) as server:
            make_judge(server.url + ending).judge_answers([answer(0)])
            assert server.requests[0].path == "/v1/chat/completions"


def test_a_progress_bar_for_long_lists(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tell_truth) as server:
        make_judge(server).judge_answers([answer(0)])
        assert capsys.readouterr().err == ""
        make_judge(server, progress=True).judge_answers([answer(i) for i in range(5)])
    assert "asking judge-model" in capsys.readouterr().err
