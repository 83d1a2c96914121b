"""The data sets that a run would read, opened by the data module that would read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from futurel1.checking.findings import Problem
from futurel1.data.collate import SFTDataset
from futurel1.datamodules.base import RecordDataModule
from futurel1.errors import ConfigError, MissingFileError, RecordError
from futurel1.models.checkpoint_folders import TINY
from futurel1.runs import find_start

__all__ = ["Kind", "Split", "data_module", "open_splits"]

Kind = Literal["sft", "rl", "prompts", "futurebench", "twiffbench"]
DATA_MODULES: dict[Kind, tuple[str, str]] = {
    "sft": ("VideoHintDataModule", "train"),
    "rl": ("RolloutPromptDataModule", "train"),
    "prompts": ("PromptDataModule", "predict"),
    "futurebench": ("FutureBenchDataModule", "records"),
    "twiffbench": ("TwiFFBenchDataModule", "records"),
}
"""By kind of data, the data module that reads it, and its setting that names the files."""
CONFIG_SUFFIXES = (".yaml", ".yml")
_STAGES: tuple[Any, ...] = ("train", "val", "test", "predict")


@dataclass(frozen=True)
class Split:
    """Records that a run reads under one name.

    Attributes:
        name: the setting of the data module that names them.
        dataset: the records, encoded as the run encodes them.
        budget: most tokens that a batch holds; None: no such limit.
    """

    name: str
    dataset: SFTDataset
    budget: int | None


def data_module(
    data: str | list[str], *, kind: Kind | None, model: str | None, settings: Mapping[str, Any]
) -> RecordDataModule:
    """Make the data module that is to read the records.

    Args:
        data: record files, or the YAML file of a run.
        kind: what record files hold; None: SFT records.
        model: what has the processor; None: what a YAML file says, else ``tiny``.
        settings: settings of the data module that replace the YAML file's, or its defaults.

    Raises:
        ConfigError: no such setting, a YAML file without such data, or settings that cannot work.
        MissingFileError: no such YAML file.
    """
    if isinstance(data, str) and Path(data).suffix in CONFIG_SUFFIXES:
        if kind is not None:
            raise ConfigError(f"{data} names its data module: leave --kind out")
        config = _read_config(Path(data))
    else:
        name, setting = DATA_MODULES[kind or "sft"]
        config = {"data": {"class_path": name, "init_args": {setting: data}}}
        model = model or TINY
    accepted = _parsed("data", config["data"], instantiate=False)
    _check_settings(accepted, settings)
    chosen = dict(config["data"].get("init_args") or {}) | dict(settings)
    if model is None and chosen.get("processor") is None:
        model = _model_folder(config.get("model"), data)
    if model is not None:
        chosen["processor"] = model
    made: RecordDataModule = _parsed("data", {**config["data"], "init_args": chosen}, instantiate=True)
    return made


def open_splits(module: RecordDataModule) -> tuple[list[Split], list[Problem]]:
    """Open all records that a data module names, each setting once.

    Returns:
        The splits, and what is wrong with those that cannot be opened.
    """
    hparams, datasets = module.hparams, getattr(module, "dataset", None)
    if datasets is None:
        raise ConfigError(f"{type(module).__name__} has no dataset(stage), which gives the records to check")
    asked = {stage: hparams.get(stage) for stage in _STAGES}
    if hparams.get("val_fraction"):
        asked["val"] = f"{hparams['val_fraction']} of train"
    if "records" in hparams:
        asked = {"test": hparams["records"]}
    splits: list[Split] = []
    problems: list[Problem] = []
    seen: list[Any] = []
    for stage, given in asked.items():
        if given is None or given in seen:
            continue
        seen.append(given)
        name = "records" if "records" in hparams else stage
        try:
            splits.append(Split(name, datasets(stage), hparams.get("tokens_per_batch")))
        except (RecordError, MissingFileError) as error:
            problems.append(Problem.of(name, "", error))
    return splits, problems


def _check_settings(accepted: Any, settings: Mapping[str, Any]) -> None:
    """Refuse a data module without records, and settings that a data module lacks.

    Args:
        accepted: the data module's configuration, with defaults.
        settings: the settings.
    """
    module, _, name = str(accepted["class_path"]).rpartition(".")
    kind = getattr(import_module(module), name)
    if not (isinstance(kind, type) and issubclass(kind, RecordDataModule)):
        raise ConfigError(f"{name} is no RecordDataModule: it reads no record files that could be checked")
    lacking = [setting for setting in settings if setting not in accepted["init_args"]]
    if lacking:
        raise ConfigError(f"{name} has no setting {lacking[0]!r}: leave --{lacking[0]} out")


def _read_config(file: Path) -> dict[str, Any]:
    """The sections `data` and `model` of a run's YAML file."""
    import yaml

    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{file}: no such file; name the YAML file of a run, or files of records") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} is not a readable YAML file ({error})") from error
    data = config.get("data") if isinstance(config, dict) else None
    data = {"class_path": data} if isinstance(data, str) else data
    if not isinstance(data, dict) or not isinstance(data.get("class_path"), str):
        raise ConfigError(f"{file} has no data.class_path: name a YAML file that `futurel1 fit --config` takes")
    return {**config, "data": data}


def _model_folder(section: Any, file: object) -> str:
    """Where the processor of the model that a YAML file names lies."""
    config = None if section is None else _parsed("model", section, instantiate=False)
    arguments = {} if config is None else dict(config.get("init_args") or {})
    if "backbone" not in arguments:
        raise ConfigError(f"{file} names no model with a backbone, whose processor encodes records: give --model")
    return find_start(str(arguments["backbone"]), arguments.get("init_from")).folder


def _parsed(section: Literal["data", "model"], given: Any, *, instantiate: bool) -> Any:
    """A section of a run's configuration as `futurel1 fit` reads it: its configuration with defaults, or its object."""
    from jsonargparse import ArgumentError, ArgumentParser
    from lightning import LightningDataModule, LightningModule

    # Short class names are looked up among imported subclasses.
    import futurel1.datamodules
    import futurel1.modules  # noqa: F401

    base: type[Any] = {"data": LightningDataModule, "model": LightningModule}[section]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, section, required=True)
    try:
        config = parser.parse_object({section: given})
    except ArgumentError as error:
        raise ConfigError(f"{section}: {' '.join(str(error).split())}") from error
    return parser.instantiate(config)[section] if instantiate else config[section]
