"""FutureBench: prompts, frames, what the metric is told, every kind of file and of bad record."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lightning import LightningModule, Trainer

from futurel1.data import PromptBatch
from futurel1.data.chat_text import default_system_prompt
from futurel1.data.samples import PromptInfo
from futurel1.data.video.pyav import PyAVReader
from futurel1.datamodules import FutureBenchDataModule
from futurel1.errors import ConfigError, MissingFileError, RecordError
from futurel1.metrics import FutureBenchAccuracy
from futurel1.metrics.functional import futurebench_prompt

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
NUM_FRAMES = 80
INSTRUCTION = "Please provide only the single option letter within the <answer> </answer> tags."


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `clips/long.mp4` of 80 frames and `clips/short.mp4` of 7, 64 x 96 pixels, 25 a second."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "clips").mkdir()
    for name, count in (("long", NUM_FRAMES), ("short", 7)):
        with av.open(str(folder / "clips" / f"{name}.mp4"), "w") as output:
            stream = output.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for index in range(count):
                frame = np.full((64, 96, 3), 2 * index, np.uint8)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            output.mux(stream.encode(None))
    return folder


def record(number: int = 1, split: str = "hop1", answer: str = "B", video: str = "clips/short.mp4") -> dict[str, Any]:
    options = {letter: f"{letter.lower()} event {number}" for letter in "ABCD"}
    qa = {"Question": f"What happens next, {number}?", "Options": options, "Answer": answer}
    return {"id": f"q{number}", "video_path": video, "question_type": split, "qa": qa}


RECORDS = [record(1), record(2, "hop2", "d"), record(3, "hop3", "<answer>A</answer>"), record(4, "hop5", "C")]


def save(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a data set as `datasets.Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    name = "data-00000-of-00001.arrow"
    with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}], "_split": "test"}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def save_dict(folder: Path, rows: list[dict[str, Any]]) -> Path:
    save(folder / "test", rows)
    (folder / "dataset_dict.json").write_text('{"splits": ["test"]}')
    return folder


def write_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "bench.parquet")
    return folder / "bench.parquet"


def write_json(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "bench.json").write_text(json.dumps(rows))
    return folder / "bench.json"


def write_lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "bench.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "bench.jsonl"


def make(records: Path, videos: Path, **options: Any) -> FutureBenchDataModule:
    return FutureBenchDataModule(
        **{"records": str(records), "video_root": str(videos), "processor": "tiny@random", "num_workers": 0, **options}
    )


def batches(data: FutureBenchDataModule) -> list[PromptBatch]:
    return list(data.test_dataloader())


@pytest.mark.parametrize("write", [save, save_dict, write_parquet, write_json, write_lines])
def test_every_kind_of_file_gives_the_same_questions(tmp_path: Path, videos: Path, write: Callable[..., Path]) -> None:
    read = batches(make(write(tmp_path / "bench", RECORDS), videos, batch_size=4))
    assert len(read) == 1
    assert [name.rpartition(":")[2] for name in read[0].sample_ids] == ["1", "2", "3", "4"]
    assert [info.split for info in read[0].info] == ["hop1", "hop2", "hop3", "hop5"]
    assert [info.answer for info in read[0].info] == ["B", "D", "A", "C"]
    assert read[0].info[1] == PromptInfo(
        id="q2",
        question="What happens next, 2?",
        answer="D",
        options={"A": "a event 2", "B": "b event 2", "C": "c event 2", "D": "d event 2"},
        split="hop2",
    )


def test_prompt_is_exactly_the_video_and_the_text_of_the_harness(tmp_path: Path, videos: Path) -> None:
    data = make(write_json(tmp_path / "a", [record(1)]), videos)
    (batch,) = batches(data)
    text = data.encoder.processor.tokenizer.decode(batch.input_ids[0])
    before, video, after = text.partition("<0.0 seconds>")
    assert before == f"<|im_start|>system\n{default_system_prompt()}<|im_end|>\n<|im_start|>user\n"
    last_block = "<|vision_end|>"
    assert (video + after).rpartition(last_block)[2] == (
        "\nWhat happens next, 1?\nA. a event 1\nB. b event 1\nC. c event 1\nD. d event 1\n"
        f"{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert futurebench_prompt(record(1)["qa"]) in text
    # 7 frames in pairs, 64 x 96 pixels each: 2 x 3 merged tokens
    assert batch.video_grid_thw.tolist() == [[4, 4, 6]]
    assert text.count("<|video_pad|>") == 4 * 6


def test_golden_prompts_are_asked_as_they_are(tmp_path: Path, videos: Path, golden: Path) -> None:
    cases = json.loads((golden / "misc.json").read_text())["fb_prompt"]
    assert cases
    rows = [record(number) | {"qa": qa} for number, (qa, _) in enumerate(cases, 1)]
    data = make(write_json(tmp_path / "a", rows), videos)
    for batch, (_, prompt) in zip(batches(data), cases, strict=True):
        text = data.encoder.processor.tokenizer.decode(batch.input_ids[0])
        assert text.endswith(f"<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("options", "video", "expected"),
    [
        ({}, "long", np.linspace(0, 79, 32).round().astype(int).tolist()),
        ({"num_frames": 4}, "long", [0, 26, 53, 79]),
        ({}, "short", list(range(7))),
    ],
)
def test_frames_are_taken_evenly_over_the_video(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int], video: str,
    expected: list[int],
) -> None:  # fmt: skip
    wanted: list[list[int]] = []
    original = PyAVReader.read
    monkeypatch.setattr(
        PyAVReader,
        "read",
        lambda reader, numbers, convert: wanted.append(list(numbers)) or original(reader, numbers, convert),
    )
    data = make(write_json(tmp_path / "a", [record(1, video=f"clips/{video}.mp4")]), videos, **options)
    (batch,) = batches(data)
    assert wanted == [expected]
    assert batch.video_grid_thw.tolist() == [[-(-len(expected) // 2), 4, 6]]
    # the patches are those frames, in order: mean grey rises from the first to the last
    greys = batch.pixel_values_videos.reshape(-1, 4 * 6, batch.pixel_values_videos.shape[-1]).mean((1, 2))
    assert (greys.diff() > 0).all()
    assert batch.pixel_values_videos.min() == pytest.approx(-1, abs=0.05)
    assert greys[-1] == pytest.approx(
        2 * np.mean(expected[-2:] if len(expected) % 2 == 0 else expected[-1]) / 127.5 - 1, abs=0.05
    )


def test_frame_tokens_limit_the_size_of_frames(tmp_path: Path, videos: Path) -> None:
    (batch,) = batches(make(write_json(tmp_path / "a", [record(1)]), videos, frame_tokens=4))
    assert batch.video_grid_thw.prod().item() / 4 / 4 <= 4


def test_videos_lie_beside_the_records_without_a_root(videos: Path) -> None:
    file = videos / "beside.json"
    file.write_text(json.dumps([record(1)]))
    data = FutureBenchDataModule(str(file), processor="tiny@random", num_workers=0)
    assert batches(data)[0].sample_ids == ("beside.json:1",)


def test_batches_feed_the_metric(tmp_path: Path, videos: Path) -> None:
    class Oracle(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy = FutureBenchAccuracy()

        def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
            # always B, by its text
            responses = [f"<answer>{info.options['B']}</answer>" for info in batch.info]
            columns = ([getattr(info, name) for info in batch.info] for name in ("answer", "split", "options"))
            self.accuracy.update(responses, *columns)

    module = Oracle()
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.test(module, datamodule=make(write_lines(tmp_path / "b", RECORDS), videos, batch_size=3), verbose=False)
    scores = module.accuracy.compute()
    assert float(scores["strict/accuracy"]) == 25
    assert float(scores["strict/hop1"]) == 100
    assert float(scores["samples"]) == 4


def without(letter: str) -> dict[str, Any]:
    changed = record(1)
    del changed["qa"]["Options"][letter]
    return changed


def with_qa(**changes: Any) -> dict[str, Any]:
    return record(1) | {"qa": record(1)["qa"] | changes}


BAD: dict[str, tuple[Any, str]] = {
    "unknown split": (record(1, "hop4"), r"field 'question_type' = 'hop4': not a split.*hop1, hop2, hop3, hop5"),
    "no split": ({**record(1), "question_type": None}, r"field 'question_type' = None: missing"),
    "missing option": (without("C"), r"field 'qa\.Options\.C' = None: missing"),
    "empty option": (with_qa(Options={"A": "a", "B": " ", "C": "c", "D": "d"}), r"field 'qa\.Options\.B' = ' ': empty"),
    "options as a list": (with_qa(Options=["a", "b"]), r"field 'qa\.Options' = \['a', 'b'\]: not an object"),
    "answer E": (with_qa(Answer="E"), r"field 'qa\.Answer' = 'E': not the letter of an option; write A, B, C or D"),
    "answer in words": (with_qa(Answer="the second"), r"field 'qa\.Answer' = 'the second': not the letter"),
    "no answer": (with_qa(Answer=None), r"field 'qa\.Answer' = None: missing"),
    "empty question": (with_qa(Question=" "), r"field 'qa\.Question' = ' ': empty"),
    "no qa": ({"id": "q", "video_path": "clips/short.mp4", "question_type": "hop1"}, r"field 'qa' = None: not an obj"),
    "missing video": (record(1, video="clips/gone.mp4"), r"field 'video_path' = 'clips/gone.mp4': there is no file"),
    "no video": ({**record(1), "video_path": None}, r"field 'video_path' = None: missing"),
    "control string": (with_qa(Question="<|im_end|>?"), r"the user turn contains <\|im_end\|>"),
    "not an object": ([1], r"record 2: list \(\[1\]\) where an object is expected; write it as an object with named"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_record_is_named_or_skipped(tmp_path: Path, videos: Path, kind: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    bad, says = BAD[kind]
    file = write_json(tmp_path / "a", [record(1), bad, record(3)])
    with pytest.raises(RecordError, match=r"bench\.json(, record |:)2.*" + says.removeprefix("record 2")):
        batches(make(file, videos))
    data = make(file, videos, on_error="skip")
    assert [batch.sample_ids for batch in batches(data)] == [("bench.json:1",), ("bench.json:3",)]
    assert list(data.skipped) == ["bench.json:2"]


def test_settings_that_cannot_work_are_refused(tmp_path: Path, videos: Path) -> None:
    file = write_json(tmp_path / "a", [record(1)])
    with pytest.raises(MissingFileError, match=r"video_root .*nowhere: no such folder"):
        batches(make(file, tmp_path / "nowhere"))
    with pytest.raises(MissingFileError, match=r"none\.json: no such file or folder"):
        batches(make(tmp_path / "none.json", videos))
    with pytest.raises(ConfigError, match="video_num_frames must be at least 2, got 1"):
        batches(make(file, videos, num_frames=1))
    with pytest.raises(RecordError, match=r"bench\.json:1: \d+ tokens, more than max_length=99"):
        batches(make(file, videos, max_length=99))


def test_data_root_holds_whatever_the_video_root(tmp_path: Path, videos: Path) -> None:
    inside, outside = record(1, video="clips/short.mp4"), record(2, video="../outside.mp4")
    (videos.parent / "outside.mp4").write_bytes((videos / "clips" / "short.mp4").read_bytes())
    file = write_lines(tmp_path / "bench", [inside])
    assert len(batches(make(file, videos, data_root=str(videos)))) == 1
    assert len(batches(make(write_lines(tmp_path / "free", [outside]), videos))) == 1
    with pytest.raises(RecordError, match=r"field 'video_path' = .*outside data_root"):
        batches(make(write_lines(tmp_path / "out", [outside]), videos, data_root=str(videos)))
    with pytest.raises(MissingFileError, match=r"data_root .*nowhere: no such folder"):
        batches(make(file, videos, data_root=str(tmp_path / "nowhere")))
