"""Prompts: what is asked, what is known of it, left padding, embedded images, saved data sets."""

import json
import pickle
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from PIL import Image
from torch.utils.data import DataLoader

from futurel1.data import PromptBatch, Sample, Turn, Video, open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.chat_text import default_system_prompt
from futurel1.data.media import media_sources
from futurel1.data.prompts import PromptCollator, PromptDataset, parse_prompt, read_images
from futurel1.data.samples import Frame, RawRecord, RecordFileError
from futurel1.data.video.pyav import PyAVReader
from futurel1.errors import BatchError, ConfigError, MediaError, MissingFileError, RecordError
from futurel1.models import load_processor

SYSTEM = f"<|im_start|>system\n{default_system_prompt()}<|im_end|>\n"
ASSISTANT = "<|im_start|>assistant\n"
FOUR_PADS = "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>"
OPTIONS = {"A": "up", "B": "down"}
FRAMED = {
    "video": "good.mp4",
    "image": [1, 3],
    "reasoning_image": [5],
    "conversations": [
        {"from": "human", "value": "<image>\n<image> What next?\nA. up\nB. down"},
        {"from": "gpt", "value": "It moves.<image>"},
    ],
    "answer": "B",
    "options": OPTIONS,
    "question_type": "hop2",
}
UPSTREAM = {
    "video": "good.mp4",
    "question": "What next?",
    "answer": "It moves. <rimage> <ans>It falls.</ans>",
    "question_images_index": [2],
    "reasoning_images_index": [7],
}
PATHS = {
    "image": ["now.png"],
    "reasoning_image": ["not_there.png"],
    "conversations": [{"from": "human", "value": "<image>What next?"}, {"from": "gpt", "value": "It moves.<image>"}],
    "answer": "B",
}
CHAT = {
    "messages": [
        {"role": "user", "content": "<video>What next?"},
        {"role": "assistant", "content": "<reason>Up.</reason><answer> It falls. </answer>"},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "It lies."},
    ],
    "videos": ["good.mp4"],
}
PLAIN = {"messages": [{"role": "user", "content": "What next?"}, {"role": "assistant", "content": " It falls. "}]}


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(load_processor("tiny-random"))


@pytest.fixture
def folder(tmp_path, clips) -> Path:
    """A folder with `good.mp4` and `now.png`."""
    made = tmp_path / "data"
    made.mkdir()
    shutil.copy(clips["closed"], made / "good.mp4")
    Image.new("RGB", (64, 48), (9, 9, 9)).save(made / "now.png")
    return made


@pytest.fixture
def make(folder, encoder) -> Callable[..., PromptDataset]:
    def make(*records: dict[str, Any], **options: Any) -> PromptDataset:
        (folder / "data.jsonl").write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
        return PromptDataset(open_records(folder / "data.jsonl", parse=parse_prompt), encoder, **options)

    return make


def load(dataset: PromptDataset, batches: list[list[int]], num_workers: int = 0) -> list[PromptBatch]:
    collate = PromptCollator(dataset.encoder.pad_token_id)
    return list(DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=num_workers))


def decoded(encoder: ChatEncoder, ids: torch.Tensor) -> str:
    return encoder.processor.tokenizer.decode(ids)


def png(colour: int, size: tuple[int, int] = (64, 48)) -> bytes:
    stream = BytesIO()
    Image.new("RGB", size, (colour,) * 3).save(stream, "PNG")
    return stream.getvalue()


# ---------------------------------------------------------------------------------------------------- what is asked


def test_prompt_is_exactly_what_stands_before_the_response(make, encoder):
    (batch,) = load(make(FRAMED), [[0]])
    assert decoded(encoder, batch.input_ids[0]) == (
        SYSTEM + f"<|im_start|>user\n{FOUR_PADS}{FOUR_PADS}What next?\nA. up\nB. down<|im_end|>\n" + ASSISTANT
    )
    assert batch.image_grid_thw.tolist() == [[1, 4, 4], [1, 4, 4]]
    assert batch.meta == (
        {"question": "What next?\nA. up\nB. down", "answer": "B", "options": OPTIONS, "question_type": "hop2"},
    )
    assert batch.sample_ids == ("data.jsonl:1",)


