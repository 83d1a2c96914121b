"""The configurations that come with the package: found by name, listed, copied."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from futurel1.errors import ConfigError, MissingFileError
from futurel1.files import write_first

__all__ = ["ShippedConfigs", "config_file", "configs", "resolve_config_options", "shipped_file"]

FOLDER_NAME = "configs"
SUFFIX = ".yaml"
CONFIG_OPTIONS = ("--config", "-c")


@dataclass(frozen=True)
class ShippedConfigs:
    """Configurations that come with the package.

    Attributes:
        configs: name to what the configuration is for, of all or of the one that was asked for.
        text: contents of the one that was asked for; None when all are listed or one is copied.
        copied_to: the copy; None when none was made.
    """

    configs: dict[str, str]
    text: str | None = None
    copied_to: Path | None = None

    def __str__(self) -> str:
        if self.copied_to is not None:
            return str(self.copied_to)
        if self.text is not None:
            return self.text.rstrip("\n")
        width = max(map(len, self.configs), default=0)
        return "\n".join(f"{name:<{width}}  {summary}" for name, summary in self.configs.items())


def configs(name: str | None = None, out: str | Path | None = None) -> ShippedConfigs:
    """List the configurations that come with the package, print one, or copy it.

    Args:
        name: Configuration to print or to copy, such as tiny/sft; null to list all.
        out: File to copy it to (a name that ends in .yaml or .yml), or a folder. A file that is there is kept.

    Returns:
        What was listed, printed or copied.

    Raises:
        ConfigError: `out` without a name, or a file that is there already.
        MissingFileError: No such configuration; the message names similar ones.
    """
    if name is None:
        if out is not None:
            raise ConfigError(f"out={out}: say which configuration to copy; `futurel1 configs` lists them")
        return ShippedConfigs({known: _summary(file) for known, file in _shipped().items()})
    source = shipped_file(name)
    if source is None:
        raise MissingFileError(f"no configuration {name!r} comes with futurel1; {_similar(name)}")
    found = {_name(source): _summary(source)}
    content = source.read_bytes()
    if out is None:
        return ShippedConfigs(found, text=content.decode())
    target = Path(out).expanduser()
    if target.is_dir() or target.suffix not in (SUFFIX, ".yml"):
        target = target / source.name
    if target.exists():
        raise ConfigError(f"out: {target} is there already; give another name, or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_first(target, content)
    return ShippedConfigs(found, copied_to=target)


def config_file(name: str) -> str:
    """The file that a value of ``--config`` means.

    Args:
        name: a file, which goes first; or the name of a configuration that comes with the package, such as
            ``tiny/sft``, ``tiny/sft.yaml`` or ``configs/tiny/sft.yaml``.

    Returns:
        The path of the file; YAML text, which jsonargparse accepts in the place of a file, as it is.

    Raises:
        MissingFileError: neither a file nor the name of a configuration; the message names similar ones.
    """
    if not name or is_text(name) or Path(name).expanduser().is_file():
        return name
    shipped = shipped_file(name)
    if shipped is None:
        raise MissingFileError(f"--config {name}: no such file, and no configuration of this name; {_similar(name)}")
    return str(shipped)


def is_text(value: str) -> bool:
    """Whether a value of ``--config`` is YAML text, which jsonargparse accepts in the place of a file."""
    return any(sign in value for sign in "\n{") or ": " in value


def resolve_config_options(args: Sequence[str]) -> list[str]:
    """A command line whose options ``--config`` name files.

    Args:
        args: command line; values of ``--config`` and ``-c`` are replaced as :func:`config_file` says.

    Raises:
        MissingFileError: a value is neither a file nor the name of a configuration.
    """
    resolved = list(args)
    for place, arg in enumerate(resolved):
        option, joined, value = arg.partition("=")
        if option not in CONFIG_OPTIONS:
            continue
        if joined:
            resolved[place] = f"{option}={config_file(value)}"
        elif place + 1 < len(resolved):
            resolved[place + 1] = config_file(resolved[place + 1])
    return resolved


def shipped_file(name: str | Path) -> Path | None:
    """A file that comes with the package, by its path in the folder of configurations.

    Args:
        name: such as ``tiny/sft``, ``tiny/sft.yaml``, ``configs/tiny/sft.yaml`` or ``configs/tiny/brief.txt``, which
            configurations refer to.

    Returns:
        Its path; None where there is no such file.
    """
    parts = Path(name).parts
    if parts[:1] == (FOLDER_NAME,):
        parts = parts[1:]
    if not parts or ".." in parts or Path(name).is_absolute():
        return None
    file = _folder().joinpath(*parts)
    return next((found for found in (file, file.with_name(f"{file.name}{SUFFIX}")) if found.is_file()), None)


def _folder() -> Path:
    """Inside the package in an installed wheel; beside `src/` in a repository and its editable installation."""
    package = Path(__file__).resolve().parent
    installed = package / FOLDER_NAME
    return installed if installed.is_dir() else package.parents[1] / FOLDER_NAME


def _shipped() -> dict[str, Path]:
    """Name to file, in the order of names."""
    found = {_name(file): file for file in sorted(_folder().rglob(f"*{SUFFIX}"))}
    if not found:
        raise MissingFileError(f"{_folder()} has no configurations: this installation is incomplete, repeat it")
    return found


def _name(file: Path) -> str:
    return file.relative_to(_folder()).with_suffix("").as_posix()


def _summary(file: Path) -> str:
    """The first sentence of the comment that a configuration begins with."""
    words: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words += line.lstrip("#").split()
        if words and words[-1].endswith("."):
            break
    sentence, full_stop, _ = " ".join(words).partition(". ")
    return sentence + full_stop.strip()


def _similar(name: str) -> str:
    """The remedy for an unknown name: those that are most like it, by the whole name or by its last part."""
    asked = Path(name).as_posix().removeprefix(f"{FOLDER_NAME}/").removesuffix(SUFFIX).lower()

    def likeness(known: str) -> float:
        pairs = ((asked, known), (asked.rpartition("/")[2], known.rpartition("/")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    near = [known for known in sorted(_shipped(), key=likeness, reverse=True) if likeness(known) >= 0.6][:4]
    meant = f"did you mean {', '.join(near)}? " if near else ""
    return f"{meant}`futurel1 configs` lists all"
