"""The log of sampled rollouts, `rollouts.jsonl`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from futurel1.files import write_whole
from futurel1.full_disk import told_when_full
from futurel1.json_lines import json_line, readable_lines


class SampleLog:
    """Writes the rollouts of every n-th rollout batch, one JSON line each.

    The first call truncates the file to earlier rollout batches, because an interrupted run may have written rollouts
    after its checkpoint.

    Args:
        file: file to write.
        every: n; 0 writes nothing.
    """

    def __init__(self, file: Path, every: int) -> None:
        self.file = file
        self.every = every
        self._begun = False

    def write(self, number: int, records: Sequence[dict[str, Any]]) -> None:
        """Append the rollouts of rollout batch `number`, counted from 0."""
        if not self.every:
            return
        if not self._begun:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            drop_samples(self.file, number)
            self._begun = True
        if number % self.every == 0:
            with told_when_full(self.file, "earlier lines are whole"), self.file.open("ab") as stream:
                stream.writelines(json_line({"rollout_batch": number, **record}) for record in records)


def drop_samples(file: Path, number: int) -> None:
    """Drop written rollouts of rollout batches from `number` on, and an incomplete last line."""
    if not file.is_file():
        return
    kept = b"".join(line for line, record in readable_lines(file) if record.get("rollout_batch", number) < number)
    if kept != file.read_bytes():
        write_whole(file, kept)
