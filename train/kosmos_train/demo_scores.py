"""The demo's last step: every score beside its control, as a table that a person reads, and as ``results.json``.

A control is the same question put so that the part in question cannot help: pictures of other questions (``shuffled``),
the context read by the decoder itself or left out, chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from .demo import Demo

FEW_SHOT_QUESTIONS = 400
"""Of the test questions, for the model before tuning: prompts with eight images are long."""

SHOTS = (0, 2, 4, 8)
READING = ("reading_encoded", "reading", "reading_closed")
Row = dict[str, Any]


def evaluate(demo: Demo) -> None:
    """Ask the tuned and the pretrained model; write ``results.json`` and the picture of answers."""
    from kosmos.loading import load
    from kosmos_eval import results
    from kosmos_eval.evaluate import evaluate as ask
    from kosmos_eval.gallery import gallery

    if all(demo.path(name).is_file() for name in ("results.json", "answers.png")):
        return
    seen = ("image+text", "shuffled")
    shapes: dict[str, Any] = {"data": demo.path("corpus", "eval"), "out": demo.path("eval"), "console": demo.console}
    pictures = shapes | {"data": demo.path("pictures", "eval")}
    few = min(FEW_SHOT_QUESTIONS, demo.limit or FEW_SHOT_QUESTIONS)
    tuned, processor = load(demo.path("tune"))
    rows = ask(tuned, processor, "easy_vqa", name="tuned", limit=demo.limit, contexts=seen, **shapes)
    for task in READING:
        rows += ask(tuned, processor, task, name="tuned", limit=demo.limit, **shapes)
    if demo.has("pictures"):
        rows += ask(tuned, processor, "picture_vqa", name="tuned", limit=demo.limit, contexts=seen, **pictures)
    base, processor = load(demo.path("pretrain"))
    if demo.has("pictures"):
        for task in ("picture_names_described", "picture_names", "picture_captions"):
            rows += ask(base, processor, task, name="pretrained", limit=demo.limit, contexts=seen, **pictures)
    rows += ask(base, processor, "easy_vqa_caption", name="pretrained", limit=demo.limit, contexts=seen, **shapes)
    shots = ask(base, processor, "easy_vqa", name="pretrained", shots=SHOTS, limit=few, **shapes)
    # The baselines of all questions are rows already; here they only stand beside each score.
    rows += [row for row in shots if not results.is_baseline(row)]
    samples = demo.path("eval", "samples", "tuned", "easy_vqa-0shot-image+text.jsonl")
    gallery(samples, demo.path("corpus", "eval"), demo.path("answers.png"))
    results.write(rows, demo.path("results.json"))


def close(demo: Demo, rows: Sequence[Row], seconds: float) -> None:
    """Print all scores, the summary, what does not work, and what to try next."""
    from kosmos_eval.results import overall, table

    demo.console.print(table(overall(rows)))
    demo.console.print(summary(rows))
    for line in shortcomings(rows):
        demo.console.print(f"[yellow]{line}[/]", highlight=False)
    out = demo.out
    demo.console.print(
        f"Done in {seconds / 60:.1f} min. Look at {out}/answers.png and {out}/loss.png; all scores: "
        f"{out}/results.json. Try next:\n"
        f"  kosmos chat {out} --image {out}/corpus/eval/test/images/12.png\n"
        f"  kosmos eval {out}/tune --tasks easy_vqa --data {out}/corpus/eval --context image+text,text-only\n"
        f"  kosmos data inspect {out}/corpus/interleaved",
        markup=False,
        soft_wrap=True,  # a terminal wraps what is shown, but copies a command as one line
    )


def summary(rows: Sequence[Row]) -> Table:
    """What each part is worth: a line a question, the score and its controls with 95 % intervals."""
    found = Table("what is asked", "score", "controls", title="What the parts are worth", title_justify="left")

    def add(what: str, row: Row | None, *controls: tuple[str, Row | None], more: str = "") -> None:
        if row is not None:
            told = [f"{name} {_figure(control)}" for name, control in controls if control is not None]
            found.add_row(what, _figure(row), ", ".join([*told, *([more] if more else [])]))

    shown = _pick(rows, "tuned", "easy_vqa", "vqa")
    add("drawn shapes: questions", shown, ("other pictures", _pick(rows, "tuned", "easy_vqa", "vqa", "shuffled")))
    add(
        "held-out pictures: which of 8 names, described",
        _pick(rows, "pretrained", "picture_names_described", "accuracy"),
        ("other pictures", _pick(rows, "pretrained", "picture_names_described", "accuracy", "shuffled")),
        more="chance 0.125",
    )
    for task, what in (
        ("picture_captions", "held-out pictures: caption"),
        ("easy_vqa_caption", "drawn shapes: caption"),
    ):
        other = ("other pictures", _pick(rows, "pretrained", task, "cider", "shuffled"))
        add(f"{what}, CIDEr", _pick(rows, "pretrained", task, "cider"), other)
    asked = _pick(rows, "tuned", "picture_vqa", "vqa")
    add(
        "held-out pictures: questions",
        asked,
        ("other pictures", _pick(rows, "tuned", "picture_vqa", "vqa", "shuffled")),
    )
    add(
        "a context in words, by the text encoder",
        _pick(rows, "tuned", READING[0], "accuracy"),
        ("read causally", _pick(rows, "tuned", READING[1], "accuracy")),
        ("without it", _pick(rows, "tuned", READING[2], "accuracy")),
    )
    return found


def shortcomings(rows: Sequence[Row]) -> list[str]:
    """One line for each thing that the rows show not to work, by their intervals."""
    lines = []
    none, most = (_pick(rows, "pretrained", "easy_vqa", "vqa", shots=shots) for shots in (SHOTS[0], SHOTS[-1]))
    if none and most and most["low"] <= none["high"]:
        lines.append(
            f"What does not work: demonstrations do not help ({SHOTS[0]} shots {_figure(none)}, {SHOTS[-1]} shots "
            f"{_figure(most)}); a model of this size does not learn in context."
        )
    described, bare = (
        _pick(rows, "pretrained", task, "accuracy") for task in ("picture_names_described", "picture_names")
    )
    if described and bare and bare["high"] < described["value"]:
        lines.append(
            f"Names that were never read cannot be spelled: of eight bare names {_figure(bare)} are right, of eight "
            f"described ones {_figure(described)}."
        )
    encoded, causal = (_pick(rows, "tuned", task, "accuracy") for task in READING[:2])
    if encoded and causal and encoded["low"] <= causal["high"]:
        lines.append(f"The text encoder is no better reader here: {_figure(encoded)}, causally {_figure(causal)}.")
    return lines


def _pick(
    rows: Sequence[Row], model: str, task: str, metric: str, context: str = "image+text", shots: int = 0
) -> Row | None:
    wanted = {"model": model, "task": task, "metric": metric, "context": context, "shots": shots}
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)


def _figure(row: Row) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
