"""Nested settings of a LightningModule: dataclasses that check themselves, kept as plain values in checkpoints."""

from collections.abc import Mapping, MutableMapping
from dataclasses import asdict
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def settings_of(hparams: MutableMapping[str, Any], name: str, given: Any, kind: type[Settings]) -> Settings:
    """Settings that a constructor got: a dataclass, or its fields as a checkpoint has them.

    Args:
        hparams: hyper-parameters of the module; they keep the fields, so that a checkpoint holds plain values.
        name: name of the argument.
        given: its value.
        kind: the dataclass.
    """
    made: Any = kind(**given) if isinstance(given, Mapping) else given
    hparams[name] = asdict(made)
    settings: Settings = made
    return settings
