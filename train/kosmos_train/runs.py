"""``kosmos runs``: compare runs by their ``metrics.jsonl``, as a picture or a table.

kosmos runs plot runs/a runs/b --out loss.png
kosmos runs list runs/*
kosmos runs scores runs/a runs/b
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kosmos.plain import escape

TASKS = "eval_tasks"
_NEEDED, _USUAL = ("step", "loss"), ("tokens", "seconds", "tokens_per_second", "data_wait")


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``; a last line cut short by a kill is left out.

    Raises:
        FileNotFoundError: ``run`` is no run directory.
        ValueError: it holds no step yet, or something else.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no run directory: {path} is missing")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1) if line.endswith("\n")]
    if not rows:
        raise ValueError(f"{path} holds no step yet")
    return rows


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        fault = _fault(row)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:{number}: not valid JSON: {error}") from error
    if fault:
        raise ValueError(f"{path}:{number}: {fault}, not what a step writes")
    return row


def _fault(row: Any) -> str | None:
    """Why a row is none of a training, or None."""
    if not isinstance(row, dict):
        return f"a {type(row).__name__}"
    numbers = {name: row.get(name, None if name in _NEEDED else 0.0) for name in (*_NEEDED, *_USUAL)}
    if "eval_loss" in row:
        held_out = row["eval_loss"]
        numbers["eval_loss.loss"] = held_out.get("loss") if isinstance(held_out, dict) else None
    for group in ("source_loss", TASKS):
        given = row.get(group, {})
        numbers |= flatten(given, f"{group}.") if isinstance(given, dict) else {group: given}
    wrong = (f"{name} is {value!r:.40}" for name, value in numbers.items() if not isinstance(value, int | float))
    return next(wrong, None)


def run_folders(paths: Sequence[str | Path]) -> list[Path]:
    """The runs that are meant: each path, or the runs within it where it is a folder of runs."""
    found: list[Path] = []
    for path in map(Path, paths):
        inner = [] if (path / "metrics.jsonl").is_file() else sorted({*path.glob("*/metrics.jsonl")})
        found += [metrics.parent for metrics in inner] or [path]
    return found


def read_all(runs: Sequence[str | Path]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each run by its folder's name, or by its path where two folders have the same name."""
    runs = run_folders(runs)
    names = [Path(run).resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    return {name: read_metrics(run) for name, run in zip(names, runs, strict=True)}


def flatten(row: dict[str, Any], prefix: str = "", separator: str = "/") -> dict[str, Any]:
    """Nested dictionaries as one, names joined."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}{separator}", separator))
        else:
            flat[prefix + name] = value
    return flat


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
    """Draw one or more runs to a PNG: the loss, the loss by source and, where tasks were evaluated, their scores.

    Args:
        against: horizontal axis, ``step`` or ``tokens``.
        window: steps in the moving mean, at most a tenth of the run's, lest it lags behind a short one; the raw loss
            is drawn faintly behind it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metrics = read_all(runs)
    titles = ["loss (nats a token)", "loss by source"]
    if any(TASKS in row for rows in metrics.values() for row in rows):
        titles.append("task scores")
    figure, panels = pyplot.subplots(1, len(titles), figsize=(6 * len(titles), 4.5), sharex=True)
    for name, rows in metrics.items():
        steps = max(1, min(window, len(rows) // 10))
        _draw_loss(panels[0], rows, name, against, steps)
        prefix = "" if len(metrics) == 1 else f"{name}: "
        for source, points in _series(rows, "source_loss", against).items():
            panels[1].plot(*_smoothed(points, steps), label=prefix + source)
        for score, points in _series(rows, TASKS, against).items():
            panels[2].plot(*zip(*points, strict=True), "o-", label=prefix + score)
    if len(panels) > 2 and all(0 <= value <= 1 for line in panels[2].lines for value in line.get_ydata()):
        panels[2].set_ylim(-0.02, 1.02)  # a score that is 0 throughout is at the bottom, not in the middle
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        axes.set_xlabel(against)
        axes.set_ylabel("score" if title == "task scores" else "nats a token")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)
    return out


def _draw_loss(axes: Any, rows: list[dict[str, Any]], name: str, against: str, window: int) -> None:
    places, losses = [row.get(against, 0) for row in rows], [row["loss"] for row in rows]
    (line,) = axes.plot(places, smooth(losses, window), label=name)
    axes.plot(places, losses, color=line.get_color(), alpha=0.2, linewidth=0.7)
    held_out = [(row.get(against, 0), row["eval_loss"]["loss"]) for row in rows if "eval_loss" in row]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o", color=line.get_color(), label=f"{name}, held out")


def _series(rows: list[dict[str, Any]], key: str, against: str) -> dict[str, list[tuple[float, float]]]:
    """The numbers below ``key``, nested or not, as name → points, names in order."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in flatten(row.get(key, {}), separator=" ").items():
            series.setdefault(name, []).append((row.get(against, 0), value))
    return dict(sorted(series.items()))


def _smoothed(points: list[tuple[float, float]], window: int) -> tuple[list[float], list[float]]:
    return [place for place, _ in points], smooth([value for _, value in points], window)


def score_table(runs: Sequence[str | Path]) -> Any:
    """One line an evaluation: run, step, and the score of every task and metric.

    Raises:
        ValueError: no run was evaluated on tasks.
    """
    from rich.box import SIMPLE
    from rich.table import Table

    lines = [
        (name, row["step"], flatten(row[TASKS], separator=" "))
        for name, rows in read_all(runs).items()
        for row in rows
        if row.get(TASKS)
    ]
    if not lines:
        raise ValueError(f"no task scores in {', '.join(map(str, runs))}; set eval.tasks and eval.tasks_every")
    names = sorted({name for _, _, scores in lines for name in scores})
    shown = Table("run", "step", *map(escape, names), box=SIMPLE)
    for run, step, scores in lines:
        shown.add_row(escape(run), str(step), *(f"{scores[name]:.4f}" if name in scores else "–" for name in names))
    return shown


def table(runs: Sequence[str | Path]) -> Any:
    """One line a run: steps, tokens, last loss, speed, data wait, skipped updates."""
    from rich.box import SIMPLE
    from rich.table import Table

    shown = Table(box=SIMPLE, pad_edge=False, caption="loss: mean of the last 20 steps", caption_justify="left")
    shown.add_column("run", overflow="fold")
    for column in ("step", "tokens", "loss", "held-out", "tokens/s", "wait", "skipped"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, rows in read_all(runs).items():
        seconds, read, wait = _speed(rows)
        held_out = [row["eval_loss"]["loss"] for row in rows if "eval_loss" in row]
        shown.add_row(
            escape(name),
            str(rows[-1]["step"]),
            f"{rows[-1].get('tokens', 0):,}",
            f"{smooth([row['loss'] for row in rows], 20)[-1]:.4f}",
            f"{held_out[-1]:.4f}" if held_out else "–",
            f"{read / seconds:,.0f}" if seconds else "–",
            f"{100 * wait / seconds:.1f} %" if seconds else "–",
            str(sum("skipped" in row for row in rows)),
        )
    return shown


def _speed(rows: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Seconds of a run, tokens read in them, and seconds of waiting for data."""
    took = [row.get("seconds", 0) for row in rows]
    read, wait = (
        sum(seconds * row.get(name, 0) for seconds, row in zip(took, rows, strict=True))
        for name in ("tokens_per_second", "data_wait")
    )
    return sum(took), read, wait


def main(argv: Sequence[str]) -> int:
    """The command ``kosmos runs``."""
    from rich.console import Console

    from kosmos.tables import show

    parser = argparse.ArgumentParser(prog="kosmos runs", description="Compare training runs by their metrics.jsonl.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    draw = verbs.add_parser("plot", help="losses and task scores of one or more runs as a PNG")
    draw.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    draw.add_argument("--out", default="loss.png", help="PNG to write")
    draw.add_argument("--against", choices=("step", "tokens"), default="step", help="horizontal axis")
    draw.add_argument("--window", type=int, default=20, help="steps in the moving mean")
    lines = verbs.add_parser("list", help="one line a run")
    lines.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders of them")
    scores = verbs.add_parser("scores", help="task scores measured during training, one line an evaluation")
    scores.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    arguments = parser.parse_args(list(argv))
    console = Console(emoji=False)
    if arguments.verb == "plot":
        out = plot(arguments.runs, arguments.out, arguments.against, arguments.window)
        console.print(f"wrote {escape(str(out))}")
    else:
        show(console, (table if arguments.verb == "list" else score_table)(arguments.runs))
    return 0
