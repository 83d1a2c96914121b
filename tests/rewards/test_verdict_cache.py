"""Verdicts on the disk, and a disk that takes none."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from judge_server import Reply, answer, is_right, make_judge, response, scores, serving, tell_truth
from PIL import Image

from futurel1.rewards import Judge, ResponseItem, Verdict, judge_replies, verdict_cache
from futurel1.rewards.verdict_cache import VerdictCache
from leaving import leave_half


def test_cached_verdicts_need_no_call_whatever_the_address(tmp_path: Path) -> None:
    answers, responses = [answer(i) for i in range(10)], [response(i) for i in range(10)]
    with serving(tell_truth) as server:
        judge = make_judge(server, cache_dir=tmp_path / "verdicts")
        first = judge.judge_answers(answers) + judge.score_responses(responses)
    with serving(tell_truth) as other:
        judge = make_judge(other, cache_dir=tmp_path / "verdicts")
        second = judge.judge_answers(answers) + judge.score_responses(responses)
        assert not other.requests
    assert [(v.kind, v.value, v.reason) for v in first] == [(v.kind, v.value, v.reason) for v in second]
    assert all(verdict.cached and verdict.attempts == 0 for verdict in second)
    assert (judge.stats.calls, judge.stats.cached) == (0, 20)
    assert len(list(tmp_path.rglob("*.json"))) == 20
    assert not list(tmp_path.rglob("*.part"))


def test_what_a_killed_run_was_writing_is_removed_when_it_is_written_again(tmp_path: Path) -> None:
    file = tmp_path / "ab" / f"{'c' * 38}.json"
    file.parent.mkdir()
    leave_half(file)
    others = leave_half(file, pid=os.getppid())
    assert VerdictCache(tmp_path, "judge").write(f"ab{'c' * 38}ff", "answer", True, "it is")
    assert sorted(file.parent.iterdir()) == sorted([file, others])


def test_whatever_can_change_the_verdict_is_in_the_key(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("You are a strict evaluator, and a kind one.")
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    variants: list[tuple[dict[str, Any], ResponseItem]] = [
        ({}, response(1, question_images=[red])),
        ({}, response(1, question_images=[blue])),
        ({}, response(1, question_images=[red], answer="He leaves.")),
        ({"temperature": 0.5}, response(1, question_images=[red])),
        ({"seed": 3}, response(1, question_images=[red])),
        ({"extra_body": {"top_p": 0.5}}, response(1, question_images=[red])),
        ({"twiff_prompt": prompt}, response(1, question_images=[red])),
    ]
    with serving(tell_truth) as server:
        for settings, item in variants * 2:
            make_judge(server, cache_dir=tmp_path / "verdicts", **settings).score_responses([item])
        assert len(server.requests) == len(variants)
        other_model = Judge(server.url, "other-model", cache_dir=tmp_path / "verdicts")
        assert not other_model.score_responses([variants[0][1]])[0].cached


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "null",
        lambda text: "[" * 100_000,
        lambda text: text.replace("true", "1"),
        lambda text: text.replace("true", "[5, 5]"),
        lambda text: text.replace('"digest": "', '"digest": "0'),
        lambda text: "\xff\xfe",
    ],
)
def test_a_damaged_entry_is_made_anew(tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tell_truth) as server:
        judge = make_judge(server, cache_dir=tmp_path)
        judge.judge_answers([answer(0)])
        [file] = tmp_path.rglob("*.json")
        good = file.read_text()
        file.write_text(damage(good), encoding="latin-1")
        [verdict] = judge.judge_answers([answer(0)])
        assert len(server.requests) == 2
    assert (verdict.value, verdict.cached) == (True, False)
    assert file.read_text() == good
    assert f"{file} is damaged" in caplog.text


def test_scores_that_could_not_have_been_written_are_not_read(tmp_path: Path) -> None:
    with serving(tell_truth) as server:
        judge = make_judge(server, cache_dir=tmp_path)
        judge.score_responses([response(1)])
        [file] = tmp_path.rglob("*.json")
        entry = json.loads(file.read_text())
        for value in ([6, 1], [True, 1], [1], [1, 2, 3], ["1", 2], None, True):
            file.write_text(json.dumps({**entry, "value": value}))
            assert judge.score_responses([response(1)])[0] == Verdict("response", scores(1), False, "seen 1", 1, False)


def test_entries_of_earlier_rules_of_reading_are_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda request: Reply("Yes, so it seems.\n</think>\n\nNo")) as server:
        with monkeypatch.context() as earlier:
            earlier.setattr(verdict_cache, "READING", 1)
            earlier.setattr(judge_replies, "parse_yes_no", lambda reply, *candidate: reply.startswith("Yes"))
            assert make_judge(server, cache_dir=tmp_path).judge_answers([answer(0)])[0].value is True
        [verdict] = make_judge(server, cache_dir=tmp_path).judge_answers([answer(0)])
    assert (verdict.value, verdict.cached) == (False, False)


def full(*args: Any, **more: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def no_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files where the folders of entries should be."""
    folder.mkdir()
    for number in range(256):
        (folder / f"{number:02x}").touch()


FAULTY_CACHES: dict[str, Any] = {
    "full disk": lambda folder, patch: patch.setattr(os, "replace", full),
    "read-only": lambda folder, patch: patch.setattr(Path, "mkdir", full),
    "files for folders": no_shards,
    "below a file": lambda folder, patch: folder.parent.touch(),
    "name too long": lambda folder, patch: None,
}


@pytest.mark.parametrize("fault", FAULTY_CACHES)
def test_a_cache_that_cannot_be_written_loses_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "parent" / ("x" * 300 if fault == "name too long" else "verdicts")
    if fault != "below a file":
        folder.parent.mkdir()
    FAULTY_CACHES[fault](folder, monkeypatch)
    with serving(tell_truth) as server:
        judge = make_judge(server, cache_dir=folder)
        verdicts = judge.judge_answers([answer(number) for number in range(30)])
        assert len(server.requests) == 30
    assert [verdict.value for verdict in verdicts] == [is_right(number) for number in range(30)]
    assert judge.stats.unsaved == 30
    assert judge.stats.failed == 0
    warnings = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert len(warnings) == 1
    assert f"cache_dir {folder}" in warnings[0]
    assert not list(tmp_path.rglob("*.part"))


def test_a_cache_that_cannot_be_read_costs_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tell_truth) as server:
        make_judge(server, cache_dir=tmp_path).judge_answers([answer(0), answer(1)])
        monkeypatch.setattr(Path, "read_bytes", lambda file: full())
        verdicts = make_judge(server, cache_dir=tmp_path).judge_answers([answer(0), answer(1)])
    assert [(verdict.value, verdict.cached) for verdict in verdicts] == [(True, False), (False, False)]
    assert caplog.text.count("cannot be read") == 1


def test_failures_are_not_kept(tmp_path: Path) -> None:
    with serving(lambda request: Reply("perhaps") if request.attempt == 1 else tell_truth(request)) as server:
        judge = make_judge(server, cache_dir=tmp_path, max_attempts=1)
        assert judge.judge_answers([answer(0)])[0].failed
        assert not list(tmp_path.rglob("*.json"))
        assert judge.judge_answers([answer(0)])[0].value is True
