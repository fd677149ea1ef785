"""One call of ``evaluate``: the data, encoded images and demonstrations that its runs share, and each run in order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from . import metrics, prompts, results, tasks
from .answering import Run, answer_run, candidates, continuations
from .data import Item, content_hash, load_items
from .demonstrations import DemonstrationPool
from .engine import Engine
from .metrics import auc
from .prompts import Prompt
from .results import Row
from .runner import Runner
from .store import Rank, Record, SampleLog, request_hash
from .tasks import Task


class Session:
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
        self.folder = Path(out) / "samples" / name.replace("/", "_") if out is not None else None
        self.items = load_items(task, data, task.split)
        self._data = data
        is_choice = task.decoding.constrained or task.decoding.method in ("rank", "cloze")
        if is_choice and not task.decoding.candidates and not all(item.candidates for item in self.items):
            names = sorted({answer for item in self.items for answer in item.answers})
            self.task = replace(task, decoding=replace(task.decoding, candidates=names))
        self.runner = Runner(model, processor)
        self.engine = Engine(self.runner, batch_rows)
        self._pool: DemonstrationPool | None = None
        self._shown = False

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights that answer."""
        return fingerprint(self.runner.model)

    @cached_property
    def train(self) -> list[Item]:
        """Items of the demonstrations' split, read when something needs them."""
        split, data = self.task.demonstrations.split, self._data
        if not split:
            return []
        files = self.task.dataset
        own, other = (files.annotations.format(split=name) for name in (self.task.split, split))
        if not (data / other).exists() or (own == other and files.format != "karpathy"):  # one file holds all splits
            self.console.print(f"{self.task.name}: no {split!r} split here, so no baselines and no demonstrations")
            return []
        return load_items(self.task, data, split)

    def check(self, shots: Sequence[int], contexts: Sequence[str]) -> None:
        """Refuse what cannot work before anything is computed."""
        metrics.check_available(self.task.metrics)
        for context in contexts:
            if context not in tasks.CONTEXTS:
                raise ValueError(f"unknown context {context!r}; choose from {', '.join(tasks.CONTEXTS)}")
            if context == "shuffled" and not any(item.images for item in self.items):
                raise ValueError(f"task {self.task.name} has no images to shuffle")
        for count in shots:
            if count < 0:
                raise ValueError(f"{count} shots: the number of demonstrations cannot be negative")
            if count and self.task.decoding.method == "cloze":
                raise ValueError(f"task {self.task.name}: method cloze fills one blank; it takes no demonstrations")
            if count and self.task.demonstrations.method != "own" and not self.train:
                raise ValueError(f"task {self.task.name}: {count} shots need a demonstrations.split with data")

    @property
    def pool(self) -> DemonstrationPool:
        if self._pool is None:
            self._pool = DemonstrationPool(self.task, self.train, self.items, self.runner.image_embeddings)
        return self._pool

    def run(self, run: Run) -> list[Row]:
        """Answer, log and score one run."""
        if set(run.task.metrics) & set(metrics.CONFIDENCE_METRICS):
            auc.check_classes([results.is_positive(run.task, item) for item in run.items])
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
            for records in answer_run(self.engine, run, built, open_places, requests):
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
        room = self._answer_room(run)
        built = [self._fitted(run, item, swapped.get(item.images, item.images), room) for item in run.items]
        reduced = sum(prompt.shots < run.shots for prompt in built)
        if reduced:
            self.console.print(
                f"  [bold red]{reduced} of {len(built)} prompts got fewer than {run.shots} demonstrations: "
                f"more do not fit in {self.runner.max_length} tokens[/]"
            )
        shortened = sum(prompt.shortened for prompt in built)
        if shortened:
            self.console.print(
                f"  [bold red]{shortened} of {len(built)} prompts lost the end of their {run.task.prompt.shorten!r}: "
                f"it does not fit in {self.runner.max_length} tokens[/]"
            )
        if run.shots and self.pool.leaking:
            self.console.print(f"  {len(self.pool.leaking)} examples share content with the evaluated split: left out")
        return built

    def _fitted(self, run: Run, item: Item, images: Sequence[Path], room: int) -> Prompt:
        """One item's prompt: demonstrations are left out first, then words of the field that the task lets go."""
        shots = self.pool.draw(item, run.shots) if run.shots else []
        given = (*images, *item.candidate_images[:1])
        shown = item

        def build() -> tuple[Prompt, int]:
            prompt = prompts.build(run.task, shown, shots, run.context, given, run.task.rationale)
            return prompt, self.runner.length(prompt) + room - self.runner.max_length

        prompt, excess = build()
        while excess > 0 and shots:
            shots = shots[1:]
            prompt, excess = build()
        field = run.task.prompt.shorten
        while excess > 0 and shown.fields.get(field, "").strip():
            words = shown.fields[field].split()
            shown = replace(item, fields=item.fields | {field: " ".join(words[: -max(1, excess // 4)])})
            prompt, excess = build()
        if excess > 0:
            tokens = excess + self.runner.max_length
            raise ValueError(
                f"task {run.task.name}, item {item.id}: prompt and answer take {tokens} tokens, the model "
                f"{self.runner.max_length}; leave the item out, or let a field lose its end (prompt.shorten)"
            )
        return replace(prompt, shortened=shown is not item)

    def _answer_room(self, run: Run) -> int:
        room = run.task.decoding.max_new_tokens
        if run.task.decoding.method in ("rank", "cloze"):
            texts = {text for item in run.items for text in continuations(run.task, item)}
            room = max((len(self.runner.text_ids(text)) for text in texts), default=0)
        if tasks.CANDIDATE in run.task.prompt.template:
            words = {prompts.wording(run.task, text) for item in run.items for text in candidates(run.task, item)}
            room += max(len(self.runner.text_ids(text)) for text in words)
        return room + (run.task.rationale_tokens if run.task.rationale else 0)

    def _request(self, run: Run, item: Item, prompt: Prompt) -> str:
        images = [content_hash(path) for path in (*prompt.images, *item.candidate_images)]
        decoding, wording = run.task.decoding, (run.task.prompt, run.task.rationale)
        scored: Sequence[str] = ()
        if decoding.method in ("rank", "cloze"):
            scored = [*continuations(run.task, item), *candidates(run.task, item)]
        elif decoding.method == "likelihood":
            scored = item.answers[:1]
        own = (run.task.name, list(scored), self.seed)
        return request_hash(self.fingerprint, prompt.text, images, decoding, wording, *own)

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
        ids = [token for stage in self.runner.stages(prompt) for token in stage.ids]
        self.console.print(f"  first prompt: {escape(repr(prompt.text))}", soft_wrap=True)
        runs = [(token, len(list(same))) for token, same in itertools.groupby(ids)]
        shown = " ".join(f"{token}" if count == 1 else f"{token}×{count}" for token, count in runs)
        self.console.print(f"  its token ids: {shown}", soft_wrap=True, highlight=False)


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
