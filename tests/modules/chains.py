"""Chains of stopped and resumed runs, in this process: every link is a new Trainer, module and data module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor


class StopError(Exception):
    """Stands for whatever ends a run: the process dies, a reward fails, a node goes away."""


class StopAt(Callback):
    """Raises at a hook, once `batches` micro-batches of the whole run have begun."""

    def __init__(self, hook: str, batches: int) -> None:
        self.hook, self.batches = hook, batches

    def _stop(self, hook: str, trainer: Trainer) -> None:
        if hook == self.hook and not trainer.sanity_checking and trainer.fit_loop.total_batch_idx + 1 >= self.batches:
            raise StopError(f"{hook} at {self.batches}")

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._stop("batch_start", trainer)

    def on_after_backward(self, trainer: Trainer, *args: Any) -> None:
        self._stop("backward", trainer)

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        self._stop("step", trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._stop("batch_end", trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._stop("validation", trainer)

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
        self._stop("validated", trainer)

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        self._stop("epoch_end", trainer)


class Chain:
    """Runs in one folder, each of which continues the one before.

    Args:
        folder: folder for checkpoints.
        module: makes the module.
        data: makes the data module.
        options: options of every Trainer.
    """

    def __init__(
        self, folder: Path, module: Callable[[], Any], data: Callable[[], Any], options: Mapping[str, Any]
    ) -> None:
        self.folder, self._module, self._data, self._options = folder, module, data, dict(options)
        self.trainer: Trainer

    @property
    def last(self) -> Path:
        """The checkpoint that was written last."""
        return max(self.folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)

    def run(self, *callbacks: Callback, saves: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run to the end or to where a callback stops it; returns the module."""
        keep = [ModelCheckpoint(self.folder, **{"save_last": True, **saves})] if saves is not None else []
        settings = {
            "accelerator": "cpu", "logger": False, "enable_checkpointing": bool(keep), "enable_progress_bar": False,
            "enable_model_summary": False, "default_root_dir": self.folder, **self._options, **options,
        }  # fmt: skip
        module = self._module()
        # Before the checkpoint callback, which Lightning puts last.
        self.trainer = Trainer(callbacks=[*callbacks, *keep], **settings)
        path = self.last if any(self.folder.glob("*.ckpt")) else None
        try:
            self.trainer.fit(module, self._data(), ckpt_path=path, weights_only=True)
        except StopError:
            assert any(isinstance(callback, StopAt) for callback in callbacks)
        else:
            assert not any(isinstance(callback, StopAt) for callback in callbacks), "the run was not stopped"
        return module

    def finish(self, stops: Sequence[tuple[str, int]], saves: Mapping[str, Any], **options: Any) -> dict[str, Tensor]:
        """Stop at each place in turn, then run to the end; returns the weights."""
        for hook, batches in stops:
            self.run(StopAt(hook, batches), saves=saves, **options)
        return weights(self.run(saves=saves, **options))


def weights(module: Any) -> dict[str, Tensor]:
    """Copies of all weights."""
    return {name: value.detach().clone() for name, value in module.reasoner.named_parameters()}


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == wanted.keys()
    odd = [name for name, value in wanted.items() if not torch.equal(found[name], value)]
    assert not odd, f"{len(odd)} of {len(wanted)} weights differ"
