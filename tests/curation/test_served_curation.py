"""`futurel1 curate --engine Server`: the results of the own loop's files, whatever the server does."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer, Reply, Request, serving
from model_server import MODEL, PretendedModel, faulty

from futurel1.cli import main
from futurel1.models import load_processor
from processes import Command

RESULTS = ("curated.jsonl", "report.txt", "report.png", "settings.json", "probes-00000-of-00001.jsonl")


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor("tiny")


def options(records: Path, out: Path, url: str, *more: str) -> list[str]:
    return [
        "curate", str(records), "--out", str(out), "--engine", "Server", "--engine.base_url", url, "--engine.model",
        MODEL, "--engine.wait_base_s", "0.005", "--engine.wait_max_s", "0.02", "--engine.max_attempts", "12",
        "--rollouts", "4", "--thresholds.max_base", "4", "--thresholds.min_gain", "1", "--prompts.num_workers", "0",
        "--batch_size", "3", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sequential(records: Path, processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curation with one request at a time."""
    out = tmp_path_factory.mktemp("served") / "out"
    with serving(PretendedModel(processor)) as server:
        main(options(records, out, server.url, "--engine.concurrency", "1"))
        assert server.most_in_flight == 1
        assert len(asked(server)) == 2 * 20
    return out


def asked(server: JudgeServer) -> list[Request]:
    return [request for request in server.requests if "messages" in request.body]


def same(out: Path, other: Path) -> bool:
    return all((out / name).read_bytes() == (other / name).read_bytes() for name in RESULTS)


def test_results_are_those_of_one_request_at_a_time(
    records: Path, processor: Any, sequential: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = [json.loads(line) for line in (sequential / "probes-00000-of-00001.jsonl").read_text().splitlines()]
    gains = {line["hint"] - line["base"] for line in table if line["status"] == "probed"}
    assert len(gains) > 2  # or nothing would be compared
    assert (sequential / "curated.jsonl").read_text()
    with serving(faulty(PretendedModel(processor))) as server:
        main(options(records, tmp_path / "out", server.url, "--batch_size", "5", "--prompts.num_workers", "1"))
        assert server.most_in_flight > 1
    assert same(tmp_path / "out", sequential)
    assert "26  candidates" in capsys.readouterr().out
    seeds = {}
    for request in asked(server):
        seeds.setdefault(request.body["seed"], set()).add(len(request.body["messages"][1]["content"]))
    assert len(seeds) == 20
    assert all(len(shown) == 2 for shown in seeds.values())  # both probes of a record have the same random numbers


def test_a_run_that_a_server_ended_goes_on_at_another_address(
    records: Path, processor: Any, sequential: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = PretendedModel(processor), tmp_path / "out"

    def dying(request: Request) -> Reply:
        return model(request) if len(server.requests) < 20 else Reply(status=403, body="licence expired")

    with serving(dying) as server, pytest.raises(SystemExit):
        # One at a time: of many at once, all may be refused before those of the first batch are answered.
        main(options(records, out, server.url, "--engine.concurrency", "1"))
    assert "answered HTTP 403 to records.jsonl:" in capsys.readouterr().err
    before = (out / "probes-00000-of-00001.jsonl").read_bytes()
    assert 0 < before.count(b"\n") < 20
    with serving(model) as other:
        main(options(records, out, other.url, "--engine.concurrency", "4"))
        assert len(asked(other)) <= 40 - 2 * before.count(b"probed")
        assert same(out, sequential)
        capsys.readouterr()
        for wrong, name in (
            (["--sampling.seed", "1"], "seed"),
            (["--engine.model", "another"], "model"),
            (["--engine.extra_body", '{"top_k": 1}'], "model"),
        ):
            with pytest.raises(SystemExit):
                main(options(records, out, other.url, *wrong))
            assert f"({name} differ)" in capsys.readouterr().err


def test_records_without_responses_are_named_and_asked_again(
    records: Path, processor: Any, sequential: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model, out = PretendedModel(processor), tmp_path / "out"

    def partial(status: int) -> Callable[[Request], Reply]:
        """Question 7 never gets a response."""
        return lambda request: (
            Reply(status=status, body="cannot") if "next, 7?" in json.dumps(request.body) else model(request)
        )

    caplog.set_level(logging.WARNING)
    with serving(partial(500)) as server:
        main(options(records, out, server.url, "--engine.max_attempts", "2"))
    lines = [json.loads(line) for line in (out / "probes-00000-of-00001.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines if line["status"] == "failed"] == [7]
    assert lines[7]["reason"].startswith("records.jsonl:8: no response (HTTP 500: cannot)")
    with serving(partial(400)) as server:
        with pytest.raises(SystemExit):
            main(options(records, out, server.url, "--mode", "retry"))
        assert "answered HTTP 400 to records.jsonl:8: cannot" in capsys.readouterr().err
        main(options(records, out, server.url, "--mode", "retry", "--prompts.on_error", "skip"))
    lines = [json.loads(line) for line in (out / "probes-00000-of-00001.jsonl").read_text().splitlines()]
    assert (lines[-1]["number"], lines[-1]["status"], lines[-1]["attempt"]) == (7, "skipped", 2)
    with serving(model) as server:
        main(options(records, out, server.url, "--mode", "retry"))
        assert len(asked(server)) == 2
    assert all((out / name).read_bytes() == (sequential / name).read_bytes() for name in RESULTS[:4])


def test_another_chat_template_is_found_at_the_first_record(
    records: Path, processor: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(PretendedModel(processor, counts=9)) as server, pytest.raises(SystemExit):
        main(options(records, tmp_path / "out", server.url))
    said = capsys.readouterr().err
    assert "records.jsonl:1: the server" in said
    assert "require_same_tokens false" in said
    assert len(asked(server)) == 2  # one chat, one /tokenize
    assert (tmp_path / "out" / "probes-00000-of-00001.jsonl").read_bytes() == b""


@pytest.mark.slow
def test_a_killed_process_goes_on(records: Path, processor: Any, sequential: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out", PretendedModel(processor)
    file = out / "probes-00000-of-00001.jsonl"

    def slow(request: Request) -> Reply:
        reply = model(request)
        reply.delay_s = 0.3 if len(server.requests) > 12 else 0.0
        return reply

    with serving(slow) as server:
        killed = Command(options(records, out, server.url, "--engine.concurrency", "2"), tmp_path / "killed.log")
        killed.kill_when(lambda: file.is_file() and file.read_bytes().count(b"\n") >= 3)
    before = file.read_bytes()
    assert not (out / "curated.jsonl").exists()
    with serving(faulty(model)) as server:
        main(options(records, out, server.url))
        assert len(asked(server)) < 2 * 40
    assert file.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert same(out, sequential)
    shutil.rmtree(out)
