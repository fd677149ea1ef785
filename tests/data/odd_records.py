"""Oddities of single records, pictures and files, of the kinds that real ones had, drawn by a seed."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Png = Callable[..., bytes]
ODD_VALUES = [
    None,
    5,
    -1.5,
    "x" * 300,
    "..",
    "",
    " ",
    [],
    {},
    [[]],
    True,
    "\ud800",
    float("nan"),
    10**30,
    "<image>",
    "\0",
]
ODD_BYTES = [b"\x92", b"\xff\xfe", b"\x00", b"\xed\xa0\x80"]


class Odd:
    """Draws oddities for one source and keeps how many records it has; None: damage that changes their number."""

    def __init__(self, seed: int, folder: Path, make_png: Png) -> None:
        self.rng, self.folder, self.make_png = random.Random(seed), folder, make_png
        self.records: int | None = self.rng.randint(1, 8)

    def __bool__(self) -> bool:
        return self.rng.random() < 0.3

    def value(self, good: Any) -> Any:
        """A good value, or one that a stranger's program wrote."""
        return self.rng.choice(ODD_VALUES) if self.rng.random() < 0.12 else good

    def record(self, good: dict[str, Any]) -> Any:
        """A record with fields of another kind, without some, with more, or no record at all."""
        if self.rng.random() < 0.05:
            return self.rng.choice(ODD_VALUES)
        kept = {key: self.value(value) for key, value in good.items() if self.rng.random() > 0.05}
        return kept | ({"more": self.value("x")} if self else {})

    def picture(self, number: int) -> str:
        """A picture's name below the folder: good, empty, missing, or outside."""
        name = f"{number}.PNG" if self else f"sub dir/{number}.é.png"
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        kind = self.rng.random()
        if kind > 0.1:
            path.write_bytes(b"" if kind < 0.15 else b"no picture" if kind < 0.2 else self.make_png(number))
        return name if kind < 0.95 else f"../{name}"

    def text(self) -> str:
        return self.rng.choice(["A dog.", " Zwei\nHunde ", "日本", "</s> <image>", '"quoted", comma'])

    def write(self, path: Path, body: str) -> Path:
        """Text with a byte order mark, a wrong byte, or cut off."""
        data = body.encode("utf-8", "surrogatepass")
        if self:
            data = b"\xef\xbb\xbf" + data
        if self.rng.random() < 0.1 and (at := data.find(b"dog")) > 0:
            data = data[:at] + self.rng.choice(ODD_BYTES) + data[at:]
            self.records = self.records if b"\0" not in data else None
        if self.rng.random() < 0.1:
            data, self.records = data[: self.rng.randrange(len(data))], None
        path.write_bytes(data)
        return path

    def write_json(self, name: str, body: Any) -> Path:
        return self.write(self.folder / name, json.dumps(body, ensure_ascii=bool(self)))

    def write_lines(self, name: str, records: list[Any]) -> Path:
        lines = [json.dumps(record, ensure_ascii=bool(self)) for record in records]
        if self:
            lines.insert(self.rng.randrange(len(lines) + 1), self.rng.choice(["", "not json", "[1]", "[" * 10**5]))
            self.records = None if self.records is None else self.records + bool(min(map(len, lines)))
        path = self.write(self.folder / name, ("\r\n" if self else "\n").join(lines) + "\n")
        if self:
            packed = gzip.compress(path.read_bytes())
            path.unlink()
            path = path.with_name(path.name + ".gz")
            if self:
                packed, self.records = packed[: self.rng.randrange(len(packed))], None
            path.write_bytes(packed)
        return path
