"""Prompts: what a model is asked, without the expected response; and how prompts become a batch."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from futurel1.data.batches import PromptBatch
from futurel1.data.chat import ChatEncoder
from futurel1.data.chat_text import first_response
from futurel1.data.collate import VISUAL_FIELDS, Fetched, SFTDataset, join_rows
from futurel1.data.encoded import EncodedSample
from futurel1.data.futures import FUTURES, Future, counterfactual_answer
from futurel1.data.multiple_choice import read_options
from futurel1.data.record_fields import RecordFields, shorter
from futurel1.data.record_shapes import parse_record
from futurel1.data.remote import is_there
from futurel1.data.samples import Frame, PromptInfo, RawRecord, RecordFileError, Sample, Turn
from futurel1.errors import RecordError

__all__ = ["PromptCollator", "PromptDataset", "parse_prompt", "prompt_batch"]

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class PromptDataset(SFTDataset):
    """Encoded prompts by number: the part of each sample before its first response, and its `info`.

    Args: see :class:`SFTDataset`. With ``on_error="skip"``, a batch in which no record is usable has no rows.

    Attributes:
        future: the future whose frames each prompt carries as hints; None: no hints.
        data_root: folder that no path of such a frame may leave; None: no check.
    """

    future: Future | None = None
    data_root: Path | None = None

    def __getitem__(self, index: int) -> EncodedSample:
        number = self._number(index)
        sample = self.source.sample(number)
        if self.future is None:
            return self.encoder.encode_prompt(sample)
        frames = FUTURES[self.future](self.source.raw(number), sample, self.data_root)
        if not frames:
            missing = "frames of its future (reasoning_image)" if self.future == "true" else "field 'counterfactual'"
            raise RecordError(
                f"{sample.place} has no {missing}, and the model's intervention feeds their features; leave the record "
                "out (on_error: skip), or choose another intervention"
            )
        return self.encoder.encode_prompt(sample, frames)

    def _stand_ins(self, after: int) -> list[EncodedSample]:
        # Ranks need not stay in step here, and a prompt used as a stand-in would be answered twice.
        return []


class PromptCollator:
    """Pads what a worker fetched into a :class:`PromptBatch`, on the left.

    Args:
        pad_token_id: id that fills the padding.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, fetched: Sequence[Fetched]) -> PromptBatch:
        """Make a batch; one without rows if every record was skipped."""
        samples = [sample for part in fetched for sample in part.samples]
        ids = [sample.input_ids for sample in samples] or [torch.zeros(0, dtype=torch.int64)]
        masks = [torch.ones_like(row) for row in ids]
        visual: dict[str, Any] = {name: join_rows(samples, name) for name in VISUAL_FIELDS}
        rows = len(samples)
        hints = [sample.hint_grid_thw for sample in samples]
        any_hints = any(grid is not None for grid in hints)
        return PromptBatch(
            input_ids=pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id, padding_side="left")[:rows],
            attention_mask=pad_sequence(masks, batch_first=True, padding_side="left")[:rows],
            **visual,
            hint_counts=tuple(0 if grid is None else len(grid) for grid in hints) if any_hints else (),
            sample_ids=tuple(sample.sample_id for sample in samples),
            skipped=tuple(record for part in fetched for record in part.skipped),
            sources=tuple(sample.sources for sample in samples),
            info=tuple(sample.info for sample in samples),
        )


def prompt_batch(encoder: ChatEncoder, samples: Sequence[Sample]) -> PromptBatch:
    """Encode prompts and pad them into a batch.

    Args:
        encoder: turns samples into tensors.
        samples: B prompts.

    Raises:
        RecordError: a prompt is too long, or has control strings in its text.
        MediaError: an image or video cannot be read.
        MissingFileError: an image or video is missing.
    """
    return PromptCollator(encoder.pad_token_id)([Fetched([encoder.encode_prompt(sample) for sample in samples], [])])


def parse_prompt(record: RawRecord, *, data_root: Path | None = None) -> Sample:
    """Turn a training record of any labelled shape into its prompt.

    Args:
        record: the record as stored.
        data_root: if given, media outside this folder are refused.

    Returns:
        The turns before the first response; an assistant turn that is not trained on (`loss`: false) is context, not
        a response. `info` holds the record's own id, the question (the texts of the user's turns), the answer (the
        final one; in the chat shape the first response, or the text in its ``<answer>`` tags), options and type.

    Raises:
        RecordError: the record cannot be used, is an unlabelled video, or has several responses and a final answer
            (which belongs to the last one).
        RecordFileError: a file of its observed frames is missing.
    """
    sample = parse_record(
        record.raw,
        file=record.name,
        number=record.number,
        folder=record.folder,
        data_root=data_root,
        check_files=False,
    )
    fields = RecordFields(record.raw, file=record.name, number=record.number, folder=record.folder)
    _check_answer(fields, sample)
    first = first_response(sample)
    turns = sample.turns[:first]
    answer = _first_answer(sample.turns[first]) if sample.answer is None else sample.answer
    _check_files(fields, turns)
    texts = [part for turn in turns if turn.role == "user" for part in turn.parts if isinstance(part, str)]
    question_type = fields.take("question_type")
    info = PromptInfo(
        id=fields.identity(),
        question="\n".join(text.strip() for text in texts),
        answer=answer,
        counterfactual=counterfactual_answer(record),
        options=read_options(fields),
        question_type=None if question_type is None else fields.text("question_type"),
    )
    return Sample(sample.id, turns, None, {}, info, sample.shape)


def _check_answer(fields: RecordFields, sample: Sample) -> None:
    """Refuse a record that asks no question, or whose answer does not belong to its first response."""
    responses = [turn for turn in sample.turns if turn.role == "assistant"]
    if sample.answer is None and sample.hints:
        fields.fail(
            "video",
            fields.values["video"],
            "an unlabelled video has no question to answer",
            "add 'conversations' and 'answer', or keep it for supervised training",
        )
    if sample.answer is not None and len(responses) > 1:
        raise RecordError(
            f"{fields.place}: {len(responses)} assistant turns; a prompt is what stands before the first, but the "
            f"record's answer belongs to the last: make a record of each (field '{responses[0].field}')"
        )


def _first_answer(response: Turn) -> str:
    """The answer in a chat's response: the text in its ``<answer>`` tags, else the whole text."""
    text = "".join(part for part in response.parts if isinstance(part, str))
    found = _ANSWER.search(text)
    return (found[1] if found else text).strip()


def _check_files(fields: RecordFields, turns: Sequence[Turn]) -> None:
    """Refuse a prompt whose files are missing; files of hint frames are not read and may be missing."""
    for part in (part for turn in turns for part in turn.parts if not isinstance(part, str)):
        if not (isinstance(part, Frame) and part.data is not None) and not is_there(part.path):
            raise RecordFileError(
                f"{fields.place}: there is no file {shorter(part.path)}; put it there or correct its path (field "
                f"'{part.field}')"
            )
