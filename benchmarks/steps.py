"""Time and memory of training steps of the 8B model on one device, beside what `futurel1 plan` predicts for them.

    python benchmarks/steps.py [--device cuda] [--lengths 4096:256 8192:1024] [--repeats 5] [--tflops 400]
    python benchmarks/steps.py --backbone tiny --device cpu --lengths 256:64 --repeats 2

Two steps: a supervised one on one record, and an update of LA-DAPO on one group of eight responses. Sampling is left
out; `benchmarks/decoding.py` measures it. Both train LoRA adapters: float32 masters and AdamW's moments of 8.8 billion
weights fit no single GPU. The settings are `configs/qwen3_vl_8b/la_dapo_lora.yaml`, and `sft.yaml` with the same
precision and adapters. A Trainer takes the steps as in a run, with the optimizer's; weights are random, token ids are
real, pixels and latents are zeros. Each kind of step has a process of its own.

The prediction is for the same settings and lengths. Its seconds are counted operations at `--tflops`; the TFLOP/s that
a step reached is the number to give to `futurel1 plan --tflops`. On CUDA the measured memory is that of tensors. On a
CPU it is that of the process, libraries included, and says nothing about the plan.
"""

import argparse
import logging
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, Dataset

from futurel1.models import LatentReasoner
from futurel1.planning.configured import ConfiguredRun
from futurel1.planning.fabricated import Size, experience, sft_batch
from futurel1.planning.memory import DeviceMemory, Load
from meters import forget_peak, in_fresh_process, machine, peak_mb, seconds_now

ONE_DEVICE = {
    "model.init_args.dtype": "bfloat16", "model.init_args.compute_dtype": "null", "model.init_args.lora_rank": 32,
    "model.init_args.lora_alpha": 64, "trainer.strategy": "auto", "trainer.precision": "bf16-mixed",
}  # fmt: skip
"""What makes a run of eight GPUs one of a single GPU, as in `la_dapo_lora.yaml`."""
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "supervised": ("qwen3_vl_8b/sft", ONE_DEVICE),
    "update": ("qwen3_vl_8b/la_dapo_lora", {}),
}
"""Kind of step to its configuration and further settings."""
WARM_UP = 2
"""Steps of each size that are not counted: the first ones allocate the optimizer's state and choose kernels."""
MB = 1e6
Lengths = tuple[int, int]
"""Tokens of the prompt, and of every response."""


@dataclass
class Steps:
    """What the steps of one size took: seconds of each, and the peak in MB above the process without a model."""

    seconds: list[float]
    peak: float = 0.0


