"""Adapters around stock vision-language models, one file per family, and the registry that other projects add to."""

from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from futurel1.errors import CheckpointError, ConfigError
from futurel1.models.backbones.base import Backbone, Vision, VisionFeatures, VisualRows
from futurel1.models.backbones.qwen2_5_vl import Qwen2_5VLBackbone
from futurel1.models.backbones.qwen3_5 import Qwen3_5Backbone
from futurel1.models.backbones.qwen3_vl import Qwen3VLBackbone

__all__ = [
    "BACKBONES",
    "ENTRY_POINT_GROUP",
    "Backbone",
    "Qwen2_5VLBackbone",
    "Qwen3VLBackbone",
    "Qwen3_5Backbone",
    "Vision",
    "VisionFeatures",
    "VisualRows",
    "backbone_class",
    "register_backbone",
]

AnyBackbone = TypeVar("AnyBackbone", bound=Backbone)

BACKBONES: dict[str, type[Backbone]] = {
    backbone.model_type: backbone for backbone in (Qwen3VLBackbone, Qwen2_5VLBackbone, Qwen3_5Backbone)
}
"""Adapters by `model_type`."""

ENTRY_POINT_GROUP = "futurel1.backbones"
"""Entry points of installed packages, each named after the `model_type` that its adapter is for."""


def register_backbone(backbone: type[AnyBackbone]) -> type[AnyBackbone]:
    """Add an adapter for a model family that this package does not know; also a class decorator.

    Registering a class again, as a notebook does, replaces it.

    Args:
        backbone: subclass of :class:`Backbone` that names its `model_type` and `stock_class`.

    Returns:
        The same class.

    Raises:
        ConfigError: not such a subclass, or another adapter has the same `model_type`.
    """
    if not (isinstance(backbone, type) and issubclass(backbone, Backbone)):
        raise ConfigError(f"a backbone is a subclass of futurel1.models.Backbone, got {backbone!r}")
    for name in ("model_type", "stock_class"):
        if not isinstance(getattr(backbone, name, None), str):
            raise ConfigError(
                f"{backbone.__name__} has no {name}: set it to a text in the class, as Qwen3VLBackbone does"
            )
    known = BACKBONES.get(backbone.model_type)
    if known is not None and _full_name(known) != _full_name(backbone):
        raise ConfigError(
            f"model_type {backbone.model_type!r} of {_full_name(backbone)} already has the adapter "
            f"{_full_name(known)}; give yours another model_type, or remove it from futurel1.models.BACKBONES first"
        )
    BACKBONES[backbone.model_type] = backbone
    return backbone


def backbone_class(model_type: str) -> type[Backbone]:
    """The adapter of a model family.

    Registered adapters come first. An entry point of the group `futurel1.backbones` is loaded only when the
    `model_type` that it is named after is requested.

    Args:
        model_type: `model_type` of the checkpoint's configuration.

    Raises:
        CheckpointError: no adapter for this family, or an entry point that does not provide one.
    """
    if model_type not in BACKBONES:
        installed = entry_points(group=ENTRY_POINT_GROUP)
        if model_type not in installed.names:
            raise CheckpointError(
                f"no backbone adapter for model_type {model_type!r}; there are "
                f"{sorted(installed.names.union(BACKBONES))}. Write one as in docs/extending.md and pass it to "
                f"register_backbone, or install a package with an entry point of the group {ENTRY_POINT_GROUP!r}"
            )
        _load_entry_point(model_type, list(installed.select(name=model_type)))
    return BACKBONES[model_type]


def _load_entry_point(model_type: str, found: list[EntryPoint]) -> None:
    """Register the adapter that an installed package declares for a `model_type`."""
    if len({entry.value for entry in found}) > 1:
        places = ", ".join(sorted(f"{entry.value} ({entry.dist.name if entry.dist else '?'})" for entry in found))
        raise CheckpointError(
            f"several packages bring a backbone adapter for model_type {model_type!r}: {places}; uninstall all but "
            "one, or call register_backbone with the one to use"
        )
    place = f"entry point {found[0].value!r} of the group {ENTRY_POINT_GROUP!r} for model_type {model_type!r}"
    try:
        register_backbone(found[0].load())
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"{place} cannot be loaded ({error}); repair or uninstall its package") from error
    except ConfigError as error:
        raise CheckpointError(f"{place}: {error}") from error
    if model_type not in BACKBONES:
        raise CheckpointError(f"{place} gives an adapter with another model_type; name the entry point after that one")


def _full_name(backbone: type[Backbone]) -> str:
    return f"{backbone.__module__}.{backbone.__qualname__}"
