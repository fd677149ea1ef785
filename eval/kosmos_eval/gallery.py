"""``kosmos eval gallery``: a picture of what a model was asked and answered, from a sample log."""

from __future__ import annotations

import math
import random
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.cells import cell_len

from kosmos.grounding import draw_boxes
from kosmos.pictures import on_white, open_picture, upright
from kosmos.segments import Phrase

from .compare import read_samples
from .where import ImageFolder, find_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4
_WIDTH = 34  # characters of text beside each other below an image
_GREEN, _RED = "#1a7f37", "#b3261e"


def gallery(
    samples: str | Path,
    images: str | Path,
    out: str | Path,
    count: int = 12,
    wrong: bool = False,
    seed: int = 0,
    task: str | None = None,
    shots: int | None = None,
    context: str | None = None,
) -> list[str]:
    """Draw items of a sample log, each with its own image; returns their ids in reading order.

    An answer is green from half of the task's first metric on, else red, with a reference beside it. Boxes of a
    grounded answer are drawn over the image.

    Args:
        samples: a finished log, ``OUT/samples/MODEL/*.jsonl``, or a run folder with one.
        images: a folder with the images of the data, at any depth.
        out: the picture, a format by its name (PNG, PDF, SVG).
        count: items at most, no two with one image.
        wrong: the lowest scores instead of a sample.
        seed: of the sample.
        task, shots, context: which log of a folder; see :func:`kosmos_eval.where.find_log`.

    Raises:
        FileNotFoundError: no such log; an image is not in the folder (by name and SHA-256).
        ValueError: the log is not finished, or has no images; a count below 1.
    """
    if count < 1:
        raise ValueError(f"count {count} must be at least 1")
    log = find_log(Path(samples), task, shots, context)
    shown = choose(list(read_samples(log.path).values()), count, wrong, seed)
    if not shown:
        raise ValueError(f"{samples}: no sample has an image")
    folder, own = ImageFolder(Path(images)), [record["images"][-1] for record in shown]
    _draw(shown, [folder.find(image["file"], image["sha256"]) for image in own], Path(out))
    return [record["id"] for record in shown]


def choose(records: Sequence[dict[str, Any]], count: int, wrong: bool, seed: int) -> list[dict[str, Any]]:
    """The items to show: in an order of chance, or lowest scores first; the first of each image."""
    order = random.Random(seed).sample(records, len(records))
    if wrong:
        order.sort(key=_score)
    chosen: dict[str, dict[str, Any]] = {}
    for record in order:
        if record["images"]:
            chosen.setdefault(record["images"][-1]["sha256"], record)
    return list(chosen.values())[:count]


def _score(record: dict[str, Any]) -> float:
    return float(next(iter(record["metrics"].values())))


def _draw(records: Sequence[dict[str, Any]], images: Sequence[Path], out: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure(records, images)
    FigureCanvasAgg(figure)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _figure(records: Sequence[dict[str, Any]], images: Sequence[Path]) -> Figure:
    """Cells of one size in rows: the question above its picture, the answer below."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(records))
    rows = math.ceil(len(records) / columns)
    figure = Figure(figsize=(2.6 * columns, 3.3 * rows + 0.3), layout="constrained")
    for place, (record, path) in enumerate(zip(records, images, strict=True), 1):
        axes = figure.add_subplot(rows, columns, place)
        shown = on_white(upright(open_picture(path)))  # as the model's processor shows it
        phrases = [Phrase.from_json(entry) for entry in record.get("boxes", ())]
        axes.imshow(_square(draw_boxes(shown, record["prediction"], phrases) if phrases else shown))
        axes.set(xticks=[], yticks=[])
        right = _score(record) >= 0.5
        answer = record["prediction"] if right else f"{record['prediction']}  (reference: {record['answers'][0]})"
        axes.set_title(_wrapped(record["prompt"].rsplit("<image>", 1)[-1]), fontsize=8, loc="left", parse_math=False)
        axes.set_xlabel(_wrapped(answer), fontsize=9, color=_GREEN if right else _RED, loc="left", parse_math=False)
        for side in axes.spines.values():
            side.set_color("#dddddd")
    metric = next(iter(records[0]["metrics"]))
    figure.supxlabel(f"green: {metric} of 0.5 or more, to the letter of that metric", fontsize=7, color="grey")
    figure.draw_without_rendering()  # the layout takes the height of wrapped text from the drawing before
    return figure


_LARGEST = 1024
"""Pixels a side of a picture in the gallery."""


def _square(image: Image.Image) -> Image.Image:
    """The picture in the middle of a white square, so that all cells are alike.

    Larger ones are made smaller first: the square of a picture of 1×60,000 would fill the memory.
    """
    if max(image.size) > _LARGEST:
        image = image.copy()
        image.thumbnail((_LARGEST, _LARGEST))
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _wrapped(text: str) -> str:
    """Four lines at most, as wide as a cell; letters of double width count twice."""
    width = max(8, int(_WIDTH * len(text) / max(1, cell_len(text))))
    lines = textwrap.wrap(text, width) or [""]
    return "\n".join(lines[:4]) + (" …" if len(lines) > 4 else "")
