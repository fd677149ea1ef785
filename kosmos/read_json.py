"""Texts and JSON of others: whatever is wrong with them is one kind of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_utf8(path: str | Path, errors: str = "strict") -> str:
    """The text of a file, without a byte order mark.

    Args:
        path: the file.
        errors: what becomes of bytes that are no UTF-8, as ``bytes.decode`` takes it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is in another encoding; names the file and what to do.
    """
    data = Path(path).read_bytes()
    if data.startswith(_UTF16):
        raise ValueError(f"{path} is in UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    try:
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: byte {data[error.start]:#x} is no UTF-8: save the file as UTF-8") from error


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        json.JSONDecodeError: it is malformed, or wrong in a way that ``json`` has other errors for: nested too deep, a
            number of thousands of digits, bytes that are no UTF-8.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), "", 0) from error
