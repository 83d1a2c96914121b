"""`futurel1 plan`: whether a configuration fits its devices, before any of them is started."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from futurel1.errors import ConfigError
from futurel1.modules import LADAPOModule, LatentSFTModule
from futurel1.planning.configured import ConfiguredRun
from futurel1.planning.estimate import Estimate, estimate
from futurel1.planning.fabricated import SHORTEST_PROMPT
from futurel1.planning.memory import DeviceMemory, HostMemory, Load, Phase, host_memory, usable

UNITS = ((1e9, "GB"), (1e6, "MB"))


@dataclass(frozen=True)
class Plan:
    """What a configuration needs; printing it shows a table.

    Attributes:
        config: the configuration: its file and the folder of that.
        model: what is trained or decoded with, in words.
        typical: memory of each phase at typical lengths.
        longest: memory of each phase at the longest lengths that the configuration allows.
        sizes: both lengths, in words.
        limit: bytes of a device that tensors can have.
        host: memory of the host for weights.
        advice: what to change if it does not fit; empty if it fits.
        estimate: time of a step.
    """

    config: str
    model: str
    typical: list[Phase]
    longest: list[Phase]
    sizes: tuple[str, str]
    limit: float
    host: HostMemory
    advice: list[str]
    estimate: Estimate

    @property
    def ok(self) -> bool:
        """Whether every phase fits at the longest lengths."""
        return all(phase.total <= self.limit for phase in self.longest)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, for `--json`."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        """The table, and whether it fits."""
        lines = [f"{self.config}: {self.model}", f"  typical: {self.sizes[0]}", f"  longest: {self.sizes[1]}", ""]
        lines += _table([("typical", self.typical), ("longest", self.longest)])
        worst = max(self.longest, key=lambda phase: phase.total)
        verdict = "fits" if self.ok else "does not fit"
        unit, name = _unit(worst.total)
        lines += ["", f"{verdict}: {worst.name} takes {worst.total / unit:.1f} of {self.limit / unit:.1f} {name}"]
        lines += [f"  {line}" for line in self.advice]
        unit, name = _unit(max(self.host.loading, self.host.exporting))
        written = f", {self.host.exporting / unit:.1f} to write the export" if self.host.exporting else ""
        lines += ["", f"host: {self.host.loading / unit:.1f} {name} a process to load weights{written}"]
        lines += ["", str(self.estimate)]
        return "\n".join(lines)


def plan(
    config: str = "",
    devices: int | None = None,
    memory: float = 80.0,
    prompt: int | None = None,
    response: int | None = None,
    tflops: float = 400.0,
    bandwidth: float = 2500.0,
    settings: Sequence[str] = (),
) -> Plan:
    """Predict the memory of a configured run on every device, and the time of a step, without a GPU, weights or data.

    The code of the run itself runs on tensors that have shapes and no memory. The exit status is 1 if it does not fit.

    Args:
        config: YAML file of a run, or the name of a configuration that ships. Settings of the run may follow, such as
            --model.init_args.rollout.generation_batch_size 4.
        devices: number of devices of each node; None: as the configuration says.
        memory: memory of a device in GiB, as its name says it (80 for an H100).
        prompt: tokens of a typical prompt; None: half of the longest that the configuration allows.
        response: tokens of a typical response; None: a quarter of the longest.
        tflops: 10^12 floating-point operations per second that a device reaches in training.
        bandwidth: 10^9 bytes per second that a device reaches in decoding.
        settings: the same settings of the run as one list.

    Raises:
        ConfigError: a configuration that cannot be planned.
    """
    if not config:
        raise ConfigError("plan needs a configuration: futurel1 plan --config qwen3_vl_8b/sft")
    _require_positive(devices=devices, prompt=prompt, response=response, tflops=tflops, bandwidth=bandwidth)
    limit = usable(memory)
    if limit <= 0:
        raise ConfigError(f"memory of {memory:g} GiB is less than CUDA itself takes; give that of a whole device")
    run = ConfiguredRun.read(config, settings, devices)
    longest = run.longest
    typical = (prompt or longest[0] // 2, response or min(longest[1], max(64, longest[1] // 4)))
    if (prompt is not None and prompt > longest[0]) or (response is not None and response > longest[1]):
        raise ConfigError(
            f"{config} allows prompts of {longest[0]} tokens and responses of {longest[1]}, not {typical}"
        )
    device = DeviceMemory(run)
    found = [device.phases(_load(run, *lengths)) for lengths in (typical, longest)]
    return Plan(
        config="/".join(Path(config).parts[-2:]),
        model=_model(run),
        typical=found[0],
        longest=found[1],
        sizes=(_size(run, *typical), _size(run, *longest)),
        limit=limit,
        host=host_memory(run),
        advice=_advice(run, device, found[1], limit),
        estimate=estimate(run, found[0], typical, tflops, bandwidth),
    )


def _require_positive(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and number <= 0:
            raise ConfigError(f"{name} has to be more than 0, got {number:g}")


def _load(run: ConfiguredRun, prompt: int, response: int, *, rows: int | None = None, slots: int | None = None) -> Load:
    return Load(
        update=run.size(rows or run.rows_of(prompt + response), prompt, response) if run.trains else None,
        sampling=None if isinstance(run.module, LatentSFTModule) else run.size(1, prompt, response),
        slots=slots or run.slots,
    )


def _size(run: ConfiguredRun, prompt: int, response: int) -> str:
    load = _load(run, prompt, response)
    parts = []
    if load.sampling is not None:
        parts.append(
            f"{load.slots} prompts of {prompt} tokens decoded at once, {run.branches} x {response} tokens each"
        )
    if load.update is not None:
        parts.append(f"micro-batches of {load.update}")
    return "; ".join(parts)


def _model(run: ConfiguredRun) -> str:
    count = sum(parameter.numel() for parameter in run.reasoner.parameters())
    trained = sum(parameter.numel() for parameter in run.reasoner.parameters() if parameter.requires_grad)
    dtype = str(run.dtype).removeprefix("torch.")
    computed = str(run.autocast or run.reasoner.dtype).removeprefix("torch.")
    shares = f"{run.devices} devices, {run.sharing}" if run.devices > 1 else run.sharing
    what = f", {_counted(trained)} of them trained" if run.trains else ""
    return (
        f"{type(run.module).__name__}, {run.reasoner.backbone.stock_class} of {_counted(count)} weights{what}; "
        f"{shares}; {dtype} weights, {computed} compute"
    )


def _table(columns: Sequence[tuple[str, Sequence[Phase]]]) -> list[str]:
    """Rows of parts; a group of columns for each length, a column for each phase."""
    every = [phase for _, phases in columns for phase in phases]
    unit, name = _unit(max(phase.total for phase in every))
    parts = list(dict.fromkeys(part for phase in every for part, size in phase.parts.items() if size))
    left = max(len(part) for part in parts) + 2
    wide = max(len(phase.name) for phase in every) + 2

    def row(title: str, cells: Sequence[str]) -> str:
        groups, each = [], len(cells) // len(columns)
        for start in range(0, len(cells), each):
            groups.append("".join(f"{cell:>{wide}}" for cell in cells[start : start + each]))
        return (f"{title:<{left}}" + "  ".join(groups)).rstrip()

    def number(size: int | None) -> str:
        return "-" if size is None else f"{size / unit:.1f}"

    group = max(len(columns[0][1]), 1) * wide
    return [
        (f"{name + ' per device':<{left}}" + "  ".join(f"{title:>{group}}" for title, _ in columns)).rstrip(),
        row("", [phase.name for phase in every]),
        *(row(part, [number(phase.parts.get(part)) for phase in every]) for part in parts),
        row("peak", [number(phase.total) for phase in every]),
    ]


def _unit(number: float) -> tuple[float, str]:
    """The unit to show a number of bytes in."""
    return next((pair for pair in UNITS if number >= pair[0]), UNITS[-1])


def _counted(weights: int) -> str:
    return f"{weights / 1e9:.2f} B" if weights >= 1e8 else f"{weights / 1e6:.2f} M"


# ---------------------------------------------------------------------- what to change


def _advice(run: ConfiguredRun, device: DeviceMemory, phases: Sequence[Phase], limit: float) -> list[str]:
    """For every phase that does not fit, the setting that breaks it and its largest value that fits."""
    found = []
    for phase in phases:
        if phase.total <= limit:
            continue

        def fits(name: str = phase.name, **load: int) -> bool:
            again = device.phases(_load(run, **load))
            return all(each.total <= limit for each in again if each.name == name)

        if phase.name == "sampling":
            found.append(f"sampling: {_sampling_advice(run, fits) or MORE}")
        elif phase.name == "update":
            found.append(f"update: {_update_advice(run, fits) or MORE}")
        else:
            found.append(f"{phase.name}: {MORE}")
    return found


MORE = "weights and what belongs to them leave too little; use more devices, or model.init_args.lora_rank"


def _sampling_advice(run: ConfiguredRun, fits: Callable[..., bool]) -> str:
    """What makes decoding fit; "" if nothing does."""
    prompt, response = run.longest
    setting = "rollout.generation_batch_size" if isinstance(run.module, LADAPOModule) else "sampling.slots"
    slots = _largest(lambda value: fits(prompt=prompt, response=response, slots=value), 1, run.slots)
    if slots:
        return f"{setting}: {run.slots} is too large, {slots} fits"
    steps = _largest(lambda value: fits(prompt=prompt, response=64 * value, slots=1), 1, response // 64)
    return f"{setting}: 1 with sampling.max_new_tokens: {64 * steps} fits" if steps else ""


def _update_advice(run: ConfiguredRun, fits: Callable[..., bool]) -> str:
    """What makes a micro-batch fit; "" if nothing does."""
    prompt, response = run.longest
    rows = _largest(lambda value: fits(prompt=prompt, response=response, rows=value), 1, run.rows - 1)
    if isinstance(run.module, LADAPOModule):
        if rows:
            parts = run.accumulate * -(-run.rows // rows)
            return f"micro-batches of {run.rows} groups are too large; trainer.accumulate_grad_batches: {parts} fits"
        steps = _largest(lambda value: fits(prompt=prompt, response=64 * value, rows=1), 1, response // 64)
        alone = f"trainer.accumulate_grad_batches: {run.accumulate * run.rows} with " if run.rows > 1 else ""
        return f"one group is too large; {alone}sampling.max_new_tokens: {64 * steps} fits" if steps else ""
    setting = "data.tokens_per_batch" if run.tokens else "data.batch_size"
    unit, given = (prompt + response, run.tokens) if run.tokens else (1, run.rows)
    if rows:
        return f"{setting}: {given} is too large, {rows * unit} fits"
    steps = _largest(
        lambda value: fits(prompt=256 * value - response, response=response, rows=1),
        -(-(response + SHORTEST_PROMPT) // 256), (prompt + response) // 256,
    )  # fmt: skip
    if not steps:
        return ""
    alone = f"{setting}: {256 * steps if run.tokens else 1} with " if run.rows > 1 or run.tokens else ""
    return f"a record of {prompt + response} tokens is too large; {alone}data.max_length: {256 * steps} fits"


def _largest(fits: Callable[[int], bool], smallest: int, largest: int) -> int:
    """The largest number in a range that fits, where all below it do too; 0 if none does."""
    low, high = smallest - 1, largest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low if low >= smallest else 0
