"""Names the nested key for a formerly flat key, before jsonargparse reports an unknown option."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from futurel1.errors import ConfigError
from futurel1.losses import PolicyLoss
from futurel1.rollout import RolloutSettings, SamplingSettings


def _under(group: str, settings: type[Any]) -> dict[str, str]:
    return {field.name: f"{group}.{field.name}" for field in fields(settings)}


NESTED = {
    "LADAPOModule": {
        **_under("rollout", RolloutSettings),
        **_under("sampling", SamplingSettings),
        **_under("objective", PolicyLoss),
        "rollout_batch_size": "rollout.batch_size",
    },
    "LatentPredictor": _under("sampling", SamplingSettings),
}
"""For each class, the flat keys of version 0.1 and the nested keys that replace them."""


def refuse_flat_keys(args: Sequence[str]) -> None:
    """Raise a `ConfigError` for the first flat key of a class whose settings are nested.

    Args:
        args: command line of a Trainer command, without the program's name; files given by ``--config`` are read.
    """
    model, keys = "", list[str]()
    for name, value in _options(args):
        if name in ("--config", "-c"):
            configured, found = _keys_of(Path(value))
            model, keys = configured or model, keys + found
        elif name in ("--model", "--model.class_path"):
            model = value
        elif name.startswith("--model."):
            keys.append(name.removeprefix("--model.").removeprefix("init_args."))
    nested = NESTED.get(model.rpartition(".")[2], {})
    for key in keys:
        if key in nested:
            raise ConfigError(
                f"{model} has no setting {key!r}; it is {nested[key]!r} now: --model.init_args.{nested[key]}, and in "
                f"YAML {nested[key].replace('.', ': {')}: ...}} under model.init_args"
            )


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    for place, arg in enumerate(args):
        if arg.startswith("-"):
            name, joined, value = arg.partition("=")
            following = args[place + 1] if place + 1 < len(args) else ""
            yield name, value if joined else following


def _keys_of(file: Path) -> tuple[str, list[str]]:
    """Class and keys of the model in a configuration file; unreadable files are left to jsonargparse."""
    try:
        config: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return "", []
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict):
        return str(model or ""), []
    return str(model.get("class_path") or ""), [str(key) for key in model.get("init_args") or ()]
