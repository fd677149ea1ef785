"""Fetch the images of a list of addresses, politely and safely: ``kosmos data fetch URLS --out DIR``.

Each image becomes a file of DIR named by its address (32 hexadecimal digits of its sha256), as the adapter for OBELICS
and the web pipeline look for it. ``DIR/fetch.sqlite`` says what became of every address; run it again and only what is
not there yet is tried again. img2dataset does the same at scale, but never retries what failed.

Polite: robots.txt, ``X-Robots-Tag: noai``, few requests per host at a time, ``Retry-After``. Safe: only public
addresses (``safe_http.py``), also behind redirects; limits on bytes, pixels, time and redirects; what is not an image
by its first bytes is not kept, whatever the server calls it.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import io
import random
import ssl
import warnings
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urljoin, urlsplit
from urllib.robotparser import RobotFileParser

import PIL.Image
from rich.progress import Progress

from ..images import FORMATS, MAX_PIXELS
from . import missing, safe_http
from .fetch_table import FETCHED, FetchTable, Outcome
from .page import url_name
from .safe_http import Refused

with missing.hint():
    import httpx

ROBOTS: Final = "disallowed by robots.txt"
OPTED_OUT: Final = "opted out by X-Robots-Tag"
REDIRECTS: Final = "too many redirects"
BAD_URL: Final = "not an http or https address"
NOT_AN_IMAGE: Final = "not an image"
TOO_MANY_PIXELS: Final = "too many pixels"
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


@dataclass(frozen=True)
class FetchOptions:
    """How images are fetched.

    Args:
        user_agent: sent to servers and looked up in robots.txt; say who you are and how to reach you.
        concurrency: requests at a time.
        per_host: of them, to one host.
        attempts: how often an address is tried in one run when it fails in a way that may pass.
        timeout: seconds for one request as a whole, however slowly it trickles.
        max_wait: seconds waited at most before another attempt, whatever ``Retry-After`` or Crawl-delay ask; who asks
            for longer is left for the next run.
        backoff: seconds before the second attempt, doubled for each further one.
        max_bytes: largest image.
        allow_private: also fetch from private and loopback addresses. Never for addresses that others wrote; it is here
            so that tests can use a local server.
    """

    user_agent: str = "kosmos-data (image fetcher for research corpora)"
    concurrency: int = 64
    per_host: int = 2
    attempts: int = 3
    timeout: float = 30.0
    max_wait: float = 60.0
    backoff: float = 1.0
    max_bytes: int = 20 << 20
    allow_private: bool = False

    def __post_init__(self) -> None:
        if min(self.concurrency, self.per_host, self.attempts) < 1:
            raise ValueError("concurrency, per_host and attempts must be 1 or more")


def read_list(path: str | Path) -> list[str]:
    """The addresses in a text file, one a line; empty lines and lines that begin with ``#`` are left out.

    Raises:
        FileNotFoundError: no such file.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def fetch(
    urls: Iterable[str], out: str | Path, options: FetchOptions | None = None, progress: Progress | None = None
) -> dict[str, int]:
    """Fetch what ``out`` does not hold yet; return how many addresses ended with which reason, ``fetched`` among them.

    Args:
        urls: addresses; one that occurs twice is fetched once.
        out: folder of the images and of the table.
        options: limits and manners.
        progress: gets a bar.

    Raises:
        ValueError: ``out`` holds another file where the table should be.
        ModuleNotFoundError: the extra ``web`` is not installed.
    """
    wanted = list(dict.fromkeys(urls))
    out = Path(out)
    progress = progress or Progress(disable=True)
    with FetchTable(out) as table:
        missing_urls = [url for url in wanted if not _is_there(url, out, table)]
        task = progress.add_task("fetch", total=len(wanted), completed=len(wanted) - len(missing_urls))
        fetcher = _Fetcher(out, table, options or FetchOptions(), lambda: progress.advance(task))
        asyncio.run(fetcher.run(missing_urls))
        return dict(table.counts(wanted).most_common())


def _is_there(url: str, out: Path, table: FetchTable) -> bool:
    outcome = table.outcome(url)
    return outcome is not None and outcome.reason == FETCHED and (out / url_name(url)).is_file()


@dataclass
class _Host:
    """What is known of one server (scheme, name and port) in this run."""

    turns: asyncio.Semaphore
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    robots: RobotFileParser | None = None
    delay: float = 0.0  # Crawl-delay
    ready: float = 0.0  # earliest start of the next request
    failures: int = 0  # connections in a row that could not be made


