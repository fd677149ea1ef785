"""Which pictures a request may show to a server: size and number, and nothing fetched that the server must not touch.

A request says where a picture is: in itself (``data:``), in a file, on the web. The last two are off unless they are
allowed. A name on the web is looked up once, each of its addresses must be public, and the connection goes to the
address that was looked at, so that neither a redirect nor a name that changes its mind leads into a private network.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

from .pictures import open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

REDIRECTS = 3
SECONDS = 15.0
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses behind a translator (RFC 6052)


@dataclass(frozen=True)
class Admission:
    """What a request may show.

    Attributes:
        max_images: pictures in one request.
        max_bytes: of one picture's file.
        files: folder from which ``file://`` may be read; None: no files.
        urls: whether public addresses of the web may be fetched.
        networks: networks of one's own from which pictures may be fetched although they are private.
    """

    max_images: int = 16
    max_bytes: int = 20_000_000
    files: Path | None = None
    urls: bool = False
    networks: Sequence[Network] = ()

    def open(self, where: Any) -> Image:
        """The picture that a request names.

        Raises:
            ValueError: it is not allowed, too large, or no picture.
        """
        if not isinstance(where, str):
            raise ValueError(f"a picture is given by its address, a string, not {type(where).__name__}")
        scheme = where.partition(":")[0].lower()
        if scheme == "data":
            return open_picture(self._embedded(where))
        if scheme in ("http", "https"):
            if not self.urls and not self.networks:
                raise ValueError("pictures are not fetched from the web by this server; send a data: URI")
            return open_picture(self._fetched(where), name=where)
        if self.files is None:
            raise ValueError("files are not read by this server; send a data: URI")
        return open_picture(self._file(where))

    def _embedded(self, uri: str) -> bytes:
        head, _, data = uri.partition(",")
        if not head.lower().endswith(";base64"):
            raise ValueError("a data: URI of a picture is written in base64: data:image/png;base64,…")
        if len(data) > 4 * self.max_bytes // 3 + 4:
            raise ValueError(f"a picture of {len(data) * 3 // 4} bytes; at most {self.max_bytes} are read")
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise ValueError(f"a data: URI that is not base64: {error}") from error

    def _file(self, where: str) -> bytes:
        """A file below the allowed folder, wherever links lead."""
        assert self.files is not None
        parts = urlsplit(where)
        path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(where)
        root = self.files.resolve()
        resolved = (root / path).resolve()
        if not resolved.is_relative_to(root) or not resolved.is_file():
            raise ValueError(f"{where}: no file of the folder that this server reads from")
        if (size := resolved.stat().st_size) > self.max_bytes:
            raise ValueError(f"a picture of {size} bytes; at most {self.max_bytes} are read")
        return resolved.read_bytes()

    def _fetched(self, url: str) -> bytes:
        """What the web answers, each redirect looked at like the first address."""
        deadline = time.monotonic() + SECONDS
        for _ in range(REDIRECTS + 1):
            connection, target = self._connect(url, deadline)
            try:
                with _ended_at(deadline, connection.sock):
                    connection.request("GET", target, headers={"Host": urlsplit(url).netloc.rpartition("@")[2]})
                    answer = connection.getresponse()
                    if answer.status in (301, 302, 303, 307, 308) and (to := answer.getheader("Location")):
                        url = urljoin(url, to)
                        continue
                    if answer.status != 200:
                        raise ValueError(f"{url} answers {answer.status} {answer.reason}")
                    return self._read(answer, url, deadline)
            except (OSError, http.client.HTTPException) as error:
                why = f"it takes longer than {SECONDS:.0f} s" if time.monotonic() >= deadline else error
                raise ValueError(f"{url} cannot be fetched: {why}") from error
            finally:
                connection.close()
        raise ValueError(f"{url}: more than {REDIRECTS} redirects")

    def _connect(self, url: str, deadline: float) -> tuple[http.client.HTTPConnection, str]:
        """A connection to an address that may be reached, and what to ask of it."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise ValueError(f"{url[:80]!r} is no address: {error}") from error
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError(f"{url[:80]!r}: pictures are fetched from http and https only")
        try:
            found = [str(row[4][0]) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            raise ValueError(f"{host}: no such host ({error})") from error
        for address in (ipaddress.ip_address(text.partition("%")[0]) for text in found):
            if not self.reaches(address):
                raise ValueError(f"{host} is at {address}, from which this server may not fetch")
        seconds = max(0.1, deadline - time.monotonic())
        try:
            plain = socket.create_connection((found[0], port), timeout=seconds)
        except OSError as error:
            raise ValueError(f"{host} cannot be reached: {error}") from error
        connection = http.client.HTTPConnection(host, port, timeout=seconds)
        try:
            secure = parts.scheme == "https"
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if secure else plain
        except OSError as error:
            plain.close()
            raise ValueError(f"{host}: {error}") from error
        return connection, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def reaches(self, address: Address) -> bool:
        """Whether a picture may be fetched from an address: a public one, or of a network that was allowed."""
        address = _embedded_ipv4(address)
        if any(address.version == network.version and address in network for network in self.networks):
            return True
        return self.urls and address.is_global and not address.is_multicast and not address.is_reserved

    def _read(self, answer: http.client.HTTPResponse, url: str, deadline: float) -> bytes:
        """The body, as far as size and time allow."""
        read = bytearray()
        while piece := answer.read1(65536):
            read += piece
            if len(read) > self.max_bytes:
                raise ValueError(f"{url} is longer than {self.max_bytes} bytes")
        if time.monotonic() >= deadline:  # what there is was cut off
            raise ValueError(f"{url} takes longer than {SECONDS:.0f} s")
        return bytes(read)


@contextmanager
def _ended_at(deadline: float, connected: socket.socket) -> Iterator[None]:
    """Shut a connection at a time: a server that sends a byte now and then would never run into the socket's own."""

    def end() -> None:
        with suppress(OSError):  # closed by then
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _embedded_ipv4(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does: one cannot hide in the other."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in TRANSLATED:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo[1] if address.teredo else None
    return address.ipv4_mapped or address.sixtofour or teredo or address


def is_loopback(host: str) -> bool:
    """Whether who listens at ``host`` hears this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; ValueError, in one line, where the port is taken or the address not ours."""
    name = host.strip("[]")
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    try:
        return socket.create_server((name, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        why = str(getattr(error, "strerror", None) or error).partition(" (")[0]  # behind it is the address once more
        raise ValueError(f"--host {host} --port {port}: {why}; choose another") from error
