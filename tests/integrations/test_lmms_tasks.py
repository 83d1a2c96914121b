"""The tasks' functions on documents made by hand; lmms-eval itself is not needed."""

import math
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from futurel1.errors import ConfigError, MissingFileError, RecordError
from futurel1.integrations.lmms_eval import task_folder
from futurel1.integrations.lmms_tasks import dataset_source, mean, total
from futurel1.integrations.lmms_tasks.futurebench import utils as futurebench_task
from futurel1.integrations.lmms_tasks.twiffbench import utils as twiffbench_task
from futurel1.metrics import FutureBenchAccuracy
from futurel1.rewards import Verdict

RESPONSES = [
    "<reason>Dust rises.</reason>\n\n<answer>B</answer>",  # right for both
    "<answer>Answer: B</answer>",  # the paper's rule reads the A of "Answer"
    "<answer>He runs.</answer>",  # the text of the right option: strict only
    "He runs, so B.",  # no tags: no answer
]


def _summary(folder: str, results: list[dict[str, Any]]) -> dict[str, float]:
    """Aggregate as lmms-eval does: by the YAML file's functions, over the items of every document."""

    class Loader(yaml.SafeLoader):
        pass

    module = {"futurebench": futurebench_task, "twiffbench": twiffbench_task}[folder]
    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node).removeprefix("utils."))
    config = yaml.load((task_folder() / folder / f"{folder}.yaml").read_text(), Loader)
    metrics = {entry["metric"]: getattr(module, entry["aggregation"]) for entry in config["metric_list"]}
    assert all(set(result) == set(metrics) for result in results)
    for key in ("doc_to_visual", "doc_to_text", "doc_to_target", "process_results"):
        assert callable(getattr(module, config[key]))
    return {name: aggregate([result[name] for result in results]) for name, aggregate in metrics.items()}


def test_futurebench_scores_every_split_under_both_protocols(questions: list[dict[str, Any]]) -> None:
    results = [futurebench_task.process_results(doc, [text]) for doc, text in zip(questions, RESPONSES, strict=True)]
    summary = _summary("futurebench", results)
    assert math.isnan(summary.pop("paper_hop3"))
    assert math.isnan(summary.pop("strict_hop3"))
    assert summary == {
        "paper_accuracy": 25, "paper_hop1": 50, "paper_hop2": 0, "paper_hop5": 0, "paper_unanswered": 2,
        "strict_accuracy": 75, "strict_hop1": 100, "strict_hop2": 100, "strict_hop5": 0, "strict_unanswered": 1,
    }  # fmt: skip


def test_futurebench_agrees_with_the_metric(questions: list[dict[str, Any]]) -> None:
    metric = FutureBenchAccuracy()
    metric.update(
        RESPONSES,
        [doc["qa"]["Answer"] for doc in questions],
        [doc["question_type"] for doc in questions],
        [doc["qa"]["Options"] for doc in questions],
    )
    expected = metric.compute()
    summary = _summary(
        "futurebench",
        [futurebench_task.process_results(doc, [text]) for doc, text in zip(questions, RESPONSES, strict=True)],
    )
    for name, value in summary.items():
        protocol, _, key = name.partition("_")
        assert value == pytest.approx(float(expected[f"{protocol}/{key}"]), nan_ok=True)


def test_futurebench_asks_as_the_reference_does(futurebench: Path, questions: list[dict[str, Any]]) -> None:
    doc = questions[0]
    text = futurebench_task.doc_to_text(doc)
    assert text.startswith("\nWhat happens next?\nA. He waits.\n")
    assert text.endswith("within the <answer> </answer> tags.")
    assert futurebench_task.doc_to_target(doc) == "B"
    assert futurebench_task.doc_to_visual(doc) == [str(futurebench.parent / "clips" / "a.mp4")]


def test_futurebench_names_what_is_missing(
    futurebench: Path, questions: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RecordError, match="record 0: question_type 'hop9'"):
        futurebench_task.process_results({**questions[0], "question_type": "hop9"}, ["B"])
    monkeypatch.setenv("FUTUREL1_FUTUREBENCH_VIDEOS", str(tmp_path))
    with pytest.raises(MissingFileError, match="set FUTUREL1_FUTUREBENCH_VIDEOS"):
        futurebench_task.doc_to_visual(questions[0])
    monkeypatch.delenv("FUTUREL1_FUTUREBENCH")
    with pytest.raises(ConfigError, match="set FUTUREL1_FUTUREBENCH to"):
        _ = futurebench_task.DATASET_PATH


