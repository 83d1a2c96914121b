"""Nested settings of a LightningModule: self-validating dataclasses, stored as plain values in checkpoints."""

from collections.abc import Mapping, MutableMapping
from dataclasses import asdict
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def settings_of(hparams: MutableMapping[str, Any], name: str, given: Any, kind: type[Settings]) -> Settings:
    """Settings from a constructor argument: a dataclass, or a mapping of its fields from a checkpoint.

    Args:
        hparams: hyper-parameters of the module, in which the fields replace the dataclass, so that checkpoints contain
            plain values.
        name: name of the argument.
        given: value of the argument.
        kind: the dataclass.
    """
    made: Any = kind(**given) if isinstance(given, Mapping) else given
    hparams[name] = asdict(made)
    settings: Settings = made
    return settings
