"""What the command line makes of errors: one line for those that a user can act on."""

import errno
import re
import textwrap
from collections.abc import Iterator

from futurel1.errors import ConfigError, FutureL1Error

_OF_THE_SYSTEM = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG, errno.ENOTDIR,
)  # fmt: skip
"""Errors of files that no program can prevent."""
_NO_PACKAGE = re.compile(r"Requirement '(?P<package>.+?)' not met")
_NO_GPU = re.compile(
    r"No supported gpu backend found|can ?not run on your system|Found no NVIDIA driver|not compiled with CUDA"
)
_TOO_FEW_GPUS = re.compile(r"You requested gpu: (?P<asked>\[.*?\]).*only has: (?P<there>\[.*?\])")
_OF_CHECKPOINTS = ("pytorch-lightning_version", "state_dict", "loops")
_CLASS = re.compile(r"class_path='(?:futurel1\.)?(?P<path>.+?)'")
_PROBLEM = re.compile(r"Problem with given class_path '(?P<path>.+?)':\n(?P<what>(?:[ ]{4,}.*\n?)+)")


class CommandLineError(ConfigError):
    """A command line or a configuration file that cannot be read; the exit status is 2."""


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it was raised from, or because of."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def own_error(error: BaseException) -> FutureL1Error | None:
    """Find the library's error in a chain of causes, because jsonargparse wraps errors of constructors."""
    return next((seen for seen in chain(error) if isinstance(seen, FutureL1Error)), None)


def error_line(error: BaseException) -> str | None:
    """One line about an error that a user can act on; None for any other, whose traceback somebody has to read.

    Args:
        error: what a command raised.
    """
    own = own_error(error)
    if own is not None:
        return " ".join(str(own).split("\n"))
    for seen in chain(error):
        line = _of_settings(seen) or _of_files(seen)
        if line is not None:
            return line
    return None


def _of_settings(error: BaseException) -> str | None:
    """What Lightning, PyTorch and jsonargparse refuse of the settings of a run."""
    text = str(error)
    problem = _PROBLEM.search(text)
    owner = problem["path"].removeprefix("futurel1.") if problem else ""
    package = _NO_PACKAGE.search(text)
    if package:
        needs = f"{owner} needs" if owner else "the settings need"
        return f"{needs} the package {package['package']}, which is not installed: pip install '{package['package']}'"
    if problem and isinstance(error, ValueError):
        return f"{owner}: {' '.join(textwrap.dedent(problem['what']).split())}; --debug shows where"
    if isinstance(error, ValueError) and text.startswith("Does not validate against any of"):
        made = _CLASS.search(text)
        reasons = [line.strip().removeprefix("- ") for line in text.splitlines() if line.lstrip().startswith("- ")]
        reason = re.sub(r"^functools\.partial\(.*\) argument after \*\*", "a group of its settings", reasons[0])
        return f"{made['path'] if made else 'a value'} cannot be made of its settings: {reason}; --debug shows where"
    few = _TOO_FEW_GPUS.search(" ".join(text.split()))
    if few:
        return f"trainer.devices asks for the GPUs {few['asked']}, and this machine has {few['there']}; ask for fewer"
    if _NO_GPU.search(text):
        return (
            "the settings ask for a GPU, or another accelerator, that this machine does not have or PyTorch cannot "
            f"use; give --trainer.accelerator cpu, or auto ({' '.join(text.split())})"
        )
    by_lightning = _raised_in(error).startswith("lightning.")
    if by_lightning and isinstance(error, KeyError) and text.strip("'") in _OF_CHECKPOINTS:
        return f"the checkpoint was not written by a Trainer: it has no {text}; give one of a run's checkpoints/"
    wrong = (ValueError, TypeError, ImportError, FileNotFoundError)
    if type(error).__name__ == "MisconfigurationException" or (by_lightning and isinstance(error, wrong)):
        return f"trainer: {' '.join(text.split())}"
    return None


def _raised_in(error: BaseException) -> str:
    """The module whose code raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def _of_files(error: BaseException) -> str | None:
    """What the system refuses of files."""
    if not isinstance(error, OSError) or error.errno not in _OF_THE_SYSTEM:
        return None
    paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
    return f"{' -> '.join(paths) or 'a file that was written'}: {error.strerror}"
