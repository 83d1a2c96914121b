"""Right answers to held-out questions, counted while a model trains."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from futurel1.data import RecordSource, open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.prompts import parse_prompt, prompt_batch
from futurel1.errors import ConfigError
from futurel1.metrics.functional import answer_of, expected_answer
from futurel1.models.transcript import transcripts
from futurel1.scores import verdict_of

logger = logging.getLogger(__name__)


class HeldOutAccuracy(Callback):
    """Logs `val/accuracy`: the share of held-out questions that the model answers right, decoding greedily.

    Validation losses compare the model with one reference wording, token by token. They can rise while more answers
    become right. This callback decodes the answers: before the first step, and at every validation.

    Args:
        records: labelled records: file, folder, pattern, address or list of them; None: the data module's `val`.
        num_records: use the first so many; None: all.
        max_new_tokens: maximum number of tokens of a response; latents count.
        batch_size: questions that are decoded together.

    Raises:
        ConfigError: a number below 1.
    """

    def __init__(
        self,
        records: str | list[str] | None = None,
        num_records: int | None = 64,
        max_new_tokens: int = 160,
        batch_size: int = 16,
    ) -> None:
        if min(1 if num_records is None else num_records, max_new_tokens, batch_size) < 1:
            raise ConfigError(
                f"num_records, max_new_tokens and batch_size are at least 1, got {num_records}, {max_new_tokens} and "
                f"{batch_size}"
            )
        self.records = records
        self.num_records = num_records
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self._questions: tuple[RecordSource, ChatEncoder] | None = None

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Open the records, with the encoder of the training data."""
        if stage != "fit":
            return
        if pl_module.device_mesh is not None:
            raise ConfigError("HeldOutAccuracy decodes with whole weights; it does not work with ModelParallelStrategy")
        data = trainer.datamodule
        records = self.records or data.hparams.get("val")
        if records is None:
            logger.warning("HeldOutAccuracy has no records and logs nothing: name some, or give the data module val")
            return
        self._questions = (open_records(records, parse=parse_prompt), data.encoder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the accuracy before the first step; a resumed run has logged it."""
        if trainer.global_step == 0 and self._questions:
            accuracy = self.accuracy(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics({"val/accuracy": accuracy}, step=0)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the accuracy, but for the sanity check before training."""
        if self._questions and not trainer.sanity_checking:
            # Counted over all ranks, so the mean over ranks, which Lightning wants, is what each of them has.
            pl_module.log("val/accuracy", self.accuracy(trainer, pl_module), prog_bar=True, sync_dist=True)

    def accuracy(self, trainer: Trainer, pl_module: Any) -> float:
        """Decode this rank's share of the questions; the accuracy over all ranks."""
        assert self._questions is not None  # both hooks ask first
        number = len(self._questions[0])
        total = number if self.num_records is None else min(number, self.num_records)
        numbers = range(total)[trainer.global_rank :: trainer.world_size]
        starts = range(0, len(numbers), self.batch_size)
        right = sum(self._right(pl_module.reasoner, numbers[start : start + self.batch_size]) for start in starts)
        counts = torch.tensor([right, len(numbers)], dtype=torch.float64)
        right_of_all, of_all = pl_module.reduced(counts)
        return float(right_of_all / of_all)

    def _right(self, reasoner: Any, numbers: range) -> int:
        assert self._questions is not None
        records, encoder = self._questions
        prompt = prompt_batch(encoder, [records.sample(number) for number in numbers])
        rollout = reasoner.generate(prompt.to(reasoner.device), max_new_tokens=self.max_new_tokens)
        expected = (expected_answer(info.answer, info.options) for info in prompt.info)
        answers = (
            answer_of(text.text, info.options)
            for text, info in zip(transcripts(rollout, reasoner.tokenizer), prompt.info, strict=True)
        )
        pairs = zip(answers, expected, strict=True)
        return sum(bool(verdict_of({"answer": answer, "expected": truth})) for answer, truth in pairs)
