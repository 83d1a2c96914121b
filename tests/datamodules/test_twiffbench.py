"""TwiFF-Bench: prompts from embedded images, what the judge is told, streaming, every kind of bad record."""

import gc
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from futurel1.data import PromptBatch, record_files
from futurel1.data.benchmarks import read_images, twiffbench_instruction
from futurel1.data.chat_text import default_system_prompt
from futurel1.data.samples import PromptInfo, StoredImages
from futurel1.datamodules import TwiFFBenchDataModule
from futurel1.errors import ConfigError, FutureL1Error, MediaError, MissingFileError, RecordError

INSTRUCTION = (
    "You are an AI assistant capable of reasoning with visual imagery. You should conduct a detailed analysis of the "
    "question. Consider different angles, potential solutions, and reason through the problem step-by-step with image. "
    "After fully reasoning through the problem\u2013potentially using image-based thinking\u2013provide only a clear, "
    "concise, and direct answer to the user\u2019s question."
)


def png(colour: int, size: tuple[int, int] = (64, 64)) -> bytes:
    stream = BytesIO()
    Image.new("RGB", size, (colour,) * 3).save(stream, "PNG")
    return stream.getvalue()


def embedded(*colours: int) -> list[dict[str, Any]]:
    return [{"bytes": png(colour), "path": f"{colour}.png"} for colour in colours]


def row(**changes: Any) -> dict[str, Any]:
    return {
        "id": "t1",
        "question": "<image>\n<image>\nWhat happens next?",
        "question_images": embedded(10, 200),
        "reasoning": "He reaches out. <rimage> Then it opens.",
        "reasoning_images": embedded(90),
        "answer": "The gate opens.",
    } | changes


def write(folder: Path, rows: Sequence[dict[str, Any]], row_group_size: int = 2) -> Path:
    file = folder / "bench.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), file, row_group_size=row_group_size)
    return file


def make(file: Path, **options: Any) -> TwiFFBenchDataModule:
    return TwiFFBenchDataModule(**{"records": str(file), "processor": "tiny@random", "num_workers": 0, **options})


def batches(data: TwiFFBenchDataModule) -> list[PromptBatch]:
    return list(data.test_dataloader())


def only(folder: Path, **changes: Any) -> PromptBatch:
    (batch,) = batches(make(write(folder, [row(**changes)])))
    return batch


def test_instruction_is_the_wording_of_the_paper() -> None:
    assert twiffbench_instruction() == INSTRUCTION


