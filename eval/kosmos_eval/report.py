"""``kosmos eval report``: result rows as a Markdown table and a plot of score against shots with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import results
from .results import Row

_COLUMNS = 3  # panels side by side
_LINES = ("-", "--", "-.", ":")  # one for each context


def report(paths: Sequence[str | Path], out: str | Path) -> Path:
    """Write ``report.md`` and ``shots.png`` from one or several result files; returns the Markdown file's path.

    Raises:
        FileNotFoundError, ValueError: a file is missing, is no result file, or holds no row.
    """
    rows = [row for path in paths for row in results.read(path)]
    if not rows:
        raise ValueError(f"{paths[0]}: no result rows")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    plot(rows, out / "shots.png")
    text = "# Evaluation\n\n" + markdown(rows) + "\n![score against shots](shots.png)\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    return out / "report.md"


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table of all rows, baselines in italics."""
    head = ("task", "model", "shots", "context", "metric", "score", "95 %", "n")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * 5 + " ---: |" * 3]
    for row in rows:
        name = f"*{row['model']}*" if results.is_baseline(row) else str(row["model"])
        cells = [row["task"], name, row["shots"], row["context"], row["metric"], f"{row['value']:.3f}"]
        cells += [f"{row['low']:.3f}–{row['high']:.3f}", row["n"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    notes = sorted({f"{row['task']}: prompt `{row['prompt']!r}`, {row['decoding']}" for row in rows if "prompt" in row})
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """One panel a task's headline metric: a curve over shots for each model (colour) and context (line), baselines as
    grey lines. Axes begin at 0, and end at 1 for shares, so that noise does not look like a trend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(rows)
    columns = min(len(panels), _COLUMNS)
    figure = Figure(figsize=(5.5 * columns, 4 * math.ceil(len(panels) / columns)), layout="constrained")
    FigureCanvasAgg(figure)
    for place, ((task, metric), members) in enumerate(panels.items()):
        axes = figure.add_subplot(math.ceil(len(panels) / columns), columns, place + 1)
        _curves(axes, [row for row in members if not results.is_baseline(row)])
        for row in members:
            if results.is_baseline(row):
                axes.axhline(row["value"], linestyle=":", color="grey", linewidth=1)
                axes.annotate(row["model"], (1.01, row["value"]), xycoords=("axes fraction", "data"), fontsize=7,
                              va="center", color="grey", annotation_clip=False)  # fmt: skip
        highest = max(row["high"] for row in members)
        axes.set_ylim(0, 1.03 if highest <= 1 else 1.08 * highest)
        axes.set(title=task, xlabel="demonstrations in the prompt", ylabel=metric)
        axes.set_xticks(sorted({row["shots"] for row in members}))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def _curves(axes: Any, members: Sequence[Row]) -> None:
    """Points of different curves stand side by side, so that their intervals can be told apart."""
    curves: dict[tuple[str, str], list[Row]] = {}
    for row in members:
        curves.setdefault((row["model"], row["context"]), []).append(row)
    if not curves:
        return
    models, contexts = (list(dict.fromkeys(names)) for names in zip(*curves, strict=True))
    width = 0.02 * max((row["shots"] for row in members), default=0) or 0.02
    for place, ((model, context), points) in enumerate(curves.items()):
        points.sort(key=lambda row: row["shots"])
        bars = [[max(0.0, row["value"] - row["low"]) for row in points],
                [max(0.0, row["high"] - row["value"]) for row in points]]  # fmt: skip
        shift = (place - (len(curves) - 1) / 2) * width
        axes.errorbar([row["shots"] + shift for row in points], [row["value"] for row in points], yerr=bars, marker="o",
                      markersize=4, capsize=3, label=f"{model}, {context}", color=f"C{models.index(model)}",
                      linestyle=_LINES[contexts.index(context) % len(_LINES)])  # fmt: skip


def _panels(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    headline: dict[str, str] = {}
    for row in results.overall(rows):
        headline.setdefault(row["task"], row["metric"])
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in results.overall(rows):
        if headline[row["task"]] == row["metric"]:
            panels.setdefault((row["task"], row["metric"]), []).append(row)
    return panels
