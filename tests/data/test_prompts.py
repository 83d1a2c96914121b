"""Prompts: what is asked, what is known of it, and left padding."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_samples import ASSISTANT, FOUR_PADS, SYSTEM, decoded
from lightning_utilities.core.apply_func import apply_to_collection
from PIL import Image
from torch.utils.data import DataLoader

from futurel1.data import PromptBatch, open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.prompts import PromptCollator, PromptDataset, parse_prompt
from futurel1.data.samples import PromptInfo, RawRecord, RecordFileError, StoredImages
from futurel1.errors import BatchError, ConfigError, RecordError
from futurel1.models import load_processor

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
    return ChatEncoder(load_processor("tiny@random"))


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


# ---------------------------------------------------------------------------------------------------- what is asked


def test_prompt_is_exactly_what_stands_before_the_response(make, encoder):
    (batch,) = load(make(FRAMED), [[0]])
    assert decoded(encoder, batch.input_ids[0]) == (
        SYSTEM + f"<|im_start|>user\n{FOUR_PADS}{FOUR_PADS}What next?\nA. up\nB. down<|im_end|>\n" + ASSISTANT
    )
    assert batch.image_grid_thw.tolist() == [[1, 4, 4], [1, 4, 4]]
    assert batch.info == (
        PromptInfo(question="What next?\nA. up\nB. down", answer="B", options=OPTIONS, question_type="hop2"),
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
    assert (sample.info.question, sample.info.answer) == (question, answer)
    assert sample.info.options == record.get("options")


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
    assert [info.answer for info in batch.info] == ["B", "It falls.", "B", "It falls."]
    assert batch.skipped == ()


def test_model_reads_a_padded_batch_as_it_reads_each_prompt(make):
    from futurel1 import LatentReasoner

    reasoner = LatentReasoner.from_pretrained("tiny@random")
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
    assert second.sample_ids == second.info == ()
    assert [record.id for record in second.skipped] == ["data.jsonl:3"]
    assert third.sample_ids == ("data.jsonl:4",)
    assert third.skipped == ()


def test_raise_stops_with_the_named_error(make):
    with pytest.raises(RecordError, match=r"record 2, field 'image' = \[1, 9\]"):
        load(make(FRAMED, FRAMED | {"image": [1, 9]}), [[0, 1]])
    with pytest.raises(ConfigError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        make(FRAMED, on_error="ignore")


def test_info_goes_with_the_batch(make):
    (batch,) = load(make(FRAMED, PLAIN), [[0, 1]])
    batch.info[0].question_images = StoredImages("a.parquet", 1, "pictures")
    assert batch.to("meta").info == batch.info
    assert batch.to("meta").input_ids.device.type == "meta"
    # as Lightning's precision plugins do
    halved = apply_to_collection(
        batch, torch.Tensor, lambda tensor: tensor.half() if tensor.is_floating_point() else tensor
    )
    assert halved.pixel_values.dtype == torch.float16
    assert halved.info == batch.info
    with pytest.raises(BatchError, match="1 entries of info for 2 rows"):
        PromptBatch(batch.input_ids, batch.attention_mask, info=(PromptInfo(),))
    names = list(PromptBatch.__dataclass_fields__)
    assert names[-2:] == ["info", "responses"]


# ---------------------------------------------------------------------------------------------------- encoder


def test_prompts_name_the_files_that_they_show(make, encoder, folder):
    """Each once, by its real path; hint frames of a file of their own are not shown."""
    (folder / "link.mp4").symlink_to("good.mp4")
    shapes = [FRAMED, FRAMED | {"video": "link.mp4"}, UPSTREAM, PATHS, CHAT, PLAIN]
    (batch,) = load(make(*shapes), [list(range(len(shapes)))])
    video, picture = str((folder / "good.mp4").resolve()), str((folder / "now.png").resolve())
    assert batch.sources == ((video,), (video,), (video,), (picture,), (video,), ())
    with pytest.raises(BatchError, match="1 entries of sources for 6 rows"):
        PromptBatch(batch.input_ids, batch.attention_mask, sources=(("a",),))


def test_an_unlabelled_video_is_no_prompt(make):
    dataset = make({"video": "good.mp4", "image": [1, 2], "reasoning_image": [3]})
    with pytest.raises(RecordError, match="no question to answer"):
        dataset[~0]
