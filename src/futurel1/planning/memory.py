"""Memory of a device in each phase of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from futurel1.modules import LADAPOModule, LatentSFTModule
from futurel1.planning.configured import ConfiguredRun
from futurel1.planning.fabricated import Size
from futurel1.planning.measured import Gradients, Measured, decoding, optimizer_step, policy_step, sft_step
from futurel1.planning.sharding import whole_parameters

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
            copied = sum(p.numel() * p.element_size() for p in self._reasoner.parameters() if p.requires_grad)
            if run.sharing == "FSDP2":
                parts["copy to sample from"] = copied
            if run.module.objective.kl_weight > 0 and not run.module.hparams["lora_rank"]:
                parts["reference"] = copied
        if run.sharing == "DDP":
            parts["buckets of gradients"] = self._gradients
        return parts

    @cached_property
    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._reasoner.parameters() if parameter.requires_grad]

    @property
    def _gradients(self) -> int:
        return sum(self._stored(parameter) for parameter in self._trained)

    @cached_property
    def _optimizer(self) -> tuple[int, int]:
        """State and temporary tensors, of all devices together."""
        run = self.run
        masters = [nn.Parameter(p.to(run.dtype)) for p in self._trained] if run.sharing == "FSDP2" else self._trained
        return optimizer_step(masters, foreach=run.on_gpu)

    def _stored(self, parameter: nn.Parameter) -> int:
        """Bytes of a parameter on each device."""
        if self.run.sharing != "FSDP2" or id(parameter) in self._whole:
            return parameter.numel() * parameter.element_size()
        return parameter.numel() * self.run.dtype.itemsize // self.run.shards

    @cached_property
    def _whole(self) -> set[int]:
        return whole_parameters(self._reasoner)

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
        with self._merged():
            found = decoding(self._reasoner, size, slots, self.run.autocast, **settings)
        parts = {
            **self.resident, "keys and values": found.cache, "activations": found.memory.activations,
            "logits": found.memory.logits,
        }  # fmt: skip
        parts["weights with merged adapters"] = sum(w.numel() * w.element_size() for w in self._adapted)
        return Phase("sampling", parts, found.memory.flops, found.operations)

    @cached_property
    def _adapted(self) -> list[Any]:
        """Weights with LoRA adapters, of which there are two while adapters are merged for sampling."""
        layers = self._adapted_layers()
        return list({id(layer.get_base_layer().weight): layer.get_base_layer().weight for layer in layers}.values())

    def _adapted_layers(self) -> list[Any]:
        if not self.run.module.hparams.get("lora_rank"):
            return []
        from peft.tuners.tuners_utils import BaseTunerLayer  # an optional package

        return [module for module in self._reasoner.modules() if isinstance(module, BaseTunerLayer)]

    @contextmanager
    def _merged(self) -> Iterator[None]:
        """Within it, adapters are part of the weights, as while a run samples."""
        layers = self._adapted_layers()
        for layer in layers:
            layer.merge()
        try:
            yield
        finally:
            for layer in layers:
                layer.unmerge()

    def _update(self, size: Size) -> list[Phase]:
        run = self.run
        how: Gradients = "sharded" if run.sharing == "FSDP2" else "kept" if run.accumulate == 1 else "dropped"
        found = self._step(size, how)
        update = {
            **self.resident, "gradients": found.gradients if how == "kept" else self._gradients,
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


def usable(gib: float) -> float:
    """Bytes of a GPU's memory that tensors can have."""
    return gib * GIB * (1 - FRAGMENTATION) - CONTEXT
