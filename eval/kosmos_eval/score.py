"""Score prediction files in the published formats without a model: the function behind ``kosmos eval score``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import formats, metrics, statistics

DEFAULT_METRICS = {"vqa": ("vqa",), "captions": ("bleu", "rouge_l", "cider")}


def score_files(
    predictions: str | Path,
    references: str | Path,
    questions: str | Path | None = None,
    names: Sequence[str] = (),
    partial: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a COCO-caption or VQAv2 result file against its annotation file.

    Args:
        predictions: list of {image_id, caption} or {question_id, answer}.
        references: the annotation file; what it holds decides which of the two it is.
        questions: VQAv2 questions; if given, its ids must be those of the annotations.
        names: metrics; default "vqa", or BLEU, ROUGE-L and CIDEr.
        partial: accept a VQA result file that leaves questions out and score only the answered ones.
        seed: of the bootstrap.

    Returns:
        ``{"task", "n", METRIC: value, …, "intervals": {METRIC: [low, high]}, …}``; accuracies in 0–1; VQA files also
        get ``by_question_type`` and ``by_answer_type``.
    """
    if formats.reference_kind(references) == "vqa":
        return _score_vqa(predictions, references, questions, names or DEFAULT_METRICS["vqa"], partial, seed)
    if questions is not None:
        raise ValueError(f"{questions}: a question file goes with VQA annotations, but {references} holds captions")
    return _score_captions(predictions, references, names or DEFAULT_METRICS["captions"], seed)


def _score_captions(predictions: str | Path, references: str | Path, names: Sequence[str], seed: int) -> dict[str, Any]:
    results = formats.read_results(predictions, "image_id", "caption")
    captions = formats.read_caption_references(references).captions
    _reject_unknown(predictions, "image_id", results, captions)
    scores = metrics.compute(names, list(results.values()), [captions[image] for image in results])
    report = _report("captions", scores, list(results), seed)
    return report | {"references_without_prediction": len(captions) - len(results)}


def _score_vqa(
    predictions: str | Path,
    references: str | Path,
    questions: str | Path | None,
    names: Sequence[str],
    partial: bool,
    seed: int,
) -> dict[str, Any]:
    results = formats.read_results(predictions, "question_id", "answer")
    annotations = {entry.question_id: entry for entry in formats.read_vqa_annotations(references)}
    if questions is not None:
        asked = {entry["question_id"] for entry in formats.read_vqa_questions(questions)}
        _reject_unknown(references, "question_id", annotations, asked)
    _reject_unknown(predictions, "question_id", results, annotations)
    missing = [question for question in annotations if question not in results]
    if missing and not partial:
        raise ValueError(
            f"{predictions}: {len(missing)} of {len(annotations)} questions have no prediction (first: {missing[0]}); "
            "add them, or pass --partial to score only the answered ones"
        )
    entries = [annotations[question] for question in results]
    scores = metrics.compute(names, list(results.values()), [entry.answers for entry in entries])
    report = _report("vqa", scores, [entry.image_id for entry in entries], seed)
    report["references_without_prediction"] = len(missing)
    for group in ("question_type", "answer_type"):
        keys = [getattr(entry, group) for entry in entries]
        if any(keys):
            report[f"by_{group}"] = _grouped(scores[0], keys)
    return report


def _reject_unknown(path: str | Path, key: str, found: Any, known: Any) -> None:
    unknown = [identifier for identifier in found if identifier not in known]
    if unknown:
        raise ValueError(f"{path}: {len(unknown)} {key}s are not among the references (first: {unknown[0]!r})")


def _report(
    task: str, scores: Sequence[metrics.MetricScore], clusters: Sequence[formats.Identifier], seed: int
) -> dict[str, Any]:
    report: dict[str, Any] = {"task": task, "n": scores[0].n}
    report |= {score.name: score.value for score in scores}
    report["intervals"] = {score.name: list(statistics.interval(score, clusters, seed)) for score in scores}
    return report


def _grouped(score: metrics.MetricScore, keys: Sequence[str]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for key, value in zip(keys, score.per_item, strict=True):
        groups[key].append(float(value))
    return {key: {score.name: sum(values) / len(values), "n": len(values)} for key, values in sorted(groups.items())}
