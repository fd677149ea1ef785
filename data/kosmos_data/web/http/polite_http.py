"""One address after the other, the way servers ask for it: robots.txt, few requests a host, redirects, ``Retry-After``.

On top of ``safe_http.py``, which says where a request may go and how much of an answer is read.
"""

from __future__ import annotations

import asyncio
import email.utils
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Self
from urllib.parse import urljoin, urlsplit

from ... import extras
from . import safe_http
from .robots import Robots
from .safe_http import Refused

with extras.hint():
    import httpx

ROBOTS: Final = "disallowed by robots.txt"
OPTED_OUT: Final = "opted out by X-Robots-Tag"
REDIRECTS: Final = "too many redirects"
BAD_URL: Final = "not an http or https address"
TIMED_OUT: Final = "timed out"
NO_CONNECTION: Final = "no connection"
NO_TLS: Final = "TLS certificate or handshake refused"
CUT_OFF: Final = "connection lost"
HOST_DOWN: Final = "host given up"

_TEMPORARY = frozenset((408, 425, 429, 500, 502, 503, 504))
_OPT_OUT = frozenset(("noai", "noimageai", "noindex", "noimageindex"))
_MOST_REDIRECTS = 5
_ROBOTS_BYTES = 512_000  # RFC 9309 asks for at least 500 kibibytes
_HOST_FAILURES = 5


@dataclass
class _Host:
    """What is known of one server (scheme, name and port) in this run."""

    turns: asyncio.Semaphore
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    robots: Robots | None = None
    ready: float = 0.0  # earliest start of the next request
    failures: int = 0  # connections in a row that could not be made


class PoliteClient:
    """An HTTP client that keeps to what servers ask; an asynchronous context manager.

    Args:
        user_agent: sent to servers; its product token is looked up in robots.txt.
        connections: most at a time.
        per_host: of them, to one host.
        timeout: seconds for one request as a whole, however slowly it trickles.
        max_wait: seconds between two requests to a host at most, whatever Crawl-delay asks.
        allow_private: see :func:`safe_http.client`.
    """

    def __init__(
        self, user_agent: str, connections: int, per_host: int, timeout: float, max_wait: float, allow_private: bool
    ) -> None:
        self.agent = user_agent
        self.per_host, self.timeout, self.max_wait = per_host, timeout, max_wait
        self.hosts: dict[str, _Host] = {}
        self.client = safe_http.client(user_agent, timeout, connections, allow_private=allow_private)

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.aclose()

    async def get(self, url: str, limit: int) -> tuple[int, bytes]:
        """Status and body, of at most ``limit`` bytes, of ``url`` or of where it redirects to.

        Raises:
            Refused: the answer is not 200, is too large, may not be asked for, or does not come.
        """
        return await self._follow(url, limit, check_robots=True)

    async def _follow(self, url: str, limit: int, check_robots: bool) -> tuple[int, bytes]:
        """Status and body at the end of the redirects; every hop is checked like the first."""
        for _ in range(_MOST_REDIRECTS + 1):
            host = self._host(url)
            if check_robots and not (await self._robots(host, url)).allows(url):
                raise Refused(ROBOTS, url)
            async with self._answer(host, url) as response:
                status = response.status_code
                if 300 <= status < 400 and "Location" in response.headers:
                    url = _joined(url, response.headers["Location"])
                    continue
                if status != 200:
                    wait = _retry_after(response.headers.get("Retry-After", ""))
                    raise Refused(f"status {status}", url, status in _TEMPORARY, status, wait)
                if check_robots and _OPT_OUT & _directives(response.headers.get_list("X-Robots-Tag")):
                    raise Refused(OPTED_OUT, url, status=status)
                return status, await safe_http.read(response, limit)
        raise Refused(REDIRECTS, url)

    @asynccontextmanager
    async def _answer(self, host: _Host, url: str) -> AsyncIterator[httpx.Response]:
        """A request in its host's turn; what goes wrong with the connection becomes :class:`Refused`."""
        async with host.turns:
            await self._wait(host)
            try:
                async with asyncio.timeout(self.timeout), self.client.stream("GET", url) as response:
                    host.failures = 0
                    yield response
            except (TimeoutError, httpx.ConnectTimeout, httpx.TimeoutException) as error:
                host.failures += isinstance(error, httpx.ConnectTimeout)
                raise Refused(TIMED_OUT, str(error), temporary=True) from error
            except httpx.ConnectError as error:
                host.failures += 1
                refused_tls = _is_tls(error)
                raise Refused(NO_TLS if refused_tls else NO_CONNECTION, str(error), not refused_tls) from error
            except httpx.TransportError as error:
                raise Refused(CUT_OFF, f"{type(error).__name__}: {error}", temporary=True) from error
            except (httpx.InvalidURL, UnicodeError) as error:
                raise Refused(BAD_URL, str(error)) from error

    async def _wait(self, host: _Host) -> None:
        if host.failures >= _HOST_FAILURES:
            raise Refused(HOST_DOWN, f"{host.failures} connections in a row failed")
        now = asyncio.get_running_loop().time()
        start = max(now, host.ready)
        delay = host.robots.delay if host.robots else 0.0
        host.ready = start + min(delay, self.max_wait)
        await asyncio.sleep(start - now)

    async def _robots(self, host: _Host, url: str) -> Robots:
        """The host's rules: no robots.txt means all is allowed, one that cannot be had now must be waited for."""
        async with host.lock:
            if host.robots is None:
                try:
                    _, text = await self._follow(f"{origin(url)}/robots.txt", _ROBOTS_BYTES, check_robots=False)
                    host.robots = Robots.parse(text.decode("utf-8", "replace"), self.agent)
                except Refused as refused:
                    if refused.reason == safe_http.TOO_LARGE:
                        raise Refused(ROBOTS, "it is too large to be read") from refused
                    if refused.temporary or refused.status is None:
                        raise
                    host.robots = Robots()
            return host.robots

    def _host(self, url: str) -> _Host:
        name = origin(url)
        if not name:
            raise Refused(BAD_URL, url)
        if name not in self.hosts:
            self.hosts[name] = _Host(asyncio.Semaphore(self.per_host))
        return self.hosts[name]


def origin(url: str) -> str:
    """Scheme, host and port in lower case; empty unless http or https with a host."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}"


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise Refused(BAD_URL, location[:200]) from error


def _retry_after(value: str) -> float:
    """Seconds, from a number of them or from a date."""
    if value.strip().isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # TypeError: a date without a time zone
        return 0.0


def _directives(headers: Iterable[str]) -> set[str]:
    """Directives of X-Robots-Tag, those for one agent by name included."""
    return {word.split(":")[-1].strip().lower() for header in headers for word in header.split(",")}


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
