"""Visual-gain curation: probe candidates, in shards, and choose those whose hints help."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from futurel1.curation.curated import write_curated
from futurel1.curation.probes import CandidateDataset, Prober
from futurel1.curation.probing import Share, probe
from futurel1.curation.report import Report, require_matplotlib
from futurel1.curation.results import MAX_ROLLOUTS, ProbeFolder
from futurel1.curation.selection import Thresholds, select
from futurel1.data import RecordSource, open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import OnError
from futurel1.data.records import check_outside
from futurel1.data.remote import media_folder
from futurel1.engines import Decoding, Engine, EngineSettings, OwnLoop, SampledResponses
from futurel1.errors import ConfigError
from futurel1.files import replacing, write_whole
from futurel1.leftovers import remove_leftovers
from futurel1.models import load_processor
from futurel1.rewards import AccuracyReward, Judge
from futurel1.rewards.judge_replies import READING
from futurel1.rewards.repetition import REPETITION_LIMIT
from futurel1.rollout import SamplingSettings
from futurel1.runs import Dtype, load_reasoner, model_start

__all__ = ["Curation", "PromptSettings", "choose", "curate"]

logger = logging.getLogger(__name__)
CURATED, REPORT, PICTURE = "curated.jsonl", "report.txt", "report.png"


@dataclass(frozen=True)
class PromptSettings:
    """How records become prompts.

    Args:
        data_root: folder that no record's path may leave; None: no check.
        on_error: ``raise``: stop at a record that cannot be read; ``skip``: count it and continue.
        system_prompt: text file with the system turn; None: the checkpoint's own, else the paper's.
        max_length: most tokens of a prompt.
        num_workers: processes that decode video.

    Raises:
        ConfigError: `num_workers` is negative.
        MissingFileError: `data_root` is no folder.
    """

    data_root: str | None = None
    on_error: OnError = "raise"
    system_prompt: str | None = None
    max_length: int = 16384
    num_workers: int = 2

    def __post_init__(self) -> None:
        media_folder("data_root", self.data_root)
        if self.num_workers < 0:
            raise ConfigError(f"num_workers is at least 0, got {self.num_workers}")

    def encoder(self, processor: Any) -> ChatEncoder:
        """The encoder of the prompts."""
        return ChatEncoder(processor, system_prompt=self.system_prompt, max_length=self.max_length)

    def candidates(self, source: RecordSource, encoder: Any) -> CandidateDataset:
        """Dataset of the records as candidates, whose prompts the encoder of an engine makes."""
        root = media_folder("data_root", self.data_root)
        return CandidateDataset(source, encoder, data_root=root, on_error=self.on_error)


@dataclass(frozen=True)
class Curation:
    """Result of a call of :func:`curate`.

    Attributes:
        folder: folder of the results.
        share: the share of the work that this call did.
        candidates: number of records.
        left: number of candidates that other shards still have to probe; nothing is chosen before that.
        report: counts of the selection; None while candidates are left.
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
            lines.append("probe what failed or was skipped again by --mode retry")
        lines.append(f"chosen records: {self.folder / CURATED}")
        return "\n".join([*lines, f"report: {self.folder / REPORT}, {self.folder / PICTURE}"])