def test_prompt_is_the_beginning_of_the_training_sequence(make, encoder, folder):
    prompts = make(FRAMED, UPSTREAM, PATHS)
    shutil.copy(folder / "now.png", folder / "not_there.png")
    for prompt, sample in zip([prompts[i] for i in range(3)], open_records(folder / "data.jsonl"), strict=True):
        whole = encoder.encode(sample)
        assert torch.equal(prompt.input_ids, whole.input_ids[: whole.prompt_length])
        assert torch.equal(prompt.pixel_values, whole.pixel_values)
        assert prompt.hint_pixel_values is None


@pytest.mark.parametrize(
    ("record", "question", "answer", "pictures"),
    [
        (FRAMED, "What next?\nA. up\nB. down", "B", [1, 3]),
        (UPSTREAM, "What next?", "It falls.", [2]),
        (PATHS, "What next?", "B", [None]),
        (CHAT, "What next?", "It falls.", []),
        (PLAIN, "What next?", "It falls.", []),
    ],
)
def test_all_shapes_become_prompts_with_their_answer(make, record, question, answer, pictures):
    sample = make(record).source.sample(0)
    assert [turn.role for turn in sample.turns] == ["user"]
    assert sample.hints == ()
    assert [frame.pool_index for frame in sample.observed] == pictures
    assert (sample.meta["question"], sample.meta["answer"]) == (question, answer)
    assert sample.meta["options"] == record.get("options")


def test_hint_files_need_not_be_there_but_observed_ones_do(make, folder):
    assert len(make(PATHS)[0]) > 0
    with pytest.raises(RecordFileError, match=r"data\.jsonl, record 1: there is no file .*gone\.png; put it there"):
        make(PATHS | {"image": ["gone.png"]})[0]


def test_answer_of_another_response_than_the_first_is_refused(make):
    record = FRAMED | {"conversations": [*FRAMED["conversations"], *PLAIN_TURNS]}
    with pytest.raises(RecordError, match=r"data\.jsonl, record 1: 2 assistant turns; a prompt is what stands before"):
        make(record)[0]


PLAIN_TURNS = [{"from": "human", "value": "And then?"}, {"from": "gpt", "value": "It lies."}]


def test_data_root_holds_for_prompts(folder):
    raw = RawRecord(FRAMED | {"video": "../out.mp4"}, folder / "data.jsonl", 3, folder, "data.jsonl")
    with pytest.raises(RecordError, match=r"record 3, field 'video' = .*outside data_root"):
        parse_prompt(raw, data_root=folder)


# ---------------------------------------------------------------------------------------------------- batches


def test_rows_are_padded_on_the_left_and_visuals_follow_each_other(make, encoder):
    dataset = make(FRAMED, CHAT, PATHS, PLAIN)
    parts = [dataset[index] for index in range(4)]
    (batch,) = load(dataset, [[0, 1, 2, 3]])
    longest = max(map(len, parts))
    assert batch.input_ids.shape == batch.attention_mask.shape == (4, longest)
    for row, part in enumerate(parts):
        gap = longest - len(part)
        assert torch.equal(batch.input_ids[row, gap:], part.input_ids)
        assert (batch.input_ids[row, :gap] == encoder.pad_token_id).all()
        assert batch.attention_mask[row].tolist() == [0] * gap + [1] * len(part)
    assert torch.equal(batch.pixel_values, torch.cat([parts[0].pixel_values, parts[2].pixel_values]))
    assert torch.equal(batch.image_grid_thw, torch.cat([parts[0].image_grid_thw, parts[2].image_grid_thw]))
    assert torch.equal(batch.pixel_values_videos, parts[1].pixel_values_videos)
    assert torch.equal(batch.video_grid_thw, parts[1].video_grid_thw)
    assert batch.sample_ids == tuple(f"data.jsonl:{number}" for number in range(1, 5))
    assert [meta["answer"] for meta in batch.meta] == ["B", "It falls.", "B", "It falls."]
    assert batch.skipped == ()


