"""The model of lmms-eval, with a stand-in for lmms-eval's base class and with the installed package."""

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from futurel1.data import Frame, PromptBatch, Sample, Turn
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import Fetched
from futurel1.data.encoded import EncodedSample
from futurel1.data.prompts import PromptCollator
from futurel1.errors import ConfigError, RecordError
from futurel1.integrations import lmms_eval as integration
from futurel1.integrations.lmms_requests import picture_bytes
from futurel1.models import LatentReasoner
from futurel1.models.transcript import transcripts


class _StubBase:
    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = _StubHook()


class _StubHook:
    def __init__(self) -> None:
        self.entries: list[tuple[Any, ...]] = []

    def add_partial(self, *entry: Any) -> None:
        self.entries.append(entry)


@dataclass
class _Instance:
    args: tuple[Any, ...]


def _load(name: str, api_model: ModuleType | None) -> ModuleType:
    """A copy of the integration, made while `lmms_eval.api.model` is this module, or cannot be imported (None)."""
    assert integration.__file__
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model")
    saved = {key: sys.modules.get(key) for key in names}
    spec = importlib.util.spec_from_file_location(name, integration.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        parents = (None, None) if api_model is None else (ModuleType("lmms_eval"), ModuleType("lmms_eval.api"))
        sys.modules.update(dict(zip(names, (*parents, api_model), strict=True)))  # type: ignore[arg-type]
        sys.modules[name] = module
        spec.loader.exec_module(module)
    finally:
        for key, value in saved.items():
            if value is None:
                sys.modules.pop(key, None)
            else:
                sys.modules[key] = value
    return module


@pytest.fixture(scope="module")
def stubbed() -> Iterator[ModuleType]:
    api_model = ModuleType("lmms_eval.api.model")
    api_model.lmms = _StubBase  # type: ignore[attr-defined]
    yield _load("stubbed_lmms_integration", api_model)
    del sys.modules["stubbed_lmms_integration"]


@pytest.fixture(scope="module")
def make(stubbed: ModuleType) -> Callable[..., Any]:
    def build(chat: bool = False, **arguments: Any) -> Any:
        kind = stubbed.FutureL1Chat if chat else stubbed.FutureL1
        model = kind(
            **{"pretrained": "tiny@random", "dtype": "float32", "device": "cpu", "frame_tokens": 4, **arguments}
        )
        model.task_dict = {"task": {"test": [{"number": number} for number in range(4)]}}
        return model

    return build


@pytest.fixture(scope="module")
def model(make: Callable[..., Any]) -> Any:
    return make(batch_size=2, max_num_frames=4, response="raw")


def _request(number: int, visuals: Any, **kwargs: Any) -> _Instance:
    kwargs = {"max_new_tokens": 6, **kwargs}
    return _Instance((f"Question {number}?", kwargs, lambda doc: visuals, number, "task", "test"))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.new("RGB", (64, 48), (200, 30, 30))


# ---------------------------------------------------------------------- without lmms-eval


def test_without_lmms_eval_only_making_a_model_fails() -> None:
    bare = _load("bare_lmms_integration", None)
    with pytest.raises(ConfigError, match=r"needs the package lmms-eval .*pip install lmms-eval"):
        bare.FutureL1(pretrained="tiny@random")
    del sys.modules["bare_lmms_integration"]


def test_the_manifest_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lmms_eval", "lmms_eval.models", "lmms_eval.models.registry_v2"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="lmms-eval"):
        integration.manifest()


def test_the_manifest_points_at_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = ModuleType("lmms_eval.models.registry_v2")
    registry.ModelManifest = dict  # type: ignore[attr-defined]
    for name, module in (
        ("lmms_eval", ModuleType("lmms_eval")),
        ("lmms_eval.models", ModuleType("lmms_eval.models")),
        (registry.__name__, registry),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    manifest = integration.manifest()
    assert manifest["model_id"] == "futurel1"
    for key in ("simple_class_path", "chat_class_path"):
        module_name, _, class_name = manifest[key].rpartition(".")
        assert module_name == integration.__name__
        assert getattr(integration, class_name).is_simple == (key == "simple_class_path")


def test_the_task_folder_holds_both_tasks() -> None:
    assert {file.stem for file in integration.task_folder().rglob("*.yaml")} == {"futurebench", "twiffbench"}


# ---------------------------------------------------------------------- generation


def test_answers_come_in_order_and_do_not_depend_on_the_batch(model: Any, picture: Image.Image, clip: Path) -> None:
    requests = [
        _request(0, [picture]),
        _request(1, [str(clip)], max_new_tokens=3),  # another group, in between
        _request(2, None),
        _request(3, [[picture], str(clip)]),
    ]
    together = model.generate_until(requests)
    alone = [model.generate_until([request])[0] for request in requests]
    assert together == alone
    assert all(isinstance(text, str) for text in together)
    assert len(set(together)) > 1
    method, key, text = model.cache_hook.entries[0]
    assert (method, key[0], text) == ("generate_until", "Question 0?", together[0])


def test_visuals_reach_the_model(model: Any, picture: Image.Image, clip: Path, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    for visuals, expected in (([picture], "pixel_values"), ([str(clip)], "pixel_values_videos")):
        encoded = _encoded(model, _request(0, visuals))
        assert getattr(encoded, expected) is not None
    opened, path = (_encoded(model, _request(0, [visual])) for visual in (picture, str(tmp_path / "a.png")))
    assert torch.equal(opened.pixel_values, path.pixel_values)
    with pytest.raises(RecordError, match="task/test:0: dict"):
        model.generate_until([_request(0, [{"type": "video", "path": str(clip), "video_start": 1}])])


def _encoded(model: Any, request: _Instance) -> EncodedSample:
    query = model._reader().query(request.args)
    return model.predictor.encoder.encode_prompt(Sample(query.name, query.turns, None, {}))


def _prompt(model: Any, request: _Instance) -> PromptBatch:
    sample = _encoded(model, request)
    return PromptCollator(model.predictor.encoder.pad_token_id)([Fetched([sample], [])])


def test_responses_are_what_the_reasoner_says(make: Callable[..., Any], picture: Image.Image) -> None:
    reasoner = LatentReasoner.from_pretrained("tiny@random")
    encoder = ChatEncoder(reasoner.processor, strip_text=False)
    frame = Frame(Path("x"), None, picture_bytes(picture))
    sample = Sample("x", (Turn("user", (frame, "Question 0?")),), None, {})
    batch = PromptCollator(encoder.pad_token_id)([Fetched([encoder.encode_prompt(sample)], [])])
    expected = transcripts(reasoner.generate(batch, max_new_tokens=12), reasoner.processor.tokenizer)[0].text
    raw = make(response="raw").generate_until([_request(0, [picture], max_new_tokens=12)])
    assert raw == [expected]


def test_sampling_repeats_differ_and_can_be_done_again(model: Any) -> None:
    request = _request(0, None, do_sample=True, temperature=1.0, max_new_tokens=8)
    first = model.generate_until([request, request])
    assert first[0] != first[1]
    assert model.generate_until([request, request]) == first


def test_a_response_ends_before_a_stop_string(make: Callable[..., Any]) -> None:
    model = make(response="raw")
    (whole,) = model.generate_until([_request(0, None, max_new_tokens=12)])
    stop = whole[len(whole) // 2 :][:3]
    (cut,) = model.generate_until([_request(0, None, max_new_tokens=12, until=[stop])])
    assert cut == whole[: whole.index(stop)]


def test_forms_of_a_response(stubbed: ModuleType) -> None:
    text = "<reason>x</reason>\n<|latent_start|><|latent|><|latent_end|>\n<answer>B</answer><|im_end|>"
    assert stubbed._form(text, "raw") == text
    assert stubbed._form(text, "tagged") == "<reason>x</reason>\n\n<answer>B</answer>"
    assert stubbed._form(text, "answer") == "B"
    assert stubbed._form("no tags <|latent|>", "answer") == "no tags"


def test_settings_that_cannot_work(make: Callable[..., Any]) -> None:
    for name, value in (("dtype", "int8"), ("batch_size", "auto"), ("response", "plain"), ("batch_size", 0)):
        with pytest.raises(ConfigError, match=name):
            make(**{name: value})


# ---------------------------------------------------------------------- chat messages


def test_chat_messages_give_the_same_prompt(make: Callable[..., Any], model: Any, picture: Image.Image) -> None:
    chat = make(chat=True, response="raw")
    content = [{"type": "image", "url": picture}, {"type": "text", "text": "Question 0?"}]
    request = _Instance(
        ("ignored", lambda doc: [{"role": "user", "content": content}], {"max_new_tokens": 6}, 0, "task", "test")
    )
    assert chat.generate_until([request]) == model.generate_until([_request(0, [picture])])
    for part in ({"type": "audio", "url": "a.wav"}, {"type": "video", "url": "a.mp4", "start_time": 1.0}):
        messages = [{"role": "user", "content": [part]}]
        with pytest.raises(RecordError, match="cannot be shown"):
            chat.generate_until([_Instance(("", lambda doc, m=messages: m, {}, 0, "task", "test"))])
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(RecordError, match="assistant turn"):
        chat.generate_until([_Instance(("", lambda doc: messages, {}, 0, "task", "test"))])


# ---------------------------------------------------------------------- several rounds


def test_rounds_follow_the_task(model: Any, make: Callable[..., Any]) -> None:
    heard: list[list[str]] = []

    def to_text(doc: Any, *, round_idx: int, previous_output: list[str], previous_round_info: Any) -> Any:
        heard.append(previous_output)
        stop = round_idx > doc["number"] + 1
        return None, f"Question {round_idx}?", stop, previous_output, (previous_round_info or 0) + 1

    requests = [
        _Instance(("Question 0?", {"max_new_tokens": 4}, lambda doc: None, to_text, number, "task", "test"))
        for number in (0, 1)
    ]
    answers = model.generate_until_multi_round(requests)
    assert [len(each) for each in answers] == [2, 3]
    assert answers[0] == answers[1][:2]
    assert heard[-1] == answers[1]
    single = model.generate_until([_request(0, None, max_new_tokens=4), _request(1, None, max_new_tokens=4)])
    assert answers[0] == single

    def to_messages(doc: Any, round_idx: int = 0, previous_output: Any = None, previous_round_info: Any = None) -> Any:
        messages = [{"role": "user", "content": f"Question {round_idx}?"}]
        return (messages, round_idx > 1, previous_output, None) if round_idx else messages

    request = _Instance(("", to_messages, {"max_new_tokens": 4}, 0, "task", "test"))
    assert make(chat=True, response="raw").generate_until_multi_round([request]) == [answers[0]]


# ---------------------------------------------------------------------- likelihood


def test_loglikelihood_is_the_loss_of_the_continuation(model: Any, picture: Image.Image) -> None:
    def requests(targets: list[Any]) -> list[_Instance]:
        return [_Instance(("Question 0?", target, lambda doc: [picture], 0, "task", "test")) for target in targets]

    losses = model.loglikelihood(requests([" a gate", lambda doc: " a gate", " zebra crossing"]))
    assert losses[0] == losses[1]
    assert all(math.isfinite(loss) and loss > 0 for loss, _ in losses)
    assert losses[0][0] != losses[2][0]
    with pytest.raises(RecordError, match="no tokens"):
        model.loglikelihood(requests([""]))
    # token by token, each after its own prefix
    prompt = _prompt(model, _request(0, [picture]))
    ids, expected = prompt.input_ids, []
    for token in model.tokenizer(" zebra crossing", add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            hidden = model.predictor.reasoner(ids, torch.ones_like(ids), model.predictor.reasoner.encode(prompt))
            expected.append(-float(model.predictor.reasoner.logits(hidden[0, -1]).log_softmax(dim=-1)[token]))
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert len(expected) > 1
    assert losses[2][0] == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_loglikelihood_knows_what_greedy_decoding_writes(model: Any) -> None:
    rollout = model.predictor.reasoner.generate(_prompt(model, _request(0, None)), max_new_tokens=1)
    text = model.tokenizer.decode(rollout.responses[0])
    (loss, is_greedy), (_, other) = model.loglikelihood(
        [_Instance(("Question 0?", text)), _Instance(("Question 0?", " zebra"))]
    )
    assert is_greedy
    assert not other
    assert loss == pytest.approx(-float(rollout.log_probs[0, 0]), abs=1e-4)


# ---------------------------------------------------------------------- the installed package

_WITH_THE_PACKAGE = """
import json, sys
from importlib.metadata import entry_points
from lmms_eval import evaluator
from lmms_eval.models.registry_v2 import ModelRegistryV2
from lmms_eval.tasks import TaskManager
from futurel1.integrations.lmms_eval import task_folder

registry = ModelRegistryV2()
registry.load_entrypoint_manifests()
found = {simple: registry.get_model_class("future_l1", force_simple=simple).__name__ for simple in (True, False)}
manager = TaskManager(include_path=str(task_folder()), include_defaults=False)
results = {}
for task in ("futurel1_futurebench", "futurel1_twiffbench"):
    for force_simple in (False, True):
        output = evaluator.simple_evaluate(
            model="futurel1",
            model_args="pretrained=tiny,dtype=float32,device=cpu,frame_tokens=4,max_num_frames=4,max_new_tokens=8",
            tasks=[task], task_manager=manager, force_simple=force_simple, batch_size=2, bootstrap_iters=0,
        )
        results[f"{task} {force_simple}"] = output["results"][task]
print(json.dumps([found, sorted(manager.all_tasks), results], default=str), file=open(sys.argv[1], "w"))
"""


@pytest.mark.slow
def test_the_installed_package_runs_model_and_tasks(futurebench: Path, tmp_path: Path) -> None:
    try:
        importlib.import_module("lmms_eval.evaluator")
    except ImportError as error:
        pytest.skip(f"lmms-eval is not installed ({error})")
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = picture_bytes(Image.new("RGB", (32, 32), (9, 9, 9)))
    row = {
        "id": "q1", "question": "<image>What next?", "answer": "It opens.", "reasoning": "<rimage>It moves.",
        "question_images": [stored], "reasoning_images": [stored],
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "bench.parquet")
    # as the entry point in pyproject.toml would be installed
    meta = tmp_path / "site" / "futurel1_entry-0.dist-info"
    meta.mkdir(parents=True)
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: futurel1-entry\nVersion: 0\n")
    (meta / "entry_points.txt").write_text("[lmms_eval.models]\nfuturel1 = futurel1.integrations.lmms_eval:manifest\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(meta.parent), os.environ.get("PYTHONPATH", "")]),
        "FUTUREL1_TWIFFBENCH": str(tmp_path / "bench.parquet"),
        "FUTUREL1_JUDGE_URL": "none",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_DATASETS_OFFLINE": "1",
    }
    output = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-c", _WITH_THE_PACKAGE, str(output)],
        env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]

    found, tasks, results = json.loads(output.read_text())
    assert found == {"true": "FutureL1", "false": "FutureL1Chat"}
    assert tasks == ["futurel1_futurebench", "futurel1_twiffbench"]
    for interface in ("False", "True"):
        bench = results[f"futurel1_futurebench {interface}"]
        # eight tokens of random weights answer nothing
        assert bench["paper_accuracy,none"] == bench["strict_hop1,none"] == 0
        assert bench["paper_unanswered,none"] == bench["strict_unanswered,none"] == 4
        assert results[f"futurel1_twiffbench {interface}"]["failures,none"] == 2
