"""A judge of whose calls 30% go wrong, over a thousand calls: no verdict is guessed, none is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from judge_server import judged, make_judge, misbehave, serving

CALLS = 500
TIMEOUT_S = 2.0


@pytest.mark.parametrize("kind", ["answer", "response"])
def test_verdicts_are_right_though_30_percent_of_the_calls_go_wrong(
    kind: str, trials: Callable[[str, int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")

    with serving(misbehave(seed=7, timeout_s=TIMEOUT_S)) as server:
        judge = make_judge(server, timeout_s=TIMEOUT_S, max_attempts=20)
        verdicts, expected = judged(judge, kind, CALLS)
    right = sum(verdict.value == truth for verdict, truth in zip(verdicts, expected, strict=True))
    trials("judge: call among those of which 30% go wrong", CALLS, right)
    assert right == CALLS
    assert sum(judge.stats.retries.values()) > CALLS / 5