def test_the_dataset_comes_from_the_environment(futurebench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert futurebench_task.DATASET_PATH == "json"
    assert {"data_files": {"test": [str(futurebench)]}} == futurebench_task.DATASET_KWARGS
    with pytest.raises(AttributeError):
        _ = futurebench_task.NOTHING
    monkeypatch.setenv("FUTUREL1_FUTUREBENCH", "/nowhere/at/all")
    with pytest.raises(MissingFileError, match="no such file or folder"):
        dataset_source("FUTUREL1_FUTUREBENCH")


def test_a_saved_folder_is_read_by_its_arrow_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "saved"
    (folder / "test").mkdir(parents=True)
    for name in ("dataset_dict.json", "test/state.json", "test/data-00000-of-00001.arrow", "test/cache-1.arrow"):
        (folder / name).touch()
    monkeypatch.setenv("BENCH", str(folder))
    builder, kwargs = dataset_source("BENCH")
    assert builder == "arrow"
    assert kwargs["data_files"]["test"] == [str(folder / "test" / "data-00000-of-00001.arrow")]
    (tmp_path / "shouted").mkdir()
    (tmp_path / "shouted" / "Q.JSON").touch()
    monkeypatch.setenv("BENCH", str(tmp_path / "shouted"))
    assert dataset_source("BENCH") == ("json", {"data_files": {"test": [str(tmp_path / "shouted" / "Q.JSON")]}})
    monkeypatch.setenv("BENCH", str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no files"):
        dataset_source("BENCH")


# ---------------------------------------------------------------------- TwiFF-Bench


class _FakeJudge:
    def __init__(self, value: tuple[int, int] | None) -> None:
        self.value = value
        self.items: list[Any] = []

    def score_responses(self, items: list[Any]) -> list[Verdict]:
        self.items += items
        return [Verdict("response", self.value, self.value is None, "", 1, False) for _ in items]


def _picture(shade: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (shade, 0, 0))


def _stored(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture(params=["bytes", "struct", "opened"])
def doc(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A record as `datasets` hands it out, for the three ways in which a Parquet schema may type its images."""
    form = {
        "bytes": _stored,
        "struct": lambda image: {"bytes": _stored(image), "path": None},
        "opened": lambda image: image,
    }[request.param]
    return {
        "id": "q7",
        "question": "<image>\nWhat happens next?",
        "answer": "He opens the gate.",
        "reasoning": "First <rimage> then it opens.",
        "question_images": [form(_picture(10))],
        "reasoning_images": [form(_picture(20))],
    }


@pytest.fixture(autouse=True)
def _fresh_judge() -> Any:
    twiffbench_task.judge.cache_clear()
    yield
    twiffbench_task.judge.cache_clear()


def test_twiffbench_asks_with_its_instruction_and_images(doc: dict[str, Any]) -> None:
    text = twiffbench_task.doc_to_text(doc)
    assert text.startswith("You are an AI assistant capable of reasoning")
    assert text.endswith("\n\nWhat happens next?")
    assert twiffbench_task.doc_to_target(doc) == "He opens the gate."
    (shown,) = twiffbench_task.doc_to_visual(doc)
    assert shown.size == (32, 32)
    assert shown.getpixel((0, 0)) == (10, 0, 0)


def test_twiffbench_shows_the_judge_everything_but_tags(doc: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _FakeJudge((4, 3))
    monkeypatch.setattr(twiffbench_task, "judge", lambda: fake)
    response = "<reason>A hand moves.</reason>\n<|latent_start|><|latent|><|latent_end|>\n<answer>It opens.</answer>"
    scores = twiffbench_task.process_results(doc, [response])
    assert scores == {
        "cot": {"score": 4.0}, "answer": {"score": 3.0}, "average": {"score": 3.5}, "failures": {"score": 0.0},
    }  # fmt: skip
    (item,) = fake.items
    assert "latent" not in item.reasoning
    assert item.answer == "It opens."
    assert (item.question, item.reference_reasoning) == (doc["question"], doc["reasoning"])
    pictures = [Image.open(BytesIO(data)).getpixel((0, 0)) for data in (*item.question_images, *item.reference_images)]
    assert pictures == [(10, 0, 0), (20, 0, 0)]


def test_twiffbench_counts_failures_beside_the_means(doc: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for value in ((5, 5), None, (2, 1)):
        fake = _FakeJudge(value)
        monkeypatch.setattr(twiffbench_task, "judge", lambda fake=fake: fake)
        results.append(twiffbench_task.process_results(doc, ["<answer>x</answer>"]))
    assert _summary("twiffbench", results) == {"cot": 3.5, "answer": 3.0, "average": 3.25, "failures": 1.0}


def test_the_judge_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, doc: dict[str, Any]) -> None:
    for name in ("FUTUREL1_JUDGE_URL", "FUTUREL1_JUDGE_MODEL", "FUTUREL1_JUDGE_KEY_ENV", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="FUTUREL1_JUDGE_URL=none"):
        _ = twiffbench_task.DATASET_PATH  # before anything is decoded
    monkeypatch.setenv("FUTUREL1_JUDGE_URL", "http://localhost:9/v1")
    monkeypatch.setenv("FUTUREL1_JUDGE_MODEL", "judge-7b")
    client = twiffbench_task.judge()
    assert client is not None
    assert (client.endpoint.base_url, client.endpoint.api_key_env) == ("http://localhost:9/v1", None)
    assert client.request.model == "judge-7b"
    twiffbench_task.judge.cache_clear()
    monkeypatch.setenv("FUTUREL1_JUDGE_URL", "none")
    assert twiffbench_task.process_results(doc, ["x"])["failures"] == {"score": 1.0}


def test_aggregations_leave_out_what_does_not_count() -> None:
    assert mean([{"score": 1.0}, None, {"score": 0.0}]) == 0.5
    assert math.isnan(mean([None]))
    assert total([{"score": 1.0}, None, {"score": 1.0}]) == 2.0
