"""What a killed process leaves of files that it was writing."""

from __future__ import annotations

import socket
from pathlib import Path

NO_PROCESS = (1 << 22) + 1
"""A process number that Linux gives to no process."""


def leave_half(place: Path, *, host: str | None = None, pid: int = NO_PROCESS, kind: str = "part") -> Path:
    """Leave half of a file; returns its temporary name.

    Args:
        place: the file that was to be written.
        host: machine of the process; None: this one.
        pid: number of the process.
        kind: ``part`` or ``aside``.
    """
    half = place.with_name(f".{place.name[:30]}.{host or socket.gethostname()}-{pid}-0123abcd.{kind}")
    half.write_bytes(b"half")
    return half