def test_model_reads_a_padded_batch_as_it_reads_each_prompt(make):
    from futurel1 import LatentReasoner

    reasoner = LatentReasoner.from_pretrained("tiny-random")
    (batch,) = load(make(FRAMED, PLAIN), [[0, 1]])
    singles = [load(make(FRAMED, PLAIN), [[row]])[0] for row in (0, 1)]
    together = reasoner.generate(batch, max_new_tokens=4, do_sample=False)
    for row, single in enumerate(singles):
        alone = reasoner.generate(single, max_new_tokens=4, do_sample=False)
        assert alone.responses[0].tolist() == together.responses[row].tolist()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_records_are_left_out_and_named(make, num_workers):
    dataset = make(FRAMED, FRAMED | {"image": [1, 9]}, PLAIN | {"messages": []}, PLAIN, on_error="skip")
    first, second, third = load(dataset, [[0, 1], [2], [3]], num_workers)
    assert first.sample_ids == ("data.jsonl:1",)
    assert [(record.id, record.error) for record in first.skipped] == [("data.jsonl:2", "RecordError")]
    assert "record 2, field 'image' = [1, 9]" in first.skipped[0].message
    # not answered in another's place
    assert len(second) == 0
    assert second.input_ids.shape == second.attention_mask.shape == (0, 0)
    assert second.sample_ids == second.meta == ()
    assert [record.id for record in second.skipped] == ["data.jsonl:3"]
    assert third.sample_ids == ("data.jsonl:4",)
    assert third.skipped == ()


