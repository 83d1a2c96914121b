"""`predict` and `test` of a model behind a server: the files of the own loop, with answers of the server."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer, Reply, Request, serving
from lightning import Trainer
from model_server import PretendedModel, faulty, make_server

from futurel1.cli import main
from futurel1.datamodules import PromptDataModule
from futurel1.errors import ConfigError, RecordError
from futurel1.models import load_processor
from futurel1.models.policies import DeterministicLatents
from futurel1.modules import JSONLinesWriter, LatentPredictor
from futurel1.rollout import SamplingSettings


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor("tiny")


def run(
    folder: Path, world: Path, url: str, stage: str = "predict", *, on_error: Any = "raise", concurrency: int = 16,
    **options: Any,
) -> Any:  # fmt: skip
    sampled, engine = {"num_branches": 4, "do_sample": True, **options}, make_server(url, concurrency=concurrency)
    module = LatentPredictor(engine=engine, sampling=SamplingSettings(max_new_tokens=20), **sampled)
    data = PromptDataModule(
        predict=str(world / "test.jsonl"), batch_size=3, num_workers=0, system_prompt=str(world / "prompt.txt"),
        on_error=on_error,
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[JSONLinesWriter()],
    )  # fmt: skip
    return getattr(trainer, stage)(module, data)


def lines(folder: Path, name: str = "predictions.jsonl") -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": 0} for line in (folder / name).read_text().splitlines()]


def chats(server: JudgeServer) -> list[Request]:
    return [request for request in server.requests if "messages" in request.body]


def test_predictions_hold_the_votes_of_a_servers_responses(processor: Any, world: Path, tmp_path: Path) -> None:
    model = PretendedModel(processor)
    with serving(model) as server:
        run(tmp_path / "one", world, server.url)
        asked = chats(server)
    found = lines(tmp_path / "one")
    assert [line["id"] for line in found] == [f"test.jsonl:{number}" for number in range(1, 9)]
    said = {}
    for request in asked:
        texts = [model.text(request.body, place) for place in range(4)]
        said[request.body["seed"]] = Counter(re.findall(r"<answer>(.)</answer>", "".join(texts)))
    assert len(said) == 8
    votes = sorted(str(sorted(counts.items())) for counts in said.values())
    assert (
        sorted(str(sorted((name, round(4 * share)) for name, share in line["votes"].items())) for line in found)
        == votes
    )
    for line in found:
        assert line["answer"] == max(line["votes"], key=lambda name: line["votes"][name])
        assert f"<answer>{line['answer']}</answer>" in line["response"]
        assert (line["spans"], line["finish_reason"]) == ([], "eos")
    with serving(faulty(model)) as server:
        run(tmp_path / "two", world, server.url)
    assert lines(tmp_path / "two") == found


def test_a_prediction_that_a_server_ended_goes_on_elsewhere(processor: Any, world: Path, tmp_path: Path) -> None:
    model = PretendedModel(processor)

    def dying(request: Request) -> Reply:
        return model(request) if len(server.requests) < 8 else Reply(status=400, body="full")

    with serving(model) as server:
        run(tmp_path / "whole", world, server.url)
    with serving(dying) as server, pytest.raises(RecordError, match=r"test\.jsonl:\d: the server .* HTTP 400.* skip"):
        run(tmp_path / "run", world, server.url, concurrency=1)  # or all may be refused before the first is answered
    before = len(lines(tmp_path / "run"))
    assert 0 < before < 8
    with serving(model) as server:
        with pytest.raises(ConfigError, match=r"model\.num_branches differ"):
            run(tmp_path / "run", world, server.url, num_branches=2)
        run(tmp_path / "run", world, server.url)
        assert len(chats(server)) == 8 - before
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")

    refused: set[int] = set()

    def picky(request: Request) -> Reply:
        """Refuses the second prompt that it sees."""
        if "messages" in request.body and (len(chats(server)) == 2 or request.body["seed"] in refused):
            refused.add(request.body["seed"])
            return Reply(status=413, body="too large")
        return model(request)

    with serving(picky) as server:
        run(tmp_path / "skips", world, server.url, on_error="skip", concurrency=1)
    [skipped] = lines(tmp_path / "skips", "skipped.jsonl")
    assert "too large" in skipped["message"]
    assert len(lines(tmp_path / "skips")) == 7


def test_tests_score_a_servers_responses(processor: Any, world: Path, tmp_path: Path) -> None:
    with serving(PretendedModel(processor)) as server:
        [scores] = run(tmp_path, world, server.url, "test", num_branches=1, do_sample=False)
    count = len(processor.tokenizer("Greedy. <answer>B</answer>")["input_ids"]) + 1
    assert scores["test/tokens_per_sample"] == count
    assert [line["answer"] for line in lines(tmp_path, "samples.jsonl")] == ["B"] * 8
    assert 0 < scores["test/seconds_per_sample"] < 60


def test_what_needs_latents_is_refused() -> None:
    server = make_server("http://127.0.0.1:9/v1")
    for wrong in ({"latent_policy": DeterministicLatents()}, {"intervention": "zero"}, {"save_latents": True}):
        with pytest.raises(ConfigError, match="need the model in this process"):
            LatentPredictor(engine=server, **wrong)  # type: ignore[arg-type]


def test_the_command_line_takes_an_engine_and_resumes(processor: Any, world: Path, tmp_path: Path) -> None:
    with serving(PretendedModel(processor)) as server:
        main(
            [
                "predict", "--config", "tiny/predict", "--data.init_args.predict", str(world / "test.jsonl"),
                "--data.init_args.num_workers", "0", "--data.init_args.system_prompt", str(world / "prompt.txt"),
                "--model.init_args.engine", "Server", "--model.init_args.engine.base_url", server.url,
                "--model.init_args.engine.model", "stock", "--run_dir", str(tmp_path / "run"),
            ]
        )  # fmt: skip
        found = lines(tmp_path / "run")
        assert len(found) == 8
        (tmp_path / "run" / "predictions.jsonl").write_text(json.dumps(found[0]) + "\n")
        asked = len(chats(server))
        main(["predict", "--resume", str(tmp_path / "run")])
        assert len(chats(server)) == asked + 7
    assert lines(tmp_path / "run") == found
