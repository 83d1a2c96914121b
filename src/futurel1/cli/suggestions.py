"""Known names of options and classes, and which of them somebody meant."""

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

LISTED = 40
"""The most names that a message lists; a command's help has the others."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``did you mean A or B?`` for the known names that are most like a given one; "" if none is like it.

    Args:
        given: what was typed; parts are separated by dots, as in `trainer.max_steps`.
        known: names to choose from.
    """

    def likeness(name: str) -> float:
        # Somebody who leaves out the groups before a name, or gives the wrong ones, is understood by its last part.
        whole, last = ((name, given), (name.rpartition(".")[2], given.rpartition(".")[2]))
        alike = [difflib.SequenceMatcher(None, ours.lower(), theirs.lower()).ratio() for ours, theirs in (whole, last)]
        return alike[1] + alike[0] / 100

    scores = {name: likeness(name) for name in set(known)}
    best = max(scores.values(), default=0.0)
    meant = sorted((name for name, score in scores.items() if score >= max(0.6, best - 0.08)), key=lambda n: -scores[n])
    return f"did you mean {' or '.join(meant[:3])}?" if meant else ""


def listed(names: Iterable[str], otherwise: str) -> str:
    """Names for a message, if they are few; else `otherwise`.

    Args:
        names: all known names.
        otherwise: where to find them.
    """
    every = sorted(set(names))
    return f"known: {', '.join(every)}" if 0 < len(every) <= LISTED else otherwise


def find_object(path: str) -> Any:
    """The class or function of a dotted path, also inside a class; None if there is none."""
    module = path
    found: list[str] = []
    while module:
        try:
            value: Any = import_module(module)
        except ImportError:
            module, _, name = module.rpartition(".")
            found.insert(0, name)
            continue
        for name in found:
            value = getattr(value, name, None)
        return value
    return None


def names_in(parser: Any) -> list[str]:
    """Names of a jsonargparse parser's options, as its usage lists them; nested ones with their groups."""
    return sorted(set(re.findall(r"--([A-Za-z_][\w.]*)", parser.format_usage())))


def option_names(target: Callable[..., Any]) -> list[str]:
    """Options of a class or function as jsonargparse derives them."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    if inspect.isclass(target):
        parser.add_class_arguments(target)
    else:
        parser.add_function_arguments(target)
    return names_in(parser)


def class_names(bases: Iterable[type]) -> list[str]:
    """Names of the loaded classes that derive from one of `bases`, as a configuration may write them."""
    found, waiting = set[str](), list(bases)
    seen = set(waiting)
    while waiting:
        known: type
        for known in waiting.pop().__subclasses__():
            if known in seen:
                continue
            seen.add(known)
            waiting.append(known)
            if not known.__name__.startswith("_") and not inspect.isabstract(known) and _is_public(known):
                found.add(known.__name__)
    return sorted(found)


def _is_public(known: type) -> bool:
    """Whether a class is offered to users: by the `__all__` of a package around it, if there is one."""
    parts = known.__module__.split(".")
    around = [sys.modules.get(".".join(parts[:number])) for number in range(1, len(parts) + 1)]
    if any(part.startswith("_") for part in parts) or getattr(around[-1], known.__name__, None) is not known:
        return False
    offers = [names for module in around if (names := getattr(module, "__all__", None))]
    return not offers or any(known.__name__ in names for names in offers)
