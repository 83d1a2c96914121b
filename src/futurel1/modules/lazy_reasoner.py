"""A LightningModule whose reasoner is loaded when a Trainer asks for it, or was loaded by the caller before."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from lightning import LightningModule

from futurel1.errors import ConfigError
from futurel1.models import LatentReasoner
from futurel1.runs import DTYPES
from futurel1.trainer_checkpoints import check_checkpoint

_LOADED = ("projection_head", "projection_hidden_dim", "init_from")
"""Hyper-parameters that only loading can follow."""


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

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Load a module from a checkpoint; see `LightningModule.load_from_checkpoint`.

        Args:
            checkpoint_path: file that a Trainer wrote.
            map_location: device for its tensors.
            hparams_file: YAML file with hyper-parameters.
            strict: whether the names of all weights have to match.
            weights_only: read tensors and plain values only. With False a checkpoint may run code.
            **kwargs: hyper-parameters that replace those of the checkpoint.

        Raises:
            CheckpointError: the file is damaged, or holds more than tensors and plain values.
        """
        if weights_only and isinstance(checkpoint_path, str | Path):
            check_checkpoint(checkpoint_path)
        options: Any = {"hparams_file": hparams_file, "strict": strict, "weights_only": weights_only, **kwargs}
        return super().load_from_checkpoint(checkpoint_path, map_location, **options)

    def given_reasoner(self) -> LatentReasoner | None:
        """The reasoner that the caller loaded, in the dtype of the settings.

        Raises:
            ConfigError: settings that only loading can follow.
        """
        if not self._given:
            return None
        loaded = [name for name in _LOADED if self.hparams.get(name)]
        if loaded:
            raise ConfigError(f"backbone is a loaded reasoner, which keeps its weights and head: leave out {loaded}")
        return self._given[0].to(DTYPES[self.hparams["dtype"]])

    def log_reduced(self, values: Mapping[str, float], *, prog_bar: bool = False, logger: bool | None = None) -> None:
        """Log values at the end of an epoch that are the same on all ranks, since they were summed over them before.

        Args:
            values: name to value.
            prog_bar: show them in the progress bar.
            logger: give them to the loggers; None: if there are any.
        """
        # The mean over ranks of equal values is that value. Without `sync_dist` Lightning warns that it takes rank 0's.
        self.log_dict(dict(values), prog_bar=prog_bar, logger=logger, sync_dist=True)

    def __getattr__(self, name: str) -> Any:
        if name == "reasoner" and "reasoner" not in self.__dict__.get("_modules", {}):
            raise AttributeError(
                f"{type(self).__name__} has no reasoner yet: a Trainer loads it; without one, call configure_model()"
            )
        return super().__getattr__(name)
