"""Evaluate a model on a task: the one path behind ``kosmos eval``, the demo and the evaluation during training.

    rows = evaluate(model, processor, "easy_vqa", "corpora/starter/eval", shots=(0, 4), contexts=("image+text",
    "shuffled"))

Each pair (shots, context) is a run: prompts are built, answered in batches, logged item by item, then scored as a whole
(CIDEr may not be averaged over shards). Items are divided among ranks by image; nothing but files is exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from . import baselines as base
from . import prompts, results, tasks
from .data import Item, content_hash, load_items, stable_hash
from .demonstrations import DemonstrationPool
from .engine import Answer, Engine
from .prompts import Prompt
from .results import Row
from .runner import Runner
from .store import Rank, Record, SampleLog, request_hash
from .tasks import Decoding, Task

# How many items with candidate images are ranked between two writes of the log.
_ITEMS_OF_IMAGES = 32


@dataclass(frozen=True)
class Run:
    """One way of asking: a task with so many shots in one context, about these items."""

    task: Task
    shots: int
    context: str
    items: Sequence[Item]

    @property
    def name(self) -> str:
        return f"{self.task.name}-{self.shots}shot-{self.context}"


def evaluate(
    model: Any,
    processor: Any,
    task: Task | str | Path,
    data: str | Path,
    *,
    shots: Sequence[int] = (0,),
    contexts: Sequence[str] = ("image+text",),
    limit: int | None = None,
    few_shot_limit: int | None = None,
    seed: int = 0,
    name: str = "model",
    out: str | Path | None = None,
    batch_rows: int = 128,
    console: Console | None = None,
    rank: Rank | None = None,
    with_baselines: bool = True,
) -> list[Row]:
    """Evaluate a model and return result rows (see results.py); on ranks other than 0 an empty list.

    Args:
        model, processor: a Kosmos model, whose training mode is left as it was, and its processor.
        task: a task, its name, or the path of its YAML.
        data: the folder that the task's paths are relative to.
        shots: numbers of demonstrations.
        contexts: what the prompt contains, see prompts.py.
        limit: evaluate so many items, drawn by hash; the same ones for every model. None: all.
        few_shot_limit: the same for runs with demonstrations, whose prompts are long.
        seed: of shuffled images, sampling and the bootstrap; demonstrations have their own in the task.
        name: the model's name in the rows.
        out: folder for the per-sample logs (``samples/``); a later call resumes from them. None: nothing is written.
        batch_rows: prompts in a batch at most.
        console: where progress, the first prompt and remarks go; None: nowhere.
        rank: this process among several; default torchrun's environment.
        with_baselines: add majority, question-only and chance rows.

    Raises:
        ValueError, FileNotFoundError: unknown task or context, bad data, a prompt longer than the model takes.
    """
    task = task if isinstance(task, Task) else tasks.load(task)
    session = _Session(model, processor, task, Path(data), seed, name, out, batch_rows, console, rank)
    session.check(shots, contexts)
    was_training = model.training
    model.eval()
    try:
        rows: list[Row] = []
        for count in shots:
            for context in contexts:
                size = few_shot_limit if count and few_shot_limit is not None else limit
                rows += session.run(Run(session.task, count, context, subset(session.items, task, size)))
    finally:
        model.train(was_training)
    if session.rank.index > 0:
        return []
    if with_baselines:
        others = base.baseline_rows(task, subset(session.items, task, limit), session.train, seed)
        base.attach(rows, others)
        rows += others
    return rows


def subset(items: Sequence[Item], task: Task, limit: int | None) -> list[Item]:
    """``limit`` items chosen by hash, in file order; all if there are no more.

    Raises:
        ValueError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} must be at least 1")
    if limit is None or limit >= len(items):
        return list(items)
    chosen = set(sorted(range(len(items)), key=lambda i: stable_hash("limit", task.name, items[i].id))[:limit])
    return [item for i, item in enumerate(items) if i in chosen]


