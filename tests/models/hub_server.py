"""A stand-in for the Hugging Face hub on this machine: what is asked of it when a model is pushed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER = "someone"
TOKEN = "hf_right"


@dataclass
class StandInHub:
    """Repositories by name, each with its branches; a branch is path to content."""

    url: str = ""
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    private: dict[str, Any] = field(default_factory=dict)
    commits: list[tuple[str, str, str]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def create(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = f"{body.get('organization') or OWNER}/{body['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        self.repositories[name] = {"main": {".gitattributes": b""}}
        self.private[name] = body.get("private", body.get("visibility"))
        return 200, {"url": f"{self.url}/{name}", "name": name}

    def commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        files = self.repositories[name][branch]
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "header":
                self.commits.append((name, branch, value["summary"]))
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
            else:
                return 400, {"error": f"unknown operation {kind}"}
        oid = f"{len(self.commits):040x}"
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}

    def batch(self, body: dict[str, Any]) -> tuple[int, Any]:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.url}/blobs/{item['oid']}", "header": {}}}}
            for item in body["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def answer(self, method: str, path: str, content: bytes, token: str) -> tuple[int, Any]:
        if method == "PUT":
            blob = path.removeprefix("/blobs/")
            if hashlib.sha256(content).hexdigest() != blob:
                return 400, {"error": "other bytes than announced"}
            self.blobs[blob] = content
            return 200, {}
        if token != TOKEN:
            return 401, {"error": "Invalid username or password."}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self.create(json.loads(content))
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+?)(?:\.git)?/([a-z]+)/(.+)", path)
        name, action, rest = found.groups() if found else ("", "", "")
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        branches = self.repositories[name]
        if action == "info":
            return self.batch(json.loads(content))
        if action == "branch":
            known = rest in branches
            branches.setdefault(rest, dict(branches["main"]))
            return (409, {"error": "Reference already exists"}) if known else (200, {})
        if action == "preupload":
            files = json.loads(content)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
            return 200, {"files": modes}
        if action == "commit":
            return self.commit(name, rest, [json.loads(line) for line in content.splitlines()])
        if action == "tree":
            files = branches[rest]
            return 200, [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
        if action == "resolve":
            branch, _, file = rest.partition("/")
            return 200, branches[branch][file]
        return 404, {"error": f"the stand-in knows no {action}"}


@contextmanager
def serve(hub: StandInHub) -> Iterator[StandInHub]:
    """Answer requests until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, body = hub.answer(self.command, path, content, token)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", f"{len(hub.commits):040x}")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = reply  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
