"""Paired comparison of two models from their per-sample logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .metrics import MetricScore, mean_score, roc_auc
from .statistics import Comparison, compare


def compare_samples(first: str | Path, second: str | Path, metric: str | None = None, seed: int = 0) -> Comparison:
    """The paired difference ``second - first`` of a metric's mean over the same items, whole images resampled.

    Raises:
        ValueError: the logs hold other items or lack the metric.
        FileNotFoundError: no such log.
    """
    one, two = _read(first), _read(second)
    if set(one) != set(two):
        only = sorted(set(one) ^ set(two))
        raise ValueError(f"{first} and {second} hold different items: {len(only)} are in one only (first: {only[0]})")
    name = metric or next(iter(next(iter(one.values()))["metrics"]))
    scores = [_score(one, name, first), _score({key: two[key] for key in one}, name, second)]
    clusters = ["|".join(image["sha256"] for image in record["images"]) or key for key, record in one.items()]
    return compare(scores[0], scores[1], clusters, seed)


def _score(records: dict[str, dict[str, Any]], metric: str, path: str | Path) -> MetricScore:
    for record in records.values():
        if metric not in record["metrics"]:
            raise ValueError(f"{path}: no metric {metric!r}; it holds {', '.join(record['metrics'])}")
    if metric == "roc_auc":
        return roc_auc(*([record[key] for record in records.values()] for key in ("confidence", "positive")))
    return mean_score(metric, [float(record["metrics"][metric]) for record in records.values()])


def _read(path: str | Path) -> dict[str, dict[str, Any]]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no samples here; kosmos eval writes them to OUT/samples/")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not records or "metrics" not in records[0]:
        raise ValueError(f"{path}: not a finished sample log of kosmos eval")
    return {record["id"]: record for record in records}
