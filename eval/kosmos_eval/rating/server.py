"""The pages on this machine alone, by the standard library: a token in every address, one host, one origin.

Another page of the same browser knows no token, cannot be read into (the host is checked, so that no name of the web
can be made to mean this machine), and cannot post (the origin is checked). Nothing is read from the disk for a request
but the pictures of the items, by their number.
"""

from __future__ import annotations

import io
import secrets
import threading
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kosmos.pictures import on_white, open_picture, upright

from . import page
from .session import Session

_HOSTS = ("127.0.0.1", "localhost")
_LARGEST = 1600  # pixels a side of a picture as it is sent
_LONGEST = 1000  # bytes of a judgement
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class RatingServer(ThreadingHTTPServer):
    """Serves one session on a loopback port.

    Args:
        session: whose pages.
        port: to listen on; 0: any that is free.

    Attributes:
        is_finished: whether the rater has ended it on the last page.
        address: of the first page.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session, self.token, self.is_finished = session, secrets.token_urlsafe(18), False
        try:
            super().__init__((_HOSTS[0], port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"port {port} cannot be listened on: {error}; give another --port, or none") from error
        self.hosts = [f"{host}:{self.server_port}" for host in _HOSTS]
        self.address = f"http://{self.hosts[0]}/{self.token}/"

    def finish(self) -> None:
        """Stop serving, from within a request."""
        self.is_finished = True
        threading.Thread(target=self.shutdown, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: RatingServer
    timeout = 60
    server_version, sys_version = "kosmos", ""

    def do_GET(self) -> None:
        if (asked := self._asked()) is None:
            return
        session, (name, *rest) = self.server.session, asked
        if name == "" and not rest:
            self._go(session.after())
        elif name == "done" and not rest:
            self._go(place) if (place := session.after()) is not None else self._send(page.end(session))
        elif name in page.FILES and not rest:
            self._send(page.static(name), page.FILES[name])
        elif (place := self._place(name)) is None or len(rest) > 1:
            self.send_error(HTTPStatus.NOT_FOUND)
        elif not rest:
            self._send(page.item(session, place))
        else:
            self._picture(session.pairs[place].images, rest[0])

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Take a judgement, or the end; then show the next item that was not judged."""
        if (asked := self._asked()) is None:
            return
        if self.headers.get("Origin", "").removeprefix("http://") not in self.server.hosts:
            return self.send_error(HTTPStatus.FORBIDDEN, "another page may not judge")
        if asked == ["finish"]:
            self._send(page.closed())
            return self.server.finish()
        place, length = self._place("/".join(asked)), self.headers.get("Content-Length", "")
        if place is None or not (length.isascii() and length.isdigit() and int(length) <= _LONGEST):
            return self.send_error(HTTPStatus.BAD_REQUEST)
        sent = parse_qs(self.rfile.read(int(length)).decode("utf-8", "replace"))
        try:
            self.server.session.judge(place, *sent.get("judgement", [""])[:1])
        except ValueError as error:
            return self.send_error(HTTPStatus.BAD_REQUEST, explain=str(error))
        except OSError as error:
            text = f"This judgement was not kept ({error.strerror or error}). Mend that, then judge it again."
            return self._send(page.item(self.server.session, place, text), status=HTTPStatus.INSUFFICIENT_STORAGE)
        self._go(self.server.session.after(place))

    def _asked(self) -> list[str] | None:
        """The parts of the address behind the token; None, and an answer, for who has no business here."""
        parts = urlsplit(self.path).path.split("/")[1:]
        if self.headers.get("Host") not in self.server.hosts:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        elif len(parts) < 2 or not secrets.compare_digest(parts[0].encode(), self.server.token.encode()):
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            return parts[1:]
        return None

    def _place(self, name: str) -> int | None:
        """The place of the item with this number, from 1."""
        number = int(name) if name.isascii() and name.isdigit() and len(name) < 10 else 0
        return number - 1 if 1 <= number <= len(self.server.session.pairs) else None

    def _picture(self, images: tuple[Path, ...], name: str) -> None:
        number = int(name) if name.isascii() and name.isdigit() and len(name) < 10 else 0
        if not 1 <= number <= len(images):
            return self.send_error(HTTPStatus.NOT_FOUND)
        try:
            self._send(_png(images[number - 1]), "image/png")
        except (OSError, ValueError):
            self.send_error(HTTPStatus.NOT_FOUND)

    def _go(self, place: int | None) -> None:
        """Send the browser to an item, or to the end."""
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", f"/{self.server.token}/{'done' if place is None else place + 1}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: str | bytes, kind: str = "text/html", status: HTTPStatus = HTTPStatus.OK) -> None:
        body = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        self.send_header("Content-Type", kind if kind == "image/png" else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is for the person."""


@lru_cache(maxsize=32)
def _png(path: Path) -> bytes:
    """A picture as the model's processor shows it, without what its file says of itself."""
    shown = on_white(upright(open_picture(path))).copy()
    shown.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    shown.save(buffer, "PNG")
    return buffer.getvalue()
