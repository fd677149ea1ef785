"""Fine-tuning in a study: a label is written behind a text, by each pretrained model, with several seeds.

The causal way reads text and question and writes the label; MetaLM's way (arXiv 2206.06336, section 3.4) gives text and
question to the bidirectional encoder. Loss stands on the label alone in both. GLM's way (arXiv 2103.10360, section 2.3)
asks for a word in a blank, and its control is a linear head on the same output (:mod:`.head`). The prompt is the
evaluator's own: the training documents are made from it, and the labels are ranked by likelihood.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import safe_open

from kosmos import settings
from kosmos.loading import find_folder, load
from kosmos.tuning.settings import Tuning
from kosmos_data import Document, write_shards
from kosmos_data.document import Span
from kosmos_eval import statistics, tasks, training
from kosmos_eval.evaluate import evaluate
from kosmos_eval.metrics import mean_score
from kosmos_eval.readers import load_items
from kosmos_eval.tasks import Task

from ..config import TrainConfig
from . import head
from .jobs import Figures, Job, train_to_the_end

FORMATS = {
    "causal": {"name": "causal", "loss": "supervised"},
    "encoded": {"name": "semi_causal", "sampler": "input"},
    "cloze": {"name": "cloze"},
    "bare": {"name": "cloze"},
}
"""How the input is read → objective. ``cloze`` is the set's ``pattern``, ``bare`` the text with a blank behind it."""


@dataclass
class LabelSet:
    """One classification: files with a text and a label a line."""

    data: str = ""
    """Folder with train.jsonl and test.jsonl: ``{"text": …, "label": …}``."""
    question: str = "Label:"
    """Stands behind the text."""
    words: int = 60
    """Longer texts are cut after so many words, for all models alike."""
    train_items: int | None = None
    """At most so many training items, drawn evenly from all; None: all."""
    test_items: int = 1000
    """At most so many test items, drawn evenly from all."""
    validation_items: int = 0
    """So many further training items, on which ``rates`` are compared."""
    pattern: str = ""
    """The cloze question, with ``{text}`` and ``<mask>``."""
    verbalizers: dict[str, str] = field(default_factory=dict)
    """Label → its word in the blank; other labels are left out. Empty: all labels, each its own words."""


@dataclass
class TuningConfig:
    """Fine-tuning of pretrained arms."""

    sets: dict[str, LabelSet] = field(default_factory=dict)
    """What is classified."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name → ``{from: pretrained run, input: one of FORMATS}``; a ``tuning:`` section as of a run where
    not all of the model learns, ``lr`` or ``rows_per_step`` where the arm has its own (rows hold more examples where a
    context takes fewer places), ``head: true`` for a linear classifier."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Each arm is tuned once with each: order of the data."""
    steps: int = 100
    """Updates."""
    lr: float = 5e-4
    """Peak learning rate."""
    rates: list[float] = field(default_factory=list)
    """Rates that each arm tries with the first seed; that with the most right validation items replaces ``lr``."""
    rows_per_step: int | None = None
    """Rows of an update; None: as the base."""
    warmup: int = 10
    """Updates of linear warm-up."""


Learn: TypeAlias = Callable[[TrainConfig, str, Path], Figures]
"""(run, split, folder) → accuracy on the split, and which of its items are right."""


def prepare(
    name: str, wanted: LabelSet, folder: Path, forms: Iterable[str] = ("causal", "encoded"), seed: int = 0
) -> None:
    """Cut, draw, and write the splits for the evaluator, as lines, and training shards in ``forms``.

    Raises:
        ValueError: fewer training items than are asked for to compare rates on.
    """
    if (folder / "prepared").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = {split: _rows(Path(wanted.data) / f"{split}.jsonl", wanted) for split in ("train", "test")}
    most = wanted.train_items if wanted.train_items is None else wanted.train_items + wanted.validation_items
    for split, count in (("train", most), ("test", wanted.test_items)):
        if count is not None:
            rows[split] = random.Random(seed).sample(rows[split], min(count, len(rows[split])))
    if wanted.validation_items:
        if len(rows["train"]) <= wanted.validation_items:
            raise ValueError(f"{name}: validation_items={wanted.validation_items} leaves nothing to train on")
        rows["validation"] = [rows["train"].pop() for _ in range(wanted.validation_items)]
    for split, part in rows.items():
        lines = (
            json.dumps({"id": f"{split}-{number}", "text": text, "answers": [label]}, ensure_ascii=False) + "\n"
            for number, (text, label) in enumerate(part)
        )
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    for form in forms:
        write_shards(folder / form, documents(task_of(name, wanted, folder, form), folder), 10_000)
    counts = Counter(label for _, label in rows["test"])
    common = Counter(label for _, label in rows["train"]).most_common(1)[0][0]
    known = {"n": len(rows["test"]), "classes": len({label for _, label in rows["train"]})}
    figures = {**known, "chance": 1 / known["classes"], "majority": counts[common] / len(rows["test"])}
    (folder / "prepared").write_text(json.dumps(figures), encoding="utf-8")


