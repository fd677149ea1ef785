"""A hub of one's own on this machine: the part of Hugging Face's protocol that uploads and downloads a repository."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEXT = (".md", ".json", ".py", ".txt", ".jinja")
COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name → path → bytes; ``tokens`` are the Authorization headers that came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Door)
        self.files: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Door(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def answer(self, body: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        """What was sent."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        """Make a repository, say how files shall come, take a commit."""
        content, path = self.body(), self.path.split("?")[0]
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            status = 409 if name in self.server.files else 200
            self.server.files.setdefault(name, {})
            return self.answer({"url": f"{self.server.url}/{name}", "name": name}, status)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            told = [{"path": file["path"], "shouldIgnore": False,
                     "uploadMode": "regular" if file["path"].endswith(TEXT) else "lfs"}
                    for file in json.loads(content)["files"]]  # fmt: skip
            return self.answer({"files": told})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [dict(one, actions={"upload": {"href": f"{self.server.url}/blobs/{one['oid']}"}})
                       for one in json.loads(content)["objects"]]  # fmt: skip
            return self.answer({"transfer": "basic", "objects": objects})
        if path.endswith("/commit/main"):
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            self.commit(name, content)
            return self.answer({"commitOid": COMMIT, "commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}"})
        return self.answer({"error": path}, 404)

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
        fits = hashlib.sha256(content).hexdigest() == oid
        self.server.blobs[oid] = content
        self.answer({}, 200 if fits else 400)

    def do_GET(self) -> None:
        """The list of a repository, or a file of it."""
        words = self.path.split("?")[0].strip("/").split("/")
        if words[0] == "api" and "/".join(words[2:4]) in self.server.files:
            files = self.server.files["/".join(words[2:4])]
            if "tree" in words:
                below = "/".join(words[words.index("tree") + 2 :])
                found = {path: content for path, content in files.items() if path.startswith(below)}
                listed = [{"type": "file", "path": path, "size": len(content), "oid": COMMIT}
                          for path, content in found.items()]  # fmt: skip
                return self.answer(
                    listed, 200 if found else 404, {"X-Error-Code": "EntryNotFound"} if not found else {}
                )
            siblings = [{"rfilename": path} for path in files]
            return self.answer({"id": "/".join(words[2:4]), "sha": COMMIT, "siblings": siblings, "private": False,
                                "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
        content = self.server.files.get("/".join(words[:2]), {}).get("/".join(words[4:]))
        if words[2:3] != ["resolve"] or content is None:
            return self.answer({"error": self.path}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        tag = hashlib.sha256(content).hexdigest()
        return self.answer(content, 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'})

    do_HEAD = do_GET


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
