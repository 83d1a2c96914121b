"""When too many failed calls stop a run."""

import re

import pytest
from judge_server import Reply, Request, answer, make_judge, serving, tell_truth

from futurel1.rewards import JudgeError


def test_too_many_failures_stop_the_run() -> None:
    def respond(request: Request) -> Reply:
        if request.number % 4 == 0:
            return Reply(status=500, body="out of memory")
        return Reply("perhaps") if request.number % 4 == 1 and request.number > 8 else tell_truth(request)

    with serving(respond) as server:
        judge = make_judge(server, max_failure_rate=0.3, min_calls_for_rate=20, concurrency=4, max_attempts=2)
        with pytest.raises(JudgeError) as error:
            judge.judge_answers([answer(i) for i in range(500)])
        assert len(server.requests) < 100
    message = str(error.value)
    said = re.search(r"failed (\d+) of the latest (\d+) calls", message)
    assert said is not None, message
    failed, calls = map(int, said.groups())
    assert calls >= 20
    assert failed > 0.3 * calls
    # Of the four in flight, those that ended meanwhile count as well.
    assert calls <= judge.stats.calls <= calls + 4
    assert failed <= judge.stats.failed <= failed + 4
    assert "max_failure_rate=0.3" in message
    assert "x HTTP 500: out of memory" in message
    assert "x unparseable reply: neither yes nor no" in message


def test_few_calls_and_the_exact_rate_do_not_stop() -> None:
    with serving(lambda request: Reply(status=500)) as server:
        judge = make_judge(server, max_failure_rate=0.0, min_calls_for_rate=20, max_attempts=1)
        assert all(verdict.failed for verdict in judge.judge_answers([answer(i) for i in range(19)]))
        with pytest.raises(JudgeError, match="failed 20 of the latest 20 calls"):
            judge.judge_answers([answer(20)])
        # Who catches it may try again.
        assert judge.judge_answers([answer(21)])[0].failed

    half = lambda request: tell_truth(request) if request.number % 2 else Reply(status=500)  # noqa: E731
    with serving(half) as server:
        judge = make_judge(server, max_failure_rate=0.5, min_calls_for_rate=2, max_attempts=1, concurrency=1)
        verdicts = judge.judge_answers([answer(i) for i in range(1, 41)])
    assert sum(verdict.failed for verdict in verdicts) == 20


def test_an_outage_late_in_a_long_run_stops_it() -> None:
    with serving(lambda request: tell_truth(request) if request.number < 300 else Reply(status=502)) as server:
        judge = make_judge(server, max_failure_rate=0.1, failure_window=50, max_attempts=1, concurrency=4)
        judge.judge_answers([answer(i) for i in range(300)])
        with pytest.raises(JudgeError, match="failed 6 of the latest 50 calls"):
            judge.judge_answers([answer(i) for i in range(300, 400)])
