"""Result rows: ``results.json`` is a list of them, and every number says how it was made.

Contract: ``task, model, shots, context, metric, value, low, high, n`` (accuracies in 0–1, the interval is the 95 %
bootstrap over images). Scores of one question type carry it in ``question_type`` and in the metric's name
(``vqa:color``). ``results.schema.json`` beside this module says it all as a JSON schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

import kosmos
from kosmos.atomic import write_atomically
from kosmos.doctor import commit
from kosmos.plain import escape, styled
from kosmos.read_json import parse_json

from . import metrics, statistics
from .items import Item
from .tasks import Task
from .where import find_results

Row = dict[str, Any]
_CONTRACT = ("task", "model", "shots", "context", "metric", "value", "low", "high", "n")
_KEY = ("task", "model", "shots", "context", "metric", "split", "seed", "data")


def make_rows(
    task: Task,
    items: Sequence[Item],
    predictions: Sequence[str],
    labels: Mapping[str, Any],
    seed: int,
    likelihoods: Sequence[float] | None = None,
    confidences: Sequence[float] | None = None,
) -> tuple[list[Row], dict[str, list[float]]]:
    """Rows of all metrics, overall and by question type, and the per-item values of each metric.

    Args:
        labels: ``model``, ``shots``, ``context`` and whatever else every row shall say.
        seed: of the bootstrap.
        likelihoods: log-probability of each item's text, for tasks that measure it.
        confidences: for roc_auc, of the first candidate; None: 1 where it is the prediction, else 0.
    """
    positive = None
    if set(task.metrics) & set(metrics.CONFIDENCE_METRICS):
        positive = [is_positive(task, item) for item in items]
        if confidences is None:
            confidences = [float(prediction == task.decoding.candidates[0]) for prediction in predictions]
    answers = [item.answers for item in items]
    clusters = [item.cluster for item in items]
    scores = metrics.compute(task.metrics, predictions, answers, likelihoods, confidences, positive, clusters)
    common = {"task": task.name, **labels, "split": task.split, "seed": seed, **_provenance(task)}
    rows = [_row(score, clusters, common, seed) for score in scores]
    groups = sorted({item.group for item in items} - {""})
    if len(groups) > 1 and scores[0].divisible:
        for group in groups:
            places = [i for i, item in enumerate(items) if item.group == group]
            part = metrics.MetricScore(scores[0].name, scores[0].statistics[places], scores[0].combine)
            row = _row(part, [clusters[i] for i in places], common, seed)
            rows.append(row | {"metric": f"{part.name}:{group}", "question_type": group})
    return rows, {score.name: [float(value) for value in score.per_item] for score in scores}


def is_positive(task: Task, item: Item) -> bool:
    """Whether the right answer is the first candidate, the class whose confidence roc_auc looks at."""
    return task.decoding.candidates[0] in item.answers


def _row(score: metrics.MetricScore, clusters: Sequence[str], common: Mapping[str, Any], seed: int) -> Row:
    low, high = statistics.interval(score, clusters, seed)
    first = {key: common[key] for key in ("task", "model", "shots", "context")}
    own = {"metric": score.name, "value": score.value, "low": low, "high": high, "n": score.n, "question_type": None}
    if score.name.startswith("vqa"):
        own["normaliser"] = "lenient" if score.name == "vqa_lenient" else "official"
    return (
        first | own | {key: value for key, value in common.items() if key not in first} | {"images": len(set(clusters))}
    )


def _provenance(task: Task) -> dict[str, Any]:
    decoding = task.decoding
    how: str = decoding.method
    if how == "beam":
        how = f"beam {decoding.num_beams}, length penalty {decoding.length_penalty:g}"
    elif how == "sample":
        how = f"sample, temperature {decoding.temperature:g}, top-p {decoding.top_p:g}"
    elif how == "rank":
        how = f"rank by {decoding.normalisation} log-likelihood"
    elif how == "cloze":
        how = "likeliest words in the blank"
    return {
        "prompt": " | ".join(text + task.prompt.answer for text in (task.prompt.template, *task.prompt.others)),
        "decoding": how,
        "demonstrations": task.demonstrations.method,
        "version": kosmos.__version__,
        "commit": commit(),
    }


def write(rows: Sequence[Row], path: Path) -> list[Row]:
    """Write ``results.json``; rows of the same run in the file are replaced, others kept. Returns what it now holds.

    All rows of a run go where it was made again on other items: their question types may not occur any more.
    """
    fresh = {key(row) for row in rows} | {key(row | {"data": None}) for row in rows}  # older files name no data
    sizes = {_run(row): row["n"] for row in overall(rows) if not is_baseline(row)}
    held = read(path) if path.is_file() else []
    stale = {run for row in overall(held) if (run := _run(row)) in sizes and row["n"] != sizes[run]}
    kept = [row for row in held if key(row) not in fresh and (is_baseline(row) or _run(row) not in stale)]
    merged = {key(row): row for row in (*kept, *rows)}
    write_atomically(path, json.dumps(list(merged.values()), indent=1, ensure_ascii=False) + "\n")
    return list(merged.values())


def read(path: str | Path) -> list[Row]:
    """The rows of a ``results.json``, or of that of a run folder.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a list of rows.
    """
    path = find_results(Path(path))
    try:
        rows = parse_json(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and {*_CONTRACT} <= row.keys() for row in rows):
        raise ValueError(f"{path}: expected a list of result rows, each with {', '.join(_CONTRACT)}")
    return rows


def key(row: Row) -> tuple[Any, ...]:
    """What makes two rows the same run; a baseline also depends on which items it was scored on."""
    return tuple(row.get(name) for name in (*_KEY, *(("n",) if is_baseline(row) else ())))


def _run(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _KEY if name != "metric")


def overall(rows: Iterable[Row]) -> list[Row]:
    """Rows over all question types."""
    return [row for row in rows if row.get("question_type") is None]


def is_baseline(row: Row) -> bool:
    """Whether a row is no model's but a baseline's."""
    return bool(row.get("baseline"))


def table(rows: Sequence[Row]) -> Table:
    """One table of the model's rows with the baselines beside each score; question types under ``image+text`` only."""
    baselines = list(dict.fromkeys(name for row in rows for name in row.get("baselines", {})))
    output = Table(box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    output.add_column("shots, context", no_wrap=True, min_width=14)
    output.add_column("  metric", no_wrap=True, min_width=12)
    for name in ("score ± 95 %", "n", *(escape(name).replace(" ", "\n") for name in baselines)):
        output.add_column(name, justify="right", no_wrap=True, min_width=9 if name != "n" else 6)
    last = None
    for row in rows:
        minor = row.get("question_type") is not None
        if is_baseline(row) or (minor and row["context"] != "image+text"):
            continue
        section = f"{styled('bold', row['task'])}", f"  {styled('bold', row['model'])}"
        if section != last:
            if last is not None:
                output.add_section()
            output.add_row(*section)
            last = section
        half = (row["high"] - row["low"]) / 2
        cells = ["" if minor else f"{row['shots']}, {escape(row['context'])}", f"  {escape(row['metric'])}"]
        cells += [f"{row['value']:.3f} ±{half:.3f}", str(row["n"])]
        cells += [f"{row['baselines'][name]:.3f}" if name in row.get("baselines", {}) else "" for name in baselines]
        output.add_row(*cells, style="dim" if minor else "")
    return output
