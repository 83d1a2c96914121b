"""Extraction of the library's own errors, for short messages on the command line."""

from futurel1.errors import FutureL1Error


def own_error(error: BaseException) -> FutureL1Error | None:
    """Find the library's error in a chain of causes, because jsonargparse wraps errors of constructors."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, FutureL1Error):
        seen = seen.__cause__ or seen.__context__
    return seen
