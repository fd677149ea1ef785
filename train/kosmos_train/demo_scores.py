"""The demo's last step: every score beside its control, as a table that a person reads, and as ``results.json``.

A control is the same question put so that the part in question cannot help: pictures of other questions (``shuffled``),
the context read by the decoder itself or left out, chance.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from kosmos.plain import pasted

if TYPE_CHECKING:
    from .demo import Demo

FEW_SHOT_QUESTIONS = 400
"""Of the test questions: prompts with eight images are long."""

SHOTS = (0, 2, 4, 8)
TUNED_SHOTS = 4
SEEN = ("image+text", "shuffled")
READING = ("reading_encoded", "reading", "reading_closed")
Row: TypeAlias = dict[str, Any]
Ask: TypeAlias = "Callable[[Asked, Console], list[Row]]"


@dataclass(frozen=True)
class Asked:
    """What the two models are asked about.

    Attributes:
        out: the demo's folder.
        limit: most items of an evaluation; None: all.
        pictures: whether there are pictures of things with names.
    """

    out: Path
    limit: int | None
    pictures: bool

    def data(self, corpus: str, console: Console) -> dict[str, Any]:
        """Return arguments of an evaluation on what a recipe held out."""
        return {"data": self.out / corpus / "eval", "out": self.out / "eval", "console": console, "limit": self.limit}


def evaluate(demo: Demo) -> None:
    """Ask the tuned and the pretrained model; write ``results.json`` and the picture of answers."""
    from kosmos_eval import results
    from kosmos_eval.gallery import gallery

    if all(demo.path(name).is_file() for name in ("results.json", "answers.png")):
        return
    asked = Asked(demo.out, demo.limit, demo.has("pictures"))
    asking = {"the tuned model": ask_tuned, "the pretrained model": ask_pretrained}
    if demo.processes == 1:
        found = [ask(asked, demo.console) for ask in asking.values()]
    else:
        found = _ask_side_by_side(asked, asking, demo.console)
    samples = demo.path("eval", "samples", "tuned", "easy_vqa-0shot-image+text.jsonl")
    gallery(samples, demo.path("corpus", "eval"), demo.path("answers.png"))
    results.write([row for rows in found for row in rows], demo.path("results.json"))


def _ask_side_by_side(asked: Asked, asking: Mapping[str, Ask], console: Console) -> list[list[Row]]:
    """Ask in a process each: two cores do little more than one for a model of this size, but two models keep both."""
    from .launcher import prepare

    prepare()  # of one thread each
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with (
        Progress(*columns, console=console) as bars,
        ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool,
    ):
        made = {pool.submit(_heard, ask, asked, console.width): name for name, ask in asking.items()}
        tasks = {name: bars.add_task(name, total=1) for name in asking}
        for future in as_completed(made):
            console.print(future.result()[1], markup=False, highlight=False, end="")
            bars.update(tasks[made[future]], completed=1)
        return [future.result()[0] for future in made]


def _heard(ask: Ask, asked: Asked, width: int) -> tuple[list[Row], str]:
    """Return the rows and what was said."""
    said = io.StringIO()
    return ask(asked, Console(file=said, width=width, emoji=False)), said.getvalue()


def ask_tuned(asked: Asked, console: Console) -> list[Row]:
    """Ask the tuned model questions about shapes, contexts and pictures."""
    from kosmos.loading import load
    from kosmos_eval.evaluate import evaluate as ask

    tuned, processor = load(asked.out / "tune")
    shapes = {"name": "tuned", **asked.data("corpus", console)}
    rows = ask(tuned, processor, "easy_vqa", contexts=SEEN, **shapes)
    rows += _with_demonstrations(tuned, processor, (TUNED_SHOTS,), asked, shapes)
    for task in READING:
        rows += ask(tuned, processor, task, **shapes)
    if asked.pictures:
        pictures = shapes | asked.data("pictures", console)
        rows += ask(tuned, processor, "picture_vqa", contexts=SEEN, **pictures)
    return rows


def ask_pretrained(asked: Asked, console: Console) -> list[Row]:
    """Ask the pretrained model for names and captions, and questions with demonstrations."""
    from kosmos.loading import load
    from kosmos_eval.evaluate import evaluate as ask

    base, processor = load(asked.out / "pretrain")
    shapes = {"name": "pretrained", **asked.data("corpus", console)}
    rows: list[Row] = []
    if asked.pictures:
        pictures = shapes | asked.data("pictures", console)
        for task in ("picture_names_described", "picture_names", "picture_captions"):
            rows += ask(base, processor, task, contexts=SEEN, **pictures)
    rows += ask(base, processor, "easy_vqa_caption", contexts=SEEN, **shapes)
    return rows + _with_demonstrations(base, processor, SHOTS, asked, shapes)


def _with_demonstrations(model: Any, processor: Any, shots: Sequence[int], asked: Asked, how: Row) -> list[Row]:
    """Ask some of the questions; the baselines of all are rows already, here they only stand beside each score."""
    from kosmos_eval import results
    from kosmos_eval.evaluate import evaluate as ask

    few = how | {"limit": min(FEW_SHOT_QUESTIONS, asked.limit or FEW_SHOT_QUESTIONS)}
    rows = ask(model, processor, "easy_vqa", shots=shots, **few)
    return [row for row in rows if not results.is_baseline(row)]


def close(demo: Demo, rows: Sequence[Row], seconds: float) -> None:
    """Print all scores, the summary, what does not work, and what to try next."""
    from kosmos_eval.results import overall, table

    demo.console.print(table(overall(rows)))
    demo.console.print(summary(rows))
    for line in shortcomings(rows):
        demo.console.print(f"[yellow]{line}[/]", highlight=False)
    out, named = demo.out, pasted(demo.out)
    demo.console.print(
        f"Done in {seconds / 60:.1f} min. Look at {out}/answers.png and {out}/loss.png; all scores: "
        f"{out}/results.json. Try next:\n"
        f"  kosmos chat {named} --image {named}/corpus/eval/test/images/12.png\n"
        f"  kosmos eval {named}/tune --tasks easy_vqa --data {named}/corpus/eval --context image+text,text-only\n"
        f"  kosmos data inspect {named}/corpus/interleaved",
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
    shots = _pick(rows, "tuned", "easy_vqa", "vqa", shots=TUNED_SHOTS)
    add(
        f"the same behind {TUNED_SHOTS} demonstrations",
        shots,
        ("before tuning", _pick(rows, "pretrained", "easy_vqa", "vqa", shots=TUNED_SHOTS)),
    )
    for task, what in (("picture_names_described", "names, described"), ("picture_names", "bare names")):
        other = ("other pictures", _pick(rows, "pretrained", task, "accuracy", "shuffled"))
        named = _pick(rows, "pretrained", task, "accuracy")
        add(f"held-out pictures: which of 8 {what}", named, other, more="chance 0.125")
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
            f"{_figure(most)}); docs/in_context.md has a model that learns from them."
        )
    described, bare = (
        _pick(rows, "pretrained", task, "accuracy") for task in ("picture_names_described", "picture_names")
    )
    if described and bare and bare["high"] < described["value"]:
        lines.append(
            f"Names that were never read are harder than words about them: of eight bare names {_figure(bare)} are "
            f"right, of eight described ones {_figure(described)}."
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
