"""A callback that sends a signal to its own process, or to its group, at a chosen place of a run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Signalling(Callback):
    """Sends `signum` when the hook `place` is called for the `number`-th time, counted from 1.

    It does so once: a resumed run has the callback too.

    Args:
        sent: file that is made when the signal is sent.
        signum: number of the signal.
        place: name of a hook; ``sample_groups``: before rollouts are sampled.
        number: at which call.
        group: send it to the whole process group, as a terminal does.
        twice: send it again after a second.
        rank: the only rank that sends it; None: any.
    """

    def __init__(
        self,
        sent: str,
        signum: int,
        place: str,
        number: int = 1,
        group: bool = False,
        twice: bool = False,
        rank: int | None = None,
    ) -> None:
        self.sent, self.rank = Path(sent), rank
        self.signum, self.number, self.group, self.twice = signum, number, group, twice
        self._calls = 0
        if place != "sample_groups":
            setattr(self, place, self._call)
        self._wraps = place == "sample_groups"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._wraps:
            sampler: Any = pl_module.sampler
            sample = sampler.sample_groups
            sampler.sample_groups = lambda prompts: (self._call(), sample(prompts))[1]

    def _call(self, *given: Any, **options: Any) -> None:
        self._calls += 1
        if self.rank is not None and given[0].global_rank != self.rank:
            return
        if self._calls == self.number and not self.sent.exists():
            self.sent.touch()
            send = (lambda: os.killpg(0, self.signum)) if self.group else (lambda: signal.raise_signal(self.signum))
            send()
            if self.twice:
                time.sleep(1)
                send()


class Waiting(Callback):
    """Makes a file at the first prediction, and waits for another one."""

    def __init__(self, here: str, until: str) -> None:
        self.here, self.until = Path(here), Path(until)

    def on_predict_batch_start(self, *_: Any, **options: Any) -> None:
        self.here.touch()
        deadline = time.monotonic() + 600
        while not self.until.exists() and time.monotonic() < deadline:
            time.sleep(0.02)


class DiesInExport(Callback):
    """Kills its process once, when half of the weights of an export are written."""

    def __init__(self, died: str) -> None:
        self.died = Path(died)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.died.exists():
            return
        from transformers import modeling_utils

        save: Any = modeling_utils.safe_save_file

        def save_half(tensors: Any, file: Any, *rest: Any, **options: Any) -> None:
            save(tensors, file, *rest, **options)
            os.truncate(file, os.path.getsize(file) // 2)
            self.died.write_text(str(file))
            os.kill(os.getpid(), signal.SIGKILL)

        modeling_utils.safe_save_file = save_half
