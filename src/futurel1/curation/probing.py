"""Probe the candidates of one share of the work."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from futurel1.curation.probes import CandidateDataset, Prober
from futurel1.curation.results import ProbeFolder, ProbeTable
from futurel1.errors import ConfigError
from futurel1.launch import Launch
from futurel1.progress import record_progress

__all__ = ["Share", "probe"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """Share number `index`, from 0, of `count` equal shares of the work."""

    index: int
    count: int

    @classmethod
    def parse(cls, shard: str, environment: Mapping[str, str] | None = None) -> Share:
        """The share of this process: its shard, split among the processes of a launch by torchrun, srun or mpirun.

        Args:
            shard: ``i/n``.
            environment: environment variables; None: those of this process.

        Raises:
            ConfigError: `shard` is not of the form ``i/n`` with i below n, or the environment does not tell which
                process this is.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", shard.strip())
        if found is None or int(found[1]) >= int(found[2]):
            raise ConfigError(f"--shard is i/n with i from 0 to n - 1, such as 0/4; got {shard!r}")
        launch = Launch.detect(environment)
        if launch.rank is None:
            raise ConfigError("NODE_RANK is set, but neither RANK nor WORLD_SIZE, which say which process this is")
        return cls(int(found[1]) * launch.world_size + launch.rank, int(found[2]) * launch.world_size)


def probe(
    candidates: CandidateDataset,
    prober: Prober,
    folder: ProbeFolder,
    share: Share,
    *,
    batch_size: int = 4,
    num_workers: int = 0,
    retry_failed: bool = False,
) -> ProbeTable:
    """Probe the remaining candidates of one share, and append the results to its file batch by batch.

    Args:
        candidates: the records.
        prober: probes them.
        folder: folder of the results.
        share: the share of the work.
        batch_size: candidates that are read, encoded and judged together.
        num_workers: processes that decode video.
        retry_failed: also probe candidates that failed or were skipped before.

    Returns:
        The results of all shares so far.
    """
    with folder.shard_file(share.index, share.count) as stream:
        table = folder.table()
        numbers = table.todo(share.index, share.count, block=batch_size, retry_failed=retry_failed)
        blocks = prober.run(candidates, _blocks(numbers, batch_size), num_workers=num_workers)
        with record_progress(disable=Launch.detect().local_rank != 0) as bar:
            line = bar.add_task(f"probing {share.index}/{share.count}", total=len(numbers))
            for results in blocks:
                for place, result in enumerate(results):
                    results[place] = replace(result, attempt=int(table.attempt[result.number]) + 1)
                    if result.reason:
                        logger.warning("%s %s: %s", result.status, result.id, result.reason)
                folder.append(stream, results)
                bar.advance(line, len(results))
    return folder.table()


def _blocks(numbers: NDArray[np.int64], size: int) -> list[list[int]]:
    """Batches of record numbers: one per block of `size` records, independent of how the work is shared."""
    return [list(block) for _, block in groupby(map(int, numbers), key=lambda number: number // size)]
