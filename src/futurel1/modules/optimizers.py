"""Optimizers of a user's choice: made for parameter groups, described in checkpoints, and compared on resume."""

import inspect
from collections.abc import Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.optim import AdamW, Optimizer

from futurel1.errors import ConfigError
from futurel1.recipes import keep_recipe, object_of

_OWN = {"lr": "learning_rate", "weight_decay": "weight_decay", "betas": "betas"}
"""Settings of optimizers that are hyper-parameters of the module, with their names there."""


def chosen_optimizer(hparams: MutableMapping[str, Any], given: Any) -> OptimizerCallable | None:
    """What makes a module's optimizer of its parameter groups.

    Args:
        hparams: hyper-parameters of the module, in which a description replaces the optimizer, so that checkpoints
            contain plain values.
        given: value of the argument `optimizer`: a class, a `functools.partial` of one, what the command line makes,
            what a checkpoint stores, or None for AdamW.

    Raises:
        ConfigError: rate, betas or decay are set twice, a decay is set that the optimizer does not have, or its
            settings are wrong.
    """
    form: Any = OptimizerCallable  # a form of `typing`, which is no class
    make = object_of(form, "optimizer", given)
    keep_recipe(hparams, "optimizer", make)
    if make is None:
        return None
    probe = _made(make, [nn.Parameter(torch.zeros(2, 2))])
    kind = type(probe)
    _check(kind, probe.defaults, hparams)
    recipe = given if isinstance(given, Mapping) else hparams["optimizer"]
    hparams["optimizer"] = _described(make, kind, recipe)
    return make  # type: ignore[no-any-return]


def make_optimizer(
    make: OptimizerCallable | None, groups: list[dict[str, Any]], *, learning_rate: float, betas: tuple[float, float]
) -> Optimizer:
    """Make an optimizer whose groups have their own rates and decays.

    Args:
        make: what :func:`chosen_optimizer` returned; None for AdamW.
        groups: groups with `params`, `lr`, `weight_decay` and `name`.
        learning_rate: AdamW's default rate.
        betas: betas of AdamW, and of every optimizer that has two.

    Raises:
        ConfigError: the optimizer cannot train these weights.
    """
    if make is None:
        return AdamW(groups, lr=learning_rate, betas=betas)
    optimizer = _made(make, groups)
    if _has_two_betas(optimizer.defaults):
        for group in optimizer.param_groups:
            group["betas"] = betas
    return optimizer


def optimizer_name(description: Any) -> str:
    """Class of an optimizer that :func:`chosen_optimizer` described in hyper-parameters."""
    if isinstance(description, Mapping):
        return str(description["class_path"])
    return _path(AdamW) if description is None else str(description)


def _made(make: OptimizerCallable, parameters: Any) -> Optimizer:
    try:
        return make(parameters)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"optimizer cannot be made: {reason}; see its class for what it takes") from error


def _check(kind: type[Optimizer], settings: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
    """Refuse settings that the module's would replace, and a decay that would be none."""
    parameters = inspect.signature(kind).parameters
    for name, own in _OWN.items():
        if name not in settings or name not in parameters or (name == "betas" and not _has_two_betas(settings)):
            continue
        if settings[name] != parameters[name].default:
            raise ConfigError(
                f"optimizer.{name}={settings[name]} would be replaced by the module's {own}={hparams[own]}: "
                f"leave it out, and set {own}"
            )
    if "weight_decay" not in settings and hparams["weight_decay"]:
        raise ConfigError(f"{kind.__name__} knows no weight_decay, which is {hparams['weight_decay']}: set it to 0")


def _has_two_betas(settings: Mapping[str, Any]) -> bool:
    return len(settings.get("betas", ())) == 2


def _described(make: Any, kind: type[Optimizer], recipe: Any) -> Any:
    """Class and settings as plain values; the name of the class alone where the settings are hidden in a function."""
    if isinstance(recipe, Mapping):  # whose class may have a shorter name
        return {**recipe, "class_path": _path(kind)}
    if isinstance(make, partial) and kind in (make.func, *make.args):  # jsonargparse calls another function with it
        return {"class_path": _path(kind), "init_args": dict(make.keywords)}
    return {"class_path": _path(kind), "init_args": {}} if make is kind else _path(kind)


def _path(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
