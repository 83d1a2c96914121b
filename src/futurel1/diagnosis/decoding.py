"""Answers of a model to files of questions, with its latents or with others, in folders that can be continued."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Trainer
from torch import Tensor

from futurel1.data import RecordSource, open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.futures import FUTURES, Future
from futurel1.data.prompts import PromptCollator, PromptDataset, parse_prompt
from futurel1.datamodules import PromptDataModule
from futurel1.files import write_whole
from futurel1.json_lines import read_records
from futurel1.losses import hint_features
from futurel1.models import LatentReasoner
from futurel1.models.interventions import WITH_BANK, Intervention
from futurel1.modules import JSONLinesWriter, LatentPredictor
from futurel1.rollout import SamplingSettings

__all__ = ["Decoder", "future_means", "has_future"]

FRAME_BATCH = 16
_QUIET = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda")
_EXPECTED = (
    "Couldn't infer the batch indices",
    "Total length of .* across ranks is zero",
    r".*isinstance\(treespec, LeafSpec\).*",
)


@dataclass(frozen=True)
class Decoder:
    """Decodes questions with one model.

    Attributes:
        reasoner: the model.
        model: what it was loaded from; the run folders name it.
        data: settings of :class:`PromptDataModule`, without records.
        sampling: how responses are decoded, greedily.
    """

    reasoner: LatentReasoner
    model: str
    data: Mapping[str, Any]
    sampling: SamplingSettings

    @property
    def encoder(self) -> ChatEncoder:
        """Encodes questions as their data module does, and future frames as in training."""
        names = ("system_prompt", "max_length", "video_fps", "video_max_frames", "video_frame_tokens", "video_backend")
        options = {name: self.data[name] for name in names if name in self.data}
        return ChatEncoder(self.reasoner.processor, **options, **self.reasoner.settings.hint_options())

    def answer(
        self, folder: Path, questions: Sequence[str], kind: Intervention = "none", bank: Path | None = None
    ) -> list[dict[str, Any]]:
        """Predictions for all questions, in their order; those that the folder holds already are kept.

        Args:
            folder: run folder, as `futurel1 predict` makes it; latents are saved if they are the model's own.
            questions: files of records.
            kind: what replaces the latents.
            bank: run folder with latents, for those that take some from there.

        Raises:
            ConfigError: the folder holds predictions of other questions or settings.
            RecordError: a record cannot be used.
        """
        model: dict[str, Any] = {
            "num_branches": 1, "intervention": kind, "save_latents": kind == "none",
            "latent_bank": str(bank) if kind in WITH_BANK else None,
        }  # fmt: skip
        data: dict[str, Any] = {"predict": list(questions), **self.data}
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "model": {
                "class_path": "LatentPredictor",
                "init_args": {"init_from": self.model, "sampling": asdict(self.sampling), **model},
            },
            "data": {"class_path": "PromptDataModule", "init_args": data},
        }
        write_whole(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        module = LatentPredictor(backbone=self.reasoner, sampling=self.sampling, **model)
        with _quietly():
            trainer = Trainer(
                accelerator="gpu" if self.reasoner.device.type == "cuda" else "cpu", devices=1, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                default_root_dir=folder, callbacks=[JSONLinesWriter()],
            )  # fmt: skip
            prompts = PromptDataModule(**data)
            trainer.predict(module, prompts, return_predictions=False)
        lines = {str(line["id"]): line for line in read_records(folder / "predictions.jsonl")}
        source = open_questions(questions)
        return [lines[source.id(number)] for number in range(len(source)) if source.id(number) in lines]


def open_questions(questions: Sequence[str]) -> RecordSource:
    """The records of files of questions, as prompts."""
    return open_records(list(questions), parse=parse_prompt)


def has_future(questions: Sequence[str], future: Future) -> bool:
    """Whether every record knows the frames of a future; nothing is decoded."""
    source = open_questions(questions)
    find = FUTURES[future]
    return all(find(source.raw(number), source.sample(number), None) for number in range(len(source)))


@torch.no_grad()
def future_means(
    reasoner: LatentReasoner, questions: Sequence[str], future: Future, most: int | None = None
) -> list[Tensor]:
    """Features of the future frames of every question, as targets of latents.

    Args:
        reasoner: the model whose tower encodes them.
        questions: files of records that know this future.
        future: which one.
        most: encode only so many questions, the first ones; None for all.

    Returns:
        For each question, the (M, H) float32 mean feature of each of its M frames, on the CPU.
    """
    encoder = ChatEncoder(reasoner.processor, **reasoner.settings.hint_options())
    dataset = PromptDataset(open_questions(questions), encoder)
    dataset.future = future
    collate = PromptCollator(encoder.pad_token_id)
    found: list[Tensor] = []
    count = len(dataset) if most is None else min(most, len(dataset))
    for first in range(0, count, FRAME_BATCH):
        batch = collate(dataset.__getitems__(list(range(first, min(first + FRAME_BATCH, count)))))
        batch = batch.to(reasoner.device)
        if batch.hint_pixel_values is None or batch.hint_grid_thw is None:
            continue  # not reached: the dataset refuses records without frames
        features = hint_features(reasoner, batch.hint_pixel_values, batch.hint_grid_thw)
        means = torch.stack([one.float().mean(dim=0) for one in features]).cpu()
        found += torch.split(means, list(batch.hint_counts))
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Lightning's words about each of many short runs."""
    loggers = [logging.getLogger(name) for name in _QUIET]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in _EXPECTED:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