def test_prompt_is_exactly_images_instruction_question(tmp_path: Path) -> None:
    data = make(write(tmp_path, [row()]))
    (batch,) = batches(data)
    image = f"<|vision_start|>{'<|image_pad|>' * 4}<|vision_end|>"
    assert data.encoder.processor.tokenizer.decode(batch.input_ids[0]) == (
        f"<|im_start|>system\n{default_system_prompt()}<|im_end|>\n"
        f"<|im_start|>user\n{image}{image}{INSTRUCTION}\n\nWhat happens next?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert batch.image_grid_thw.tolist() == [[1, 4, 4], [1, 4, 4]]
    # in order: the dark one, then the light one; never the image of the reasoning
    levels = batch.pixel_values.reshape(2, -1).mean(1) * 127.5 + 127.5
    assert levels.tolist() == pytest.approx([10, 200], abs=1)


def test_meta_tells_the_judge_everything(tmp_path: Path) -> None:
    batch = only(tmp_path)
    (info,) = batch.info
    file = str(tmp_path / "bench.parquet")
    assert info == PromptInfo(
        id="t1",
        question="<image>\n<image>\nWhat happens next?",
        answer="The gate opens.",
        reference_reasoning="He reaches out. <rimage> Then it opens.",
        question_images=StoredImages(file, 1, "question_images"),
        reference_images=StoredImages(file, 1, "reasoning_images"),
    )
    assert read_images(info.question_images) == [png(10), png(200)]
    assert read_images(info.reference_images) == [png(90)]
    assert batch.sample_ids == ("bench.parquet:1",)


def test_judge_can_be_asked_with_what_meta_tells(tmp_path: Path) -> None:
    from futurel1.rewards import ResponseItem

    (info,) = only(tmp_path).info
    item = ResponseItem(
        question=info.question,
        question_images=read_images(info.question_images),
        reference_reasoning=info.reference_reasoning,
        reference_images=read_images(info.reference_images),
        ground_truth=info.answer,
        reasoning="He opens it.",
        answer="It opens.",
    )
    assert item.question.count("<image>") == len(item.question_images)
    assert item.reference_reasoning.count("<rimage>") == len(item.reference_images)


@pytest.mark.parametrize(
    ("changes", "reasoning", "answer"),
    [
        ({"reasoning": None, "cot": "Step <rimage>."}, "Step <rimage>.", "The gate opens."),
        ({"reasoning": "", "cot": "Step <rimage>."}, "Step <rimage>.", "The gate opens."),
        ({"reasoning": "Step <image>."}, "Step <rimage>.", "The gate opens."),
        ({"reasoning": None, "answer": "Step <rimage>. <ans> Open. </ans>"}, "Step <rimage>.", "Open."),
        ({"answer": "<ans>Open.</ans>", "reasoning": "No marker."}, "No marker.", "Open."),
    ],
)
def test_reference_is_found_where_it_stands(
    tmp_path: Path, changes: dict[str, Any], reasoning: str, answer: str
) -> None:
    (info,) = only(tmp_path, **changes).info
    assert (info.reference_reasoning, info.answer) == (reasoning, answer)


def test_images_may_be_bare_bytes_or_files(tmp_path: Path) -> None:
    expected = only(tmp_path).pixel_values
    assert only(tmp_path, question_images=[png(10), png(200)]).pixel_values.equal(expected)
    for colour in (10, 200):
        (tmp_path / f"{colour}.png").write_bytes(png(colour))
    files = [{"bytes": None, "path": f"{colour}.png"} for colour in (10, 200)]
    batch = only(tmp_path, question_images=files)
    assert batch.pixel_values.equal(expected)
    assert read_images(batch.info[0].question_images) == [tmp_path / "10.png", tmp_path / "200.png"]


def test_reasoning_may_have_no_images(tmp_path: Path) -> None:
    (info,) = only(tmp_path, reasoning="Words.", reasoning_images=None).info
    assert read_images(info.reference_images) == []


def test_several_files_and_workers(tmp_path: Path) -> None:
    rows = [row(id=f"t{number}", question_images=embedded(number, 200)) for number in range(5)]
    for name, part in (("a", rows[:3]), ("b", rows[3:])):
        (tmp_path / name).mkdir()
        write(tmp_path / name, part)
    read = batches(make(tmp_path, num_workers=2, batch_size=2))
    assert [name for batch in read for name in batch.sample_ids] == [
        "a/bench.parquet:1", "a/bench.parquet:2", "a/bench.parquet:3", "b/bench.parquet:1", "b/bench.parquet:2",
    ]  # fmt: skip
    infos = [info for batch in read for info in batch.info]
    assert [info.id for info in infos] == [f"t{number}" for number in range(5)]
    assert [read_images(info.question_images)[0] for info in infos] == [png(number) for number in range(5)]


def test_row_groups_are_not_all_in_memory(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)

    def noisy() -> list[dict[str, Any]]:
        stream = BytesIO()
        Image.fromarray(noise.integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(stream, "PNG")
        return [{"bytes": stream.getvalue(), "path": None}]

    rows = [row(question="What?", question_images=noisy()) for _ in range(16)]
    size = len(rows[0]["question_images"][0]["bytes"])
    assert size > 250_000
    file = write(tmp_path, rows, row_group_size=2)
    record_files._row_group.cache_clear()
    gc.collect()
    before = pa.total_allocated_bytes()

    def held() -> int:
        deadline = time.monotonic() + 10
        while pa.total_allocated_bytes() - before >= 6 * size and time.monotonic() < deadline:
            gc.collect()  # what waits for the garbage collector, or for a thread of Arrow's to end, is not held
            time.sleep(0.05)
        return int(pa.total_allocated_bytes() - before)

    source = make(file).dataset("test").source
    assert held() < size  # nothing is read at opening
    for index in range(len(rows)):
        info = source.sample(index).info
        read_images(info.question_images)
        # two groups of two, out of eight
        assert held() < 6 * size


def torn() -> list[dict[str, Any]]:
    return [{"bytes": png(10)[:50], "path": None}, {"bytes": png(10), "path": None}]


BAD: dict[str, tuple[dict[str, Any], type[FutureL1Error], str]] = {
    "no question": ({"question": None}, RecordError, r"record 2, field 'question' = None: missing"),
    "only markers": ({"question": "<image><image>"}, RecordError, r"record 2, field 'question' = .*: empty question"),
    "no images": ({"question_images": None}, RecordError, r"record 2, field 'question_images' = None: no image"),
    "empty image": (
        {"question_images": [{"bytes": b"", "path": None}, {"bytes": png(1), "path": None}]},
        RecordError,
        r"record 2, field 'question_images' = .*: not an image; embed its bytes",
    ),
    "torn image": (
        {"question_images": torn()},
        MediaError,
        r"bench\.parquet, record 2, question image 1: not a readable image",
    ),
    "file that is not there": (
        {"question_images": [{"bytes": None, "path": "gone.png"}] * 2},
        RecordError,
        r"record 2, field 'question_images' = 'gone\.png': there is no file",
    ),
    "too few markers": ({"question": "<image> What?"}, RecordError, r"field 'question' = .*1 <image> markers for 2"),
    "too many reasoning markers": (
        {"reasoning": "a <rimage> b <rimage>"},
        RecordError,
        r"field 'reasoning_images' = .*2 <rimage> markers for 1 images",
    ),
    "no reasoning": (
        {"reasoning": None},
        RecordError,
        r"field 'reasoning' = None: no reference reasoning, the record has id, question, .*name its column reasoning "
        "or cot",
    ),
    "no answer": ({"answer": None}, RecordError, r"record 2, field 'answer' = None: missing"),
    "control string": ({"question": "<|im_start|>?"}, RecordError, r"bench\.parquet:2: the user turn contains <\|im_s"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_record_is_named_or_skipped(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes, error, says = BAD[kind]
    file = write(tmp_path, [row(), row(**changes), row()])
    with pytest.raises(error, match=says):
        batches(make(file))
    data = make(file, on_error="skip")
    assert [batch.sample_ids for batch in batches(data)] == [("bench.parquet:1",), ("bench.parquet:3",)]
    assert list(data.skipped) == ["bench.parquet:2"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bench.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"bench\.jsonl: TwiFF-Bench embeds its images, so its files are \.parquet"):
        batches(make(tmp_path / "bench.jsonl"))


@pytest.mark.parametrize("column", ["question_images", "reasoning_images"])
def test_data_root_holds_for_images_that_are_files(tmp_path: Path, column: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for place in (root / "inside.png", tmp_path / "outside.png"):
        place.write_bytes(png(10))
    texts = {"question": "What happens next?", "reasoning": "He reaches out."}
    for name in ("inside.png", "../outside.png"):
        file = write(root, [row(**texts, **{column: [name]})])
        assert len(list(make(file).test_dataloader())) == 1
        data = make(file, data_root=str(root))
        if name == "inside.png":
            assert len(list(data.test_dataloader())) == 1
        else:
            with pytest.raises(RecordError, match=rf"field '{column}' = .*outside data_root"):
                list(data.test_dataloader())
    with pytest.raises(MissingFileError, match=r"data_root .*nowhere: no such folder"):
        make(file, data_root=str(tmp_path / "nowhere")).test_dataloader()
