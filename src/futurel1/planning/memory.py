"""Memory of a device in each phase of a run."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from futurel1.models.lora import is_adapter
from futurel1.modules import LADAPOModule, LatentSFTModule
from futurel1.modules.adapters import sharded_blocks
from futurel1.planning.configured import ConfiguredRun
from futurel1.planning.fabricated import Size
from futurel1.planning.measured import Gradients, Measured, decoding, optimizer_step, policy_step, sft_step
from futurel1.planning.sharding import REDUCED
from futurel1.runs import export_dtype

GIB = 2**30
CONTEXT = 1e9
"""Bytes of a GPU that CUDA, its kernels and NCCL take."""
FRAGMENTATION = 0.03
"""Share of a GPU that lies between tensors, with the allocator's `expandable_segments:True`."""


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        name: what the run does then.
        parts: bytes on each device at the peak, by what they are for.
        flops: floating-point operations of a micro-batch, or of a prompt that is decoded; 0 where none were counted.
        operations: operations of a step of decoding; 0 where none were counted.
    """

    name: str
    parts: dict[str, int]
    flops: int = 0
    operations: int = 0

    @property
    def total(self) -> int:
        """Bytes on each device at the peak."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Load:
    """What a device has to do at once.

    Attributes:
        update: a micro-batch of training; None in a run that only decodes.
        sampling: a prompt that is decoded; None in a run that only trains.
        slots: prompts that are decoded at once.
    """

    update: Size | None
    sampling: Size | None
    slots: int


class DeviceMemory:
    """Predicts the memory of every device of a run.

    Args:
        run: the run.
    """

    def __init__(self, run: ConfiguredRun) -> None:
        self.run = run
        self._reasoner = run.reasoner

    # ------------------------------------------------------------------ what is there all the time

    @cached_property
    def resident(self) -> dict[str, int]:
        """Bytes of weights, optimizer state and copies of the model."""
        run, parts = self.run, {"weights": sum(self._stored(parameter) for parameter in self._reasoner.parameters())}
        if not run.trains:
            return parts
        parts["optimizer state"] = self._optimizer[0] // run.shards
        if isinstance(run.module, LADAPOModule):
            if run.sharing == "FSDP2":
                parts["copy to sample from"] = self._copied
            if run.module.objective.kl_weight > 0 and run.module.lora is None:
                parts["reference"] = self._copied
        if run.sharing == "DDP":
            parts["buckets of gradients"] = self._gradients
        return parts

    @cached_property
    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._reasoner.parameters() if parameter.requires_grad]

    @property
    def _gradients(self) -> int:
        return sum(self._stored(parameter) for parameter in self._trained)

    @property
    def _copied(self) -> int:
        """Bytes of a copy of the policy, which shares a frozen tower and, if nothing is sharded, all that is frozen."""
        named = self._reasoner.named_parameters()
        if self.run.sharing == "FSDP2":
            copied = [weight for name, weight in named if not is_adapter(name) and weight not in self._whole]
        else:
            copied = self._trained
        return sum(parameter.numel() * parameter.element_size() for parameter in copied)

    @cached_property
    def _optimizer(self) -> tuple[int, int]:
        """State and temporary tensors, of all devices together."""
        run = self.run
        masters = [nn.Parameter(p.to(self._dtype(p))) for p in self._trained]
        return optimizer_step(masters, run.on_gpu, run.module.make_optimizer)

    def _stored(self, parameter: nn.Parameter) -> int:
        """Bytes of a parameter on each device."""
        size = parameter.numel() * self._dtype(parameter).itemsize
        return size if parameter in self._whole else size // self.run.shards

    def _dtype(self, parameter: nn.Parameter) -> torch.dtype:
        """Dtype of a parameter where it is kept: shards are not in the dtype that is computed with."""
        if self.run.sharing != "FSDP2" or parameter in self._whole:
            return parameter.dtype
        adapter = parameter.requires_grad and self.run.module.lora is not None
        return torch.float32 if adapter else self.run.dtype

    @cached_property
    def _whole(self) -> set[nn.Parameter]:
        return sharded_blocks(self._reasoner)[1]

    # ------------------------------------------------------------------ phases

    def phases(self, load: Load) -> list[Phase]:
        """All phases of the run under a load."""
        found = []
        if load.sampling is not None:
            found.append(self._sampling(load.sampling, load.slots))
        if load.update is not None:
            found += self._update(load.update)
        return found

    def _sampling(self, size: Size, slots: int) -> Phase:
        module, sampling = self.run.module, self.run.module.sampling
        sampled = isinstance(module, LADAPOModule) or module.hparams["do_sample"]
        settings: dict[str, Any] = {"do_sample": sampled, "latent_policy": self.run.policy}
        if sampled:
            settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        lora = None if not self.run.trains or self.run.sharing == "FSDP2" else module.lora
        with nullcontext() if lora is None else lora.merged():
            found = decoding(self._reasoner, size, slots, self.run.autocast, **settings)
        parts = {
            **self.resident, "keys and values": found.cache, "activations": found.memory.activations,
            "logits": found.memory.logits,
        }  # fmt: skip
        if lora is not None:
            parts["weights with merged adapters"] = sum(w.numel() * w.element_size() for w in lora.weights)
        return Phase("sampling", parts, found.memory.flops, found.operations)

    def _update(self, size: Size) -> list[Phase]:
        run = self.run
        how: Gradients = "sharded" if run.sharing == "FSDP2" else "kept" if run.accumulate == 1 else "dropped"
        found = self._step(size, how)
        gradients = found.gradients if how == "kept" else self._gradients
        if how == "sharded" and run.accumulate > 1 and run.module.hparams["reduce_once"]:
            gradients = sum(parameter.numel() for parameter in self._trained) * REDUCED  # not divided between steps
        update = {
            **self.resident, "gradients": gradients,
            "gathered by FSDP2": found.gathered, "activations": found.activations, "logits": found.logits,
        }  # fmt: skip
        own = self._optimizer[1] // run.shards
        step = {**self.resident, "gradients": self._gradients, "of the optimizer's step": own}
        return [Phase("update", update, found.flops), Phase("step", step)]

    def _step(self, size: Size, how: Gradients) -> Measured:
        module = self.run.module
        if isinstance(module, LatentSFTModule):
            return sft_step(self._reasoner, module.objective, size, self.run.autocast, how)
        return policy_step(
            self._reasoner, module.objective, self.run.policy, size, module.sampling.temperature,
            self.run.autocast, how,
        )  # fmt: skip


@dataclass(frozen=True)
class HostMemory:
    """Memory of the host that a process holds for weights, in bytes; pages of mapped files are not its own.

    Attributes:
        loading: of every process, until its weights are on the device.
        exporting: of the first process, while it writes the export.
    """

    loading: int
    exporting: int


def host_memory(run: ConfiguredRun) -> HostMemory:
    """What loading and exporting take.

    Sharded runs map the files of their weights, and cast one group of parameters at a time. Others hold all weights.
    """
    every = list(run.reasoner.parameters())
    largest = max(parameter.numel() for parameter in every) * run.dtype.itemsize
    whole = sum(parameter.numel() * parameter.element_size() for parameter in every)
    exported = export_dtype(run.module.hparams).itemsize if run.trains else 0
    return HostMemory(
        loading=largest if run.sharing == "FSDP2" else whole,
        exporting=sum(p.numel() for name, p in run.reasoner.named_parameters() if not is_adapter(name)) * exported,
    )


def usable(gib: float) -> float:
    """Bytes of a GPU's memory that tensors can have."""
    return gib * GIB * (1 - FRAGMENTATION) - CONTEXT
