"""Score prediction files in the published formats without a model: the function behind ``kosmos eval score``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import formats, metrics, statistics
from .compare import clusters_of, read_samples
from .where import ImageFolder, find_log

MODEL_METRICS = ("clipscore", "refclipscore", "bertscore")
DEFAULT_METRICS = {"vqa": ("vqa",), "captions": ("bleu", "rouge_l", "cider")}
# What can be said of each kind of file; VQA accuracy counts votes, which captions are not.
ALLOWED = {
    "vqa": (*metrics.ANSWER_METRICS, *metrics.CAPTION_METRICS),
    "captions": (*metrics.CAPTION_METRICS, *MODEL_METRICS, "exact_match", "f1", "anls", "accuracy"),
    "samples": (*metrics.ANSWER_METRICS, *metrics.CAPTION_METRICS, *metrics.WRITING_METRICS, *MODEL_METRICS),
}


@dataclass(frozen=True)
class Judges:
    """What model-based caption metrics need.

    Args:
        clip: open_clip folder or name, for clipscore and refclipscore.
        clip_processor: Kosmos processor folder whose tokenizer that CLIP uses; None: open_clip's.
        clip_prefix: put before every caption.
        images: folder of the images that the reference file names.
        encoder: folder of a BERT-like encoder, for bertscore.
    """

    clip: str | Path | None = None
    clip_processor: str | Path | None = None
    clip_prefix: str = "A photo depicts "
    images: str | Path | None = None
    encoder: str | Path | None = None


def score_files(
    predictions: str | Path,
    references: str | Path,
    questions: str | Path | None = None,
    names: Sequence[str] = (),
    partial: bool = False,
    seed: int = 0,
    judges: Judges | None = None,
) -> dict[str, Any]:
    """Score a COCO-caption or VQAv2 result file against its annotation file.

    Args:
        predictions: list of {image_id, caption} or {question_id, answer}.
        references: the annotation file; what it holds decides which of the two it is.
        questions: VQAv2 questions; if given, its ids must be those of the annotations.
        names: metrics; default "vqa", or BLEU, ROUGE-L and CIDEr.
        partial: accept a VQA result file that leaves questions out and score only the answered ones.
        seed: of the bootstrap.
        judges: models for clipscore, refclipscore and bertscore.

    Returns:
        ``{"task", "n", METRIC: value, …, "intervals": {METRIC: [low, high]}, "references_without_prediction"}``;
        accuracies in 0–1; VQA files also get ``by_question_type`` and ``by_answer_type``.

    Raises:
        FileNotFoundError, ValueError: a missing or malformed file, ids that do not match, an unknown or unfit metric.
    """
    kind = formats.reference_kind(references)
    names = _chosen(names or DEFAULT_METRICS[kind], kind, references)
    if kind == "vqa":
        return _score_vqa(predictions, references, questions, names, partial, seed)
    if questions is not None:
        raise ValueError(f"{questions}: a question file goes with VQA annotations, but {references} holds captions")
    return _score_captions(predictions, references, names, seed, judges or Judges())


def score_samples(
    samples: str | Path,
    names: Sequence[str] = (),
    seed: int = 0,
    judges: Judges | None = None,
    task: str | None = None,
    shots: int | None = None,
    context: str | None = None,
) -> dict[str, Any]:
    """Score the answers of a sample log anew, also by metrics that a model computes.

    Args:
        samples: a finished log of ``kosmos eval``, or a run folder with one.
        names: metrics; default those of its task.
        seed: of the bootstrap.
        judges: models for clipscore, refclipscore and bertscore; of an item's images the last is the caption's.
        task, shots, context: which log of a folder; see :func:`kosmos_eval.where.find_log`.

    Returns:
        ``{"task", "n", METRIC: value, …, "intervals": {METRIC: [low, high]}}``.

    Raises:
        FileNotFoundError, ValueError: no such log, an unknown metric, one that answers do not allow, or without judge.
    """
    log = find_log(Path(samples), task, shots, context)
    records, judges = read_samples(log.path), judges or Judges()
    own = next(iter(records.values()))["metrics"]
    names = metrics.resolve(names or list(own), (*ALLOWED["samples"], *MODEL_METRICS))
    metrics.check_available(names)
    predictions, answers = ([record[key] for record in records.values()] for key in ("prediction", "answers"))

    def images() -> list[Path]:
        folder = ImageFolder(Path(judges.images or ""))
        shown = [(key, record["images"][-1:]) for key, record in records.items()]
        if without := [key for key, images in shown if not images]:
            raise ValueError(f"{log.path}: clipscore needs images; item {without[0]} has none")
        return [folder.find(image["file"], image["sha256"]) for _, (image,) in shown]

    plain = [name for name in names if name not in MODEL_METRICS]
    scores = metrics.compute(plain, predictions, answers) if plain else []
    scores += _judged([name for name in names if name in MODEL_METRICS], predictions, answers, images, judges)
    return _report(log.task or log.path.stem, scores, clusters_of(records), seed)


def _chosen(names: Sequence[str], kind: str, references: str | Path) -> list[str]:
    """The metrics by their full names; ValueError for one that is unknown or says nothing about such a file."""
    names = metrics.resolve(names, (*metrics.NAMES, *MODEL_METRICS))
    for name in names:
        if name not in ALLOWED[kind]:
            holds = "VQA answers" if kind == "vqa" else "captions"
            raise ValueError(
                f"metric {name!r} is none for {references}, which holds {holds}; choose from {', '.join(ALLOWED[kind])}"
            )
    metrics.check_available(names)
    return names


def _score_captions(
    predictions: str | Path, references: str | Path, names: Sequence[str], seed: int, judges: Judges
) -> dict[str, Any]:
    results = formats.read_results(predictions, "image_id", "caption")
    truth = formats.read_caption_references(references)
    _reject_unknown(predictions, "image_id", results, truth.captions)
    captions = [truth.captions[image] for image in results]
    plain = [name for name in names if name not in MODEL_METRICS]
    scores = metrics.compute(plain, list(results.values()), captions) if plain else []

    def images() -> list[Path]:
        paths = [Path(judges.images or "") / truth.file_names.get(image, f"{image}.jpg") for image in results]
        if missing := [path for path in paths if not path.is_file()]:
            raise FileNotFoundError(f"{len(missing)} of {len(paths)} images are missing, first {missing[0]}")
        return paths

    judged = [name for name in names if name in MODEL_METRICS]
    scores += _judged(judged, list(results.values()), captions, images, judges)
    report = _report("captions", scores, list(results), seed)
    return report | {"references_without_prediction": len(truth.captions) - len(results)}


def _judged(
    names: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    images: Callable[[], Sequence[Path]],
    judges: Judges,
) -> list[metrics.MetricScore]:
    if not names:
        return []
    from .metrics.model_based import BertScorer, ClipScorer

    values: dict[str, Any] = {}
    if "bertscore" in names:
        if judges.encoder is None:
            raise ValueError("metric 'bertscore' needs --encoder, the folder of a text encoder")
        values["bertscore"] = BertScorer(judges.encoder).score(candidates, references)
    if set(names) - {"bertscore"}:
        if judges.clip is None or judges.images is None:
            raise ValueError("metrics 'clipscore' and 'refclipscore' need --clip and --images")
        paths = images()
        scorer = ClipScorer(judges.clip, judges.clip_processor, judges.clip_prefix)
        values["clipscore"], values["refclipscore"] = scorer.score(paths, candidates, references)
    return [metrics.mean_score(name, values[name]) for name in names]


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
    task: str, scores: Sequence[metrics.MetricScore], clusters: Sequence[Hashable], seed: int
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
