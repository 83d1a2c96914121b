"""Where a Trainer leaves when it is asked to, and what it writes then."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from futurel1.interrupts import Stopped, StoppedAtOnce, raise_if_requested, watched
from futurel1.modules.stopping import StopInOrder


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Let Ctrl-C act, which a shell's background processes ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Line(LightningModule):
    """One weight that grows by one per step, and a list of what was validated at which step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.validated: list[tuple[int, int]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return -self.weight

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append((self.global_step, batch_idx))

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.zeros(12, 1))  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(torch.zeros(2, 1))  # type: ignore[arg-type]

    test_dataloader = predict_dataloader = val_dataloader


class At(Callback):
    """Sends a signal when a hook is called for the n-th time; `work` is done there as well."""

    def __init__(self, hook: str, number: int, signum: int = signal.SIGTERM, work: Any = None) -> None:
        self.calls = 0

        def call(*_: Any, **__: Any) -> None:
            self.calls += 1
            if self.calls == number:
                signal.raise_signal(signum)
                if work is not None:
                    work()

        setattr(self, hook, call)


def trainer(run: Path, *callbacks: Callback, **options: Any) -> Trainer:
    settings = {"max_steps": 8, "accumulate_grad_batches": 2, "val_check_interval": 4, "check_val_every_n_epoch": None}
    made = Trainer(
        default_root_dir=run, callbacks=[*callbacks], accelerator="cpu", logger=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=bool(callbacks[1:]),
        **{**settings, **options},
    )  # fmt: skip
    StopInOrder.attach(made)
    return made


def held(run: Path) -> dict[str, Any]:
    return dict(torch.load(run / "checkpoints" / "last.ckpt", weights_only=False))


@pytest.mark.parametrize(("hook", "number", "step", "again"), [
    ("on_train_batch_start", 1, 1, False),  # the first micro-batch of two
    ("on_train_batch_end", 4, 2, True),  # a validation is due
    ("on_validation_batch_start", 2, 2, True),  # it has begun
    ("on_validation_end", 1, 3, False),  # it is done
    ("on_train_batch_start", 11, 6, True),  # the end of an epoch
], ids=["window", "due", "begun", "done", "epoch"])  # fmt: skip
def test_fit_leaves_after_a_step_and_validates_what_it_owes(
    tmp_path: Path, hook: str, number: int, step: int, again: bool
) -> None:
    with pytest.raises(Stopped) as caught, watched():
        trainer(tmp_path, At(hook, number)).fit(Line(), weights_only=False)
    assert (caught.value.status, type(caught.value)) == (143, Stopped)
    checkpoint = held(tmp_path)
    assert checkpoint["global_step"] == step
    assert float(checkpoint["state_dict"]["weight"]) == step
    module = Line()
    trainer(tmp_path, At("on_fit_end", 99)).fit(
        module, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", weights_only=False
    )
    assert float(module.weight) == 8
    expected = [(at, batch) for at in (2, 4, 6, 8) for batch in (0, 1) if at > step or (again and at == step)]
    assert module.validated == expected


def test_work_between_two_steps_may_stop_too(tmp_path: Path) -> None:
    stop = At("on_train_batch_start", 7, work=raise_if_requested)  # as a loader that collects rollouts
    with pytest.raises(Stopped), watched():
        trainer(tmp_path, stop).fit(Line(), weights_only=False)
    assert held(tmp_path)["global_step"] == 3
    module = Line()
    trainer(tmp_path, At("on_fit_end", 99)).fit(
        module, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", weights_only=False
    )
    assert float(module.weight) == 8
    assert module.validated[0] == (4, 0)


def test_after_the_last_step_the_run_ends_as_always(tmp_path: Path) -> None:
    module = Line()
    with watched():
        trainer(tmp_path, At("on_train_batch_start", 16)).fit(module, weights_only=False)
    assert module.validated[-1] == (8, 1)
    assert held(tmp_path)["global_step"] == 8  # written before the rest, in case there was no time for it


def test_a_checkpoint_of_the_same_step_is_not_written_twice(tmp_path: Path) -> None:
    every = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(Stopped), watched():
        trainer(tmp_path, At("on_train_batch_start", 6), every).fit(Line(), weights_only=False)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        f"epoch=0-step={step}.ckpt" for step in (1, 2, 3)
    ]


def test_a_checkpoint_of_a_stop_is_the_last_one_of_its_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"every_n_train_steps": 4, "save_last": True}
    every = ModelCheckpoint(tmp_path / "checkpoints", **options)
    with pytest.raises(Stopped), watched():
        trainer(tmp_path, At("on_train_batch_start", 6), every).fit(Line(), weights_only=False)
    every = ModelCheckpoint(tmp_path / "checkpoints", **options)
    trainer(tmp_path, At("on_fit_end", 99), every).fit(
        Line(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", weights_only=False
    )
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["epoch=1-step=8.ckpt", "last.ckpt"]


@pytest.mark.parametrize(("command", "hook"), [
    ("validate", "on_validation_batch_start"), ("test", "on_test_batch_start"), ("predict", "on_predict_batch_start"),
])  # fmt: skip
def test_evaluation_leaves_after_the_batch(tmp_path: Path, command: str, hook: str) -> None:
    module, words = Line(), list[str]()
    made = trainer(tmp_path, At(hook, 1, signal.SIGINT))
    made.callbacks[-1]._on_progress = words.append  # type: ignore[attr-defined]
    with pytest.raises(Stopped) as caught, watched():
        getattr(made, command)(module)
    assert caught.value.status == 130
    assert module.validated == [(0, 0)]
    assert words[-1].startswith("1 ")
    assert not list(tmp_path.rglob("*.ckpt"))


def test_nothing_is_written_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises((StoppedAtOnce, SystemExit)), watched():
        trainer(tmp_path, At("on_fit_start", 1)).fit(Line(), weights_only=False)
    assert not list(tmp_path.rglob("*.ckpt"))
