"""A hub of one's own on this machine: the part of the hub's HTTP that uploads and downloads whole repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXT = (".md", ".json", ".py", ".txt", ".jinja")  # what a commit carries; the rest is put beforehand, as LFS files


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name → path → bytes, and what came: the ``tokens`` of requests, the ``blobs`` put."""

    daemon_threads = True

    def __init__(self, models: Mapping[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Door)
        self.files = {name: {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
                      for name, folder in models.items()}  # fmt: skip
        self.blobs: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Of a process that asks here and keeps its cache in ``home``."""
        return {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip


class Door(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def answer(self, body: Any = None, status: int = 200, **headers: str) -> None:
        """JSON, or bytes as they are; ``X_Repo_Commit`` is the header X-Repo-Commit."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        """What was sent, in one piece or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self) -> None:
        """Make a repository, say how each file shall come, take a commit."""
        content, path = self.body(), self.path.split("?")[0]
        self.server.tokens.add(self.headers.get("Authorization", ""))
        name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            status = 409 if name in self.server.files else 200
            self.server.files.setdefault(name, {})
            self.answer({"url": f"{self.server.url}/{name}", "name": name}, status)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(content)["files"]]
            modes = {True: "regular", False: "lfs"}
            told = [{"path": file, "shouldIgnore": False, "uploadMode": modes[file.endswith(TEXT)]} for file in names]
            self.answer({"files": told})
        elif path.endswith(".git/info/lfs/objects/batch"):
            asked = json.loads(content)["objects"]
            hrefs = [{"upload": {"href": f"{self.server.url}/blobs/{one['oid']}"}} for one in asked]
            objects = [{**one, "actions": href} for one, href in zip(asked, hrefs, strict=True)]
            self.answer({"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            self.commit(name, content)
            self.answer({"commitOid": COMMIT, "commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}"})
        else:
            self.answer({"error": path}, 404)

    def commit(self, name: str, lines: bytes) -> None:
        """Take the files of a commit, an operation a line; a large one was put beforehand and is named by its hash."""
        for line in lines.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                self.server.files[name][value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                self.server.files[name][value["path"]] = self.server.blobs[value["oid"]]

    def do_PUT(self) -> None:
        """A large file, under the hash that was promised."""
        content, oid = self.body(), self.path.rsplit("/", 1)[-1]
        self.server.blobs[oid] = content
        self.answer({}, 200 if hashlib.sha256(content).hexdigest() == oid else 400)

    def do_GET(self) -> None:
        """What a repository is, the list of its files, or one of them."""
        words = self.path.split("?")[0].strip("/").split("/")
        told = words[:2] == ["api", "models"]
        name = "/".join(words[2:4] if told else words[:2])
        files = self.server.files.get(name)
        if files is None:
            return self.answer({"error": name}, 404, X_Error_Code="RepoNotFound")
        if told and "tree" in words:
            below = "/".join(words[words.index("tree") + 2 :])
            listed = [{"type": "file", "path": path, "oid": path, "size": len(content)}
                      for path, content in sorted(files.items()) if path.startswith(below)]  # fmt: skip
            return self.answer(listed) if listed else self.answer({}, 404, X_Error_Code="EntryNotFound")
        if told:
            return self.answer({"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in sorted(files)]})
        content = files.get("/".join(words[4:])) if words[2:3] == ["resolve"] else None
        if content is None:
            return self.answer({"error": self.path}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        return self.answer(content, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

    do_HEAD = do_GET


@contextmanager
def running(models: Mapping[str, Path] | None = None) -> Iterator[Hub]:
    """A hub that has these folders by their names, and answers while the block runs."""
    hub = Hub(models or {})
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


@contextmanager
def serving(models: Mapping[str, Path], home: Path) -> Iterator[dict[str, str]]:
    """The same; yields the environment of a process that asks there and keeps its cache in ``home``."""
    with running(models) as hub:
        yield hub.environment(home)