class Meter(Callback):
    """Measures all steps after the warm-up of each size."""

    def __init__(self, sizes: int, options: argparse.Namespace, idle: float) -> None:
        self.found = [Steps([]) for _ in range(sizes)]
        self._device, self._each, self._idle, self._began = options.device, WARM_UP + options.repeats, idle, 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % self._each == WARM_UP:
            forget_peak(self._device)
        self._began = seconds_now(self._device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % self._each >= WARM_UP:
            steps = self.found[batch_idx // self._each]
            steps.seconds.append(seconds_now(self._device) - self._began)
            steps.peak = peak_mb(self._device) - self._idle


class Fabricated(Dataset[Any]):
    """Batches of a run, each made when it is its turn, so that the device holds one at a time."""

    def __init__(self, run: ConfiguredRun, module: Any, sizes: Sequence[Size]) -> None:
        self._run, self._module, self._sizes = run, module, sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> Any:
        reasoner, size = self._module.reasoner, self._sizes[index]
        with torch.device(reasoner.device), self._module.trainer.precision_plugin.forward_context():
            if self._run.branches == 1:
                return sft_batch(reasoner, size)
            return experience(reasoner, size, self._run.policy, self._module.sampling.temperature)


def configured(kind: str, options: argparse.Namespace) -> ConfiguredRun:
    """The run that a step belongs to: one device, one micro-batch a step."""
    config, further = KINDS[kind]
    settings = {
        "model.init_args.backbone": options.backbone,
        "model.init_args.init_from": "null",
        "trainer.accelerator": "cpu" if options.device == "cpu" else "gpu",
        "trainer.accumulate_grad_batches": 1,
        **further,
    }
    return ConfiguredRun.read(config, [f"--{name}={value}" for name, value in settings.items()], devices=1)


def measured(kind: str, options: argparse.Namespace) -> list[Steps]:
    """Take the steps of one kind, at all lengths with one model."""
    be_quiet()
    run = configured(kind, options)
    idle = forget_peak(options.device)
    with torch.device(options.device):  # built where it is used: on the host, that takes minutes
        reasoner = LatentReasoner.from_pretrained(options.backbone, dtype=run.dtype)
    given = {name: value for name, value in run.module.hparams.items() if not name.startswith("_")}  # jsonargparse's
    module = type(run.module)(**{**given, "backbone": reasoner, "liger_kernel": options.liger}).to(options.device)
    module.configure_model()
    sizes = [run.size(1, *lengths) for lengths in options.lengths for _ in range(WARM_UP + options.repeats)]
    meter = Meter(len(options.lengths), options, idle)
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=options.device, devices=1, max_steps=len(sizes), callbacks=[meter], precision="bf16-mixed",
            gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, DataLoader(Fabricated(run, module, sizes), batch_size=None, collate_fn=lambda batch: batch))
    return meter.found


def be_quiet() -> None:
    """Without what a Trainer says of devices and loaders."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning|transformers")


def parse_lengths(text: str) -> Lengths:
    """``"4096:256"`` to (4096, 256)."""
    prompt, response = text.split(":")
    return int(prompt), int(response)


def report(run: ConfiguredRun, size: Size, steps: Steps, options: argparse.Namespace) -> None:
    """Print what was measured and predicted for a size."""
    phases = DeviceMemory(run).phases(Load(update=size, sampling=None, slots=0))
    largest = max(phases, key=lambda phase: phase.total)
    flops = next(phase.flops for phase in phases if phase.name == "update")
    seconds, spread = statistics.median(steps.seconds), max(steps.seconds) - min(steps.seconds)
    tokens = size.rows * (size.prompt + size.branches * size.response)
    expected, peak = flops / (options.tflops * 1e12), steps.peak * 2**20
    ratio = "" if options.device == "cpu" else f"; memory is {largest.total / peak:.2f} of the measured"
    print(f"  {size}")
    print(
        f"    measured   {seconds:>8.3f} s  {tokens / seconds:>8.0f} tokens/s  peak {peak / MB:>9.1f} MB"
        f"  spread {spread:.3f} s, {flops / seconds / 1e12:.3g} TFLOP/s"
    )
    print(
        f"    predicted  {expected:>8.3f} s  {tokens / expected:>8.0f} tokens/s  peak {largest.total / MB:>9.1f} MB"
        f"  at {options.tflops:g} TFLOP/s{ratio}"
    )
    print("      " + ", ".join(f"{part} {held / MB:.1f}" for part, held in largest.parts.items() if held))


def main(args: Sequence[str] | None = None) -> None:
    """Print both kinds of steps at all lengths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="qwen3-vl-8b@random", help="name of random weights, or tiny")
    parser.add_argument("--device", default="cuda", help="cpu or cuda")
    parser.add_argument(
        "--lengths", type=parse_lengths, nargs="+", default=[(4096, 256), (8192, 1024)], metavar="PROMPT:RESPONSE"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tflops", type=float, default=400.0, help="10^12 operations per second, as a plan assumes")
    options = parser.parse_args(args)
    options.liger = options.device != "cpu" and find_spec("liger_kernel") is not None
    be_quiet()
    print(f"{vars(options)}, {machine(options.device)}")
    for kind in KINDS:
        run = configured(kind, options)
        print(f"{kind}: {type(run.module).__name__}, LoRA of rank {run.module.hparams['lora_rank']}", flush=True)
        found = in_fresh_process(measured, kind, options)
        for lengths, steps in zip(options.lengths, found, strict=True):
            report(run, run.size(1, *lengths), steps, options)


if __name__ == "__main__":
    main()
