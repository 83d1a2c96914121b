"""Visual-gain curation: probe candidates, in shards, and choose the ones whose hints help."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from futurel1.curation.curated import write_curated
from futurel1.curation.probes import CandidateDataset, Prober, SampledResponses
from futurel1.curation.probing import Share, probe
from futurel1.curation.report import Report, require_matplotlib
from futurel1.curation.results import ProbeFolder
from futurel1.curation.selection import Thresholds, select
from futurel1.data import RecordSource, open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import OnError
from futurel1.errors import ConfigError, MissingFileError
from futurel1.files import replacing, write_whole
from futurel1.models import LatentReasoner
from futurel1.rewards import AccuracyReward, Judge
from futurel1.rewards.judge_replies import READING
from futurel1.rewards.repetition import REPETITION_LIMIT
from futurel1.rollout import SamplingSettings
from futurel1.runs import Dtype, load_reasoner

__all__ = ["Curation", "PromptSettings", "choose", "curate"]

logger = logging.getLogger(__name__)
CURATED, REPORT, PICTURE = "curated.jsonl", "report.txt", "report.png"
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class PromptSettings:
    """How records become prompts.

    Args:
        data_root: folder that no record's path may leave; None: any path will do.
        on_error: ``raise`` stops at a record that cannot be read; ``skip`` counts it and goes on.
        system_prompt: text file with the system turn; None: the paper's.
        max_length: most tokens of a prompt.

    Raises:
        MissingFileError: `data_root` is no folder.
    """

    data_root: str | None = None
    on_error: OnError = "raise"
    system_prompt: str | None = None
    max_length: int = 16384

    def __post_init__(self) -> None:
        if self.data_root is not None and not Path(self.data_root).is_dir():
            raise MissingFileError(f"data_root {self.data_root}: no such folder; name the folder that holds the media")

    def candidates(self, source: RecordSource, encoder: ChatEncoder) -> CandidateDataset:
        """The records as candidates."""
        root = None if self.data_root is None else Path(self.data_root)
        return CandidateDataset(source, encoder, data_root=root, on_error=self.on_error)


@dataclass(frozen=True)
class Curation:
    """What a call of :func:`curate` came to.

    Attributes:
        folder: folder of the results.
        share: the part of the work that was done.
        candidates: number of records.
        left: candidates that other shards have to probe; nothing is chosen before they have.
        report: what was chosen; None while candidates are left.
    """

    folder: Path
    share: Share
    candidates: int
    left: int
    report: Report | None

    def __str__(self) -> str:
        if self.report is None:
            part = f"shard {self.share.index}/{self.share.count} is done"
            return f"{part}; {self.left} of {self.candidates} candidates are left to others"
        lines = [self.report.text()]
        if self.report.outcomes["failed"] or self.report.outcomes["skipped"]:
            lines.append("probe what failed or was skipped again by --retry_failed true")
        lines.append(f"chosen records: {self.folder / CURATED}")
        return "\n".join([*lines, f"report: {self.folder / REPORT}, {self.folder / PICTURE}"])


def curate(
    records: str | list[str],
    out: str = "runs/curated",
    *,
    model: str = "tiny",
    rollouts: int = 8,
    sampling: SamplingSettings = SamplingSettings(),  # noqa: B008 (frozen)
    thresholds: Thresholds = Thresholds(),  # noqa: B008 (frozen)
    prompts: PromptSettings = PromptSettings(),
    judge: Judge | None = None,
    repetition_limit: float = REPETITION_LIMIT,
    shard: str = "0/1",
    merge: bool = False,
    retry_failed: bool = False,
    batch_size: int = 4,
    num_workers: int = 2,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> Curation:
    """Choose the records whose future frames help a model to answer.

    Every record with hint frames is asked twice, several times each: with its observed frames, and with its hint frames
    added. Results are appended to OUT line by line; a call that was killed goes on where it stopped. When no candidate
    is left, the chosen records are written to curated.jsonl, and the counts to report.txt and report.png.

    Args:
        records: Training records: file, folder or list of them (.json, .jsonl, .parquet, .arrow).
        out: Folder of the results; shared by all shards.
        model: Any reasoner or stock model: run folder, checkpoint folder, hub name or tiny.
        rollouts: Responses per probe.
        sampling: How responses are sampled.
        thresholds: Which candidates are chosen.
        prompts: How records become prompts.
        judge: Judge of answers that differ from the right one; null: they are wrong.
        repetition_limit: Share of repeated 4-grams or lines above which a response is wrong whatever it answers; 1:
            none is, for reasoning that has good reasons to repeat itself.
        shard: Probe the part i of n, written i/n, from 0/n on. Under torchrun its ranks share that part.
        merge: Probe nothing; choose from the results that are in OUT, by the thresholds given now.
        retry_failed: Also probe again what the judge gave no verdict on, and records that could not be read.
        batch_size: Candidates that are decoded together; the same for all shards.
        num_workers: Processes that decode video.
        dtype: Dtype of the weights; auto is bfloat16 on a GPU and float32 on a CPU.
        device: cpu, cuda or auto.

    Raises:
        ConfigError: Settings that cannot work, or other ones than those of the results in OUT.
        MissingFileError: No such records or model.
        RecordError: A record that cannot be used.
    """
    share = Share.parse(shard)
    if merge and share.count > 1:
        raise ConfigError(f"--merge true probes nothing: leave --shard {shard} out, and start one process")
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(f"batch_size is at least 1 and num_workers at least 0, got {batch_size} and {num_workers}")
    reward = AccuracyReward(judge, repetition_limit)
    require_matplotlib()
    _refuse_inside(out, records)
    source = open_records(records)
    folder = ProbeFolder(out, source.id, len(source))
    contents = _contents(source)
    left = 0
    if not merge:
        reasoner = load_reasoner(model, dtype=dtype, device=device)
        encoder = ChatEncoder(reasoner.processor, system_prompt=prompts.system_prompt, max_length=prompts.max_length)
        respond = SampledResponses(reasoner, sampling, rollouts=rollouts)
        folder.settle(_settings(contents, respond, encoder, judge, repetition_limit))
        left = probe(
            prompts.candidates(source, encoder), Prober(respond, encoder.pad_token_id, reward), folder, share,
            batch_size=batch_size, num_workers=num_workers, retry_failed=retry_failed,
            progress=os.environ.get("LOCAL_RANK", "0") == "0",
        ).num_open  # fmt: skip
    elif folder.settings()["records"] != contents:
        raise ConfigError(f"{out} holds probes of other records, or they have changed since; give those")
    report = None if left else choose(source, folder, thresholds)
    return Curation(folder.path, share, len(source), left, report)


def choose(source: RecordSource, folder: ProbeFolder, thresholds: Thresholds) -> Report:
    """Choose, and write `curated.jsonl`, `report.txt` and `report.png` into the folder.

    Args:
        source: the records.
        folder: the results; every candidate has one.
        thresholds: the limits, and how many to keep.

    Raises:
        ConfigError: candidates are left to be probed.
    """
    table = folder.table()
    if table.num_open:
        raise ConfigError(
            f"{folder.path}: {table.num_open} of {len(table)} candidates are not probed yet; run their shards, or all "
            "that is left without --shard, first"
        )
    rollouts = int(folder.settings()["rollouts"])
    if thresholds.max_base >= rollouts:
        logger.warning("max_base=%d of %d responses: no candidate counts as too easy", thresholds.max_base, rollouts)
    selection = select(table, thresholds)
    report = Report.of(table, selection, thresholds, rollouts)
    with replacing(folder.path / CURATED) as partial, partial.open("wb") as stream:
        write_curated(source, table, selection, rollouts=rollouts, folder=folder.path, stream=stream)
    write_whole(folder.path / REPORT, report.text())
    with replacing(folder.path / PICTURE) as partial, partial.open("wb") as stream:
        report.draw(stream)
    return report


def _refuse_inside(out: str, records: str | list[str]) -> None:
    """Refuse results among the records: they would be read as records the next time."""
    target = Path(out).resolve()
    for given in [records] if isinstance(records, str) else records:
        if Path(given).is_dir() and target.is_relative_to(Path(given).resolve()):
            raise ConfigError(
                f"--out {out} lies in --records {given}, and what is written there would be read as records; choose "
                "another one"
            )


def _settings(
    contents: list[list[str]],
    respond: SampledResponses,
    encoder: ChatEncoder,
    judge: Judge | None,
    repetition_limit: float,
) -> dict[str, Any]:
    """What decides the results of a probe."""
    reasoner, sampling = respond.reasoner, respond.sampling
    images = reasoner.processor.image_processor.to_json_string()
    return {
        "records": contents,
        "model": _fingerprint(reasoner),
        "latents": [str(sampling.budget() or reasoner.settings.budget()), reasoner.settings.force_initial_latent_mode],
        "images": hashlib.sha256(images.encode()).hexdigest(),
        "system_prompt": encoder.system_prompt,
        "max_length": encoder.max_length,
        "rollouts": respond.rollouts,
        **{name: getattr(sampling, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")},
        "judge": None if judge is None else _judge_settings(judge),
        "repetition_limit": repetition_limit,
    }


def _contents(source: RecordSource) -> list[list[str]]:
    """Name and digest of every record file: numbers of records mean nothing without them."""
    found = []
    for file in source.files:
        with file.open("rb") as stream:
            found.append([file.name, hashlib.file_digest(stream, "sha256").hexdigest()])
    return found


def _fingerprint(reasoner: LatentReasoner) -> str:
    """A digest of the weights in memory, wherever they came from: of sums of bits, as integers, along both sides."""
    digest = hashlib.sha256()
    for name, tensor in sorted(reasoner.state_dict().items()):
        bits = tensor.detach().contiguous().view(_BITS[tensor.element_size()])
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        table = bits.flatten(1) if bits.ndim > 1 else bits.reshape(1, -1)
        for side in (0, 1):
            digest.update(table.sum(side, dtype=torch.int64).cpu().numpy().tobytes())
    return digest.hexdigest()


def _judge_settings(judge: Judge) -> dict[str, Any]:
    """What decides a judge's verdicts; not its address, nor how often it is asked."""
    settings = vars(judge.request)
    prompt = judge.system_texts["answer"]
    return {**json.loads(json.dumps(settings, default=str)), "prompt": prompt, "reading": READING}
