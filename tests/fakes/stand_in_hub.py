"""A hub of one process on 127.0.0.1: what huggingface_hub asks for to make a repository, upload to it and load from it.

Small files come within the commit, safetensors through the LFS protocol, as on the real hub. Contents stay in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


class StandInHub(ThreadingHTTPServer):
    """Repositories by name: path -> content, and what was asked for that nobody answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.unknown: list[str] = []

    @property
    def address(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit_of(self, repo: str) -> str:
        """A commit's number: of the content, so that another content is another commit."""
        digest = hashlib.sha1()
        for path, content in sorted(self.repositories[repo].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()


@contextmanager
def stand_in_hub() -> Iterator[StandInHub]:
    """A hub that answers within a `with`."""
    hub = StandInHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: StandInHub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body, path = self._body(), urlsplit(self.path).path
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            self.server.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            self._json({"name": name, "id": name, "url": f"{self.server.address}/{name}"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif re.fullmatch(rf"/api/models/{REPO}/preupload/.+", path):
            kind = {True: "lfs", False: "regular"}
            files = [
                {"path": f["path"], "uploadMode": kind[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif re.fullmatch(rf"/{REPO}\.git/info/lfs/objects/batch", path):
            wanted = json.loads(body)["objects"]
            made = [{**o, "actions": {"upload": {"href": f"{self.server.address}/lfs/{o['oid']}"}}} for o in wanted]
            self._json({"transfer": "basic", "objects": made})
        elif found := re.fullmatch(rf"/api/models/{REPO}/commit/.+", path):
            self._commit(found["repo"], [json.loads(line) for line in body.splitlines() if line.strip()])
        else:
            self._nothing()

    def do_PUT(self) -> None:
        oid, content = self.path.rpartition("/")[2], self._body()
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.large[oid] = content
        self._send(200, b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            self._json({"name": "me", "type": "user", "orgs": []})
            return
        if found := re.fullmatch(rf"/{REPO}/resolve/[^/]+/(?P<file>.+)", path):
            repo, file = found["repo"], found["file"]
            content = self.server.repositories.get(repo, {}).get(file)
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.server.commit_of(repo)})
                return
            tag = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": self.server.commit_of(repo)})
            return
        found = re.fullmatch(rf"/api/models/{REPO}(/revision/.+|/tree/.+)?", path)
        if found is None or found["repo"] not in self.server.repositories:
            self._nothing()
        elif "/tree/" in path:
            files = self.server.repositories[found["repo"]]
            self._json([{"type": "file", "path": name, "size": len(x), "oid": "0" * 40} for name, x in files.items()])
        else:
            repo = found["repo"]
            files = [{"rfilename": name} for name in self.server.repositories[repo]]
            self._json({"id": repo, "sha": self.server.commit_of(repo), "siblings": files, "private": False})

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.repositories[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.repositories[repo][value["path"]] = self.server.large[value["oid"]]
        commit = self.server.commit_of(repo)
        self._json({"commitUrl": f"{self.server.address}/{repo}/commit/{commit}", "commitOid": commit})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _nothing(self) -> None:
        self.server.unknown.append(f"{self.command} {self.path}")
        self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        """Quiet."""
