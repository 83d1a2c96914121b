"""Objects among the arguments of a module, as plain values from which a checkpoint can make them again."""

import inspect
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters

from futurel1.errors import ConfigError

_PLAIN = (bool, int, float, str, type(None))


class _UnknownError(Exception):
    """An object that no recipe describes."""


def object_of(kind: type[Any], name: str, given: Any) -> Any:
    """The object that a constructor argument stands for.

    Args:
        kind: class of the object.
        name: name of the argument.
        given: the object, None, or what :func:`keep_recipe` stored in a checkpoint.

    Returns:
        An object of `kind`, or None.

    Raises:
        ConfigError: the checkpoint does not know how the object was made, or the recipe does not work here.
    """
    if isinstance(given, str):
        raise ConfigError(
            f"the checkpoint was trained with {name}={given}, an object that was given from Python: a checkpoint "
            f"cannot contain it, and another would be used in its place. Give it again, as {name}=..."
        )
    if not isinstance(given, Mapping):
        return given
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=kind)
    try:
        return parser.instantiate_classes(parser.parse_object({name: dict(given)}))[name]
    except (ArgumentError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{name} cannot be made of the checkpoint's {dict(given)}: {reason}. Give it as {name}=..."
        ) from error


def keep_recipe(hparams: MutableMapping[str, Any], name: str, made: Any) -> None:
    """Store in the hyper-parameters how an object is made, or its name if that is unknown.

    The command line tells how: its configuration is stored. Objects of this library that were made in Python are
    described by their arguments, functions of a module by their names.

    Args:
        hparams: hyper-parameters of the module.
        name: name of the argument.
        made: its value, an object or None.
    """
    configured = (_given_hyperparameters.get() or {}).get(name)
    if isinstance(configured, Mapping):
        hparams[name] = dict(configured)
        return
    try:
        hparams[name] = None if made is None else _recipe(made)
    except _UnknownError:
        hparams[name] = f"{type(made).__module__}.{type(made).__qualname__}"


def _recipe(made: Any) -> Any:
    """Plain values for an object, a container of them, or a plain value itself."""
    if isinstance(made, _PLAIN):
        return made
    if isinstance(made, Mapping) and all(isinstance(key, str) for key in made):
        return {key: _recipe(value) for key, value in made.items()}
    if isinstance(made, list | tuple):
        return [_recipe(value) for value in made]
    if inspect.isfunction(made):
        # of a module that can be imported by name, unlike a script
        module, name = made.__module__, made.__qualname__
        if module == "__main__" or getattr(sys.modules.get(module), name, None) is not made:
            raise _UnknownError
        return f"{module}:{name}"
    kind = type(made)
    if kind.__module__.partition(".")[0] != "futurel1":
        raise _UnknownError  # whose attributes may be something else than its arguments
    arguments = {}
    for parameter in inspect.signature(kind).parameters:
        if not hasattr(made, parameter):
            raise _UnknownError
        arguments[parameter] = _recipe(getattr(made, parameter))
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}
