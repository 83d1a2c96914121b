"""How long a step of a run takes, from counted operations and bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

from futurel1.modules import LADAPOModule
from futurel1.planning.configured import ConfiguredRun
from futurel1.planning.memory import Phase

LAUNCH = 8e-6
"""Seconds to start an operation from Python on a GPU, which a compiled step replays instead."""


@dataclass(frozen=True)
class Estimate:
    """Time of an optimizer step, or of a batch of answers.

    Attributes:
        sampling: seconds of decoding.
        update: seconds of all forward and backward passes.
        assumptions: what the numbers rest on.
    """

    sampling: float
    update: float
    assumptions: str

    def __str__(self) -> str:
        """One line, and what it rests on."""
        parts = [("decoding", self.sampling), ("training", self.update)]
        shown = ", ".join(
            f"{name} {seconds:.0f} s" if seconds >= 1 else f"{name} {seconds:.1g} s"
            for name, seconds in parts
            if seconds
        )
        return f"time of a step at typical lengths: {shown}\n  ({self.assumptions})"


def estimate(
    run: ConfiguredRun, phases: Sequence[Phase], typical: tuple[int, int], tflops: float, bandwidth: float
) -> Estimate:
    """Estimate the time of an optimizer step.

    Args:
        run: the run.
        phases: its phases at typical lengths.
        typical: tokens of a prompt and of a response.
        tflops: 10^12 operations per second that a device reaches.
        bandwidth: 10^9 bytes per second that a device reaches.
    """
    said = [f"{tflops:.0f} TFLOP/s", "no communication, no loading of data"]
    by_name = {phase.name: phase for phase in phases}
    update = by_name["update"].flops * run.accumulate / (tflops * 1e12) if run.trains else 0.0
    if "sampling" not in by_name:
        return Estimate(0.0, update, ", ".join(said))
    decoding, (prompt, response) = by_name["sampling"], typical
    rollout = run.module.rollout if isinstance(run.module, LADAPOModule) else None
    prompts = rollout.batch_size // run.devices if rollout else run.slots
    weights = sum(p.numel() * p.element_size() for p in run.reasoner.backbone.language_model.parameters())
    cache = decoding.parts["keys and values"]
    half = cache * (prompt + run.branches * response / 2) / (prompt + run.branches * response)
    reading = (weights + half) / (bandwidth * 1e9)
    launching = 0.0 if run.module.sampling.compile else decoding.operations * LAUNCH
    steps = response * -(-prompts // run.slots)
    sampling = steps * max(reading, launching) + prompts * decoding.flops / (tflops * 1e12)
    said.append(
        f"{bandwidth:.0f} GB/s, {steps} steps of {reading * 1e3:.0f} ms for memory and {launching * 1e3:.0f} ms to "
        f"start {decoding.operations} operations"
    )
    if rollout:
        said.append("every group passes the filter")
    return Estimate(sampling, update, "; ".join(said))
