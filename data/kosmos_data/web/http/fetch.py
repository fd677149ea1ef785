"""Fetch the images of a list of addresses, politely and safely: ``kosmos data fetch URLS --out DIR``.

Each image becomes a file of DIR named by its address (32 hexadecimal digits of its sha256), as the adapter for OBELICS
and the web pipeline look for it. ``DIR/fetch.sqlite`` says what became of every address; run it again and only what is
not there yet is tried again. img2dataset does the same at scale, but never retries what failed.

Polite (``polite_http.py``): robots.txt, ``X-Robots-Tag: noai``, few requests per host at a time, ``Retry-After``. Safe
(``safe_http.py``): only public addresses, also behind redirects; limits on bytes, pixels, time and redirects; what is
not an image by its first bytes is not kept, whatever the server calls it.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.progress import Progress

from kosmos.atomic import write_atomically
from kosmos.read_json import read_utf8
from kosmos.surrogates import whole

from ... import errors
from ...errors import BadSample
from ...images import open_header
from ..page import url_name
from .fetch_table import FETCHED, FetchTable, Outcome
from .polite_http import PoliteClient, origin
from .safe_http import Refused

NOT_AN_IMAGE: Final = "not an image"


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
        ValueError: it is in another encoding.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such list of addresses")
    lines = read_utf8(path, errors="replace").split("\n")  # one odd address costs itself, and no other
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
    wanted = list(dict.fromkeys(map(whole, urls)))
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


class _Fetcher:
    """One run; all state but the table is forgotten with it."""

    def __init__(self, out: Path, table: FetchTable, options: FetchOptions, done: Callable[[], None]) -> None:
        self.out, self.table, self.options, self.done = out, table, options, done
        self.client = PoliteClient(
            options.user_agent,
            options.concurrency,
            options.per_host,
            options.timeout,
            options.max_wait,
            options.allow_private,
        )

    async def run(self, urls: list[str]) -> None:
        """Fetch them all: at most ``concurrency`` at a time, and few per host, however the list is sorted."""
        queues: dict[str, deque[str]] = defaultdict(deque)
        for url in urls:
            queues[origin(url)].append(url)
        slots = asyncio.Semaphore(self.options.concurrency)
        try:
            async with self.client, asyncio.TaskGroup() as group:
                for queue in queues.values():
                    for _ in range(min(self.options.per_host, len(queue))):
                        await slots.acquire()
                        group.create_task(self._drain(queue, slots))
        except ExceptionGroup as failures:  # a full disk, say: one of them is enough to know
            raise failures.exceptions[0] from None

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
                status, data = await self.client.get(url, self.options.max_bytes)
                check_image(data)
            except Refused as refused:
                outcome = replace(outcome, status=refused.status, reason=refused.reason, detail=refused.detail[:500])
                pause = max(refused.wait, self.options.backoff * 2**attempt * random.uniform(0.5, 1.0))
                last = attempt == self.options.attempts - 1
                if last or not refused.temporary or pause > self.options.max_wait:
                    return outcome
                await asyncio.sleep(pause)
            else:
                write_atomically(self.out / url_name(url), data)
                digest = hashlib.sha256(data).hexdigest()
                return Outcome(url, status, FETCHED, "", outcome.attempts, len(data), digest)
        raise AssertionError("the last attempt returns")


def check_image(data: bytes) -> None:
    """Look at an image's header only.

    Raises:
        Refused: it is none of the formats that are decoded, or has more pixels than are.
    """
    try:
        open_header(data)
    except BadSample as error:
        if error.reason == errors.IMAGE_TOO_LARGE:
            raise Refused(error.reason, error.detail) from error
        raise Refused(NOT_AN_IMAGE, f"begins with {data[:16]!r}") from error
