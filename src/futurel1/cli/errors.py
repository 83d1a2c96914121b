"""Errors as a person reads them on the command line."""

from futurel1.errors import FutureL1Error


def own_error(error: BaseException) -> FutureL1Error | None:
    """The library's error behind an error; jsonargparse wraps what a constructor raises."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, FutureL1Error):
        seen = seen.__cause__ or seen.__context__
    return seen


def one_line(error: FutureL1Error) -> str:
    """An error's own message; what a loader worker adds (its traceback) is left out."""
    text = str(error).strip()
    last = text.splitlines()[-1] if "Original Traceback" in text else text
    name = f"{type(error).__module__}.{type(error).__name__}: "
    return last.removeprefix(name)
