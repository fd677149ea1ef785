"""Parts of the KOSMOS-1 suite whose data can be made here: ``kosmos eval make NAME --out DIR``.

Each maker writes ``DIR/test.jsonl`` (and images, some a ``train.jsonl``) deterministically, in the layout that its
task YAML reads. The published sets (IQ50, Rendered SST-2, WebSRC, CUB, MemoryColor …) fit the same tasks once they
are brought into that layout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kosmos.suggest import suggest

from . import commonsense, concepts, described, raven, rendered, webpages

# name → function(out, count, seed, source) → JSON lines, those with "split" for another file than test.jsonl
MAKERS: dict[str, Callable[[Path, int, int, Path | None], Iterable[dict[str, Any]]]] = {
    "raven": raven.make,
    "rendered_text": rendered.make,
    "described_classes": described.make,
    "concept_binding": concepts.make,
    "webpages": webpages.make,
    "relative_size": commonsense.make_sizes,
    "memory_color": commonsense.make_colors,
}


def make(name: str, out: str | Path, count: int = 200, seed: int = 0, source: str | Path | None = None) -> int:
    """Write the data of one suite part below ``out``; returns the number of items.

    Args:
        name: a key of ``MAKERS``.
        count: how many items at most.
        seed: of everything drawn.
        source: raven: a folder of published RAVEN ``.npz`` files; webpages: WebSRC as released; rendered_text: JSON
            lines with ``text`` and ``label``; described_classes: an evaluation split with ``captions.json`` and
            ``images/``; concept_binding: a folder with two of them, ``train`` and ``test``. None: made here, where
            possible.

    Raises:
        ValueError: unknown name (with a suggestion), a source that does not fit, or ``out`` already holds data.
    """
    if name not in MAKERS:
        raise ValueError(f"no data maker {name!r}; {suggest(name, MAKERS)}")
    if count < 1:
        raise ValueError(f"count {count} must be at least 1")
    out = Path(out)
    target = out / "test.jsonl"
    if target.exists():
        raise ValueError(f"{target} exists; give a new folder or remove it")
    (out / "images").mkdir(parents=True, exist_ok=True)
    items = list(MAKERS[name](out, count, seed, Path(source) if source is not None else None))
    splits: dict[str, list[str]] = {"test": []}
    for item in items:
        split = item.pop("split", "test")
        splits.setdefault(split, []).append(json.dumps(item, ensure_ascii=False) + "\n")
    for split, lines in splits.items():
        (out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(splits["test"])
