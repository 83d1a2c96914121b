"""What all data modules over records share: finding the processor to encode with, and reporting skipped records."""

import logging
from pathlib import Path
from typing import Any

from lightning import LightningDataModule

from futurel1.data.samples import SkippedRecord
from futurel1.errors import ConfigError
from futurel1.full_disk import told_when_full
from futurel1.json_lines import drop_cut_line, json_line, readable_lines
from futurel1.models import load_processor

logger = logging.getLogger(__name__)


class RecordDataModule(LightningDataModule):
    """Base of the data modules that read records.

    Attributes:
        skipped: records that could not be used, by id.
    """

    def __init__(self) -> None:
        super().__init__()
        self.skipped: dict[str, SkippedRecord] = {}
        self._written: set[str] | None = None

    def find_processor(self, path: str | None) -> Any:
        """Find the processor to encode with: the one at `path`, else the model's own.

        Raises:
            ConfigError: there is neither.
        """
        if path is not None:
            processor = load_processor(path)
        elif self.trainer is not None:
            processor = self.trainer.lightning_module.processor
        else:
            raise ConfigError("outside of a Trainer, give processor=... (a checkpoint folder or 'tiny')")
        if processor is None:
            raise ConfigError("the model's checkpoint has no tokenizer; give data.processor")
        return processor

    def report_skipped(self, skipped: tuple[SkippedRecord, ...]) -> None:
        """Log records that were left out, and add each of them once to `skipped.jsonl` in the run folder."""
        fresh = [record for record in skipped if record.id not in self.skipped]
        self.skipped.update({record.id: record for record in fresh})
        rank = 0 if self.trainer is None else self.trainer.global_rank
        folder = Path("." if self.trainer is None else self.trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / ("skipped.jsonl" if rank == 0 else f"skipped-rank{rank}.jsonl")
        if self._written is None:  # entries that the resumed run has written already
            self._written = set()
            if file.is_file():
                drop_cut_line(file)
                self._written.update(str(record.get("id")) for _, record in readable_lines(file))
        with told_when_full(file, "earlier lines are whole"), file.open("ab") as stream:
            stream.writelines(json_line(vars(record)) for record in fresh if record.id not in self._written)
        self._written.update(record.id for record in fresh)
        for record in fresh:
            logger.warning("skipped %s (%s, %d so far): %s", record.id, record.error, len(self.skipped), record.message)

    def teardown(self, stage: str) -> None:
        """Log how many records were skipped."""
        if self.skipped:
            logger.warning("%d records were skipped; see skipped.jsonl in the run folder", len(self.skipped))
