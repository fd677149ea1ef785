"""Paired comparison of two models from their per-sample logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import formats, metrics
from .metrics import MetricScore
from .statistics import Comparison, compare
from .where import Log

Records = dict[str, dict[str, Any]]


def compare_samples(first: str | Path, second: str | Path, metric: str | None = None, seed: int = 0) -> Comparison:
    """The paired difference ``second - first`` of a metric over the same items, whole images resampled.

    The metric is worked out anew from the logged answers, as a whole: BLEU is that of the corpus, not a mean.

    Args:
        metric: any that the logs allow; default the first of the task.

    Raises:
        ValueError: the logs hold other items, or the same with other answers, or not what the metric needs.
        FileNotFoundError: no such log.
    """
    one, two = read_samples(first), read_samples(second)
    if set(one) != set(two):
        only = sorted(set(one) ^ set(two))
        raise ValueError(f"{first} and {second} hold different items: {len(only)} are in one only (first: {only[0]})")
    if other := [key for key, record in one.items() if record["answers"] != two[key]["answers"]]:
        raise ValueError(f"{first} and {second} are of other data: item {other[0]} has other answers ({len(other)} do)")
    name = metric or next(iter(next(iter(one.values()))["metrics"]))
    scores = [_score(records, name) for records in (one, {key: two[key] for key in one})]
    return compare(scores[0], scores[1], clusters_of(one), seed)


def clusters_of(records: Records) -> list[str]:
    """What the bootstrap draws as a whole: an item's images, the text that it is a part of, or itself."""
    return [
        "|".join(file["sha256"] for file in (*record["images"], *record.get("files", ())))
        or record.get("source")
        or key
        for key, record in records.items()
    ]


def differences(first: Log, second: Log) -> list[str]:
    """What two logs, by their names, were not asked alike, e.g. ``shots 0 and 4``: no comparison may hide it."""
    pairs = {key: (getattr(first, key), getattr(second, key)) for key in ("task", "shots", "context")}
    return [f"{key} {one} and {two}" for key, (one, two) in pairs.items() if None not in (one, two) and one != two]


def line(found: Comparison, first: str, second: str) -> str:
    """The comparison as people read it: ``second − first = +0.050 [+0.021, +0.079]``; a group is what is resampled."""
    low, high = _signed(found.low), _signed(found.high)
    return (
        f"{second} − {first} = {_signed(found.difference)} [{low}, {high}]  "
        f"{found.metric} {found.second:.3f} and {found.first:.3f}; {found.n} items in {found.clusters} groups"
    )


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _score(records: Records, metric: str) -> MetricScore:
    def column(key: str) -> list[Any]:
        return [record[key] for record in records.values()]

    likelihoods = confidences = positive = None
    logged = set(next(iter(records.values()))["metrics"])
    if logged & set(metrics.LIKELIHOOD_METRICS):
        likelihoods = [scores[0] for scores in column("scores")]
    if logged & set(metrics.CONFIDENCE_METRICS):
        confidences, positive = column("confidence"), column("positive")
    predictions, answers = column("prediction"), column("answers")
    groups = clusters_of(records)
    return metrics.compute([metric], predictions, answers, likelihoods, confidences, positive, groups)[0]


def read_samples(path: str | Path) -> Records:
    """A finished sample log by item.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is not finished.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no samples here; kosmos eval writes them to OUT/samples/")
    records = [record for _, record in formats.read_json_lines(path)]
    if not records or not all(
        {"id", "prediction", "answers", "images", "metrics"} <= record.keys() for record in records
    ):
        raise ValueError(f"{path}: not a finished sample log of kosmos eval")
    return {record["id"]: record for record in records}
