"""A web server for tests that serves a folder with ranges, digests and lists of folders, and can fail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


class RangeServer(ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        asked: method, path and range of each request.
        failures: so many GETs are answered by 503, or cut in the middle.
        cut: whether they are cut.
        ranges: whether ranges are known.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.asked: list[tuple[str, str, str]] = []
        self.failures = 0
        self.cut = False
        self.ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, method: str, name: str) -> int:
        """Requests for a file."""
        return sum(asked == method and path.endswith(name) for asked, path, _ in self.asked)


class _Handler(SimpleHTTPRequestHandler):
    server: RangeServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        wanted = self.headers.get("Range", "")
        self.server.asked.append((self.command, self.path, wanted))
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            (super().do_GET if body else super().do_HEAD)()
            return
        failing = body and self.server.failures > 0
        self.server.failures -= failing
        if failing and not self.server.cut:
            self.send_error(503)
            return
        data = file.read_bytes()
        status = file.stat()
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted) if self.server.ranges else None
        first, last = (int(part[1]), min(int(part[2] or len(data)), len(data) - 1)) if part else (0, len(data) - 1)
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Accept-Ranges", "bytes" if self.server.ranges else "none")
        self.send_header("ETag", f'"{status.st_mtime_ns}-{status.st_size}"')
        self.end_headers()
        if body:
            shown = data[first : last + 1]
            self.wfile.write(shown[: len(shown) // 2] if failing else shown)


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """Serve a folder on this machine."""
    with RangeServer(folder) as server:
        thread = Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
