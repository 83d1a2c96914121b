"""Parameter groups and learning-rate schedules."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from futurel1.errors import ConfigError
from futurel1.models import LatentReasoner

Schedule = Literal["cosine", "linear", "constant"]
Part = Literal["vision", "merger", "llm", "head"]
PARTS: tuple[Part, ...] = ("vision", "merger", "llm", "head")


def parts_of(reasoner: LatentReasoner) -> dict[Part, list[nn.Parameter]]:
    """Every parameter of a reasoner, by part.

    Returns:
        ``vision``: the tower without its mergers; ``merger``: merger and DeepStack mergers; ``head``: projection head;
        ``llm``: the rest, including embedding table and `lm_head`.
    """
    merger = {id(p): p for module in reasoner.backbone.mergers() for p in module.parameters()}
    vision = {id(p): p for p in reasoner.backbone.vision_tower.parameters() if id(p) not in merger}
    head = {id(p): p for p in reasoner.projection_head.parameters()}
    others = {id(p): p for p in reasoner.parameters() if not any(id(p) in part for part in (merger, vision, head))}
    found: dict[Part, dict[int, nn.Parameter]] = {"vision": vision, "merger": merger, "llm": others, "head": head}
    return {name: list(part.values()) for name, part in found.items()}


def freeze_parts(reasoner: LatentReasoner, parts: Iterable[Part]) -> None:
    """Freeze parts of a reasoner.

    Raises:
        ConfigError: an unknown part, or nothing left to train.
    """
    by_name = parts_of(reasoner)
    for part in parts:
        if part not in by_name:
            raise ConfigError(f"freeze names parts among {PARTS}, got {part!r}")
        for parameter in by_name[part]:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in reasoner.parameters()):
        raise ConfigError(f"freeze={list(parts)} leaves nothing to train")


def parameter_groups(
    reasoner: LatentReasoner, *, learning_rates: dict[Part, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups by part; norms and biases (everything with fewer than two dimensions) are not decayed.

    Args:
        reasoner: the model; frozen parameters are left out.
        learning_rates: rate of each part.
        weight_decay: decay of matrices.

    Returns:
        Non-empty groups with `params`, `lr`, `weight_decay` and `name`.
    """
    groups = []
    for part, parameters in parts_of(reasoner).items():
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        for suffix, decay, chosen in (
            ("", weight_decay, [p for p in trainable if p.ndim >= 2]),
            ("_no_decay", 0.0, [p for p in trainable if p.ndim < 2]),
        ):
            if chosen:
                groups.append(
                    {"params": chosen, "lr": learning_rates[part], "weight_decay": decay, "name": part + suffix}
                )
    return groups


def group_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Settings of an optimizer's groups, without their parameters; rates that it keeps as tensors are numbers."""
    return [
        {name: float(value) if name == "lr" else value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def apply_settings(schedule: LambdaLR, groups: Sequence[Mapping[str, Any]]) -> None:
    """Give an optimizer and its schedule settings in the place of those that a checkpoint restored.

    Args:
        schedule: a schedule at any step; its factors give the rates of that step.
        groups: settings of each group, see :func:`group_settings`; `lr` is the base rate.
    """
    schedule.base_lrs = [settings["lr"] for settings in groups]
    for group, settings, factor in zip(schedule.optimizer.param_groups, groups, schedule.lr_lambdas, strict=True):
        group.update({**settings, "initial_lr": settings["lr"], "lr": group["lr"]})
        rate = settings["lr"] * factor(schedule.last_epoch)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # torchao's optimizers refuse any other tensor
        else:
            group["lr"] = rate


def total_steps(trainer: Any) -> int:
    """Optimizer steps after which a Trainer ends training: the smaller of `max_steps` and those of `max_epochs`.

    Args:
        trainer: a Trainer that is about to fit; its data module makes a train loader, whose batches are counted.

    Raises:
        ConfigError: neither limit is given, or the number of batches is unknown and only `max_epochs` is given.
    """
    max_steps, max_epochs = int(trainer.max_steps), -1 if trainer.max_epochs is None else int(trainer.max_epochs)
    if max_epochs == -1:
        if max_steps == -1:
            raise ConfigError("the schedule needs the run's length: give trainer.max_steps or trainer.max_epochs")
        return max_steps
    batches = _batches_per_epoch(trainer)
    if math.isinf(batches):
        if max_steps == -1:
            raise ConfigError("the train loader has no length, so the schedule needs trainer.max_steps")
        return max_steps
    steps: int = math.ceil(batches / trainer.accumulate_grad_batches) * max_epochs
    return steps if max_steps == -1 else min(steps, max_steps)


def _batches_per_epoch(trainer: Any) -> float:
    """Batches of an epoch under `limit_train_batches`; infinity for a loader without a length."""
    data, limit = getattr(trainer, "datamodule", None), trainer.limit_train_batches
    if limit == 0:
        return 0
    loader: Any = None if data is None else data.train_dataloader()
    if hasattr(loader, "__len__") and hasattr(loader, "load_state_dict"):  # as the loaders of this library
        batches = len(loader)
        return int(min(batches, limit) if isinstance(limit, int) else batches * (1.0 if limit is None else limit))
    # The Trainer may shard other loaders among ranks. It would not restore the state of one that it has set up.
    fit = trainer.fit_loop
    fit.setup_data()
    if any(hasattr(loader, "load_state_dict") for loader in fit._combined_loader.flattened):
        fit._combined_loader = None  # to be set up once more, when its state can be restored
    return float(trainer.num_training_batches)


def schedule_factor(schedule: Schedule, total_steps: int, warmup_ratio: float) -> Callable[[int], float]:
    """Learning-rate factor by optimizer step: linear warm-up, then the schedule; decays reach zero at `total_steps`.

    Args:
        schedule: shape after the warm-up.
        total_steps: optimizer steps of the whole run.
        warmup_ratio: share of these steps used for warm-up.

    Raises:
        ConfigError: an unknown schedule, or a ratio outside 0 to 1.
    """
    if schedule not in ("cosine", "linear", "constant"):
        raise ConfigError(f"lr_schedule must be cosine, linear or constant, got {schedule!r}")
    if not 0 <= warmup_ratio <= 1:
        raise ConfigError(f"warmup_ratio must be between 0 and 1, got {warmup_ratio}")
    warmup = round(warmup_ratio * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))

    return factor
