"""``kosmos eval report``: result rows as Markdown tables and a plot of score against shots with 95 % intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import results
from .results import Row
from .where import Named

_COLUMNS = 3  # panels side by side
_LINES = ("-", "--", "-.", ":")  # one for each context
_LABEL_HEIGHT = 0.04  # of the axis


def report(paths: Sequence[str | Path], out: str | Path) -> Path:
    """Write ``report.md`` and ``shots.png`` from one or several result files; returns the Markdown file's path.

    Args:
        paths: files, run folders or evaluations' folders, each with or without ``NAME=``, the name of its model.
        out: folder for both.

    Raises:
        FileNotFoundError, ValueError: a file is missing, is no result file, or holds no row; two files have other
            results of one model.
    """
    rows = _collected(paths)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    plot(rows, out / "shots.png")
    (out / "report.md").write_text(markdown(rows), encoding="utf-8")
    return out / "report.md"


def _collected(paths: Sequence[str | Path]) -> list[Row]:
    """The rows of all files; baselines, which are in each, once."""
    rows: dict[tuple[Any, ...], Row] = {}
    for path in paths:
        for row in _named(Named.parse(path)):
            known = rows.setdefault((*results.key(row), row["value"] if results.is_baseline(row) else ""), row)
            if known["value"] != row["value"]:
                raise ValueError(
                    f"{path}: a second result of model {row['model']!r} on {row['task']} with {row['shots']} shots, "
                    f"context {row['context']}; give each file a name: NAME={Named.parse(path).path}"
                )
    if not rows:
        raise ValueError(f"{paths[0]}: no result rows")
    return _told_apart(list(rows.values()))


def _named(given: Named) -> list[Row]:
    """The rows of a file, its models called as it was said; several models keep their own names behind that."""
    rows = results.read(given.path)
    models = {row["model"] for row in rows if not results.is_baseline(row)}
    if given.name is not None:
        for row in rows:
            if not results.is_baseline(row):
                row["model"] = given.name if len(models) == 1 else f"{given.name} {row['model']}"
    return rows


def _told_apart(rows: list[Row]) -> list[Row]:
    """Of a task that was evaluated on several data, each with the folder (or the fingerprint) in its title."""
    data: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.get("data"):
            data.setdefault(row["task"], {})[row["data"]] = Path(row.get("folder", "")).name
    for row in rows:
        known = data.get(row["task"], {})
        if len(known) > 1 and row.get("data"):
            folder = known[row["data"]]
            row["task"] += f" [{folder if list(known.values()).count(folder) == 1 else row['data']}]"
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """A table a task of its headline metric over shots, the plot, and all rows."""
    lines = ["# Evaluation", ""]
    for (task, metric), members in _panels(rows).items():
        lines += [f"## {_plain(task)}: {_plain(metric)}", "", *_over_shots(members), "", *_how(members), ""]
    lines += ["![score against shots](shots.png)", "", "## All rows", ""]
    lines += _table(["task", "model", "shots", "context", "metric", "score", "95 %", "n"], map(_cells, rows))
    return "\n".join(lines) + "\n"


def _over_shots(members: Sequence[Row]) -> list[str]:
    """A line a model and context, a column a number of shots; baselines in italics below."""
    shots = sorted({row["shots"] for row in members if not results.is_baseline(row)}) or [0]
    lines: dict[tuple[str, str], dict[int, str]] = {}
    for row in sorted(members, key=results.is_baseline):
        score = f"{row['value']:.3f} ({_interval(row)})" if row["low"] < row["high"] else f"{row['value']:.3f}"
        lines.setdefault((_name(row), row["context"]), {})[row["shots"]] = score
    cells = ([*line, *(scores.get(count, "") for count in shots)] for line, scores in lines.items())
    return _table(["model", "context", *(f"{count} shots" for count in shots)], cells)


def _how(members: Sequence[Row]) -> list[str]:
    how = {f"Prompt {_code(repr(row['prompt']))}, {_plain(row['decoding'])}." for row in members if "prompt" in row}
    return sorted(how)


def _cells(row: Row) -> list[str]:
    start = [row["task"], _name(row), row["shots"], row["context"], row["metric"]]
    return [*map(str, start), f"{row['value']:.3f}", _interval(row), str(row["n"])]


def _name(row: Row) -> str:
    return f"*{row['model']}*" if results.is_baseline(row) else str(row["model"])


def _interval(row: Row) -> str:
    return f"{row['low']:.3f}–{row['high']:.3f}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(map(_plain, cells)) + " |" for cells in (head, ["---"] * len(head), *lines)]


def _code(text: str) -> str:
    """A code span between more backticks than ``text`` has in a row, so that none of them ends it (CommonMark 6.1)."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in (text[:1], text[-1:]) else f"{fence}{text}{fence}"


def _plain(text: str) -> str:
    """A name on one line, whose bars end no cell and whose angle brackets open no element."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


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
        highest = max(row["high"] for row in members)
        top = 1.03 if highest <= 1 else 1.08 * highest
        _curves(axes, [row for row in members if not results.is_baseline(row)])
        _levels(axes, [row for row in members if results.is_baseline(row)], top)
        axes.set_ylim(0, top)
        axes.set(title=task, xlabel="demonstrations in the prompt", ylabel=metric)
        axes.set_xticks(sorted({row["shots"] for row in members}))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def _levels(axes: Any, baselines: Sequence[Row], top: float) -> None:
    """Grey lines; the names of those too close for a label each share one."""
    labels: list[tuple[float, list[str]]] = []
    for row in sorted(baselines, key=lambda row: row["value"]):
        axes.axhline(row["value"], linestyle=":", color="grey", linewidth=1)
        if labels and row["value"] - labels[-1][0] < _LABEL_HEIGHT * top:
            labels[-1][1].append(row["model"])
        else:
            labels.append((row["value"], [row["model"]]))
    for value, names in labels:
        axes.annotate("\n".join(dict.fromkeys(names)), (1.01, value), xycoords=("axes fraction", "data"), fontsize=7,
                      va="center", color="grey", annotation_clip=False)  # fmt: skip


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
                      linestyle=_LINES[contexts.index(context) % len(_LINES)], clip_on=False)  # fmt: skip


def _panels(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    headline: dict[str, str] = {}
    for row in results.overall(rows):
        headline.setdefault(row["task"], row["metric"])
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in results.overall(rows):
        if headline[row["task"]] == row["metric"]:
            panels.setdefault((row["task"], row["metric"]), []).append(row)
    return panels
