"""As much of the hub's HTTP as a download of whole models needs, over folders of this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Serves ``models``, folders by their names."""

    models: dict[str, Path]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer()

    def answer(self, body: bool = True) -> None:
        path, headers = self.path.split("?")[0].strip("/"), {"X-Repo-Commit": COMMIT}
        name = "/".join(path.removeprefix("api/models/").split("/")[:2])
        folder = self.models.get(name)
        file = None if folder is None else folder / path.rsplit("/", 1)[-1]
        if folder is not None and path.startswith("api/models/"):
            names = sorted(file.name for file in folder.iterdir())
            listed = [{"type": "file", "path": name, "oid": name, "size": 1} for name in names]
            info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            content = json.dumps(listed if "/tree/" in path else info).encode()
            headers["Content-Type"] = "application/json"
        elif file is not None and file.is_file():
            content = file.read_bytes()
            headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if folder is None else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for header, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(header, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(models: dict[str, Path], home: Path) -> Iterator[dict[str, str]]:
    """Serve folders by their names; yields the environment of a process that asks there and keeps its cache in home."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Hub,), {"models": models}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
    finally:
        server.shutdown()
        server.server_close()