class _Session:
    """What the runs of one call share: data, encoded images, demonstrations."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        task: Task,
        data: Path,
        seed: int,
        name: str,
        out: str | Path | None,
        batch_rows: int,
        console: Console | None,
        rank: Rank | None,
    ) -> None:
        self.task, self.seed, self.name = task, seed, name
        self.console = console or Console(quiet=True)
        self.rank = rank or Rank.from_environment()
        self.folder = Path(out) / "samples" if out is not None else None
        self.items = load_items(task, data, task.split)
        self._data = data
        if task.decoding.constrained and not task.decoding.candidates:
            names = sorted({answer for item in self.items for answer in item.answers})
            self.task = replace(task, decoding=replace(task.decoding, candidates=names))
        self.runner = Runner(model, processor)
        self.engine = Engine(self.runner, batch_rows)
        self.fingerprint = fingerprint(model)
        self._pool: DemonstrationPool | None = None

    @cached_property
    def train(self) -> list[Item]:
        """Items of the demonstrations' split, read when something needs them."""
        split, data = self.task.demonstrations.split, self._data
        if not split:
            return []
        if not (data / self.task.dataset.annotations.format(split=split)).is_file():
            self.console.print(f"{self.task.name}: no {split!r} split here, so no baselines and no demonstrations")
            return []
        return load_items(self.task, data, split)

    def check(self, shots: Sequence[int], contexts: Sequence[str]) -> None:
        for context in contexts:
            if context not in tasks.CONTEXTS:
                raise ValueError(f"unknown context {context!r}; choose from {', '.join(tasks.CONTEXTS)}")
            if context == "shuffled" and not any(item.images for item in self.items):
                raise ValueError(f"task {self.task.name} has no images to shuffle")
        for count in shots:
            if count < 0:
                raise ValueError(f"{count} shots: the number of demonstrations cannot be negative")
            if count and not self.train:
                raise ValueError(f"task {self.task.name}: {count} shots need a demonstrations.split with data")

    @property
    def pool(self) -> DemonstrationPool:
        if self._pool is None:
            self._pool = DemonstrationPool(self.task, self.train, self.items, self.runner.image_embeddings)
        return self._pool

    def run(self, run: Run) -> list[Row]:
        """Answer, log and score one run."""
        self.console.print(f"[bold]{run.name}[/]: {len(run.items)} of {len(self.items)} items")
        built = self._prompts(run)
        requests = {item.id: self._request(run, item, prompt) for item, prompt in zip(run.items, built, strict=True)}
        self._show_first(built[0])
        log = SampleLog(self.folder, run.name, self.rank)
        done = log.finished(requests)
        mine = self._share(run.items)
        open_places = [place for place in mine if run.items[place].id not in done]
        if done:
            self.console.print(f"  {len(done)} answers taken over from {self.folder}")
        with log, Progress(console=self.console, transient=True, disable=self.console.quiet) as progress:
            bar = progress.add_task(f"  {run.name}", total=len(open_places))
            for records in self._answer(run, built, open_places, requests):
                log.add(records)
                progress.advance(bar, len(records))
        if self.rank.index > 0:
            return []
        records = log.wait([item.id for item in run.items], requests)
        return self._score(run, records, log)

    def _score(self, run: Run, records: Sequence[Record], log: SampleLog) -> list[Row]:
        labels: dict[str, Any] = {"model": self.name, "shots": run.shots, "context": run.context}
        reduced = sum(record["shots"] < run.shots for record in records)
        if run.shots:
            labels |= {"demonstration_seed": run.task.demonstrations.seed, "items_with_fewer_shots": reduced}
        predictions = [record["prediction"] for record in records]
        rows, values = results.make_rows(run.task, run.items, predictions, labels, self.seed)
        for place, record in enumerate(records):
            record["metrics"] = {metric: column[place] for metric, column in values.items()}
        log.publish(records)
        return rows

    def _prompts(self, run: Run) -> list[Prompt]:
        """The prompt of every item, with fewer demonstrations where the model's length leaves no room for all."""
        swapped = prompts.shuffled_images(run.task, self.items, self.seed) if run.context == "shuffled" else {}
        room = self._answer_room(run)
        built, reduced = [], 0
        for item in run.items:
            shots = self.pool.draw(item, run.shots) if run.shots else []
            images = swapped.get(item.images)
            template = run.task.rationale
            while True:
                given = images if images is not None else item.images
                given = (*given, *item.candidate_images[:1])
                prompt = prompts.build(run.task, item, shots, run.context, given, template)
                length = self.runner.length(prompt) + room
                if length <= self.runner.max_length:
                    break
                if not shots:
                    raise ValueError(
                        f"task {run.task.name}, item {item.id}: prompt and answer take {length} tokens, the model "
                        f"{self.runner.max_length}"
                    )
                shots = shots[1:]
            reduced += len(shots) < run.shots
            built.append(prompt)
        if reduced:
            self.console.print(
                f"  [bold red]{reduced} of {len(built)} prompts got fewer than {run.shots} demonstrations: "
                f"more do not fit in {self.runner.max_length} tokens[/]"
            )
        if run.shots and self.pool.leaking:
            self.console.print(f"  {len(self.pool.leaking)} examples share content with the evaluated split: left out")
        return built

    def _answer_room(self, run: Run) -> int:
        room = run.task.decoding.max_new_tokens
        if run.task.decoding.method == "rank":
            texts = {text for item in run.items for text in _candidates(run.task, item)}
            room = max((len(self.runner.text_ids(text)) for text in texts), default=0)
        return room + (run.task.rationale_tokens if run.task.rationale else 0)

    def _request(self, run: Run, item: Item, prompt: Prompt) -> str:
        images = [content_hash(path) for path in (*prompt.images, *item.candidate_images)]
        decoding, wording = run.task.decoding, (run.task.prompt, run.task.rationale)
        return request_hash(self.fingerprint, prompt.text, images, decoding, wording, run.task.name, self.seed)

    def _share(self, items: Sequence[Item]) -> list[int]:
        """This rank's places: whole images, dealt out in turn."""
        order = {cluster: i for i, cluster in enumerate(dict.fromkeys(item.cluster for item in items))}
        return [i for i, item in enumerate(items) if order[item.cluster] % self.rank.world == self.rank.index]

    def _show_first(self, prompt: Prompt) -> None:
        ids = [token for stage in self.runner.stages(prompt) for token in stage.ids]
        self.console.print(f"  first prompt: {escape(repr(prompt.text))}", soft_wrap=True)
        self.console.print(f"  its token ids: {ids}", soft_wrap=True, highlight=False)

    def _answer(
        self, run: Run, built: Sequence[Prompt], places: Sequence[int], requests: dict[str, str]
    ) -> Iterator[list[Record]]:
        """Answer the items at ``places``; yields finished records batch by batch."""
        chosen = [built[place] for place in places]
        rationales: list[str] = []
        if run.task.rationale:
            rationales = self._rationales(run, chosen, places)
            chosen = [
                prompts.build(
                    run.task, run.items[place], (), run.context, prompt.images, extra={"rationale": rationale}
                )
                for place, prompt, rationale in zip(places, chosen, rationales, strict=True)
            ]
        for batch in self._answers(run, chosen, places):
            records = []
            for answer in batch:
                item = run.items[places[answer.index]]
                record = _record(item, chosen[answer.index], requests[item.id], answer)
                if rationales:
                    record["rationale"] = rationales[answer.index]
                records.append(record)
            yield records

    def _rationales(self, run: Run, chosen: Sequence[Prompt], places: Sequence[int]) -> list[str]:
        """The first stage of a chain of thought: a free text for each item, always greedy."""
        texts = [""] * len(places)
        for batch in self.engine.generate(
            chosen, Decoding(max_new_tokens=run.task.rationale_tokens), [0] * len(places)
        ):
            for answer in batch:
                texts[answer.index] = answer.text
        return texts

    def _answers(self, run: Run, chosen: Sequence[Prompt], places: Sequence[int]) -> Iterator[list[Answer]]:
        task = run.task
        if any(run.items[place].candidate_images for place in places):
            return self._rank_images(run, chosen, places)
        if task.decoding.method == "rank":
            return self._rank(run, chosen, places)
        seeds = [stable_hash("sample", self.seed, task.name, run.items[place].id) for place in places]
        return self.engine.generate(chosen, task.decoding, seeds)

    def _rank(self, run: Run, chosen: Sequence[Prompt], places: Sequence[int]) -> Iterator[list[Answer]]:
        """Likelihood ranking; the answer is the candidate itself, without what a cloze puts after it."""
        items = [run.items[place] for place in places]
        texts = [_candidates(run.task, item) for item in items]
        for batch in self.engine.rank(chosen, texts, run.task.decoding.normalisation):
            yield [
                replace(answer, text=_bare_candidates(run.task, items[answer.index])[answer.best]) for answer in batch
            ]

    def _rank_images(self, run: Run, chosen: Sequence[Prompt], places: Sequence[int]) -> Iterator[list[Answer]]:
        """One prompt a candidate image; the answer is the number, from 1, of the one most likely followed by "Yes"."""
        for start in range(0, len(places), _ITEMS_OF_IMAGES):
            expanded, owners = [], []
            for index in range(start, min(start + _ITEMS_OF_IMAGES, len(places))):
                item, prompt = run.items[places[index]], chosen[index]
                for image in item.candidate_images:
                    expanded.append(prompts.with_last_image(prompt, image))
                    owners.append((index, _candidates(run.task, item)[:1]))
            scores: dict[int, list[float]] = {index: [] for index, _ in owners}
            ranked = self.engine.rank(expanded, [yes for _, yes in owners])
            for answer in sorted((answer for batch in ranked for answer in batch), key=lambda answer: answer.index):
                scores[owners[answer.index][0]].append(answer.scores[0])
            yield [
                Answer(index, str(max(range(len(row)), key=row.__getitem__) + 1), tuple(row))
                for index, row in scores.items()
            ]