def curate(
    records: str | list[str],
    out: str = "runs/curated",
    *,
    model: str = "tiny",
    engine: EngineSettings | None = None,
    rollouts: int = 8,
    sampling: SamplingSettings = SamplingSettings(),  # noqa: B008 (frozen)
    thresholds: Thresholds = Thresholds(),  # noqa: B008 (frozen)
    prompts: PromptSettings = PromptSettings(),
    judge: Judge | None = None,
    repetition_limit: float = REPETITION_LIMIT,
    mode: Literal["probe", "retry", "merge"] = "probe",
    shard: str = "0/1",
    batch_size: int = 4,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> Curation:
    """Choose the records whose future frames help a model to answer.

    Each record with hints is asked several times with its observed frames, and with its hint frames added. Results are
    appended to OUT line by line, and a killed call goes on. The last call writes curated.jsonl and report.txt, .png.

    Args:
        records: Training records: file, folder, pattern, address or list of them (.json, .jsonl, .parquet, .arrow).
        out: Folder of the results; shared by all shards.
        model: Any reasoner or stock model: run folder, a checkpoint of one, checkpoint folder, hub name or tiny.
        engine: What answers instead of this process: Server (no latents; `model` gives the tokenizer) or Ray.
        rollouts: Responses per probe.
        sampling: How responses are sampled.
        thresholds: Which candidates are chosen.
        prompts: How records become prompts.
        judge: Judge of answers that differ from the right one; null: they are wrong.
        repetition_limit: Share of repetition above which a response is wrong; 1: no response is.
        mode: probe: what is left; retry: also what failed or was skipped; merge: probe nothing, only choose again.
        shard: Part i/n of the records to probe, i from 0 to n - 1. The processes of torchrun, srun or mpirun share it.
        batch_size: Candidates that are encoded and decoded at once; the same for all shards.
        dtype: Dtype of the weights; auto is bfloat16 on a GPU and float32 on a CPU.
        device: cpu, cuda or auto.

    Raises:
        ConfigError: Invalid settings, or settings that differ from those of the results in OUT.
        MissingFileError: No such records or model.
        RecordError, EndpointError: A record that cannot be used; a server or judge that fails.
    """
    share, reward = _share(mode, shard, batch_size), AccuracyReward(judge, repetition_limit)
    source, folder = _open(records, out)
    remove_leftovers(folder.path)
    if mode == "merge":
        _check_records(source, folder)
    else:
        decoding = Decoding(sampling, rollouts)
        used, asked = _engine(engine, model, prompts, decoding, batch_size, dtype=dtype, device=device)
        with used:
            folder.settle({"records": _contents(source), **used.settings(), **asked, **_reward_settings(reward)})
            candidates = prompts.candidates(source, used.encoder)
            prober, loading = Prober(used, reward, on_error=prompts.on_error), {"num_workers": prompts.num_workers}
            probe(candidates, prober, folder, share, batch_size=batch_size, retry_failed=mode == "retry", **loading)
    left = folder.table().num_open
    report = None if left and mode != "merge" else choose(source, folder, thresholds)
    return Curation(folder.path, share, len(source), left, report)


def choose(source: RecordSource, folder: ProbeFolder, thresholds: Thresholds) -> Report:
    """Choose records, and write `curated.jsonl`, `report.txt` and `report.png` into the folder.

    Args:
        source: the records.
        folder: the results; there must be one for every candidate.
        thresholds: the requirements, and how many candidates to keep.

    Raises:
        ConfigError: some candidates are not probed yet.
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


def _share(mode: str, shard: str, batch_size: int) -> Share:
    share = Share.parse(shard)
    if mode == "merge" and share.count > 1:
        raise ConfigError(f"--mode merge probes nothing: leave --shard {shard} out, and start one process")
    if batch_size < 1:
        raise ConfigError(f"batch_size is at least 1, got {batch_size}")
    return share


def _open(records: str | list[str], out: str) -> tuple[RecordSource, ProbeFolder]:
    """Open the records and the results folder, which must lie outside a folder of records, or it would be read too."""
    require_matplotlib()
    check_outside(records, out)
    source = open_records(records)
    return source, ProbeFolder(out, source.id, len(source))


def _check_records(source: RecordSource, folder: ProbeFolder) -> None:
    if folder.settings()["records"] != _contents(source):
        raise ConfigError(f"{folder.path} holds probes of other records, or they have changed since; give those")


def _engine(
    chosen: EngineSettings | None, model: str, prompts: PromptSettings, decoding: Decoding, slots: int, **loading: Any
) -> tuple[Engine[Any], dict[str, Any]]:
    """What answers the probes, and the settings of prompts and sampling that determine their results."""
    if not 1 <= decoding.num_branches <= MAX_ROLLOUTS:
        raise ConfigError(f"rollouts must be from 1 to {MAX_ROLLOUTS}, got {decoding.num_branches}")
    if chosen is None:
        reasoner = load_reasoner(model, **loading)
        encoder = prompts.encoder(reasoner.processor)
        respond = SampledResponses(reasoner, decoding, slots=slots)
        return OwnLoop(respond, encoder), _prompt_settings(encoder, decoding)
    processor = load_processor(model_start(model).folder)
    if processor is None:
        raise ConfigError(f"{model} has no tokenizer; give a folder that has one")
    encoder = prompts.encoder(processor)
    return chosen.engine(model, encoder, decoding), _prompt_settings(encoder, decoding)


def _prompt_settings(encoder: ChatEncoder, decoding: Decoding) -> dict[str, Any]:
    images = encoder.processor.image_processor.to_json_string()
    return {
        "images": hashlib.sha256(images.encode()).hexdigest(),
        "system_prompt": encoder.system_prompt,
        "max_length": encoder.max_length,
        "rollouts": decoding.num_branches,
        **{name: getattr(decoding.sampling, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")},
    }


def _contents(source: RecordSource) -> list[list[str]]:
    """Name and digest of every record file, because record numbers mean nothing without them.

    Of a remote file that is its store's digest or time, so that no process reads it again.
    """
    found = []
    for file in source.files:
        if file.url is not None and file.version:
            found.append([file.url, f"{file.size} {file.version}"])
        else:
            found.append([file.path.name, file.using(_sha256)])
    return found


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(2**20):
        digest.update(chunk)
    return digest.hexdigest()


def _reward_settings(reward: AccuracyReward) -> dict[str, Any]:
    """Settings that determine what counts as right; not the address or concurrency of a judge."""
    judge, found = reward.judge, None
    if judge is not None:
        settings = json.loads(json.dumps(vars(judge.request), default=str))
        found = {**settings, "prompt": judge.system_texts["answer"], "reading": READING}
    return {"judge": found, "repetition_limit": reward.repetition_limit}
