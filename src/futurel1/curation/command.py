"""`futurel1 curate`: probe candidates, in shards, and choose the ones whose hints help."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from futurel1.curation.curated import write_curated
from futurel1.curation.probes import CandidateDataset, Prober, SampledResponses
from futurel1.curation.report import Report, require_matplotlib
from futurel1.curation.results import FAILED, SKIPPED, ProbeFolder, ProbeTable
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

__all__ = ["curate", "merge", "probe"]

logger = logging.getLogger(__name__)
CURATED, REPORT, PICTURE = "curated.jsonl", "report.txt", "report.png"
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Share:
    """One of several equal parts of the work: number `index` of `count`, from 0."""

    index: int
    count: int

    @classmethod
    def parse(cls, shard: str, environment: Mapping[str, str] = os.environ) -> Share:
        """The share of this process: its shard, cut into as many parts as torchrun (RANK, WORLD_SIZE) has ranks.

        Raises:
            ConfigError: not of the form ``i/n`` with i below n, or a rank that is none.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", shard.strip())
        if found is None or int(found[1]) >= int(found[2]):
            raise ConfigError(f"--shard is i/n with i from 0 to n - 1, such as 0/4; got {shard!r}")
        ranks = {name: environment.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
        numbers = [int(value) if value.isdecimal() else -1 for value in ranks.values()]
        if not 0 <= numbers[0] < numbers[1]:
            raise ConfigError(f"{ranks} in the environment is no rank of so many; start it by torchrun, or unset them")
        rank, world_size = numbers
        return cls(int(found[1]) * world_size + rank, int(found[2]) * world_size)


def curate(
    records: str | list[str],
    out: str,
    model: str = "tiny",
    merge: bool = False,
    shard: str = "0/1",
    rollouts: int = 8,
    max_base: int = 6,
    min_gain: int = 2,
    top: int | None = 50_000,
    judge: Judge | None = None,
    repetition_limit: float = REPETITION_LIMIT,
    retry_failed: bool = False,
    on_error: OnError = "raise",
    data_root: str | None = None,
    system_prompt: str | None = None,
    max_length: int = 16384,
    max_new_tokens: int = 2048,
    temperature: float = 0.9,
    top_p: float = 0.99,
    seed: int = 0,
    batch_size: int = 4,
    num_workers: int = 2,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
) -> None:
    """Choose the records whose future frames help a model to answer.

    Every record with hint frames is asked twice, several times each: with its observed frames, and with its hint frames
    added. Results are appended to OUT line by line; a call that was killed goes on where it stopped. When no candidate
    is left, the chosen records are written to curated.jsonl, and the counts to report.txt and report.png.

    Args:
        records: Training records: file, folder or list of them (.json, .jsonl, .parquet, .arrow).
        out: Folder of the results; shared by all shards.
        model: Any reasoner or stock model: run folder, checkpoint folder, hub name or tiny.
        merge: Probe nothing; choose from the results that are in OUT, by the thresholds given now.
        shard: Probe the part i of n, written i/n, from 0/n on. Under torchrun its ranks share that part.
        rollouts: Responses per probe.
        max_base: Most right responses without hints; candidates with more are too easy.
        min_gain: Fewest right responses that the hints have to add.
        top: Most records to choose, those that gain most; null for all.
        judge: Judge of answers that differ from the right one; null: they are wrong.
        repetition_limit: Share of repeated 4-grams or lines above which a response is wrong whatever it answers; 1:
            none is, for reasoning that has good reasons to repeat itself.
        retry_failed: Also probe again what failed before: without verdict of the judge, or a record that could not be
            read.
        on_error: raise stops at a record that cannot be read; skip counts it and goes on.
        data_root: Folder that no record's path may leave.
        system_prompt: Text file with the system turn; null for the paper's.
        max_length: Most tokens of a prompt.
        max_new_tokens: Most tokens of a response; latents count.
        temperature: Divides logits before drawing.
        top_p: Draw among the most likely tokens that together have this probability.
        seed: Seed of the draws.
        batch_size: Candidates that are decoded together; the same for all shards.
        num_workers: Processes that decode video.
        dtype: Dtype of the weights; auto is bfloat16 on cuda and float32 on cpu.
        device: cpu, cuda or auto.

    Raises:
        ConfigError: Settings that cannot work, or other ones than those of the results in OUT.
        MissingFileError: No such records or model.
        RecordError: A record that cannot be used.
    """
    thresholds = Thresholds(max_base, min_gain, top)
    share = Share.parse(shard)
    if merge and share.count > 1:
        raise ConfigError(f"--merge true probes nothing: leave --shard {shard} out, and start one process")
    reward = AccuracyReward(judge, repetition_limit)
    require_matplotlib()
    root = None if data_root is None else Path(data_root)
    if root is not None and not root.is_dir():
        raise MissingFileError(f"--data_root {root}: no such folder; name the folder that holds the media")
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(f"batch_size is at least 1 and num_workers at least 0, got {batch_size} and {num_workers}")
    _refuse_inside(out, records)
    source = open_records(records)
    folder = ProbeFolder(out, source.id, len(source))
    contents = _contents(source)
    if merge:
        if folder.settings()["records"] != contents:
            raise ConfigError(f"{out} holds probes of other records, or they have changed since; give those")
        _finish(source, folder, folder.table(), thresholds)
        return

    reasoner = _load(model, dtype, device)
    encoder = ChatEncoder(reasoner.processor, system_prompt=system_prompt, max_length=max_length)
    drawn: dict[str, Any] = {
        "rollouts": rollouts,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    respond = SampledResponses(reasoner, **drawn)
    folder.settle(
        {
            "records": contents,
            "model": _fingerprint(reasoner),
            "latents": [str(reasoner.settings.budget()), reasoner.settings.force_initial_latent_mode],
            "images": hashlib.sha256(reasoner.processor.image_processor.to_json_string().encode()).hexdigest(),
            "system_prompt": encoder.system_prompt,
            "max_length": max_length,
            **drawn,
            "judge": None if judge is None else _judge_settings(judge),
            "repetition_limit": repetition_limit,
        }
    )
    table = probe(
        CandidateDataset(source, encoder, data_root=root, on_error=on_error),
        Prober(respond, encoder.pad_token_id, reward),
        folder,
        share,
        batch_size=batch_size,
        num_workers=num_workers,
        retry_failed=retry_failed,
        progress=os.environ.get("LOCAL_RANK", "0") == "0",
    )
    if table.num_open:
        print(
            f"shard {share.index}/{share.count} is done; {table.num_open} of {len(table)} candidates are left to others"
        )
    else:
        _finish(source, folder, table, thresholds)


class _Blocks:
    """Batches of record numbers: those of a block of `size` records, however the work is shared."""

    def __init__(self, numbers: NDArray[np.int64], size: int) -> None:
        self.numbers = numbers
        self.size = size

    def __iter__(self) -> Iterator[list[int]]:
        for _, block in groupby(map(int, self.numbers), key=lambda number: number // self.size):
            yield list(block)


def probe(
    candidates: CandidateDataset,
    prober: Prober,
    folder: ProbeFolder,
    share: Share,
    *,
    batch_size: int = 4,
    num_workers: int = 0,
    retry_failed: bool = False,
    progress: bool = True,
) -> ProbeTable:
    """Probe what is left of one share, and append the results to its file batch by batch.

    Args:
        candidates: the records.
        prober: probes them.
        folder: where results go.
        share: the part of the work.
        batch_size: candidates that are decoded together.
        num_workers: processes that decode video.
        retry_failed: also what failed before, or was skipped.
        progress: show a progress bar.

    Returns:
        The results of all shares, as they are now.
    """
    with folder.shard_file(share.index, share.count) as stream:
        table = folder.table()
        numbers = table.todo(share.index, share.count, block=batch_size, retry_failed=retry_failed)
        loader: DataLoader[Any] = DataLoader(
            candidates,
            batch_sampler=_Blocks(numbers, batch_size),
            collate_fn=list,
            num_workers=num_workers,
            generator=torch.Generator(),  # loading must not draw from the global random state
        )
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), console=Console(stderr=True), disable=not progress,
        )  # fmt: skip
        with bar:
            line = bar.add_task(f"probing {share.index}/{share.count}", total=len(numbers))
            for batch in loader:
                results = prober(batch)
                for place, result in enumerate(results):
                    results[place] = replace(result, attempt=int(table.attempt[result.number]) + 1)
                    if result.reason:
                        logger.warning("%s %s: %s", result.status, result.id, result.reason)
                folder.append(stream, results)
                bar.advance(line, len(results))
    return folder.table()


def merge(source: RecordSource, folder: ProbeFolder, table: ProbeTable, thresholds: Thresholds) -> Report:
    """Choose, and write `curated.jsonl`, `report.txt` and `report.png` into the folder.

    Args:
        source: the records.
        folder: the results; every candidate has one.
        table: the same as a table.
        thresholds: the limits, and how many to keep.

    Raises:
        ConfigError: candidates are left to be probed.
    """
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


def _finish(source: RecordSource, folder: ProbeFolder, table: ProbeTable, thresholds: Thresholds) -> None:
    report = merge(source, folder, table, thresholds)
    print(report.text())
    if ((table.status == FAILED) | (table.status == SKIPPED)).any():
        print("probe what failed or was skipped again by --retry_failed true")
    print(f"chosen records: {folder.path / CURATED}\nreport: {folder.path / REPORT}, {folder.path / PICTURE}")


def _load(model: str, dtype: str, device: str) -> LatentReasoner:
    """Load any reasoner or stock model onto its device; under torchrun each rank has its own."""
    from futurel1.runs import DTYPES, exported_folder, usable_device

    device = usable_device(device, f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    name = ("bfloat16" if device.startswith("cuda") else "float32") if dtype == "auto" else dtype
    folder = exported_folder(model, None if model == "tiny" else model)
    reasoner = LatentReasoner.from_pretrained(folder, dtype=DTYPES[name])
    if reasoner.processor is None:
        raise ConfigError(f"--model {model} has no tokenizer; give a folder that has one")
    return reasoner.to(device)


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
