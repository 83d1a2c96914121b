"""Verdicts on the disk, kept across runs.

The cache may cost calls, but never the run: entries that cannot be read are asked for again, and verdicts that cannot
be written are returned all the same.
"""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Literal

from futurel1.errors import ConfigError
from futurel1.files import write_whole
from futurel1.rewards.judge_replies import READING, VerdictKind, VerdictValue, checked_value

__all__ = ["VerdictCache", "request_digest"]

logger = logging.getLogger(__name__)


def request_digest(kind: VerdictKind, body: bytes) -> str:
    """The name of a request: equal for equal questions that are read by equal rules."""
    return hashlib.sha256(f"{kind} {READING}\n".encode() + body).hexdigest()


class VerdictCache:
    """A folder of verdicts by digest of their request; failures are never put there.

    Args:
        folder: where the verdicts are; made when the first one is written.
        model: name of the judge's model, for whoever reads an entry.

    Raises:
        ConfigError: the folder is a file.
    """

    def __init__(self, folder: str | Path, model: str) -> None:
        # Unlike a path's methods, False where the folder above may not be looked into.
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise ConfigError(f"cache_dir {folder} is a file; name a folder")
        self.folder = Path(folder)
        self.model = model
        self._warned: set[str] = set()

    def read(self, digest: str, kind: VerdictKind) -> tuple[VerdictValue, str] | None:
        """The verdict on a request and the judge's words; None where there is none that can be read."""
        file = self._file(digest)
        try:
            entry = json.loads(file.read_bytes())
            value = checked_value(kind, entry["value"])
            if entry["digest"] != digest or not isinstance(entry["reason"], str):
                raise ValueError("it belongs to another request")
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say_it_fails("read", error)
            return None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            logger.warning("%s is damaged (%s: %s) and will be made anew", file, type(error).__name__, error)
            return None
        return value, entry["reason"]

    def write(self, digest: str, kind: VerdictKind, value: VerdictValue | None, reason: str) -> bool:
        """Keep a verdict.

        Returns:
            Whether it could be written.
        """
        entry = {"digest": digest, "kind": kind, "model": self.model, "value": value, "reason": reason}
        file = self._file(digest)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(entry, indent=1))
        except OSError as error:
            # The verdict has been paid for, and the run can do without the cache.
            self._say_it_fails("written", error)
            return False
        return True

    def _file(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest[2:40]}.json"

    def _say_it_fails(self, what: Literal["read", "written"], error: OSError) -> None:
        """Warn, the first time."""
        if what in self._warned:
            return
        self._warned.add(what)
        logger.warning(
            "the judge's cache_dir %s cannot be %s (%s): the run goes on without the entries concerned, and asks for "
            "them again another time. Check its permissions and free space, or name another folder",
            self.folder, what, error,
        )  # fmt: skip
