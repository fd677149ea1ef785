"""How one run's prompts are answered: generation, ranking of texts or of candidate images, rationale then answer.

Everything yields finished records batch by batch, so that a killed run loses one batch at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from . import blanks, prompts
from .data import Item, content_hash, stable_hash
from .engine import Answer, Engine
from .prompts import Prompt
from .store import Record
from .tasks import CANDIDATE, Decoding, Task

# How many items with a prompt for each candidate are ranked between two writes of the log.
_ITEMS_OF_PROMPTS = 32


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
        built: the prompt of every item of the run; of a chain of thought the first, with the second in ``then``.
        requests: item id → hash of what decides its answer, kept in the record.
    """
    chosen = [built[place] for place in places]
    rationales: list[str] = []
    if run.task.rationale:
        rationales = _rationales(engine, run, chosen)
        seconds = [prompt.then or prompt for prompt in chosen]
        chosen = [prompts.with_rationale(second, text) for second, text in zip(seconds, rationales, strict=True)]
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
    if any(item.candidate_images for item in items) or CANDIDATE in run.task.prompt.template:
        return _rank_prompts(engine, run.task, chosen, items)
    if run.task.decoding.method == "cloze":
        return _fill_blanks(engine, run.task, chosen, items)
    if run.task.decoding.method == "likelihood":
        return engine.likelihood([item.answers[0] for item in items])
    if run.task.decoding.method == "rank":
        return _rank(engine, run.task, chosen, items)
    seeds = [stable_hash("sample", run.seed, run.task.name, item.id) for item in items]
    return engine.generate(chosen, run.task.decoding, seeds)


def _rank(engine: Engine, task: Task, chosen: Sequence[Prompt], items: Sequence[Item]) -> Iterator[list[Answer]]:
    """Likelihood ranking; the answer is the candidate itself, without what a cloze puts after it."""
    texts = [continuations(task, item) for item in items]
    for batch in engine.rank(chosen, texts, task.decoding.normalisation, task.decoding.bare_prompt):
        yield [replace(answer, text=candidates(task, items[answer.index])[answer.best]) for answer in batch]


def _rank_prompts(
    engine: Engine, task: Task, chosen: Sequence[Prompt], items: Sequence[Item]
) -> Iterator[list[Answer]]:
    """One prompt a candidate, which is an image or words within the prompt; the one that makes the same continuation
    likeliest wins. The answer is the image's number, from 1, or the candidate."""
    for start in range(0, len(items), _ITEMS_OF_PROMPTS):
        expanded, owners = [], []
        for index in range(start, min(start + _ITEMS_OF_PROMPTS, len(items))):
            variants = _variants(task, chosen[index], items[index])
            expanded += variants
            owners += [(index, continuations(task, items[index])[:1])] * len(variants)
        scores: dict[int, list[float]] = {index: [] for index, _ in owners}
        ranked = engine.rank(expanded, [same for _, same in owners])
        for answer in sorted((answer for batch in ranked for answer in batch), key=lambda answer: answer.index):
            scores[owners[answer.index][0]].append(answer.scores[0])
        yield [_best(task, items[index], index, row) for index, row in scores.items()]


def _variants(task: Task, prompt: Prompt, item: Item) -> list[Prompt]:
    if item.candidate_images:
        return [prompts.with_last_image(prompt, image) for image in item.candidate_images]
    words = [prompts.wording(task, item, candidate) for candidate in candidates(task, item)]
    return [prompts.with_candidate(prompt, text) for text in words]


def _best(task: Task, item: Item, index: int, scores: Sequence[float]) -> Answer:
    best = max(range(len(scores)), key=scores.__getitem__)
    text = str(best + 1) if item.candidate_images else candidates(task, item)[best]
    return Answer(index, text, tuple(scores), best)


def _fill_blanks(engine: Engine, task: Task, chosen: Sequence[Prompt], items: Sequence[Item]) -> Iterator[list[Answer]]:
    words = [[text.strip() for text in continuations(task, item)] for item in items]
    for batch in blanks.fill(engine.runner, chosen, words, engine.batch_rows):
        yield [replace(answer, text=candidates(task, items[answer.index])[answer.best]) for answer in batch]


def continuations(task: Task, item: Item) -> list[str]:
    """The texts to rank for one item, as they follow the prompt.

    Raises:
        ValueError: neither the item nor the task has candidates.
    """
    return [prompts.continuation(task, item, text) for text in candidates(task, item)]


def candidates(task: Task, item: Item) -> Sequence[str]:
    """The answers to choose from, the item's own or the task's.

    Raises:
        ValueError: neither has any.
    """
    found = item.candidates or task.decoding.candidates
    if not found:
        raise ValueError(
            f"task {task.name}, item {item.id}: method {task.decoding.method} needs candidates in the item or the task"
        )
    return found


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
    if prompt.shortened:
        record["shortened"] = True
    if answer.scores:
        record["scores"] = list(answer.scores)
    return record
