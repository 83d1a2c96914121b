"""What jsonargparse says about a wrong command line or configuration, in one line and with the remedy.

jsonargparse explains a wrong value by all that it tried, one below the other and indented by how deep it was. The part
that says what is wrong is looked up here by its wording. A wording that is not known stays, on one line.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from futurel1.cli.config_places import Entry, entries
from futurel1.cli.errors import CommandLineError
from futurel1.cli.suggestions import class_names, did_you_mean, find_object, listed, option_names

_UNKNOWN_OPTION = (
    re.compile(r"Group '(?P<group>.+)' does not accept option '(?P<name>.+)'"),
    re.compile(r"Subcommand '.+' does not accept option '(?P<name>.+)'"),
    re.compile(r"Option '(?P<name>.+)' is not accepted"),
)
_UNKNOWN_CLASS = (
    re.compile(r"Expected a dot import path string: (?P<name>.+)"),
    re.compile(r"module '(?P<module>.+)' has no attribute '(?P<name>.+)'"),
    re.compile(r"No module named '(?P<missing>.+)'"),
    re.compile(r"Import path(?P<name>.*) does not correspond to a subclass of (?P<base>.+)"),
    re.compile(r"Expected '(?P<name>.+)' to be a subclass of <class '(?P<base>.+)'>"),
)
_KEY = re.compile(r"Parser key \"(?P<key>[^\"]+)\"")
_CLASS = re.compile(r"Problem with given class_path '(?P<path>.+)':")
_CALLABLE = re.compile(r"(?P<indent>\s*)Type .+ expects a function or a callable class: (?P<why>.+)")
_CLASS_PATH = re.compile(r"class_path='(?P<path>[^']+)'")
_WRONG_VALUE = re.compile(r"Expected an? (?P<type>.+?)\. Got value: (?P<value>.*)")
_WRONG_CLASS = re.compile(r"Not a valid subclass of (?P<type>\w+)(?:\. Got value: (?P<value>.*))?")
_WRONG_TYPE = re.compile(r"^\s*Expected an? (?P<type>(?!path but).+)")
_GIVEN = re.compile(r"Given value: (?P<value>.*)")
_NESTED = re.compile(r"NestedArg\(key='.*?', val=(?P<value>.*)\)$")
_REQUIRED = re.compile(r"(?:the following arguments are required: (?P<names>.+))|(?:Key \"(?P<key>.+)\" is required)")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (?P<given>.+)")
_NO_VALUE = re.compile(r"argument (?P<name>\S+): expected one argument")
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")
_CHOICES = re.compile(r"'([^']*)'|(\d+)")
_TYPES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "list": "a list, such as [a, b]",
    "tuple": "a list, such as [a, b]",
    "dict": "a mapping, such as {a: 1}",
    "collections.abc.Sequence": "a list, such as [a, b]",
    "collections.abc.Iterable": "a list, such as [a, b]",
}


@dataclass(frozen=True)
class Command:
    """A command whose command line could not be read.

    Args:
        name: such as ``fit``.
        args: its options.
        known: names of its options and of its positional arguments.
        example: an example command line.
    """

    name: str
    args: Sequence[str]
    known: Sequence[str]
    example: str
    given: list[Entry] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "given", entries(self.args))

    @property
    def help(self) -> str:
        """Where all options are explained."""
        return f"`futurel1 {self.name} --help` explains all options"

    def place(self, *keys: str, value: str | None = None) -> str:
        """Where the command line or its files give a key, by the last of its names, or a value."""
        for entry in self.given:
            if value is not None and entry.value != value:
                continue
            rest = iter(entry.keys)
            if all(key in rest for key in keys) and (not keys or entry.keys[-1] == keys[-1]):
                return entry.place
        return ".".join(keys)


def explain(message: str, command: Command) -> CommandLineError:
    """The error for a command line that jsonargparse refuses.

    Args:
        message: what jsonargparse says.
        command: what was called, and how.
    """
    lines = [line.replace("- ", "  ", 1) if line.lstrip().startswith("- ") else line for line in message.splitlines()]
    lines = _with_callables(lines)
    for about in (_about_option, _about_class, _about_missing, _about_value):
        told = about(lines, command)
        if told:
            return CommandLineError(told)
    return CommandLineError(f"{' '.join(message.split())}; {command.help}")


def _with_callables(lines: Sequence[str]) -> list[str]:
    """The lines, with a class that is to be called later (an optimizer) told as any other class is."""
    told = []
    for number, line in enumerate(lines):
        match = _CALLABLE.match(line)
        named = match and (_CLASS_PATH.search(match["why"]) or _CLASS_PATH.search(_given_value(lines[number:])))
        if match is None:
            told.append(line)
            continue
        path = named["path"] if named else _given_value(lines[number:])
        why = match["why"].partition(". Got value: ")[0]
        told += [f"{match['indent']}Problem with given class_path '{path}':", f"{match['indent']}  {why}"]
    return told


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _around(lines: Sequence[str], number: int) -> list[str]:
    """The lines that a line is nested in, the outermost first."""
    found, least = [], _indentation(lines[number])
    for line in reversed(lines[:number]):
        if line.strip() and _indentation(line) < least:
            found.append(line)
            least = _indentation(line)
    return found[::-1]


def _keys(around: Sequence[str]) -> list[str]:
    return [part for line in around for match in _KEY.finditer(line) for part in match["key"].split(".")]


def _about_option(lines: Sequence[str], command: Command) -> str:
    """An option that does not exist."""
    for number, line in enumerate(lines):
        match = next((found for pattern in _UNKNOWN_OPTION if (found := pattern.search(line))), None)
        if match is None:
            unrecognized = _UNRECOGNIZED.search(line)
            if unrecognized:
                return _unrecognized(unrecognized["given"], command)
            continue
        name = ".".join(filter(None, (match.groupdict().get("group"), match["name"])))
        around = _around(lines, number)
        owner = next((found["path"] for at in reversed(around) if (found := _CLASS.search(at))), "")
        if not owner:
            return _unknown_key(command.place(*name.split(".")), name, command)
        target = find_object(owner)
        known = option_names(target) if callable(target) else []
        group = name.rpartition(".")[0]
        level = [option for option in known if option.rpartition(".")[0] == group]
        short = owner.removeprefix("futurel1.")
        place = command.place(*_keys(around), *name.split("."))
        place = place if " " in place or place.startswith("--") else command.place(*name.split("."))
        said = _joined(did_you_mean(name, known), listed(level, f"`futurel1 {command.name} --help` tells more"))
        return f"{place}: {short} has no option {name!r}; {said}"
    return ""


def _unknown_key(place: str, name: str, command: Command) -> str:
    tops = {known.split(".")[0] for known in command.known}
    first = name.split(".")[0]
    if first in tops or len(name.split(".")) == 1:
        return f"{place}: futurel1 {command.name} has no option {name!r}; " + _joined(
            did_you_mean(name, _with_arguments(command)), command.help
        )
    return f"{place}: futurel1 {command.name} has no option {first!r}; " + _joined(
        did_you_mean(first, tops), listed(tops, command.help)
    )


def _unrecognized(given: str, command: Command) -> str:
    first = given.split()[0]
    if not first.startswith("-"):
        return f"{first!r} belongs to no option of futurel1 {command.name}; {command.help}, such as {command.example}"
    return _unknown_key(first.split("=")[0], first.split("=")[0].lstrip("-"), command)


def _with_arguments(command: Command) -> list[str]:
    """Options of a command, and those of the classes that its command line names."""
    names = list(command.known)
    for entry in command.given:
        if entry.keys[-1:] in (("class_path",), entry.keys[:1]) and entry.keys[0] in ("model", "data") and entry.value:
            target = _loaded_class(entry.value)
            if target is not None and len(entry.keys) <= 2:
                names += [f"{entry.keys[0]}.init_args.{name}" for name in option_names(target)]
    return names


def _loaded_class(name: str) -> Any:
    """A class by its dotted path, or a class of the library by its name."""
    found = find_object(name if "." in name else f"futurel1.{name}")
    return found if isinstance(found, type) else None


def _about_class(lines: Sequence[str], command: Command) -> str:
    """A class that does not exist, or does not fit."""
    for number, line in enumerate(lines):
        match = next((found for pattern in _UNKNOWN_CLASS if (found := pattern.search(line))), None)
        if match is None:
            continue
        parts = match.groupdict()
        around = _around(lines, number)
        keys = _keys(around)
        tried = next((found["path"] for at in reversed(around) if (found := _CLASS.search(at))), "")
        wanted = _wanted(lines, number)
        kind = next((base.__name__ for base in wanted), parts.get("base") or "class")
        name = (parts.get("name") or parts.get("missing") or _given_value(lines)).strip()
        path = tried if parts.get("module") or parts.get("missing") else name
        place = command.place(value=path) or command.place(*keys)
        if parts.get("missing") and not path.startswith(str(parts["missing"])):
            return f"{place}: importing {path} fails, since there is no module {parts['missing']!r}; install it"
        known = class_names(wanted)
        if parts.get("missing"):
            same = [other for other in known if other == path.rpartition(".")[2]]
            said = "put its folder on PYTHONPATH, or install it"
            return f"{place}: there is no module {name!r} for {path}; {_joined(did_you_mean(path, same), said)}"
        if parts.get("base"):
            return f"{place}: {path} is no {kind}; {_joined(did_you_mean(path, known), listed(known, command.help))}"
        said = listed(known, "a class of your own is named with its module, such as my_package.MyClass")
        return f"{place}: there is no {kind} {path!r}; {_joined(did_you_mean(path, known), said)}"
    return ""


def _wanted(lines: Sequence[str], number: int) -> list[type]:
    """The classes that a value may be, by the innermost list of types that stands around a line."""
    least = _indentation(lines[number])
    for line in reversed(lines[:number]):
        if _indentation(line) < least and "Subtypes: " in line:
            found = [find_object(name) for name in _DOTTED.findall(line)]
            return [kind for kind in found if isinstance(kind, type) and not kind.__module__.startswith("collections")]
    return []


def _about_missing(lines: Sequence[str], command: Command) -> str:
    """A required value that is not given."""
    for number, line in enumerate(lines):
        no_value = _NO_VALUE.search(line)
        if no_value:
            return f"{no_value['name'].split('/')[-1]} needs a value; {command.help}"
        match = _REQUIRED.search(line)
        if match is None:
            continue
        around = _around(lines, number)
        owner = next((found["path"] for at in reversed(around) if (found := _CLASS.search(at))), "")
        names = [name.strip().removeprefix(f"{command.name}.") for name in (match["names"] or match["key"]).split(",")]
        if owner:
            needed = ", ".join(names)
            return f"{command.place(*_keys(around), value=None)}: {owner.removeprefix('futurel1.')} needs {needed}"
        if {"model", "data"} & set(names):
            needed = " and ".join(sorted(names, reverse=True))
            return (
                f"futurel1 {command.name} needs --config FILE that sets {needed}, such as `{command.example}`; "
                "`futurel1 configs` lists the configurations that come with futurel1"
            )
        return f"futurel1 {command.name} needs {' and '.join(names)}, such as: {command.example}; {command.help}"
    return ""


def _about_value(lines: Sequence[str], command: Command) -> str:
    """A value of another type."""
    types: list[str] = []
    keys: list[str] = []
    value = ""
    for number, line in enumerate(lines):
        match = _WRONG_VALUE.search(line) or _WRONG_CLASS.search(line)
        typed = match or (_WRONG_TYPE.search(line) if not types or not value else None)
        if typed is None:
            continue
        if match and not value:
            types, value, keys = [match["type"]], match["value"] or "", _keys(_around(lines, number))
            break
        types.append(typed["type"])
        keys = keys or _keys(_around(lines, number))
    if not types or not keys:
        return ""
    value = value or _given_value(lines)
    place = command.place(*keys)
    named = place if place.endswith(keys[-1]) else f"{place}: {'.'.join(keys)}"
    choices = [text or number for kind in types for text, number in _CHOICES.findall(kind) if _is_literal(kind)]
    others = [_in_words(kind) for kind in types if not _is_literal(kind)]
    if choices and "null" in others:
        others.remove("null")
    expected = [*([f"one of {', '.join(dict.fromkeys(choices))}"] if choices else []), *dict.fromkeys(others)]
    return f"{named} is {value!r}; expected {' or '.join(expected)}{_after(did_you_mean(value, choices))}"


def _given_value(lines: Sequence[str]) -> str:
    given = next((found["value"] for line in lines if (found := _GIVEN.search(line))), "")
    nested = _NESTED.match(given)
    return nested["value"].strip("'\"") if nested else given


def _is_literal(kind: str) -> bool:
    return kind.startswith("typing.Literal")


def _after(hint: str) -> str:
    return f"; {hint}" if hint else ""


def _in_words(kind: str) -> str:
    """A type as people write its values."""
    name = re.sub(r"^<class '(.+)'>$", r"\1", kind)
    for known, words in _TYPES.items():
        if name == known or name.startswith(f"{known}["):
            return words
    return name.rpartition(".")[2]


def _joined(*parts: str) -> str:
    return " ".join(part if part.endswith("?") else f"{part}." for part in parts if part).rstrip(".")
