"""What a command line asks of a Trainer, for machines that this one is not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch

from futurel1.errors import ConfigError

Sharing = Literal["one device", "DDP", "FSDP2"]

_ACCELERATORS = ("auto", "gpu", "cuda", "mps", "cpu")
_AUTOCAST = {
    "32-true": None, "32": None, "bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16,
    "16": torch.float16,
}  # fmt: skip
_STRATEGIES = "use ddp or ModelParallelStrategy"


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of a Trainer that say which machine it is for.

    Attributes:
        accelerator: accelerator.
        autocast: dtype of autocast; None without.
        devices: devices of a node; None: as many as there are.
    """

    accelerator: str
    autocast: torch.dtype | None
    devices: int | None

    @classmethod
    def read(cls, args: Sequence[str], devices: int | None = None) -> Self:
        """Read them from options of `futurel1 fit`.

        Args:
            args: options, with files of `--config`.
            devices: devices of a node; None: as the options say.

        Raises:
            ConfigError: settings that cannot be planned.
        """
        accelerator = _asked(args, "accelerator") or "auto"
        if accelerator not in _ACCELERATORS:
            raise ConfigError(f"plans know no accelerator {accelerator}; use one of {', '.join(_ACCELERATORS)}")
        precision = _asked(args, "precision") or "32-true"
        if precision not in _AUTOCAST:
            raise ConfigError(
                f"plans know no trainer.precision {precision}; use 32-true, bf16-mixed or 16-mixed (and "
                "model.init_args.dtype for weights in bfloat16)"
            )
        strategy = _strategy(args).rpartition(".")[2]
        if strategy.lower().startswith(("fsdp", "deepspeed")):  # they refuse to be made for the CPU
            raise ConfigError(f"plans know no {strategy}; {_STRATEGIES}")
        return cls(accelerator, _AUTOCAST[precision], _devices(args, accelerator) if devices is None else devices)

    def arguments(self) -> list[str]:
        """Options that make the same Trainer on a machine without GPUs."""
        devices = 1 if self.devices is None else self.devices
        return ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.devices", str(devices)]


def sharing_of(trainer: Any) -> Sharing:
    """How the devices of a Trainer share a model.

    Raises:
        ConfigError: in a way that plans do not know.
    """
    name = type(trainer.strategy).__name__
    if name == "ModelParallelStrategy":
        return "FSDP2"
    if trainer.num_devices * trainer.num_nodes == 1:
        return "one device"
    if name == "DDPStrategy":
        return "DDP"
    raise ConfigError(f"plans know no {name}; {_STRATEGIES}")


def shards_of(trainer: Any, *, resized: bool) -> int:
    """Number of devices that FSDP2 divides one copy of the weights among: with two dimensions, those of the second.

    Args:
        trainer: a Trainer with `ModelParallelStrategy`, made for the CPU.
        resized: whether it has another number of devices than its configuration says, whose `data_parallel_size` is
            then none of them.

    Raises:
        ConfigError: the sizes of the strategy do not fit the number of devices.
    """
    devices = int(trainer.num_devices * trainer.num_nodes)
    asked = (trainer.strategy._data_parallel_size, trainer.strategy._tensor_parallel_size)
    automatic = (trainer.num_nodes, trainer.num_devices)
    copies, shards = (int(own if size == "auto" else size) for size, own in zip(asked, automatic, strict=True))
    if resized and shards == 1:
        return devices
    if copies * shards != devices:
        raise ConfigError(
            f"trainer.strategy: data_parallel_size {copies} times tensor_parallel_size {shards} is not the number of "
            f"devices, {devices}; give sizes that fit"
        )
    return shards if shards > 1 else copies


def _asked(args: Sequence[str], name: str) -> str | None:
    """The text of an option of the Trainer; "" if it is a list; None if nothing gives it."""
    from futurel1.cli.config_places import entries  # the command line imports this package

    found = [entry for entry in entries(args) if entry.keys == ("trainer", name)]
    if not found:
        return None
    file = found[0].place.partition(", line ")[0]
    values = [entry.value for entry in found if entry.place.partition(", line ")[0] == file]
    return values[0] if file.startswith("--") or "" not in values else ""  # a list is "", and then what it has


def _strategy(args: Sequence[str]) -> str:
    """Name or class of the strategy; "" if nothing gives it."""
    from futurel1.cli.config_places import entries

    keys = (("trainer", "strategy"), ("trainer", "strategy", "class_path"))
    return next((entry.value for entry in entries(args) if entry.keys in keys and entry.value), "")


def _devices(args: Sequence[str], accelerator: str) -> int | None:
    """Devices of a node; None: as many as there are."""
    asked = _asked(args, "devices")
    if asked in (None, "auto", "-1"):
        return 1 if accelerator == "cpu" else None
    if not str(asked).isdecimal() or asked == "0":
        raise ConfigError(f"plans need a number of devices, not {asked or 'a list'}; give one by --devices")
    return int(str(asked))