def commonest_is_right(folder: Path) -> list[bool]:
    """Of each test item, in the order of a run's ``right``, whether it has the training set's commonest label."""
    read = (
        [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in ("train", "test")
    )
    train_rows, test_rows = read
    common = Counter(row["answers"][0] for row in train_rows).most_common(1)[0][0]
    return [row["answers"][0] == common for row in sorted(test_rows, key=lambda row: row["id"])]


def guesses(folder: Path) -> dict[str, float]:
    """Chance, and the accuracy of always saying the training set's commonest label."""
    return json.loads((folder / "prepared").read_text(encoding="utf-8"))


def _rows(path: Path, wanted: LabelSet) -> list[tuple[str, str]]:
    """Texts, cut, and labels as words (``noun.animal`` is written "noun animal")."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no labelled texts here")
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in found if not wanted.verbalizers or row["label"] in wanted.verbalizers]
    return [(" ".join(row["text"].split()[: wanted.words]), row["label"].replace(".", " ")) for row in kept]


def task_of(name: str, wanted: LabelSet, folder: Path, form: str) -> Task:
    """The evaluator's task: the prompt in one of the formats, the labels ranked.

    Raises:
        ValueError: a cloze question without its pattern.
    """
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    labels = sorted({json.loads(line)["answers"][0] for line in lines})
    words = {label.replace(".", " "): word for label, word in wanted.verbalizers.items()}
    template = "{text} " + wanted.question
    if form == "cloze" and not wanted.pattern:
        raise ValueError(f"tuning.sets.{name}: input cloze needs a pattern with {{text}} and {tasks.BLANK}")
    written = {
        "encoded": tasks.Prompt(template.join(Span.marks)),
        "cloze": tasks.Prompt(wanted.pattern, answer="{answer}"),
        "bare": tasks.Prompt("{text} " + tasks.BLANK, answer="{answer}"),
    }
    return Task(
        description=f"{name}, {form} input",
        dataset=tasks.DatasetFiles("jsonl", "{split}.jsonl"),
        prompt=written.get(form, tasks.Prompt(template)),
        decoding=tasks.Decoding(
            "cloze" if form in ("cloze", "bare") else "rank",
            candidates=[] if words else labels,
            verbalizers={label: words[label] for label in labels} if words else {},
        ),
        metrics=["accuracy"],
        chance=1 / len(labels),
        name=name,
    )


def documents(task: Task, folder: Path) -> list[Document]:
    """The training items as documents: the prompt is read, the label is written."""
    return list(training.documents(task, load_items(task, folder, "train")))


def tuning_jobs(
    tuning: TuningConfig, base: TrainConfig, study: Path, starts: dict[str, tuple[str, float]]
) -> list[Job]:
    """One job for each set, arm and seed, and where rates are tried one for each set and arm before them.

    Args:
        starts: objective → its pretrained run, and the FLOPs of a step.

    Raises:
        ValueError: an arm from a run that does not exist, or an unknown way of reading the input.
    """
    jobs = []
    for name, wanted in tuning.sets.items():
        for arm, how in tuning.arms.items():
            if how.get("from") not in starts or how.get("input") not in FORMATS:
                raise ValueError(
                    f"tuning.arms.{arm}: {how} must have from: one of {', '.join(starts)} and input: one of "
                    f"{', '.join(FORMATS)}"
                )
            start, flops = starts[how["from"]]
            data, needs, rated = study / "tuning" / name, [start], None
            cost = 1.5 * tuning.steps * flops  # half of the time goes into ranking the labels
            learn = partial(_learn, name, wanted, data, how)
            if tuning.rates:
                config = tune_config(tuning, how, base, study / start, data / how["input"], tuning.seeds[0])
                rated, work = data / f"{arm}-rates", partial(_best_rate, learn, config, tuning.rates)
                identity = {**settings.to_dict(config), **_extra(how), "rates": tuning.rates}
                needs.append(f"{name}, {arm}, rates")
                jobs.append(Job(needs[-1], work, rated, identity, tuning.steps, cost * len(tuning.rates), (start,)))
            for seed in tuning.seeds:
                config = tune_config(tuning, how, base, study / start, data / how["input"], seed)
                identity = {**settings.to_dict(config), **_extra(how)} | ({"rates": tuning.rates} if rated else {})
                work = partial(_tune, learn, config, rated)
                folder = data / f"{arm}-{seed}"
                jobs.append(Job(title(name, arm, seed), work, folder, identity, tuning.steps, cost, tuple(needs)))
    return jobs


def _extra(how: dict[str, Any]) -> dict[str, Any]:
    """What makes an arm's run another one beside its settings."""
    return {"head": True} if how.get("head") else {}


def title(name: str, arm: str, seed: int) -> str:
    """What the job of a set, an arm and a seed is called."""
    return f"{name}, {arm}, seed {seed}"


def results(tuning: TuningConfig, name: str, figures: dict[str, Figures], study: Path) -> dict[str, Any]:
    """What came out on one set: accuracy of each arm, and the differences between any two."""
    runs = {arm: [figures[title(name, arm, seed)] for seed in tuning.seeds] for arm in tuning.arms}
    pairs = itertools.combinations(runs, 2)
    return {
        "guess": guesses(study / "tuning" / name),
        "arms": {arm: pooled(found) for arm, found in runs.items()},
        "differences": [{**difference(runs[a], runs[b]), "first": a, "second": b} for a, b in pairs],
    }


def tune_config(
    tuning: TuningConfig, how: dict[str, Any], base: TrainConfig, start: Path, shards: Path, seed: int
) -> TrainConfig:
    """The base's rows and engine, from a checkpoint, on the labelled documents; ``how``: one of ``tuning.arms``."""
    objective = dict(FORMATS[how["input"]])
    source = replace(base.data.sources[0], name="labels", shards=str(shards), objective=objective)
    shared = base.data.rows_per_step if tuning.rows_per_step is None else tuning.rows_per_step
    rows = how.get("rows_per_step", shared)
    micro = min(rows, base.data.rows_per_micro_batch)
    part = how.get("tuning")
    return replace(
        base,
        model=base.model.started_from(start),
        tuning=None if part is None else settings.from_dict(Tuning, part, "tuning.arms: "),
        processor=None,
        data=replace(base.data, sources=[source], seed=seed, rows_per_step=rows, rows_per_micro_batch=micro),
        steps=tuning.steps,
        seed=seed,
        optim=replace(base.optim, lr=how.get("lr", tuning.lr), warmup=min(tuning.warmup, tuning.steps)),
        eval=replace(base.eval, every=0, data=None),
        checkpoint=replace(base.checkpoint, every=tuning.steps, keep=1),
    )


def _tune(learn: Learn, config: TrainConfig, rated: Path | None, folder: Path) -> Figures:
    """One seed of an arm, at the rate that was best or its own."""
    if rated is not None:
        rate = json.loads((rated / "arm.json").read_text(encoding="utf-8"))["figures"]["rate"]
        config = replace(config, optim=replace(config.optim, lr=rate))
    return {**learn(config, "test", folder), "rate": config.optim.lr}


def _best_rate(learn: Learn, config: TrainConfig, rates: Sequence[float], folder: Path) -> Figures:
    """The rate with the most right validation items; of equals the first."""
    tried = {}
    for rate in rates:
        at = replace(config, optim=replace(config.optim, lr=rate))
        tried[rate] = learn(at, "validation", folder / f"{rate:g}")["accuracy"]
    best = max(rates, key=lambda rate: tried[rate])
    return {"rate": best, "validation": [[rate, found] for rate, found in tried.items()]}


def _learn(
    name: str, wanted: LabelSet, data: Path, how: dict[str, Any], config: TrainConfig, split: str, folder: Path
) -> Figures:
    """Tune, and tell which items of a split are right, in the order of their ids."""
    task = replace(task_of(name, wanted, data, how["input"]), split=split)
    if how.get("head"):
        return head.classify(config, task, data, folder)
    train_to_the_end(config, folder)
    model, processor = load(folder, "cpu")
    rows = evaluate(model, processor, task, data, name=folder.name, out=folder / "eval", with_baselines=False)
    (path,) = (folder / "eval" / "samples").rglob("*.jsonl")
    records = {record["id"]: record for record in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    right = [records[key]["metrics"]["accuracy"] for key in sorted(records)]
    found = {name: rows[0][key] for name, key in (("accuracy", "value"), ("low", "low"), ("high", "high"))}
    return {**found, "right": right, "parameters": _kept(folder, model)}


def _kept(folder: Path, model: Any) -> int:
    """How many parameters a run leaves: those of its adapter, or of the whole model."""
    adapter = find_folder(folder, "adapter_config.json")
    if adapter is None:
        return sum(parameter.numel() for parameter in model.parameters())
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  no mapping


def pooled(runs: Sequence[Figures]) -> dict[str, Any]:
    """Accuracy over the seeds; the interval draws test items, each with all its seeds."""
    score, clusters = _score(runs)
    low, high = statistics.interval(score, clusters)
    return {"value": score.value, "low": low, "high": high, "seeds": [run["accuracy"] for run in runs]}


def difference(first: Sequence[Figures], second: Sequence[Figures]) -> dict[str, Any]:
    """Second minus first over the same items and seeds, with its paired interval."""
    (one, clusters), (two, _) = _score(first), _score(second)
    return statistics.compare(one, two, clusters).to_dict()


def _score(runs: Sequence[Figures]) -> tuple[Any, list[int]]:
    values = [value for run in runs for value in run["right"]]
    return mean_score("accuracy", values), [item for run in runs for item in range(len(run["right"]))]
