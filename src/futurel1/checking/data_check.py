"""The records of a run, checked before it."""

from __future__ import annotations

import random
import time
from typing import Any

from futurel1.checking.record_checks import RecordChecks
from futurel1.checking.report import CheckReport, Tally
from futurel1.checking.splits import Kind, data_module, open_splits
from futurel1.data.fetching import fetch
from futurel1.errors import ConfigError
from futurel1.progress import record_progress

__all__ = ["check"]

_BATCH = 8
"""Records that a worker reads before it reports."""


def check(
    data: str | list[str],
    *,
    kind: Kind | None = None,
    model: str | None = None,
    data_root: str | None = None,
    video_root: str | None = None,
    system_prompt: str | None = None,
    max_length: int | None = None,
    max_latent_tokens: int | None = None,
    fixed_latents: bool | None = None,
    sample: int | None = None,
    seed: int = 0,
    num_workers: int = 2,
) -> CheckReport:
    """Read records and their media as a run would, and say what is wrong with them.

    Every record is read, decoded and encoded by the data module of the run, so that a problem here is an error there.
    Exit status 1 when there are problems; warnings do not count.

    Args:
        data: YAML file of a run, such as configs/tiny/sft.yaml, whose data settings are used and all of whose files are
            checked; or record files: a file, a folder, a pattern, an address, or a list of them.
        kind: What record files hold: sft, rl, prompts (training records that are only asked), futurebench or
            twiffbench; null for sft, or what the YAML file says.
        model: Checkpoint folder, hub name or ``tiny``, whose processor counts tokens; null for tiny, or the model of
            the YAML file.
        data_root: Folder that no record's path may leave; this and the next five options are settings of the data
            module, null for its defaults, or what the YAML file says.
        video_root: Folder to which the videos of FutureBench are relative.
        system_prompt: Text file with the system turn.
        max_length: Most tokens per record; longer ones are problems.
        max_latent_tokens: Most latents per hint frame (L_max).
        fixed_latents: Give every hint exactly that many latents.
        sample: Check only so many records, chosen at random; null for all.
        seed: Seed of that choice.
        num_workers: Processes that decode; 0 for this one.

    Raises:
        ConfigError: Settings that cannot work, or data that has no records by its nature.
        MissingFileError: No such YAML file or model.
    """
    if (sample is not None and sample < 1) or num_workers < 0:
        raise ConfigError(f"sample is at least 1 and num_workers at least 0, got {sample} and {num_workers}")
    began = time.perf_counter()
    given: dict[str, Any] = {
        "data_root": data_root, "video_root": video_root, "system_prompt": system_prompt, "max_length": max_length,
        "max_latent_tokens": max_latent_tokens, "fixed_latents": fixed_latents,
    }  # fmt: skip
    settings = {name: value for name, value in given.items() if value is not None}
    module = data_module(data, kind=kind, model=model, settings=settings)
    splits, unopened = open_splits(module)
    checks = RecordChecks(splits)
    tally = Tally(unopened)
    for finding in _findings(checks, sample, seed, num_workers):
        tally.add(finding)
    return tally.report(module, splits, seed, time.perf_counter() - began)


def _findings(checks: RecordChecks, sample: int | None, seed: int, num_workers: int) -> Any:
    """Findings one by one, under a progress bar on standard error."""
    numbers = list(range(len(checks)))
    if sample is not None and sample < len(numbers):
        numbers = sorted(random.Random(seed).sample(numbers, sample))
    batches = [numbers[start : start + _BATCH] for start in range(0, len(numbers), _BATCH)]
    with record_progress() as bar:
        line = bar.add_task("checking records", total=len(numbers))
        for batch in fetch(checks, batches, list, num_workers=num_workers):
            yield from batch
            bar.advance(line, len(batch))
