"""Verdicts on disk, kept across runs.

Failures of the cache cost calls, but never the run: unreadable entries are asked for again, and verdicts that cannot be
written are still returned.
"""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Literal

from futurel1.errors import ConfigError
from futurel1.files import write_whole
from futurel1.leftovers import remove_leftovers
from futurel1.rewards.judge_replies import READING, VerdictKind, VerdictValue, checked_value

__all__ = ["VerdictCache", "request_digest"]

logger = logging.getLogger(__name__)


def request_digest(kind: VerdictKind, body: bytes) -> str:
    """The name of a request; requests share it if they are equal and are read by the same rules."""
    return hashlib.sha256(f"{kind} {READING}\n".encode() + body).hexdigest()


class VerdictCache:
    """A folder of verdicts by digest of their request; failures are not stored.

    Args:
        folder: the folder; created when the first verdict is written.
        model: name of the judge's model, stored for people who read an entry.

    Raises:
        ConfigError: the folder is a file.
    """

    def __init__(self, folder: str | Path, model: str) -> None:
        # os.path, unlike Path, returns False where permissions forbid a look into the parent folder.
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise ConfigError(f"cache_dir {folder} is a file; name a folder")
        self.folder = Path(folder)
        self.model = model
        self._warned: set[str] = set()
        self._cleaned: set[Path] = set()

    def read(self, digest: str, kind: VerdictKind) -> tuple[VerdictValue, str] | None:
        """The verdict on a request and the judge's words; None if there is no readable entry."""
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
        """Store a verdict.

        Returns:
            Whether it was written.
        """
        entry = {"digest": digest, "kind": kind, "model": self.model, "value": value, "reason": reason}
        file = self._file(digest)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.parent not in self._cleaned:  # what a killed run was writing is missing, so it is written again
                self._cleaned.add(file.parent)
                remove_leftovers(file.parent)
            write_whole(file, json.dumps(entry, indent=1))
        except OSError as error:
            # The verdict has been paid for, and the run does not need the cache.
            self._say_it_fails("written", error)
            return False
        return True

    def _file(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest[2:40]}.json"

    def _say_it_fails(self, what: Literal["read", "written"], error: OSError) -> None:
        """Warn once for reading and once for writing."""
        if what in self._warned:
            return
        self._warned.add(what)
        logger.warning(
            "the judge's cache_dir %s cannot be %s (%s): the run goes on without the entries concerned, and asks for "
            "them again another time. Check its permissions and free space, or name another folder",
            self.folder, what, error,
        )  # fmt: skip
