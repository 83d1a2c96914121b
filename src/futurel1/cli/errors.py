"""Errors as a person reads them on the command line."""

from futurel1.errors import FutureL1Error


def own_error(error: BaseException) -> FutureL1Error | None:
    """The library's error behind an error; jsonargparse wraps what a constructor raises."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, FutureL1Error):
        seen = seen.__cause__ or seen.__context__
    return seen
