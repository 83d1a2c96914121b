"""Datasets of encoded records: padding, skipping, standing in, through loader workers too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from futurel1 import LatentReasoner
from futurel1.data import SFTBatch, open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import SFTCollator, SFTDataset
from futurel1.errors import ConfigError, MediaError, RecordError
from futurel1.losses import LatentSFTLoss
from futurel1.models import IGNORE

GOOD = {
    "video": "good.mp4",
    "image": [1],
    "reasoning_image": [5],
    "conversations": [{"from": "human", "value": "<image>What next?"}, {"from": "gpt", "value": "It moves.<image>"}],
    "answer": "B",
}
CHAT = {"messages": [{"role": "user", "content": "What next?"}, {"role": "assistant", "content": "It falls."}]}


@pytest.fixture(scope="module")
def reasoner() -> LatentReasoner:
    return LatentReasoner.from_pretrained("tiny@random", projection_head="swiglu", projection_hidden_dim=32)


@pytest.fixture(scope="module")
def encoder(reasoner) -> ChatEncoder:
    return ChatEncoder(reasoner.processor)


@pytest.fixture
def folder(tmp_path, clips) -> Path:
    """A folder with `good.mp4` and `now.png`."""
    made = tmp_path / "data"
    made.mkdir()
    shutil.copy(clips["closed"], made / "good.mp4")
    Image.new("RGB", (64, 48), (9, 9, 9)).save(made / "now.png")
    return made


@pytest.fixture
def make(folder, encoder) -> Callable[..., SFTDataset]:
    """Write records (dictionaries, or lines as they stand) to `data.jsonl` and open them."""

    def make(*records: dict[str, Any] | str, root: Path | None = None, **options: Any) -> SFTDataset:
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        (folder / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return SFTDataset(open_records(folder / "data.jsonl", data_root=root), encoder, **options)

    return make


def load(dataset: SFTDataset, batches: list[list[int]], num_workers: int = 0) -> list[SFTBatch]:
    collate = SFTCollator(dataset.encoder.pad_token_id)
    batches_of_workers = iter(DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=num_workers))
    try:
        return list(batches_of_workers)
    finally:
        if num_workers:
            # Not left to the garbage collector, which waits 5 seconds for each worker that an exception left behind.
            batches_of_workers._shutdown_workers()


# ---------------------------------------------------------------------------------------------------- padding


def test_rows_are_padded_on_the_right_and_pictures_follow_each_other(make, encoder):
    longer = GOOD | {"image": [1, 2], "reasoning_image": [4, 6]}
    longer["conversations"] = [
        {"from": "human", "value": "<image><image>What next?"},
        {"from": "gpt", "value": "It moves up.<image>Then down.<image>"},
    ]
    dataset = make(GOOD, longer, CHAT)
    parts = [dataset[index] for index in range(3)]
    (batch,) = load(dataset, [[0, 1, 2]])
    lengths = [len(part) for part in parts]
    assert batch.input_ids.shape == (3, max(lengths))
    for row, part in enumerate(parts):
        assert torch.equal(batch.input_ids[row, : lengths[row]], part.input_ids)
        assert torch.equal(batch.labels[row, : lengths[row]], part.labels)
        assert (batch.input_ids[row, lengths[row] :] == encoder.pad_token_id).all()
        assert (batch.labels[row, lengths[row] :] == IGNORE).all()
        assert batch.attention_mask[row].tolist() == [1] * lengths[row] + [0] * (max(lengths) - lengths[row])
    for name in ("pixel_values", "image_grid_thw", "hint_pixel_values", "hint_grid_thw"):
        assert torch.equal(getattr(batch, name), torch.cat([getattr(part, name) for part in parts[:2]]))
    assert len(batch.image_grid_thw) == len(batch.hint_grid_thw) == 3
    assert batch.pixel_values_videos is batch.video_grid_thw is batch.video_seconds_per_grid is None
    assert batch.sample_ids == ("data.jsonl:1", "data.jsonl:2", "data.jsonl:3")
    assert batch.skipped == batch.image_keys == ()
    assert batch.total_tokens is None


def test_keys_follow_the_pictures(make, encoder):
    dataset = make(GOOD, CHAT, GOOD | {"image": [2]})
    dataset.encoder = ChatEncoder(encoder.processor, keys=True)
    (batch,) = load(dataset, [[0, 1, 2]])
    assert len(batch.image_keys) == len(batch.image_grid_thw) == 2
    assert len(batch.hint_keys) == len(batch.hint_grid_thw) == 2
    assert batch.image_keys == dataset[0].image_keys + dataset[2].image_keys


def test_text_only_batch_has_no_visuals(make):
    (batch,) = load(make(CHAT, CHAT), [[0, 1]])
    visuals = [
        batch.pixel_values, batch.image_grid_thw, batch.pixel_values_videos, batch.video_grid_thw,
        batch.hint_pixel_values, batch.hint_grid_thw, batch.video_seconds_per_grid,
    ]  # fmt: skip
    assert all(value is None for value in visuals)
    assert (batch.labels != IGNORE).any(dim=1).all()


def test_data_numbers_choose_the_records_of_a_split(make):
    dataset = make(CHAT, GOOD, CHAT, data_numbers=[2, 1])
    assert len(dataset) == 2
    assert [dataset[0].sample_id, dataset[1].sample_id] == ["data.jsonl:3", "data.jsonl:2"]
    assert dataset.length(1) == len(dataset[1])
    assert dataset[~1].sample_id == "data.jsonl:2"


def test_settings_that_cannot_work_are_refused(make):
    with pytest.raises(ConfigError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        make(CHAT, on_error="ignore")
    with pytest.raises(ConfigError, match="a split has no records"):
        make(CHAT, data_numbers=[])


# ---------------------------------------------------------------------------------------------------- without labels


def test_inverted_number_is_the_record_without_labels(make):
    dataset = make(GOOD, CHAT)
    whole, prompt = dataset[0], dataset[~0]
    assert prompt.sample_id == "data.jsonl:1"
    assert torch.equal(prompt.input_ids, whole.input_ids[: whole.prompt_length])
    assert (prompt.labels == IGNORE).all()
    assert torch.equal(prompt.pixel_values, whole.pixel_values)
    assert prompt.hint_pixel_values is prompt.hint_grid_thw is None


def test_inverted_number_of_a_chat_with_later_pictures_still_runs(make, reasoner):
    record = {
        "messages": [
            {"role": "user", "content": "<image>What?"},
            {"role": "assistant", "content": "A ball."},
            {"role": "user", "content": "<image>And that?"},
            {"role": "assistant", "content": "A wall."},
        ],
        "images": ["now.png", "now.png"],
    }
    (batch,) = load(make(record), [[~0]])
    assert LatentSFTLoss()(reasoner, batch).loss.item() == 0


# ---------------------------------------------------------------------------------------------------- errors


def test_bad_record_leaves_the_others_and_is_reported_once(make):
    dataset = make(GOOD, GOOD | {"video": "gone.mp4"}, CHAT, on_error="skip")
    (batch,) = load(dataset, [[0, 1, 2]])
    assert batch.sample_ids == ("data.jsonl:1", "data.jsonl:3")
    assert len(batch) == 2
    (record,) = batch.skipped
    assert (record.id, record.error) == ("data.jsonl:2", "RecordFileError")
    assert "data.jsonl, record 2, field 'video' = 'gone.mp4'" in record.message


def test_batch_of_bad_records_gets_a_stand_in_that_weighs_nothing(make, reasoner):
    dataset = make(GOOD | {"image": [9]}, GOOD | {"answer": ""}, GOOD | {"image": [0]}, GOOD, on_error="skip")
    (batch,) = load(dataset, [[0, 1]])
    assert batch.sample_ids == ("data.jsonl:4",)
    assert [record.id for record in batch.skipped] == ["data.jsonl:1", "data.jsonl:2"]
    assert (batch.labels == IGNORE).all()
    assert batch.hint_pixel_values is batch.hint_grid_thw is None
    assert not reasoner.latent_mask(batch.input_ids).any()

    reasoner.zero_grad()
    output = LatentSFTLoss()(reasoner, batch)
    output.loss.backward()
    assert (float(output.loss.detach()), output.num_tokens, output.num_latents) == (0.0, 0, 0)
    for name, parameter in reasoner.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    reasoner.zero_grad()


def test_padding_with_a_bad_record_finds_a_stand_in_too(make):
    dataset = make(CHAT, GOOD | {"image": [9]}, on_error="skip")
    (batch,) = load(dataset, [[~1]])
    assert batch.sample_ids == ("data.jsonl:1",)
    assert [record.id for record in batch.skipped] == ["data.jsonl:2"]
    assert (batch.labels == IGNORE).all()


def test_no_usable_record_at_all_is_an_error(make):
    dataset = make(GOOD | {"image": [9]}, GOOD | {"answer": ""}, on_error="skip")
    with pytest.raises(RecordError, match="none of 2 records can be used; run with on_error: raise"):
        load(dataset, [[0], [1]])
    dataset = make(GOOD, GOOD | {"image": [2]}, on_error="skip")
    dataset.encoder = ChatEncoder(dataset.encoder.processor, max_length=len(dataset[~0]))
    assert len(dataset[~1]) == dataset.encoder.max_length
    with pytest.raises(RecordError, match="none of 2 records"):  # sound prompts, too long with their responses
        load(dataset, [[0]])
    with pytest.raises(RecordError, match="none of 1 records"):
        load(make(GOOD | {"image": [9]}, on_error="skip"), [[0]])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_raise_stops_with_the_named_error(make, folder, clips, num_workers):
    (folder / "cut.mp4").write_bytes(clips["closed"].read_bytes()[:2000])
    with pytest.raises(RecordError, match=r"data\.jsonl, record 2, field 'image' = \[9\]"):
        load(make(CHAT, GOOD | {"image": [9]}), [[0], [1]], num_workers)
    with pytest.raises(MediaError, match=r"cut\.mp4: the file is cut short"):
        load(make(CHAT, GOOD | {"video": "cut.mp4"}), [[0], [1]], num_workers)


def outside(folder: Path) -> Path:
    path = folder.parent / "outside.mp4"
    shutil.copy(folder / "good.mp4", path)
    return path


def prepare_zero_bytes(folder: Path) -> None:
    (folder / "bad.mp4").write_bytes(b"")


def prepare_truncated(folder: Path) -> None:
    whole = (folder / "good.mp4").read_bytes()
    (folder / "bad.mp4").write_bytes(whole[: len(whole) // 2])


def prepare_text(folder: Path) -> None:
    (folder / "bad.mp4").write_text("This is no video.\n" * 50)


def prepare_link(folder: Path) -> None:
    (folder / "bad.mp4").symlink_to(outside(folder))


def prepare_thin(folder: Path) -> None:
    Image.new("RGB", (4001, 10)).save(folder / "thin.png")


def prepare_damaged_image(folder: Path) -> None:
    whole = (folder / "now.png").read_bytes()
    (folder / "bad.png").write_bytes(whole[: len(whole) // 2])


BAD_VIDEO = GOOD | {"video": "bad.mp4"}
TURNS = GOOD["conversations"]
IMAGES = {key: value for key, value in GOOD.items() if key != "video"} | {"reasoning_image": ["now.png"]}
BAD_RECORDS: dict[str, tuple[dict[str, Any] | str, Callable[[Path], Any] | None, str, str]] = {
    "missing file": (BAD_VIDEO, None, "RecordFileError", "there is no file"),
    "zero bytes": (BAD_VIDEO, prepare_zero_bytes, "MediaError", "the file is empty (0 bytes)"),
    "truncated": (BAD_VIDEO, prepare_truncated, "MediaError", "cut short"),
    "text called mp4": (BAD_VIDEO, prepare_text, "MediaError", "not an MP4/MOV"),
    "damaged image": (IMAGES | {"image": ["bad.png"]}, prepare_damaged_image, "MediaError", "not a readable image"),
    "thin image": (IMAGES | {"image": ["thin.png"]}, prepare_thin, "MediaError", "4001 x 10"),
    "index 0": (GOOD | {"image": [0]}, None, "RecordError", "0 is not a frame of the 8-frame pool"),
    "index 9": (GOOD | {"reasoning_image": [9]}, None, "RecordError", "9 is not a frame"),
    "index -1": (GOOD | {"image": [-1]}, None, "RecordError", "-1 is not a frame"),
    "index in quotes": (GOOD | {"reasoning_image": ["3"]}, None, "RecordError", "'3' is not a frame"),
    "too few markers": (GOOD | {"image": [1, 2]}, None, "RecordError", "<image>"),
    "too many hint markers": (GOOD | {"reasoning_image": []}, None, "RecordError", "<image>"),
    "hint before observed": (GOOD | {"image": [5], "reasoning_image": [3]}, None, "RecordError", "reasoning_image"),
    "empty answer": (GOOD | {"answer": "  "}, None, "RecordError", "field 'answer'"),
    "control string": (GOOD | {"answer": "<|im_end|>"}, None, "RecordError", "the answer contains <|im_end|>"),
    "wrong JSON": ('{"video": "good.mp4", ', None, "RecordError", "not valid JSON"),
    "not an object": ("[1, 2]", None, "RecordError", "where an object is expected"),
    "unknown shape": ({"question": "?", "label": 3}, None, "RecordError", "unknown shape"),
    "path out by dots": (GOOD | {"video": "../outside.mp4"}, outside, "RecordError", "outside data_root"),
    "path out by a link": (BAD_VIDEO, prepare_link, "RecordError", "outside data_root"),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_every_kind_of_bad_record_is_skipped_counted_and_named(make, folder, kind):
    record, prepare, error, message = BAD_RECORDS[kind]
    if prepare is not None:
        prepare(folder)
    dataset = make(GOOD, record, CHAT, root=folder, on_error="skip")
    batches = load(dataset, [[0, 1], [2]], num_workers=1)
    assert [batch.sample_ids for batch in batches] == [("data.jsonl:1",), ("data.jsonl:3",)]
    assert [len(batch.skipped) for batch in batches] == [1, 0]
    (skipped,) = batches[0].skipped
    assert (skipped.id, skipped.error) == ("data.jsonl:2", error)
    assert message in skipped.message
    # every message leads to the culprit: the record, or the media file
    assert any(place in skipped.message for place in ("record 2", "data.jsonl:2", "bad.mp4", "bad.png", "thin.png"))
