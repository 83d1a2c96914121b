"""What is read from replies of an endpoint, and what is not guessed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from futurel1.endpoints import ReplyError
from futurel1.engines.replies import Choice, Reply, read_count, read_models, read_reply


def choice(text: Any, reason: Any = "stop", **more: Any) -> dict[str, Any]:
    return {"message": {"content": text}, "finish_reason": reason, **more}


def test_responses_are_ordered_by_their_number_and_ends_have_one_name() -> None:
    body = {"choices": [choice("b", "length", index=1), choice(None, index=0)], "usage": {"prompt_tokens": 7}}
    assert read_reply(json.dumps(body)) == Reply((Choice("", "eos"), Choice("b", "length")), 7)
    for reason, end in (("eos_token", "eos"), ("stop_sequence", "stop"), ("max_tokens", "length")):
        assert read_reply(json.dumps({"choices": [choice("a", reason)]})) == Reply((Choice("a", end),), None)  # type: ignore[arg-type]
    for usage in (None, {}, {"prompt_tokens": "7"}, {"prompt_tokens": 0}, [7]):
        assert read_reply(json.dumps({"choices": [choice("a")], "usage": usage})).prompt_tokens is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<html>", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no JSON object"),
        ("{}", "no choices"),
        ('{"choices": []}', "no choices"),
        ('{"choices": [{}]}', "no choices"),
        ('{"choices": "yes"}', "no choices"),
        (json.dumps({"choices": [choice("a"), choice("b", None)]}), "finish_reason None"),
        (json.dumps({"choices": [choice("a", "content_filter")]}), "finish_reason 'content_filter'"),
        (json.dumps({"choices": [choice(["a"])]}), "no text"),
    ],
)
def test_what_is_no_whole_response_is_refused(body: str, reason: str) -> None:
    with pytest.raises(ReplyError, match=reason):
        read_reply(body)


def test_models_and_counts() -> None:
    assert read_models('{"data": [{"id": "a"}, {"id": "b"}]}') == ["a", "b"]
    with pytest.raises(ReplyError, match=r"no data\[\]\.id"):
        read_models('{"data": [{"name": "a"}]}')
    assert (read_count('{"count": 3}'), read_count('{"tokens": []}'), read_count('{"count": "3"}')) == (3, None, None)
