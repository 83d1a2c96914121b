"""What a run folder holds that a page can show: configuration, predictions, latents, scores, rollouts, a diagnosis."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import yaml

from futurel1.curves import METRICS_FILE, Curve, read_curves
from futurel1.errors import ConfigError, MissingFileError, RecordError
from futurel1.json_lines import read_records
from futurel1.models import LatentBank
from futurel1.models.interventions import BANK_FILES, Intervention
from futurel1.scores import prediction_files

__all__ = ["Prediction", "RunContents"]

Prediction = Mapping[str, Any]
"""A line of `predictions.jsonl` or `samples.jsonl`, with at least `id`, `response`, `answer` and `spans`."""

DIAGNOSIS_FILE = "diagnosis.json"
"""What `futurel1 diagnose` writes into its folder."""
PREDICTION_FIELDS = ("id", "response", "answer", "spans")


@dataclass(frozen=True)
class RunContents:
    """A run folder, each of its files read when it is first asked for.

    Args:
        folder: the run folder.

    Raises:
        MissingFileError: there is no such folder.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise MissingFileError(f"run={self.folder}: no such folder; name a run folder that `futurel1` made")

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @cached_property
    def config_text(self) -> str:
        """The run's `config.yaml` as it stands; "" without one."""
        file = self.folder / "config.yaml"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The run's configuration.

        Raises:
            ConfigError: `config.yaml` is not readable as one.
        """
        file = self.folder / "config.yaml"
        try:
            config = yaml.safe_load(self.config_text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{file} is no YAML ({error}); restore the file that the run wrote") from error
        if config is None:
            return {}
        if not isinstance(config, dict):
            raise ConfigError(f"{file} holds no settings but {type(config).__name__}; restore what the run wrote")
        return config

    def setting(self, name: str) -> Any:
        """A setting by its dotted name, such as `model.init_args.backbone`; None where it is not set."""
        value: Any = self.config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    @property
    def model(self) -> str | None:
        """What the run decoded with: `init_from`, else `backbone`; None where the configuration names neither."""
        name = self.setting("model.init_args.init_from") or self.setting("model.init_args.backbone")
        return None if name is None else str(name)

    @property
    def intervention(self) -> str:
        """What the run put in the place of its latents; `none`: nothing."""
        return str(self.setting("model.init_args.intervention") or "none")

    @property
    def branches(self) -> int:
        """Responses per prompt."""
        return int(self.setting("model.init_args.num_branches") or 1)

    # ------------------------------------------------------------------ what it wrote

    @cached_property
    def predictions(self) -> dict[str, Prediction]:
        """Predictions by id, in the order of the records: those of `predict`, else those of `test`; maybe none.

        Raises:
            RecordError: a line that is no prediction.
        """
        found: dict[str, Prediction] = {}
        for file in prediction_files(self.folder):
            for number, line in enumerate(read_records(file), 1):
                missing = [name for name in PREDICTION_FIELDS if name not in line]
                if missing:
                    raise RecordError(
                        f"{file}, line {number} has no {', '.join(missing)}; a report shows what LatentPredictor wrote"
                    )
                found[str(line["id"])] = line
        return dict(sorted(found.items(), key=lambda item: _place(item[0])))

    @cached_property
    def rollouts(self) -> list[Mapping[str, Any]]:
        """Lines of `rollouts.jsonl` in order, without one that was cut off."""
        file = self.folder / "rollouts.jsonl"
        return list(read_records(file)) if file.is_file() else []

    @cached_property
    def results(self) -> Mapping[str, float | None]:
        """Numbers of `results.json`, which `futurel1 test` writes; empty without it.

        Raises:
            RecordError: the file holds something else.
        """
        file = self.folder / "results.json"
        if not file.is_file():
            return {}
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RecordError(f"{file} is no JSON ({error}); remove it, or test again") from error
        if not isinstance(results, dict):
            raise RecordError(f"{file} holds no scores but {type(results).__name__}; remove it, or test again")
        return results

    @cached_property
    def diagnosis(self) -> Mapping[str, Any]:
        """What `futurel1 diagnose` found about the run, or wrote into this folder: `verdict` and `tables`; maybe empty.

        Raises:
            RecordError: `diagnosis.json` holds something else.
        """
        for file in (self.folder / DIAGNOSIS_FILE, self.folder / "diagnosis" / DIAGNOSIS_FILE):
            if file.is_file():
                try:
                    found = json.loads(file.read_text(encoding="utf-8"))
                    return {"verdict": found["verdict"], "tables": [dict(table) for table in found["tables"]]}
                except (ValueError, KeyError, TypeError) as error:
                    raise RecordError(f"{file} is no diagnosis ({error}); diagnose again") from error
        return {}

    @property
    def replacements(self) -> list[Path]:
        """Folders in this one whose runs `futurel1 diagnose` made with replaced latents; none elsewhere."""
        if not (self.folder / DIAGNOSIS_FILE).is_file():
            return []
        return [self.folder / kind for kind in get_args(Intervention) if (self.folder / kind).is_dir()]

    @cached_property
    def latents(self) -> LatentBank | None:
        """Latents that the model was fed, by sample; None if the run did not save them."""
        return LatentBank.load(self.folder) if any(self.folder.glob(BANK_FILES)) else None

    @cached_property
    def curves(self) -> tuple[Path, dict[str, dict[str, Curve]]] | None:
        """Metrics of this run, else those of the run that its model comes from, and that run's folder; maybe none."""
        start = self.setting("model.init_args.init_from")
        for folder in (self.folder, *([Path(start)] if start else [])):
            if folder.is_dir() and any(folder.rglob(METRICS_FILE)):
                return folder, read_curves(folder)
        return None


def _place(name: str) -> tuple[str, int, str]:
    """Sorts ids by file and record number."""
    file, _, number = name.rpartition(":")
    return (file, int(number), "") if number.isdecimal() else (name, 0, name)


def evenly(count: int, most: int) -> Sequence[int]:
    """At most `most` of the numbers from 0 to `count` - 1, spread evenly; 0 means all."""
    if not most or count <= most:
        return range(count)
    return [place * count // most for place in range(most)]
