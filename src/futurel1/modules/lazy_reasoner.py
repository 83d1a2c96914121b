"""A LightningModule whose reasoner is loaded when a Trainer asks for it, or was loaded by the caller before."""

from typing import Any

from lightning import LightningModule

from futurel1.models import LatentReasoner


class LazyReasonerModule(LightningModule):
    """Base of modules with a `reasoner`, which :meth:`configure_model` prepares inside the strategy's context."""

    reasoner: LatentReasoner

    def __init__(self) -> None:
        super().__init__()
        self._given: tuple[LatentReasoner, ...] = ()  # in a tuple, so that it is no submodule yet

    def take(self, backbone: str | LatentReasoner) -> str:
        """Keep a loaded reasoner until the model is configured; return the name for the hyper-parameters.

        Args:
            backbone: checkpoint folder or hub name, or a loaded reasoner.

        Returns:
            The name, or what a loaded reasoner was loaded from; "" if it was not loaded from anywhere.
        """
        if not isinstance(backbone, LatentReasoner):
            return backbone
        self._given = (backbone,)
        return str(backbone.config.name_or_path)

    def __getattr__(self, name: str) -> Any:
        if name == "reasoner" and "reasoner" not in self.__dict__.get("_modules", {}):
            raise AttributeError(
                f"{type(self).__name__} has no reasoner yet: a Trainer loads it; without one, call configure_model()"
            )
        return super().__getattr__(name)
