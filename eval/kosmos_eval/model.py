"""The model under evaluation, asked two questions: how likely is this text there, and what comes next?

:meth:`EvaluatedModel.log_likelihoods` and :meth:`EvaluatedModel.generate` take many questions at once, put those with
equal beginnings and like lengths into one batch, and reply batch by batch, so that the caller can write a batch down
before the next. Greedy decoding equals ``model.generate(do_sample=False)`` on each prompt alone
(tests/eval/test_model.py); beams are ``generate``'s own.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from . import fill_blanks
from .prompts import Likelihood, Pair, Prompt
from .runner import Runner, State
from .stages import Stage
from .tasks import Decoding
from .trie import Trie

Reply = TypeVar("Reply")


class EvaluatedModel:
    """Batched replies of one model; each batch of them is a dictionary by the question's place.

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
    ) -> Iterator[dict[int, str]]:
        """Write an answer to each prompt; batches come in an order of the model's choosing.

        Args:
            prompts: what is answered.
            decoding: ``greedy``, ``beam`` or ``sample``, and how long.
            seeds: one for each prompt, for ``sample``.
            ends: tokens that end an answer; by default those of the checkpoint.
        """
        ends = self.runner.ends if ends is None else ends
        write = self._write_beams if decoding.method == "beam" else self._write
        for group in self._groups(prompts):
            for places, ids in write(group, decoding, seeds, ends):
                yield {index: self.runner.decode(row) for index, row in zip(places, ids, strict=True)}

    def _write(
        self, group: Mapping[int, list[Stage]], decoding: Decoding, seeds: Sequence[int], ends: Collection[int]
    ) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Write behind a group's prompts; yield places and ids of batches."""
        for places, state, logits_BV in self._read(group):
            yield places, self.runner.write(state, logits_BV, decoding, [seeds[index] for index in places], ends)

    def _write_beams(
        self, group: Mapping[int, list[Stage]], decoding: Decoding, seeds: Sequence[int], ends: Collection[int]
    ) -> Iterator[tuple[list[int], list[list[int]]]]:
        """The same by beams, which read whole prompts and alone can be held to the candidates."""
        allowed = None
        if decoding.constrained:
            runner = self.runner
            allowed = Trie([runner.text_ids(" " + text) for text in decoding.candidates], runner.eos).allowed
        whole = {place: sum(stages[1:], stages[0]) for place, stages in group.items()}
        for places in self._by_length({place: len(stage.ids) for place, stage in whole.items()}):
            yield places, self.runner.beam([whole[place] for place in places], decoding, allowed, ends)

    @torch.no_grad()
    def log_likelihoods(self, pairs: Sequence[Pair]) -> Iterator[dict[int, Likelihood]]:
        """Tell how likely each text is in its place; a prompt that several pairs have is read once.

        Raises:
            ValueError: a prompt that is too long, a text without a token, a blank where none can be filled.
        """
        if pairs and pairs[0].prompt is None:
            yield from self._alone([pair.text for pair in pairs])
            return
        places: dict[Prompt, dict[str, list[int]]] = {}  # by prompt and text, so that equal pairs are computed once
        for place, (prompt, text, _) in enumerate(pairs):
            assert prompt is not None
            places.setdefault(prompt, {}).setdefault(text, []).append(place)
        asked = {prompt: list(texts) for prompt, texts in places.items()}
        in_blank = bool(pairs) and pairs[0].in_blank
        for batch in fill_blanks.fill(self.runner, asked, self.batch_rows) if in_blank else self._behind(asked):
            scored = [
                (places[prompt][text], likelihood)
                for prompt, row in batch.items()
                for text, likelihood in zip(asked[prompt], row, strict=True)
            ]
            yield {place: likelihood for same, likelihood in scored for place in same}

    def _behind(self, asked: Mapping[Prompt, list[str]]) -> Iterator[dict[Prompt, list[Likelihood]]]:
        """Tell how likely each prompt's texts are behind it."""
        prompts = list(asked)
        for group in self._groups(prompts):
            for places, state, logits_BV in self._read(group):
                own = [prompts[index] for index in places]
                rows = self._score(state, logits_BV, [asked[prompt] for prompt in own])
                yield dict(zip(own, rows, strict=True))

    def _alone(self, texts: Sequence[str]) -> Iterator[dict[int, Likelihood]]:
        """Tell how likely whole texts are; longer ones than the model reads, in windows without overlap."""
        size = self.runner.max_length - 1
        split = [self.runner.text_ids(text) for text in texts]
        windows = [(place, ids[at : at + size]) for place, ids in enumerate(split) for at in range(0, len(ids), size)]
        nats = [0.0] * len(texts)
        left = Counter(place for place, _ in windows)
        for run in self._cut([len(window) for _, window in windows]):
            batch = windows[run.start : run.stop]
            for (place, _), value in zip(batch, self.runner.log_likelihoods([ids for _, ids in batch]), strict=True):
                nats[place] += value
                left[place] -= 1
            yield {place: Likelihood(nats[place]) for place, _ in batch if not left[place]}
        yield {place: Likelihood(0.0) for place, ids in enumerate(split) if not ids}

    def _groups(self, prompts: Sequence[Prompt]) -> Iterator[dict[int, list[Stage]]]:
        """Group prompts by their beginnings, which are as many as fit into a batch; all have the same number of stages.

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
        heads = [(depth, prefix) for (depth, _, prefix, *_), _ in staged]
        unique = list(dict.fromkeys(heads))
        lengths_of = {head: sum(lengths) for head, ((_, lengths, *_), _) in zip(heads, staged, strict=True)}
        runs = self._cut([lengths_of[head] for head in unique], [depth for depth, _ in unique])
        group_of = {head: number for number, run in enumerate(runs) for head in unique[run.start : run.stop]}
        for _, same in itertools.groupby(zip(heads, staged, strict=True), key=lambda entry: group_of[entry[0]]):
            yield {index: stages for _, ((*_, index), stages) in same}

    def _by_length(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """Divide the places of a group into batches of like lengths, so that little is padding."""
        places = sorted(lengths, key=lambda place: lengths[place])
        for run in self._cut([lengths[place] for place in places]):
            yield places[run.start : run.stop]

    def _cut(self, lengths: Sequence[int], kinds: Sequence[object] = ()) -> Iterator[range]:
        """Divide rows, in their order, into batches: each of one kind, with no more rows and tokens than allowed."""
        start = longest = 0
        for place, length in enumerate(lengths):
            rows, longest = place - start, max(longest, length)
            is_full = rows == self.batch_rows or (rows + 1) * longest > self.batch_tokens
            if rows and (is_full or (kinds and kinds[place] != kinds[start])):
                yield range(start, place)
                start, longest = place, length
        if lengths:
            yield range(start, len(lengths))

    def _read(self, group: Mapping[int, list[Stage]]) -> Iterator[tuple[list[int], State, Tensor]]:
        """Read whole prompts, each shared beginning once; yield the places, state and next-token logits of batches."""
        whole = {place: sum(len(stage.ids) for stage in stages) for place, stages in group.items()}
        state, parents, pending = self._read_beginnings(list(group.values()))
        ends = dict(zip(group, zip(parents, pending, strict=True), strict=True))
        for own in self._by_length(whole):
            before = None
            if state is not None:
                before = state.select(torch.tensor([ends[place][0] for place in own], device=self.runner.device))
            after, logits = self.runner.extend(before, [ends[place][1] for place in own])
            yield own, after, logits[:, -1]

    def _read_beginnings(self, rows: Sequence[list[Stage]]) -> tuple[State | None, list[int], list[Stage]]:
        """Read what rows share; return the state, each row's place in it, and what each has still to read."""
        rows = _with_common_start(rows)
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
        return state, [parents[key] for key in above], pending

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

    def _score(self, state: State, logits_BV: Tensor, candidates: Sequence[Sequence[str]]) -> list[list[Likelihood]]:
        """Tell how likely each row's candidates are behind it.

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
            logits = self.runner.extend(state.select(parents), stages, keep, written=True)[1].log_softmax(dim=-1)
            for (b, c), logits_TV in zip(chunk, logits, strict=True):
                targets = torch.tensor(ids[b][c][1:], device=logits_TV.device)
                own_TV = logits_TV[keep - len(targets) :]
                totals[b][c] += float(own_TV.gather(1, targets[:, None]).sum())
                greedy[b][c] &= bool((own_TV.argmax(dim=-1) == targets).all())
        counts = [[len(one) for one in row] for row in ids]
        return [list(map(Likelihood, *row)) for row in zip(totals, counts, greedy, strict=True)]


def _with_common_start(rows: Sequence[list[Stage]]) -> Sequence[list[Stage]]:
    """Move the tokens with which all last stages begin ("Question:") to the stage before, which is read once."""
    ends = [row[-1] for row in rows]
    if len(rows[0]) == 1 or any(stage.pieces for stage in ends):
        return rows
    first, last = min(stage.ids for stage in ends), max(stage.ids for stage in ends)
    most = min(len(stage.ids) for stage in ends) - 1  # something has to be read last
    common = next((i for i in range(most) if first[i] != last[i]), most)
    start = Stage(first[:common])
    return [[*row[:-2], row[-2] + start, Stage(row[-1].ids[common:])] for row in rows]


def in_order(batches: Iterable[Mapping[int, Reply]]) -> list[Reply]:
    """All replies in the order of their questions."""
    merged = {place: reply for batch in batches for place, reply in batch.items()}
    return [merged[place] for place in sorted(merged)]
