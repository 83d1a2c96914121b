"""Video event prediction by interleaved latent visual reasoning (Future-L1), as PyTorch Lightning components.

`import futurel1` is light; torch, transformers and Lightning are imported when one of the names below is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from futurel1.errors import FutureL1Error
from futurel1.version import __version__

if TYPE_CHECKING:
    from futurel1.models import LatentReasoner
    from futurel1.modules import LADAPOModule, LatentSFTModule

__all__ = ["FutureL1Error", "LADAPOModule", "LatentReasoner", "LatentSFTModule", "__version__"]

_HOMES = {
    "LADAPOModule": "futurel1.modules",
    "LatentReasoner": "futurel1.models",
    "LatentSFTModule": "futurel1.modules",
}


_SUBPACKAGES = (
    "curation",
    "data",
    "datamodules",
    "integrations",
    "losses",
    "metrics",
    "models",
    "modules",
    "rewards",
    "rollout",
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _SUBPACKAGES:
        return import_module(f"futurel1.{name}")
    raise AttributeError(f"module 'futurel1' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
