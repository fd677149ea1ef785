"""What became of every address: a table in an SQLite file, which makes a fetch resumable and its failures countable."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

TABLE_NAME = "fetch.sqlite"
FETCHED = "fetched"

_TABLE = """
CREATE TABLE IF NOT EXISTS urls (
    url TEXT PRIMARY KEY, status INTEGER, reason TEXT, detail TEXT,
    attempts INTEGER, bytes INTEGER, sha256 TEXT, at TEXT
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row.

    Args:
        url: as it was asked for.
        status: of the last HTTP response, None if there was none.
        reason: ``fetched``, or why not.
        detail: free text.
        attempts: requests made for it in all runs, without redirects and robots.txt.
        bytes: size of the file.
        sha256: of the file, hexadecimal.
    """

    url: str
    status: int | None
    reason: str
    detail: str = ""
    attempts: int = 1
    bytes: int = 0
    sha256: str = ""


class FetchTable:
    """The table of one folder; a context manager. Every row is on disk once :meth:`record` returns.

    Args:
        folder: where ``fetch.sqlite`` lies; made if needed.

    Raises:
        ValueError: the file is not such a table.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / TABLE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")  # a killed process loses nothing that was committed
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise ValueError(f"{self.path}: {error}; give another folder, or move the file away") from error

    def record(self, outcome: Outcome) -> None:
        """Write or replace the row of an address."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._connection.execute("INSERT OR REPLACE INTO urls VALUES (?,?,?,?,?,?,?,?)", (*astuple(outcome), now))

    def outcome(self, url: str) -> Outcome | None:
        """The row of an address, if there is one."""
        query = "SELECT url, status, reason, detail, attempts, bytes, sha256 FROM urls WHERE url = ?"
        row = self._connection.execute(query, (url,)).fetchone()
        return Outcome(*row) if row else None

    def counts(self, urls: Iterable[str]) -> Counter[str]:
        """How often each reason occurs among these addresses."""
        return Counter(outcome.reason for url in urls if (outcome := self.outcome(url)) is not None)

    def __enter__(self) -> FetchTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
