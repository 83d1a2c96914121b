"""The dataset of encoded records, and the collator that makes batches of them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from futurel1.data.batches import SFTBatch
from futurel1.data.chat import ChatEncoder
from futurel1.data.encoded import EncodedSample
from futurel1.data.pictures import join_pixels
from futurel1.data.records import RecordSource
from futurel1.data.samples import SkippedRecord
from futurel1.errors import ConfigError, FutureL1Error, RecordError
from futurel1.models import IGNORE

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
VISUAL_FIELDS = (
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "video_seconds_per_grid",
    "hint_pixel_values",
    "hint_grid_thw",
)
"""Batch fields made by concatenating the rows of all samples."""
_PICTURES = {"pixel_values": "images", "hint_pixel_values": "hints"}
"""Batch fields made from pictures, and the sample fields that hold the pictures."""


@dataclass(frozen=True)
class Fetched:
    """What one worker made from the record numbers of one batch."""

    samples: list[EncodedSample]
    skipped: list[SkippedRecord]


class SFTDataset(Dataset[EncodedSample]):
    """Encoded records by number.

    A negative number ``~i`` (that is, ``-i - 1``) asks for only the prompt of record `i`, without labels and hints:
    padding that keeps ranks in step and weighs nothing in any loss.

    Args:
        source: the records.
        encoder: turns a record into tensors.
        on_error: ``"raise"``: a record that cannot be used stops the run; ``"skip"``: it is left out and reported in
            the batch.
        data_numbers: record numbers that belong to this split; None for all.

    Raises:
        ConfigError: no records, or an unknown `on_error`.
    """

    def __init__(
        self,
        source: RecordSource,
        encoder: ChatEncoder,
        *,
        on_error: OnError = "raise",
        data_numbers: Sequence[int] | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self.source = source
        self.encoder = encoder
        self.on_error = on_error
        self.numbers = data_numbers
        if len(self) == 0:
            raise ConfigError("a split has no records; give more data or another val_fraction")

    def __len__(self) -> int:
        return len(self.source) if self.numbers is None else len(self.numbers)

    def _number(self, index: int) -> int:
        return index if self.numbers is None else int(self.numbers[index])

    def __getitem__(self, index: int) -> EncodedSample:
        if index < 0:
            return self.encoder.encode_prompt(self.source.sample(self._number(~index)))
        return self.encoder.encode(self.source.sample(self._number(index)))

    def length(self, index: int) -> int:
        """Number of tokens of record `index`, see :meth:`ChatEncoder.length`."""
        return self.encoder.length(self.source.sample(self._number(index)))

    def skip(self, index: int, error: FutureL1Error) -> SkippedRecord:
        """Describe a record that cannot be used."""
        return SkippedRecord(self.source.id(self._number(index)), type(error).__name__, str(error))

    def __getitems__(self, indices: list[int]) -> list[Fetched]:
        """Fetch one batch (the bulk hook of `torch.utils.data`)."""
        if self.on_error == "raise":
            return [Fetched([self[index] for index in indices], [])]
        samples: list[EncodedSample] = []
        skipped: list[SkippedRecord] = []
        for index in indices:
            try:
                samples.append(self[index])
            except FutureL1Error as error:
                skipped.append(self.skip(index if index >= 0 else ~index, error))
        if not samples:
            samples = self._stand_ins(indices[0] if indices[0] >= 0 else ~indices[0])
        return [Fetched(samples, skipped)]

    def _stand_ins(self, after: int) -> list[EncodedSample]:
        """Return a usable record without its labels, for a batch in which no record was usable."""
        for step in range(1, len(self)):
            number = (after + step) % len(self)
            try:
                # Encode the whole record, not only its prompt: if every response is broken, training must not go on.
                self[number]
                return [self[~number]]
            except FutureL1Error as error:
                logger.debug("looking for a stand-in: %s", error)
        raise RecordError(f"none of {len(self)} records can be used; run with on_error: raise to see the first reason")


class SFTCollator:
    """Pads what a worker fetched into an :class:`SFTBatch`, on the right.

    Args:
        pad_token_id: id that fills the padding.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, fetched: Sequence[Fetched]) -> SFTBatch:
        """Make a batch."""
        samples = [sample for part in fetched for sample in part.samples]
        ids = [sample.input_ids for sample in samples]
        visual: dict[str, Any] = {name: join_rows(samples, name) for name in VISUAL_FIELDS}
        return SFTBatch(
            input_ids=pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            labels=pad_sequence([sample.labels for sample in samples], batch_first=True, padding_value=IGNORE),
            **visual,
            sample_ids=tuple(sample.sample_id for sample in samples),
            image_keys=tuple(key for sample in samples for key in sample.image_keys),
            hint_keys=tuple(key for sample in samples for key in sample.hint_keys),
            skipped=tuple(record for part in fetched for record in part.skipped),
            record_ids=tuple(sample.info.id for sample in samples),
        )


def join_rows(samples: Sequence[EncodedSample], name: str) -> Tensor | None:
    """Concatenate the rows of a field over the samples that have it; None if no sample has it."""
    if name in _PICTURES:
        return join_pixels([getattr(sample, _PICTURES[name]) for sample in samples])
    present = [part for part in (getattr(sample, name) for sample in samples) if part is not None]
    return torch.cat(present) if present else None