def test_raise_stops_with_the_named_error(make):
    with pytest.raises(RecordError, match=r"record 2, field 'image' = \[1, 9\]"):
        load(make(FRAMED, FRAMED | {"image": [1, 9]}), [[0, 1]])
    with pytest.raises(ConfigError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        make(FRAMED, on_error="ignore")


def test_meta_goes_with_the_batch(make):
    (batch,) = load(make(FRAMED, PLAIN), [[0, 1]])
    assert batch.to("meta").meta == batch.meta
    assert batch.to("meta").input_ids.device.type == "meta"
    # as Lightning's precision plugins do
    halved = apply_to_collection(
        batch, torch.Tensor, lambda tensor: tensor.half() if tensor.is_floating_point() else tensor
    )
    assert halved.pixel_values.dtype == torch.float16
    assert halved.meta == batch.meta
    with pytest.raises(BatchError, match="1 entries of meta for 2 rows"):
        PromptBatch(batch.input_ids, batch.attention_mask, meta=({},))
    names = list(PromptBatch.__dataclass_fields__)
    assert names[-1] == "meta"


# ---------------------------------------------------------------------------------------------------- encoder


def asked(*parts: Any) -> Sample:
    return Sample("x:1", (Turn("user", parts),), None, {})


def test_prompts_name_the_files_that_they_show(make, encoder, folder):
    """Each once, by its real path; hint frames of a file of their own are not shown."""
    (folder / "link.mp4").symlink_to("good.mp4")
    shapes = [FRAMED, FRAMED | {"video": "link.mp4"}, UPSTREAM, PATHS, CHAT, PLAIN]
    (batch,) = load(make(*shapes), [list(range(len(shapes)))])
    video, picture = str((folder / "good.mp4").resolve()), str((folder / "now.png").resolve())
    assert batch.sources == ((video,), (video,), (video,), (picture,), (video,), ())
    with pytest.raises(BatchError, match="1 entries of sources for 6 rows"):
        PromptBatch(batch.input_ids, batch.attention_mask, sources=(("a",),))


def test_embedded_images_are_named_by_their_bytes(encoder):
    def sources(*images):
        frames = tuple(Frame(Path(f"record {place}"), None, image) for place, image in enumerate(images))
        return media_sources(Sample("a:1", (Turn("user", (*frames, "What?")),), None, {}))

    assert sources(b"one", b"two", b"one") == (*sources(b"one"), *sources(b"two"))
    assert not set(sources(b"one")) & set(sources(b"two"))


def test_number_of_frames_of_a_video_can_be_set(encoder, clips, frame_number, monkeypatch):
    wanted = []

    def read(reader: PyAVReader, numbers: list[int], convert: Any) -> dict[int, Any]:
        shown = original(reader, numbers, lambda _, pixels: frame_number(Image.fromarray(pixels)))
        assert shown == {number: number for number in numbers}
        wanted.append(list(numbers))
        return original(reader, numbers, convert)

    original = PyAVReader.read
    monkeypatch.setattr(PyAVReader, "read", read)
    for number, expected in [
        (32, np.linspace(0, 47, 32).round().astype(int).tolist()),
        (3, [0, 24, 47]),
        (2, [0, 47]),
        (200, list(range(48))),
    ]:
        sized = ChatEncoder(encoder.processor, video_num_frames=number, video_fps=0.1, video_max_frames=2)
        sample = asked(Video(clips["closed"]), "What?")
        encoded = sized.encode_prompt(sample)
        assert wanted.pop() == expected
        assert encoded.video_grid_thw.tolist() == [[-(-len(expected) // 2), 4, 4]]
        assert len(encoded) <= sized.length(sample) + len(encoder.processor.tokenizer(ASSISTANT)["input_ids"])
    with pytest.raises(ConfigError, match="video_num_frames must be at least 2, got 1"):
        ChatEncoder(encoder.processor, video_num_frames=1)


def test_text_can_be_kept_as_it_is(encoder):
    verbatim = ChatEncoder(encoder.processor, strip_text=False)
    assert decoded(encoder, verbatim.encode_prompt(asked("\n What? \n")).input_ids) == (
        f"{SYSTEM}<|im_start|>user\n\n What? \n<|im_end|>\n{ASSISTANT}"
    )


def test_embedded_image_is_read_as_its_file_is(encoder, tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (48, 96, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "plain.jpg")
    for name in ("turned.png", "plain.jpg"):
        stored = asked(Frame(tmp_path / name, None), "What?")
        embedded = asked(Frame(Path("bench.parquet, record 1"), None, (tmp_path / name).read_bytes()), "What?")
        first, second = encoder.encode_prompt(stored), encoder.encode_prompt(embedded)
        assert torch.equal(first.pixel_values, second.pixel_values)
        assert torch.equal(first.input_ids, second.input_ids)
        assert encoder.length(stored) == encoder.length(embedded)


def test_embedded_images_of_one_place_are_kept_apart(encoder):
    place = Path("bench.parquet")
    frames = [Frame(place, None, png(10)), Frame(place, None, png(200, (128, 96))), Frame(place, None, png(10))]
    sample = asked(*frames, "What?")
    encoded = ChatEncoder(encoder.processor, keys=True).encode_prompt(sample)
    assert encoded.image_grid_thw.tolist() == [[1, 4, 4], [1, 6, 8], [1, 4, 4]]
    assert encoded.image_keys[0] == encoded.image_keys[2] != encoded.image_keys[1]
    assert encoder.length(sample) + len(encoder.processor.tokenizer(ASSISTANT)["input_ids"]) == len(encoded)
    assert b"PNG" not in repr(sample).encode()


def test_embedded_image_that_cannot_be_read_is_named(encoder):
    place = Path("bench.parquet, record 7, question image 2")
    deep = BytesIO()
    Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(deep, "PNG")
    for data, says in [
        (b"not an image", "not a readable image"),
        (png(3)[:60], "not a readable image"),
        (deep.getvalue(), "exceed 8 bits per channel"),
    ]:
        with pytest.raises(MediaError, match=rf"bench\.parquet, record 7, question image 2: .*{says}"):
            encoder.encode_prompt(asked(Frame(place, None, data), "What?"))


# ---------------------------------------------------------------------------------------------------- saved data sets


def save(folder: Path, *shards: list[dict[str, Any]], **state: Any) -> Path:
    """Write a data set as `datasets.Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    listed = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_format_type": None}
    (folder / "state.json").write_text(json.dumps(listed | state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def rows(start: int, stop: int) -> list[dict[str, Any]]:
    turns = PLAIN["messages"]
    return [{"messages": [turns[0] | {"content": f"Q{number}"}, turns[1]]} for number in range(start, stop)]


def questions(source: Any) -> list[str]:
    return [sample.turns[0].parts[0] for sample in source]


def test_saved_data_set_is_read_in_the_order_of_its_index(tmp_path):
    folder = save(tmp_path / "saved", rows(0, 5), rows(5, 8))
    source = pickle.loads(pickle.dumps(open_records(folder)))
    assert len(source) == 8
    assert questions(source) == [f"Q{number}" for number in range(8)]
    assert source.id(6) == "data-00001-of-00002.arrow:2"
    assert source.sample(6).id == "data-00001-of-00002.arrow:2"


def test_saved_splits_follow_each_other(tmp_path):
    save(tmp_path / "all" / "train", rows(0, 2))
    save(tmp_path / "all" / "test", rows(2, 3))
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = open_records(tmp_path / "all")
    assert questions(source) == ["Q0", "Q1", "Q2"]
    assert source.id(2) == "test/data-00000-of-00001.arrow:1"


def test_arrow_file_of_the_other_kind_is_read_too(tmp_path):
    table = pa.Table.from_pylist(rows(0, 3))
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert questions(open_records(tmp_path / "a.arrow")) == ["Q0", "Q1", "Q2"]


def test_rewritten_arrow_file_is_not_served_from_memory(tmp_path):
    assert questions(open_records(save(tmp_path / "saved", rows(0, 2)))) == ["Q0", "Q1"]
    shutil.rmtree(tmp_path / "saved")
    assert questions(open_records(save(tmp_path / "saved", rows(4, 7)))) == ["Q4", "Q5", "Q6"]


def test_arrow_rows_stay_on_disk(tmp_path):
    folder = save(tmp_path / "saved", [{"text": "x" * 1_000_000} for _ in range(8)])
    before = pa.total_allocated_bytes()
    source = open_records(folder)
    for index in range(8):
        assert len(source.raw(index).raw["text"]) == 1_000_000
        assert pa.total_allocated_bytes() - before < 2_000_000


def test_saved_data_that_cannot_be_read_says_why(tmp_path):
    folder = save(tmp_path / "a", rows(0, 2))
    (folder / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(MissingFileError, match=r"data-00000-of-00001\.arrow: .*state\.json lists this file"):
        open_records(folder)
    with pytest.raises(ConfigError, match="its rows are chosen by an index; save it after flatten_indices"):
        open_records(save(tmp_path / "b", rows(0, 2), _indices_data_files=[{"filename": "indices.arrow"}]))
    (tmp_path / "bad.arrow").write_bytes(b"this is no Arrow file")
    with pytest.raises(RecordError, match=r"bad\.arrow: not a readable Arrow file"):
        open_records(tmp_path / "bad.arrow")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "state.json").write_text("{")
    with pytest.raises(RecordError, match=r"state\.json: not valid JSON.*save the data again"):
        open_records(tmp_path / "c")


def test_own_parser_sees_records_as_they_are_stored(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"a": 1}\n[2]\n')

    def parse(record: RawRecord) -> Sample:
        return Sample(f"{record.name}:{record.number}", (), None, record.raw)

    source = open_records(tmp_path / "own.jsonl", parse=parse)
    assert source.sample(0) == Sample("own.jsonl:1", (), None, {"a": 1})
    with pytest.raises(RecordError, match=r"own\.jsonl, record 2: list .*write it as an object with named fields"):
        source.sample(1)


# ---------------------------------------------------------------------------------------------------- image references


def test_references_lead_to_the_embedded_images(tmp_path):
    table = pa.Table.from_pylist([{"pictures": [png(1), png(2)]}, {"pictures": [png(3)]}])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    place = {"file": str(tmp_path / "a.parquet"), "column": "pictures"}
    assert read_images(place | {"record": 1}) == [png(1), png(2)]
    assert read_images(place | {"record": 2}) == [png(3)]
    assert read_images(place | {"record": 2, "column": "none"}) == []
    with pytest.raises(RecordError, match=r"a\.parquet: record 3 of 2; the file has changed"):
        read_images(place | {"record": 3})
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(MissingFileError, match=r"a\.parquet: the file has gone"):
        read_images(place | {"record": 1})


def test_an_unlabelled_video_is_no_prompt(make):
    dataset = make({"video": "good.mp4", "image": [1, 2], "reasoning_image": [3]})
    with pytest.raises(RecordError, match="no question to answer"):
        dataset[~0]