class _Fetcher:
    """One run; all state but the table is forgotten with it."""

    def __init__(self, out: Path, table: FetchTable, options: FetchOptions, done: Callable[[], None]) -> None:
        self.out, self.table, self.options, self.done = out, table, options, done
        self.hosts: dict[str, _Host] = {}
        self.client = safe_http.client(
            options.user_agent, options.timeout, options.concurrency, allow_private=options.allow_private
        )

    async def run(self, urls: list[str]) -> None:
        """Fetch them all: at most ``concurrency`` at a time, and few per host, however the list is sorted."""
        queues: dict[str, deque[str]] = defaultdict(deque)
        for url in urls:
            queues[_origin(url)].append(url)
        slots = asyncio.Semaphore(self.options.concurrency)
        try:
            async with self.client, asyncio.TaskGroup() as group:
                for queue in queues.values():
                    for _ in range(min(self.options.per_host, len(queue))):
                        await slots.acquire()
                        group.create_task(self._drain(queue, slots))
        except ExceptionGroup as errors:  # a full disk, say: one of them is enough to know
            raise errors.exceptions[0] from None

    async def _drain(self, queue: deque[str], slots: asyncio.Semaphore) -> None:
        try:
            while queue:
                self.table.record(await self._fetch(queue.popleft()))
                self.done()
        finally:
            slots.release()

    async def _fetch(self, url: str) -> Outcome:
        """Try one address, again while its failure may pass."""
        before = self.table.outcome(url)
        outcome = Outcome(url, None, "", attempts=before.attempts if before else 0)
        for attempt in range(self.options.attempts):
            outcome = replace(outcome, attempts=outcome.attempts + 1)
            try:
                status, data = await self._follow(url, self.options.max_bytes, check_robots=True)
                check_image(data)
            except Refused as refused:
                outcome = replace(outcome, status=refused.status, reason=refused.reason, detail=refused.detail[:500])
                pause = max(refused.wait, self.options.backoff * 2**attempt * random.uniform(0.5, 1.0))
                last = attempt == self.options.attempts - 1
                if last or not refused.temporary or pause > self.options.max_wait:
                    return outcome
                await asyncio.sleep(pause)
            else:
                self._keep(url, data)
                digest = hashlib.sha256(data).hexdigest()
                return Outcome(url, status, FETCHED, "", outcome.attempts, len(data), digest)
        raise AssertionError("the last attempt returns")

    def _keep(self, url: str, data: bytes) -> None:
        name = url_name(url)
        partial = self.out / f".{name}.partial"
        partial.write_bytes(data)
        partial.rename(self.out / name)

    async def _follow(self, url: str, limit: int, check_robots: bool) -> tuple[int, bytes]:
        """Status and body at the end of the redirects; every hop is checked like the first."""
        for _ in range(_MOST_REDIRECTS + 1):
            host = self._host(url)
            if check_robots and not (await self._robots(host, url)).can_fetch(self._agent, url):
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
                async with asyncio.timeout(self.options.timeout), self.client.stream("GET", url) as response:
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
        host.ready = start + min(host.delay, self.options.max_wait)
        await asyncio.sleep(start - now)

    async def _robots(self, host: _Host, url: str) -> RobotFileParser:
        """The host's robots.txt as RFC 9309 reads it: none means all is allowed, one that fails must be waited for."""
        async with host.lock:
            if host.robots is None:
                parser = RobotFileParser()
                try:
                    _, text = await self._follow(f"{_origin(url)}/robots.txt", _ROBOTS_BYTES, check_robots=False)
                    parser.parse(text.decode("utf-8", "replace").splitlines())
                except Refused as refused:
                    if refused.reason == safe_http.TOO_LARGE:
                        raise Refused(ROBOTS, "it is too large to be read") from refused
                    if refused.temporary or refused.status is None:
                        raise
                    parser.parse([])
                host.delay = float(parser.crawl_delay(self._agent) or 0)
                host.robots = parser
            return host.robots

    @property
    def _agent(self) -> str:
        """The product token, which is what robots.txt names."""
        return self.options.user_agent.split()[0].split("/")[0]

    def _host(self, url: str) -> _Host:
        origin = _origin(url)
        if not origin:
            raise Refused(BAD_URL, url)
        if origin not in self.hosts:
            self.hosts[origin] = _Host(asyncio.Semaphore(self.options.per_host))
        return self.hosts[origin]


def check_image(data: bytes) -> None:
    """Look at an image's header only.

    Raises:
        Refused: it is none of the formats that are decoded, or has more pixels than are.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = PIL.Image.open(io.BytesIO(data), formats=FORMATS).size
    except PIL.Image.DecompressionBombError as error:
        raise Refused(TOO_MANY_PIXELS, str(error)) from error
    except Exception as error:  # parsers of headers raise whatever they like
        raise Refused(NOT_AN_IMAGE, f"begins with {data[:16]!r}") from error
    if width * height > MAX_PIXELS:
        raise Refused(TOO_MANY_PIXELS, f"{width}×{height}, the limit is {MAX_PIXELS}")


def _origin(url: str) -> str:
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
