"""One call of ``evaluate``: the data, encoded images and demonstrations that its runs share, and each run in order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from kosmos.grounding import to_picture
from kosmos.pictures import read_picture, upright
from kosmos.plain import escape, styled
from kosmos.segments import Phrase

from . import baselines, chains, metrics, prompts, results
from .chains import Asked
from .fitting import fitted
from .items import Item, content_hash
from .metrics import auc
from .model import EvaluatedModel
from .prompts import Prompt, candidates, continuations
from .results import Row
from .runner import Runner
from .sample_log import Rank, Record, SampleLog, request_hash
from .task_data import TaskData
from .tasks import Task


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

    @cached_property
    def wording(self) -> tuple[Any, ...]:
        """What decides an answer beside the prompt, as it goes into the hash of each request."""
        task = self.task
        chain = (task.rationale_tokens, str(task.chain)) if task.rationale else ()
        return str(task.decoding), (str(task.prompt), task.rationale, *chain)


class Session:
    """A model before the data of one task; the arguments are those of :func:`kosmos_eval.evaluate.evaluate`."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        data: TaskData,
        seed: int = 0,
        name: str = "model",
        out: str | Path | None = None,
        batch_rows: int = 128,
        console: Console | None = None,
        rank: Rank | None = None,
    ) -> None:
        self.data, self.items = data, data.items
        self.seed, self.name = seed, name
        self.console = console or Console(emoji=False, quiet=True)
        self.rank = rank or Rank.from_environment()
        self.folder = Path(out) / "samples" / name.replace("/", "_") if out is not None else None
        self.runner = Runner(model, processor, zooms=data.task.prompt.zooms)
        self.task = prompts.with_separator(data.task, self.runner.separator)
        self.model = EvaluatedModel(self.runner, batch_rows)
        self._shown = False

    @cached_property
    def fingerprint(self) -> str:
        """Of what answers: the weights, where an answer ends, and how far back a token sees."""
        blocks = getattr(self.runner.model.config.text_config, "blockwise_causal_length", None)
        own = () if blocks is None else (blocks,)
        return request_hash(fingerprint(self.runner.model), sorted(self.runner.ends), *own)

    def evaluate(
        self,
        shots: Sequence[int],
        contexts: Sequence[str],
        limit: int | None,
        few_shot_limit: int | None,
        with_baselines: bool,
    ) -> list[Row]:
        """All runs in order, then the baselines; on ranks other than 0 an empty list."""
        rows: list[Row] = []
        with _evaluation_mode(self.runner.model):
            for count in shots:
                for context in contexts:
                    size = few_shot_limit if count and few_shot_limit is not None else limit
                    rows += self.run(Run(self.task, count, context, self.data.subset(size)))
        if self.rank.index > 0:
            return []
        others: list[Row] = []
        if with_baselines:
            if self.task.demonstrations.split and not self.data.train:
                missing = f"{self.task.name}: no {self.task.demonstrations.split!r} split for baselines here"
                self.console.print(missing, markup=False)
            others = baselines.baseline_rows(self.task, self.data.subset(limit), self.data.train, self.seed)
        baselines.attach(rows, others)
        return [row | self.data.identity for row in rows + others]

    def run(self, run: Run) -> list[Row]:
        """Answer, log and score one run."""
        if set(run.task.metrics) & set(metrics.CONFIDENCE_METRICS):
            auc.check_classes([results.is_positive(run.task, item) for item in run.items])
        self.console.print(f"{styled('bold', run.name)}: {len(run.items)} of {len(self.items)} items")
        built = self._prompts(run)
        requests = {item.id: self._request(run, item, prompt) for item, prompt in zip(run.items, built, strict=True)}
        self._show_first(built[0])
        log = SampleLog(self.folder, run.name, self.rank)
        done = log.finished(requests)
        mine = self._share(run.items)
        open_places = [place for place in mine if run.items[place].id not in done]
        if done:
            self.console.print(f"  {len(done)} answers taken over from {escape(str(self.folder))}")
        with log, Progress(console=self.console, transient=True, disable=self.console.quiet) as progress:
            bar = progress.add_task(f"  {escape(run.name)}", total=len(open_places))
            for records in self._answers(run, built, open_places, requests):
                log.add(records)
                progress.advance(bar, len(records))
        if self.rank.index > 0:
            return []
        records = log.wait([item.id for item in run.items], requests)
        return self._score(run, records, log)

    def _answers(
        self, run: Run, built: Sequence[Prompt], places: Sequence[int], requests: Mapping[str, str]
    ) -> Iterator[list[Record]]:
        """Finished records of the items at ``places``, batch by batch."""
        chosen, items = [built[place] for place in places], [run.items[place] for place in places]
        for batch in chains.ask(self.model, run.task, items, chosen, self.seed, self.data.other_images):
            records = []
            for at, asked in batch.items():
                record = _record(items[at], asked, requests[items[at].id])
                if asked.answer.phrases and asked.prompt.images:
                    record["boxes"] = self._boxes(asked.answer.phrases, asked.prompt.images[-1])
                records.append(record)
            yield records

    def _boxes(self, phrases: Sequence[Phrase], picture: Path) -> list[dict[str, Any]]:
        """What the log says of an answer's boxes: shares of the whole picture, whatever the model saw of it."""
        crop = self.runner.processor.image_processor.crop
        whole = to_picture(phrases, upright(read_picture(picture)).size, crop)
        return [phrase.as_json() for phrase in whole]

    def _score(self, run: Run, records: Sequence[Record], log: SampleLog) -> list[Row]:
        labels: dict[str, Any] = {"model": self.name, "shots": run.shots, "context": run.context}
        reduced = sum(record["shots"] < run.shots for record in records)
        if run.shots:
            labels |= {"demonstration_seed": run.task.demonstrations.seed, "items_with_fewer_shots": reduced}
            labels |= {"demonstration_labels": str(run.task.demonstrations.labels).lower()}
        if run.task.prompt.shorten:
            labels["items_shortened"] = sum(record.get("shortened", False) for record in records)
        predictions = [record["prediction"] for record in records]
        is_text = run.task.decoding.method == "likelihood"
        likelihoods = [record["scores"][0] for record in records] if is_text else None
        confidences = None
        if set(run.task.metrics) & set(metrics.CONFIDENCE_METRICS):
            confidences = [record["scores"][0] - record["scores"][1] for record in records]
            for record, item, value in zip(records, run.items, confidences, strict=True):
                record |= {"confidence": value, "positive": results.is_positive(run.task, item)}
        rows, values = results.make_rows(run.task, run.items, predictions, labels, self.seed, likelihoods, confidences)
        for place, record in enumerate(records):
            record["metrics"] = {metric: column[place] for metric, column in values.items()}
        log.publish(records)
        return rows

    def _prompts(self, run: Run) -> list[Prompt]:
        """The prompt of every item, with fewer demonstrations where the model's length leaves no room for all."""
        swapped = prompts.shuffled_images(run.task, self.items, self.seed) if run.context == "shuffled" else {}
        pool = self.data.pool(self.runner.features.image_embeddings) if run.shots else None

        worded = prompts.by_template(run.task)

        def build(item: Item) -> Prompt:
            shots = pool.draw(item, run.shots) if pool else []
            images = swapped.get(item.images, item.images)
            first, *others = (fitted(self.runner, task, item, shots, run.context, images) for task in worded)
            return replace(first, others=tuple(others)) if others else first

        built = [build(item) for item in run.items]
        if run.task.chain.of == "another":  # its first prompt, the item's own second one
            others = chains.another(self.items, self.seed, run.task.name)
            firsts = [build(others[item.id]) for item in run.items]
            built = [replace(first, then=own.then) for first, own in zip(firsts, built, strict=True)]
        limit = f"in {self.runner.max_length} tokens"
        if reduced := sum((prompt.then or prompt).shots < run.shots for prompt in built):
            self._warn(f"{reduced} of {len(built)} prompts got fewer than {run.shots} demonstrations: "
                       f"more do not fit {limit}")  # fmt: skip
        if shortened := sum(prompt.shortened for prompt in built):
            self._warn(f"{shortened} of {len(built)} prompts lost the end of their {run.task.prompt.shorten!r}: "
                       f"it does not fit {limit}")  # fmt: skip
        if pool and pool.leaking:
            self.console.print(f"  {len(pool.leaking)} examples share content with the evaluated split: left out")
        return built

    def _warn(self, text: str) -> None:
        self.console.print(f"  {styled('bold red', text)}")

    def _request(self, run: Run, item: Item, prompt: Prompt) -> str:
        stages = [stage for stage in (prompt, prompt.then, *prompt.others) if stage is not None]
        images = [content_hash(path) for stage in stages for path in stage.files]
        images += [content_hash(path) for path in item.candidate_images]
        images += [content_hash(path) for path in self.data.other_images]
        decoding = run.task.decoding
        scored: Sequence[str] = ()
        if decoding.method in ("rank", "cloze"):
            scored = [*continuations(run.task, item), *candidates(run.task, item)]
        elif decoding.method == "likelihood":
            scored = item.answers[:1]
        own = (run.task.name, list(scored), self.seed)
        texts = [stage.text for stage in stages]
        return request_hash(self.fingerprint, texts, images, *run.wording, *own)

    def _share(self, items: Sequence[Item]) -> list[int]:
        """This rank's places: whole images, dealt out in turn."""
        order = {cluster: i for i, cluster in enumerate(dict.fromkeys(item.cluster for item in items))}
        return [i for i, item in enumerate(items) if order[item.cluster] % self.rank.world == self.rank.index]

    def _show_first(self, prompt: Prompt) -> None:
        """The first prompt of the call with its token ids; of later runs, which differ little, only how it begins."""
        if self._shown:
            text = repr(prompt.text)
            self.console.print(f"  first prompt: {escape(text[:200])}{'…' * (len(text) > 200)}", soft_wrap=True)
            return
        self._shown = True
        if prompt.then:
            self.console.print(f"  second prompt: {escape(repr(prompt.then.text))}", soft_wrap=True)
        ids = [token for stage in self.runner.stages(prompt) for token in stage.ids]
        self.console.print(f"  first prompt: {escape(repr(prompt.text))}", soft_wrap=True)
        runs = [(token, len(list(same))) for token, same in itertools.groupby(ids)]
        shown = " ".join(f"{token}" if count == 1 else f"{token}×{count}" for token, count in runs)
        self.console.print(f"  its token ids: {shown}", soft_wrap=True, highlight=False)


def _record(item: Item, asked: Asked, request: str) -> Record:
    prompt, answer = asked.prompt, asked.answer
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
    if others := [path for path in prompt.files if path not in prompt.images]:
        record["files"] = [{"file": path.name, "sha256": content_hash(path)} for path in others]
    if item.source:
        record["source"] = item.source
    if prompt.shortened:
        record["shortened"] = True
    if answer.scores:
        record["scores"] = list(answer.scores)
    if asked.samples:
        record["rationale"] = asked.samples[asked.chosen][0]
    if len(asked.samples) > 1:
        record["samples"] = [{"rationale": text, "prediction": one.text} for text, one in asked.samples]
    return record


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Without dropout; the training mode is left as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


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
