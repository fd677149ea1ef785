"""Answers for many prompts: batching by shared beginning and length, greedy decoding, sampling, beams, likelihood
ranking.

Results come batch by batch, so that the caller can write them down before the next batch. Greedy decoding equals
``model.generate(do_sample=False)`` on each prompt alone (tests/eval/test_engine.py); beams are ``generate``'s own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .prompts import Prompt
from .runner import Runner, Stage, State
from .tasks import Decoding
from .trie import Trie


@dataclass(frozen=True)
class Answer:
    """What the model said to prompt number ``index``.

    For ranking: the candidates' scores in order, the best one, and which of them greedy decoding would write.
    """

    index: int
    text: str
    scores: tuple[float, ...] = ()
    best: int = -1
    greedy: tuple[bool, ...] = ()


class Engine:
    """Batched answering with one model.

    Args:
        runner: the model.
        batch_rows: prompts in a batch at most.
        batch_tokens: rows times longest prompt at most.
        share: compute shared beginnings once (off only to measure what it saves).
    """

    def __init__(self, runner: Runner, batch_rows: int = 128, batch_tokens: int = 32768, share: bool = True) -> None:
        if batch_rows < 1:
            raise ValueError(f"batch size {batch_rows} must be at least 1")
        self.runner, self.batch_rows, self.batch_tokens, self.share = runner, batch_rows, batch_tokens, share
        self._held: tuple[object, State] | None = None

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        seeds: Sequence[int],
        ends: Collection[int] | None = None,
    ) -> Iterator[list[Answer]]:
        """Write an answer to each prompt; batches come in an order of the engine's choosing.

        Args:
            prompts: what is answered.
            decoding: ``greedy``, ``beam`` or ``sample``, and how long.
            seeds: one for each prompt, for ``sample``.
            ends: tokens that end an answer; by default those of the checkpoint.
        """
        trie = self._trie(decoding) if decoding.constrained else None
        ends = self.runner.ends if ends is None else ends
        for batch in self._batches(prompts):
            if decoding.method == "beam":
                yield self._beam(batch, decoding, trie, ends)
            else:
                state, logits_BV = self._read([stages for _, stages in batch])
                own = [seeds[index] for index, _ in batch]
                ids = self.runner.write(state, logits_BV, decoding, own, ends)
                yield [Answer(index, self.runner.decode(row)) for (index, _), row in zip(batch, ids, strict=True)]

    @torch.no_grad()
    def rank(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[Sequence[str]],
        normalisation: str = "sum",
        bare_prompt: str = "Answer:",
    ) -> Iterator[list[Answer]]:
        """Score each prompt's candidate continuations; the answer's text is the best one (the first of equals)."""
        bare = self._unconditional(candidates, bare_prompt) if normalisation == "unconditional" else {}
        for batch in self._batches(prompts):
            state, logits_BV = self._read([stages for _, stages in batch])
            answers = []
            per_row = self._log_likelihoods(state, logits_BV, [candidates[index] for index, _ in batch])
            for (index, _), raw in zip(batch, per_row, strict=True):
                scores = tuple(
                    self._normalised(value, text, normalisation, bare)
                    for (value, _), text in zip(raw, candidates[index], strict=True)
                )
                best = max(range(len(scores)), key=scores.__getitem__)
                greedy = tuple(flag for _, flag in raw)
                answers.append(Answer(index, candidates[index][best].strip(), scores, best, greedy))
            yield answers

    @torch.no_grad()
    def likelihood(self, texts: Sequence[str]) -> Iterator[list[Answer]]:
        """The log-probability of each text, in ``scores``; longer ones than the model reads in windows without
        overlap."""
        size = self.runner.max_length - 1
        totals = [0.0] * len(texts)
        batch: list[tuple[int, tuple[int, ...]]] = []
        started = 0
        for index, text in enumerate(texts):
            ids = self.runner.text_ids(text)
            for start in range(0, len(ids), size):
                window = ids[start : start + size]
                longest = max(len(window), *(len(other) for _, other in batch), 0)
                if batch and (len(batch) == self.batch_rows or (len(batch) + 1) * longest > self.batch_tokens):
                    self._add_likelihoods(batch, totals)
                    batch = []
                    yield [Answer(i, "", (totals[i],)) for i in range(started, index)]
                    started = index
                batch.append((index, window))
        if batch:
            self._add_likelihoods(batch, totals)
        yield [Answer(i, "", (totals[i],)) for i in range(started, len(texts))]

    def _add_likelihoods(self, batch: Sequence[tuple[int, tuple[int, ...]]], totals: list[float]) -> None:
        for (index, _), value in zip(batch, self.runner.log_likelihoods([window for _, window in batch]), strict=True):
            totals[index] += value

    def _normalised(self, value: float, text: str, normalisation: str, bare: dict[str, float]) -> float:
        if normalisation == "mean":
            return value / len(self.runner.text_ids(text))
        if normalisation == "byte":
            return value / len(text.strip().encode())
        return value - bare.get(text, 0.0)

    def _unconditional(self, candidates: Sequence[Sequence[str]], bare_prompt: str) -> dict[str, float]:
        """Log-likelihood of each distinct candidate after ``<s>`` and ``bare_prompt`` (GPT-3, section 2.4)."""
        texts = list(dict.fromkeys(text for row in candidates for text in row))
        state, logits_BV = self._read([self.runner.stages(Prompt((bare_prompt,)))])
        (values,) = self._log_likelihoods(state, logits_BV, [texts])
        return {text: value for text, (value, _) in zip(texts, values, strict=True)}

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, list[Stage]]]]:
        """Group prompts that share beginnings, then by length; every batch has the same number of stages.

        Raises:
            ValueError: a prompt is longer than the model reads; nothing is cut here.
        """
        staged = []
        for index, prompt in enumerate(prompts):
            stages = self.runner.stages(prompt)
            if not self.share:
                stages = [sum(stages[1:], stages[0])]
            lengths = tuple(len(stage.ids) for stage in stages)
            if sum(lengths) > self.runner.max_length:
                raise ValueError(
                    f"prompt {prompt.text[:60]!r}… takes {sum(lengths)} tokens, the model {self.runner.max_length}"
                )
            prefix = tuple(stage.key for stage in stages[:-1])
            staged.append(((len(stages), lengths[:-1], prefix, lengths[-1], index), stages))
        staged.sort(key=lambda entry: entry[0])
        batch: list[tuple[int, list[Stage]]] = []
        longest = count = 0
        for (depth, prefix_lengths, _, last, index), stages in staged:
            longest = max(longest, sum(prefix_lengths) + last)
            full = len(batch) == self.batch_rows or (len(batch) + 1) * longest > self.batch_tokens
            if batch and (full or depth != count):
                yield batch
                batch, longest = [], sum(prefix_lengths) + last
            count = depth
            batch.append((index, stages))
        if batch:
            yield batch

    def _read(self, rows: Sequence[list[Stage]]) -> tuple[State, Tensor]:
        """Read whole prompts, each shared beginning once; return the state and the next-token logits (B, V)."""
        depth = len(rows[0])
        state: State | None = None
        pending = [Stage(())] * len(rows)
        parents: dict[object, int] = {(): 0}
        above: list[object] = [()] * len(rows)
        for level in range(depth):
            pending = [have + row[level] for have, row in zip(pending, rows, strict=True)]
            if level == depth - 1:
                break
            keys: list[object] = [(up, stage.key) for up, stage in zip(above, pending, strict=True)]
            unique = dict.fromkeys(keys)
            following = {(key, row[level + 1].key) for key, row in zip(keys, rows, strict=True)}
            if len(unique) == len(following):  # nothing is shared from here on: read it together with the next stage
                continue
            state = self._read_unique(state, keys, pending, above, parents)
            parents = {key: place for place, key in enumerate(unique)}
            above, pending = keys, [Stage(())] * len(rows)
        if state is not None:
            state = state.select(torch.tensor([parents[key] for key in above], device=self.runner.device))
        state, logits = self.runner.extend(state, pending)
        return state, logits[:, -1]

    def _read_unique(
        self,
        state: State | None,
        keys: Sequence[object],
        stages: Sequence[Stage],
        above: Sequence[object],
        parents: dict[object, int],
    ) -> State:
        """Read each distinct stage once. A beginning that a whole batch shares is held for the next batch."""
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        order = list(dict.fromkeys(keys))
        if state is None and len(order) == 1:
            if self._held is None or self._held[0] != order[0]:
                self._held = order[0], self.runner.extend(None, [stages[0]], keep=0)[0]
            return self._held[1]
        if state is not None:
            rows = [parents[above[first[key]]] for key in order]
            state = state.select(torch.tensor(rows, device=self.runner.device))
        return self.runner.extend(state, [stages[first[key]] for key in order], keep=0)[0]

    def _log_likelihoods(
        self, state: State, logits_BV: Tensor, candidates: Sequence[Sequence[str]]
    ) -> list[list[tuple[float, bool]]]:
        """Summed log-probability of each row's candidates, and whether each is what greedy decoding writes.

        All first tokens come from one distribution, the other tokens from one more pass.
        """
        ids = [[self.runner.text_ids(text) for text in row] for row in candidates]
        for row, texts in zip(ids, candidates, strict=True):
            if not all(row):
                raise ValueError(f"a candidate has no token: {texts[[len(one) > 0 for one in row].index(False)]!r}")
        first_BV, best_B = logits_BV.log_softmax(dim=-1), logits_BV.argmax(dim=-1).tolist()
        totals = [[float(first_BV[b, one[0]]) for one in row] for b, row in enumerate(ids)]
        greedy = [[one[0] == best_B[b] for one in row] for b, row in enumerate(ids)]
        long = [(b, c) for b, row in enumerate(ids) for c, one in enumerate(row) if len(one) > 1]
        for start in range(0, len(long), self.batch_rows):
            chunk = long[start : start + self.batch_rows]
            stages = [Stage(ids[b][c][:-1]) for b, c in chunk]
            keep = max(len(stage.ids) for stage in stages)
            parents = torch.tensor([b for b, _ in chunk], device=self.runner.device)
            logits = self.runner.extend(state.select(parents), stages, keep)[1].log_softmax(dim=-1)
            for (b, c), logits_TV in zip(chunk, logits, strict=True):
                targets = torch.tensor(ids[b][c][1:], device=logits_TV.device)
                own_TV = logits_TV[keep - len(targets) :]
                totals[b][c] += float(own_TV.gather(1, targets[:, None]).sum())
                greedy[b][c] &= bool((own_TV.argmax(dim=-1) == targets).all())
        return [list(zip(*row, strict=True)) for row in zip(totals, greedy, strict=True)]

    def _beam(
        self, batch: list[tuple[int, list[Stage]]], decoding: Decoding, trie: Trie | None, ends: Collection[int]
    ) -> list[Answer]:
        whole = [sum(stages[1:], stages[0]) for _, stages in batch]
        ids = self.runner.beam(whole, decoding, trie.allowed if trie is not None else None, ends)
        return [Answer(index, self.runner.decode(row)) for (index, _), row in zip(batch, ids, strict=True)]

    def _trie(self, decoding: Decoding) -> Trie:
        return Trie([self.runner.text_ids(" " + text) for text in decoding.candidates], self.runner.eos)