def _candidates(task: Task, item: Item) -> list[str]:
    """The continuations to rank for one item, as they follow the prompt."""
    return [prompts.continuation(task, item, text) for text in _bare_candidates(task, item)]


def _bare_candidates(task: Task, item: Item) -> Sequence[str]:
    candidates = item.candidates or task.decoding.candidates
    if not candidates:
        raise ValueError(f"task {task.name}, item {item.id}: method rank needs candidates in the item or the task")
    return candidates


def _record(item: Item, prompt: Prompt, request: str, answer: Answer) -> Record:
    record: Record = {
        "id": item.id,
        "prediction": answer.text,
        "answers": list(item.answers),
        "question_type": item.group,
        "prompt": prompt.text,
        "images": [{"file": path.name, "sha256": content_hash(path)} for path in prompt.images],
        "shots": prompt.shots,
        "demonstrations": list(prompt.demonstrations),
        "request": request,
    }
    if answer.scores:
        record["scores"] = list(answer.scores)
    return record


def fingerprint(model: Any) -> str:
    """A hash of a sample of every weight: it changes with any training step, and costs nothing.

    Answers of other weights are thereby never taken over on a resume.
    """
    sampled = []
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        stride = max(1, len(flat) // 64)
        sampled.append((name, tuple(tensor.shape), flat[::stride][:64].to(torch.float64).tolist()))
    return request_hash(sampled)
