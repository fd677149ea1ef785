"""How one run's prompts are answered: generation, ranking of texts or of candidate images, rationale then answer.

Everything yields finished records batch by batch, so that a killed run loses one batch at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from . import prompts
from .data import Item, content_hash, stable_hash
from .engine import Answer, Engine
from .prompts import Prompt
from .store import Record
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
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.task.name}-{self.shots}shot-{self.context}"


def answer_run(
    engine: Engine, run: Run, built: Sequence[Prompt], places: Sequence[int], requests: Mapping[str, str]
) -> Iterator[list[Record]]:
    """Answer the items at ``places`` of a run.

    Args:
        built: the prompt of every item of the run; the rationale's prompt where the task has one.
        requests: item id → hash of what decides its answer, kept in the record.
    """
    chosen = [built[place] for place in places]
    rationales: list[str] = []
    if run.task.rationale:
        rationales = _rationales(engine, run, chosen)
        chosen = [
            prompts.build(run.task, run.items[place], (), run.context, prompt.images, extra={"rationale": rationale})
            for place, prompt, rationale in zip(places, chosen, rationales, strict=True)
        ]
    items = [run.items[place] for place in places]
    for batch in _answers(engine, run, chosen, items):
        records = []
        for answer in batch:
            item = items[answer.index]
            record = _record(item, chosen[answer.index], requests[item.id], answer)
            if rationales:
                record["rationale"] = rationales[answer.index]
            records.append(record)
        yield records


def _rationales(engine: Engine, run: Run, chosen: Sequence[Prompt]) -> list[str]:
    """The first stage of a chain of thought: a free text for each item, always greedy."""
    texts = [""] * len(chosen)
    for batch in engine.generate(chosen, Decoding(max_new_tokens=run.task.rationale_tokens), [0] * len(chosen)):
        for answer in batch:
            texts[answer.index] = answer.text
    return texts


def _answers(engine: Engine, run: Run, chosen: Sequence[Prompt], items: Sequence[Item]) -> Iterator[list[Answer]]:
    if any(item.candidate_images for item in items):
        return _rank_images(engine, run.task, chosen, items)
    if run.task.decoding.method == "likelihood":
        return engine.likelihood([item.answers[0] for item in items])
    if run.task.decoding.method == "rank":
        return _rank(engine, run.task, chosen, items)
    seeds = [stable_hash("sample", run.seed, run.task.name, item.id) for item in items]
    return engine.generate(chosen, run.task.decoding, seeds)


def _rank(engine: Engine, task: Task, chosen: Sequence[Prompt], items: Sequence[Item]) -> Iterator[list[Answer]]:
    """Likelihood ranking; the answer is the candidate itself, without what a cloze puts after it."""
    texts = [continuations(task, item) for item in items]
    for batch in engine.rank(chosen, texts, task.decoding.normalisation):
        yield [replace(answer, text=_candidates(task, items[answer.index])[answer.best]) for answer in batch]


def _rank_images(engine: Engine, task: Task, chosen: Sequence[Prompt], items: Sequence[Item]) -> Iterator[list[Answer]]:
    """One prompt a candidate image; the answer is the number, from 1, of the one most likely followed by "Yes"."""
    for start in range(0, len(items), _ITEMS_OF_IMAGES):
        expanded, owners = [], []
        for index in range(start, min(start + _ITEMS_OF_IMAGES, len(items))):
            for image in items[index].candidate_images:
                expanded.append(prompts.with_last_image(chosen[index], image))
                owners.append((index, continuations(task, items[index])[:1]))
        scores: dict[int, list[float]] = {index: [] for index, _ in owners}
        ranked = engine.rank(expanded, [yes for _, yes in owners])
        for answer in sorted((answer for batch in ranked for answer in batch), key=lambda answer: answer.index):
            scores[owners[answer.index][0]].append(answer.scores[0])
        yield [
            Answer(index, str(max(range(len(row)), key=row.__getitem__) + 1), tuple(row))
            for index, row in scores.items()
        ]


def continuations(task: Task, item: Item) -> list[str]:
    """The texts to rank for one item, as they follow the prompt.

    Raises:
        ValueError: neither the item nor the task has candidates.
    """
    return [prompts.continuation(task, item, text) for text in _candidates(task, item)]


def _candidates(task: Task, item: Item) -> Sequence[str]:
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
