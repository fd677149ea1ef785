"""What the adapters share: lines of JSON, and picture files that may be missing."""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import errors, extras
from ..document import Image


def read_json(path: Path) -> Any:
    """A whole JSON file; ValueError naming the file if it is malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error


def files(source: Path, *patterns: str) -> list[Path]:
    """``source`` itself, or the files in it that match; FileNotFoundError if there are none."""
    found = [source] if source.is_file() else sorted({path for pattern in patterns for path in source.glob(pattern)})
    if not found:
        raise FileNotFoundError(f"{source} holds no {' or '.join(patterns)}")
    return found


def records(source: Path, skipped: Counter[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, record) of JSONL (plain, .gz, .zst or .zip) and parquet files; broken lines are counted."""
    for path in files(source, "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.jsonl.zip", "*.parquet"):
        stem = key_of(path.name.split(".")[0])
        rows = _parquet(path) if path.suffix == ".parquet" else _lines(path, skipped)
        for number, row in enumerate(rows):
            yield f"{stem}-{number:08d}", row


def key_of(name: str) -> str:
    """A part of a document's key, in which dots would end it."""
    return re.sub(r"[^\w-]", "_", name)


def read_image(folder: Path, name: str, skipped: Counter[str]) -> Image | None:
    """The bytes of a picture file below ``folder``, or None, counted, if it is missing or empty.

    A record that names a file elsewhere (``../../private.png``) does not get it.
    """
    path = folder / name
    inside = path.is_relative_to(folder) and ".." not in path.relative_to(folder).parts
    data = path.read_bytes() if inside and os.path.isfile(path) else b""  # False for names that no file can have
    if not data:
        skipped[errors.IMAGE_MISSING] += 1
        return None
    return Image(data)


def _lines(path: Path, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    with _unpacked(path) as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                skipped[errors.JSON] += 1
                continue
            if isinstance(record, dict):
                yield record
            else:
                skipped[errors.JSON] += 1


def _unpacked(path: Path) -> io.TextIOWrapper:
    """The text of a file, whatever it is compressed with (of a zip, its one member)."""
    from fsspec import compression, utils

    kind = utils.infer_compression(str(path))
    if path.suffix == ".zst" and kind is None:
        raise ValueError(f"{path} needs a package to be unpacked: pip install zstandard")
    file = path.open("rb")
    return io.TextIOWrapper(compression.compr[kind](file, mode="rb") if kind else file, "utf-8", errors="replace")


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    with extras.hint("pyarrow"):
        import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()
