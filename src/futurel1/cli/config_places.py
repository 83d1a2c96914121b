"""Configuration files of a command line: whether they can be read, and where in them something stands."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from futurel1.cli.errors import CommandLineError
from futurel1.shipped_configs import CONFIG_OPTIONS, is_text


@dataclass(frozen=True)
class Entry:
    """A value of a command line or of one of its configuration files.

    Args:
        keys: names that lead to it, such as `trainer` and `max_steps`.
        value: its text; "" if it is a list or a mapping.
        place: where it stands, for messages.
    """

    keys: tuple[str, ...]
    value: str
    place: str


def options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and value of each option of a command line; a missing value is ""."""
    for place, arg in enumerate(args):
        if arg.startswith("--") or arg == "-c":
            name, joined, value = arg.partition("=")
            following = args[place + 1] if place + 1 < len(args) else ""
            yield name, value if joined else following


def config_files(args: Sequence[str]) -> list[Path]:
    """The files that a command line names by ``--config``; YAML text in the place of a file is left out."""
    named = (value for name, value in options(args) if name in CONFIG_OPTIONS and value and not is_text(value))
    return [file for file in map(Path, named) if file.is_file()]


def check_config_files(args: Sequence[str]) -> None:
    """Raise a `CommandLineError` for a file of ``--config`` that cannot be read or is not a mapping in YAML.

    A key that stands twice in one mapping is refused too.

    Args:
        args: command line whose options ``--config`` name files.
    """
    for name, value in options(args):
        if name not in CONFIG_OPTIONS or not value or is_text(value):
            continue
        if Path(value).is_dir():
            raise CommandLineError(f"--config {value} is a folder; give a YAML file, or --resume for a run folder")
        if not Path(value).exists():
            raise CommandLineError(f"--config {value}: no such file; check the path and the folder it is relative to")
    for file in config_files(args):
        node = _composed(file)
        if not isinstance(node, yaml.MappingNode):
            kind = "empty" if node is None else "a list" if node.id == "sequence" else "a single value"
            raise CommandLineError(f"{file} is {kind}; a configuration is a mapping, such as `model: {{...}}`")
        _refuse_doubled_keys(node, str(file))


def entries(args: Sequence[str]) -> list[Entry]:
    """All that a command line and its configuration files give, in the order of their precedence, the last first."""
    found: list[Entry] = []
    for name, value in options(args):
        if name in CONFIG_OPTIONS:
            files = config_files([name, value])
            found += [entry for file in files for entry in _of_node(_composed(file), (), str(file))]
        else:
            keys = tuple(name.removeprefix("--").rstrip("+").split("."))
            found.append(Entry(keys, value, name.rstrip("+")))
    return found[::-1]


def _composed(file: Path) -> Any:
    try:
        return yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise CommandLineError(
            f"{file} is not text ({error.reason} at byte {error.start}); give a YAML file"
        ) from error
    except OSError as error:
        raise CommandLineError(f"{file} cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise CommandLineError(f"{file}{line}: not valid YAML, {error.problem or error.context}") from error
    except yaml.YAMLError as error:  # a control character, which has no line
        raise CommandLineError(f"{file}: not valid YAML, {' '.join(str(error).split())}") from error


def _refuse_doubled_keys(node: Any, file: str) -> None:
    """Raise a `CommandLineError` for a key that a mapping has twice: YAML would forget the first of them silently."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise CommandLineError(
                    f"{file}, line {line}: {name!r} is there already, in line {seen[name]}; put both under one key"
                )
            seen[name] = line
            _refuse_doubled_keys(value, file)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_doubled_keys(value, file)


def _of_node(node: Any, keys: tuple[str, ...], file: str) -> Iterator[Entry]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*keys, str(getattr(key, "value", "")).rstrip("+"))
            yield from _of_value(value, below, file, key.start_mark.line + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _of_value(value, keys, file, value.start_mark.line + 1)


def _of_value(value: Any, keys: tuple[str, ...], file: str, line: int) -> Iterator[Entry]:
    text = value.value if isinstance(value, yaml.ScalarNode) else ""
    yield Entry(keys, text, f"{file}, line {line}")
    yield from _of_node(value, keys, file)
