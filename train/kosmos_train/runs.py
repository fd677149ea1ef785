"""``kosmos runs``: compare runs by their ``metrics.jsonl``, as a picture or a table.

kosmos runs plot runs/a runs/b --out loss.png
kosmos runs list runs/*
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``; a last line cut short by a kill is left out.

    Raises:
        FileNotFoundError: ``run`` is no run directory.
        ValueError: it holds no step yet.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no run directory: {path} is missing")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    if not rows:
        raise ValueError(f"{path} holds no step yet")
    return rows


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last ``window`` finite values at each point (fewer at the start)."""
    recent: list[float] = []
    means = []
    for value in values:
        if value == value:
            recent = [*recent, value][-window:]
        means.append(sum(recent) / len(recent) if recent else float("nan"))
    return means


def plot(runs: Sequence[str | Path], out: str | Path, against: str = "step", window: int = 20) -> Path:
    """Draw the loss of one or more runs to a PNG: total on the left, by source on the right.

    Args:
        against: horizontal axis, ``step`` or ``tokens``.
        window: steps in the moving mean; the raw loss is drawn faintly behind it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), sharex=True)
    for run in runs:
        rows = read_metrics(run)
        name, axis = Path(run).resolve().name, [row[against] for row in rows]
        losses = [row["loss"] for row in rows]
        (line,) = left.plot(axis, smooth(losses, window), label=name)
        left.plot(axis, losses, color=line.get_color(), alpha=0.2, linewidth=0.7)
        held_out = [(row[against], row["eval_loss"]["loss"]) for row in rows if "eval_loss" in row]
        if held_out:
            left.plot(*zip(*held_out, strict=True), "o", color=line.get_color(), label=f"{name}, held out")
        for source in sorted({source for row in rows for source in row["source_loss"]}):
            points = [(row[against], row["source_loss"][source]) for row in rows if source in row["source_loss"]]
            places, values = zip(*points, strict=True)
            label = source if len(runs) == 1 else f"{name}: {source}"
            right.plot(places, smooth(values, window), label=label)
    for axes, title in ((left, "loss (nats a token)"), (right, "loss by source")):
        axes.set_title(title)
        axes.set_xlabel(against)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)
    return out


def table(runs: Sequence[str | Path]) -> Any:
    """One line a run: steps, tokens, last loss, speed, data wait, skipped updates."""
    from rich.table import Table

    shown = Table("run", "step", "tokens", "loss (last 20)", "held-out", "tokens/s", "data wait", "skipped")
    for run in runs:
        rows = read_metrics(run)
        seconds = sum(row["seconds"] for row in rows)
        read = sum(row["seconds"] * row["tokens_per_second"] for row in rows)
        wait = sum(row["seconds"] * row["data_wait"] for row in rows)
        held_out = [row["eval_loss"]["loss"] for row in rows if "eval_loss" in row]
        shown.add_row(
            Path(run).resolve().name,
            str(rows[-1]["step"]),
            f"{rows[-1]['tokens']:,}",
            f"{smooth([row['loss'] for row in rows], 20)[-1]:.4f}",
            f"{held_out[-1]:.4f}" if held_out else "–",
            f"{read / seconds:,.0f}",
            f"{100 * wait / seconds:.1f} %",
            str(sum("skipped" in row for row in rows)),
        )
    return shown


def main(argv: Sequence[str]) -> int:
    """The command ``kosmos runs``."""
    from rich.console import Console

    parser = argparse.ArgumentParser(prog="kosmos runs", description="Compare training runs by their metrics.jsonl.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    draw = verbs.add_parser("plot", help="loss curves of one or more runs as a PNG")
    draw.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    draw.add_argument("--out", default="loss.png", help="PNG to write")
    draw.add_argument("--against", choices=("step", "tokens"), default="step", help="horizontal axis")
    draw.add_argument("--window", type=int, default=20, help="steps in the moving mean")
    show = verbs.add_parser("list", help="one line a run")
    show.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    arguments = parser.parse_args(list(argv))
    console = Console()
    if arguments.verb == "plot":
        out = plot(arguments.runs, arguments.out, arguments.against, arguments.window)
        console.print(f"wrote {out}")
    else:
        console.print(table(arguments.runs))
    return 0
