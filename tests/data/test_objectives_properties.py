"""What holds for every objective: it can be undone, asks for each token once, keeps images whole, repeats itself.

Documents are drawn by hypothesis: words that each occur once, with images between them, so that an id says which token
of the document it is, and the mean of a picture which picture.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures

from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import Document, Image, Text, objectives
from kosmos_data.example import Example
from kosmos_data.objectives._flatten import flatten

Symbols = list[Any]
WHOLE = ("causal", "fim", "semi_causal paper", "semi_causal grid", "semi_causal prefix")
"""Cases that do not cut a document into windows."""


@st.composite
def documents(draw: st.DrawFn, words: list[str], least: int = 8, pictures: int = 2) -> Document:
    """Words in any order, none twice, in texts with a dot here and there, and up to two pictures."""
    chosen = draw(st.permutations(words))[: draw(st.integers(least, len(words)))]
    count = draw(st.integers(0, pictures))
    bounds = sorted(draw(st.lists(st.integers(0, len(chosen)), min_size=count, max_size=count)))
    segments: list[Any] = []
    for number, (start, stop) in enumerate(itertools.pairwise([0, *bounds, len(chosen)])):
        if number:
            segments.append(picture(number))
        if start < stop:
            segments.append(Text(prose(chosen[start:stop])))
    return Document("k", segments)


def picture(number: int) -> Image:
    """One colour, which tells the picture from the others of a document."""
    buffer = io.BytesIO()
    Pictures.new("RGB", (8, 8), (40 * number,) * 3).save(buffer, "PNG")
    return Image(buffer.getvalue())


def prose(words: Any) -> str:
    """Sentences of four words."""
    return " ".join(word + "." * (number % 4 == 3) for number, word in enumerate(words))


def symbols(example: Example) -> Symbols:
    """Input ids; the first slot of an image is ("image", its mean), of a span ("span", its ids)."""
    found: Symbols = example.token.tolist()
    for span in example.placed:
        key = float(span.payload.mean()) if span.modality == "image" else tuple(span.payload[1:].tolist())
        found[span.start] = (span.modality, key)
    return found


def original(document: Document, processor: KosmosProcessor) -> Symbols:
    flat = flatten(document, processor)
    found: Symbols = flat.ids.tolist()
    for span in flat.placed:
        found[span.start] = ("image", float(span.payload.mean()))
    return found


class Undo:
    """The inverse of each objective, written from its description, token by token."""

    def __init__(self, processor: KosmosProcessor) -> None:
        ids = processor.tokenizer.convert_tokens_to_ids
        self.sentinels = set(ids([f"<extra_id_{number}>" for number in range(100)]))
        self.modes = set(ids(["[NLU]", "[NLG]", "[S2S]"]))
        self.masks = set(ids(["<mask>", "[sMASK]", "[gMASK]"]))
        self.sop, self.eop, self.span_end = ids(["<sop>", "<eop>", "<eos_span>"])
        self.pre, self.suf, self.mid = ids(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
        self.slot = processor.span_slot_id
        self.processor = processor

    def __call__(self, case: str, example: Example) -> Symbols:
        read = symbols(example)
        if case == "mlm":
            return [
                int(label) if weight else token
                for token, label, weight in zip(read, example.label, example.weight, strict=True)
            ]
        if case.startswith("glm"):
            return self.glm(read, example)
        read.append(int(example.label[-1]))  # the last thing written is no input
        if case.startswith("semi"):
            return [token for symbol in read for token in self.span(symbol)]
        if self.pre in read:
            return self.fim(read)
        read = [token for token in read if token not in self.modes]
        return self.sentinel(read) if self.sentinels & set(read) else read

    def span(self, symbol: Any) -> Symbols:
        if isinstance(symbol, tuple) and symbol[0] == "span":
            return list(symbol[1])
        return [] if symbol == self.slot else [symbol]

    def sentinel(self, read: Symbols) -> Symbols:
        """T5 and CM3: the second time a sentinel comes, what follows is what it stands for."""
        body, hidden, current = [], {}, None
        for token in read:
            if token in self.sentinels and token in body:
                current = hidden.setdefault(token, [])
            elif current is not None:
                current.append(token)
            else:
                body.append(token)
        last = current.pop()
        result = [token for symbol in body for token in hidden.get(symbol, [symbol])]
        return [token for token in result if token != self.span_end] + [last]

    def fim(self, read: Symbols) -> Symbols:
        pre, suf, mid = (read.index(token) for token in (self.pre, self.suf, self.mid))
        return [*read[:pre], *read[pre + 1 : suf], *read[mid + 1 : -1], *read[suf + 1 : mid], read[-1]]

    def glm(self, read: Symbols, example: Example) -> Symbols:
        """Pieces by the position of their mask, or in order where positions are plain."""
        length = read.index(self.sop) if self.sop in read else len(read)
        assert length == (int((example.block >= 0).sum()) or length)
        body, pieces, at = read[:length], [], length
        while at < len(read):
            stop = next((t for t in range(at + 1, len(read)) if read[t] == self.sop), len(read))
            assert read[at] == self.sop
            assert example.label[at : stop - 1].tolist() == read[at + 1 : stop]
            assert example.label[stop - 1] in (self.eop, 2) or not example.weight[stop - 1]
            pieces.append((int(example.position[at]), read[at + 1 : stop], int(example.label[stop - 1])))
            at = stop
        places = [t for t, token in enumerate(body) if token in self.masks]
        if sorted(place for place, _, _ in pieces) == places:
            pieces.sort()
        texts = iter([text for _, text, _ in pieces])
        result = [token for symbol in body for token in (next(texts) if symbol in self.masks else [symbol])]
        if not pieces:  # fell back to causal: the last label is no input
            return [*result, int(example.label[-1])]
        return [*result, 2] if pieces[-1][2] == 2 else result


def decoded(found: Symbols, processor: KosmosProcessor) -> Symbols:
    """Ids as text, pictures as they are: FIM may tokenise a word in two parts."""
    groups = itertools.groupby(found, key=lambda symbol: isinstance(symbol, tuple))
    result: Symbols = []
    for is_picture, group in groups:
        result += list(group) if is_picture else [processor.tokenizer.decode(list(group))]
    return result


def test_undoing_gives_the_document_back(
    case: str, build: Callable, objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    undo = Undo(objective_processor)

    def check(document: Document, seed: int) -> None:
        example = build(case)(document, seed)
        expected = original(document, objective_processor)
        found = undo(case, example)
        if case == "fim":
            found, expected = (decoded(one, objective_processor) for one in (found, expected))
        assert found == expected

    for seed in range(8):
        check(Document("k", [picture(1), Text(prose(objective_words[:20])), picture(2)]), seed)
    settings(max_examples=50)(given(documents(objective_words), st.integers(0, 2**63))(check))()


def test_every_token_is_asked_for_once_or_read(
    case: str, build: Callable, objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """Of words that occur once: none is a target twice; each is a target, or input, or in a span; never mere loss."""
    ordinary = set(objective_processor.encode_text(" ".join(objective_words)))

    @settings(max_examples=20)
    @given(documents(objective_words), st.integers(0, 2**63))
    def check(document: Document, seed: int) -> None:
        example = build(case)(document, seed)
        all_ids = [i for i in flatten(document, objective_processor).ids.tolist() if i in ordinary]
        asked = [i for i in example.label[example.weight > 0].tolist() if i in ordinary]
        read = example.token.tolist() + [i for s in example.placed if s.modality == "span" for i in s.payload.tolist()]
        if case != "fim":  # which may cut a word
            assert len(asked) == len(set(asked))
            assert set(asked) | (set(read) & ordinary) == set(all_ids)
        assert (example.weight[example.token == objective_processor.span_slot_id] >= 0).all()
        assert ((example.weight > 0) == (example.label != -100)).all()
        inside = np.append(example.block[1:], -1)
        within = (example.block >= 0) & (inside == example.block)
        assert case == "mlm" or not example.weight[within].any(), "loss inside a bidirectional block"

    check()


def test_spans_are_whole_and_apart(
    case: str, build: Callable, objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """Images keep their begin, slots and end; nothing overlaps; cuts leave every span whole."""
    begin, slot, *_, end = objective_processor.image_token_ids()

    in_windows = {} if case in WHOLE else {"chunk_tokens": 24}

    @settings(max_examples=15)
    @given(documents(objective_words, pictures=3), st.integers(0, 2**63), st.booleans())
    def check(document: Document, seed: int, cut: bool) -> None:
        example = build(case, **(in_windows if cut else {}))(document, seed)
        taken = np.zeros(len(example), dtype=int)
        for span in example.placed:
            part = slice(span.start, span.start + span.length)
            taken[part] += 1
            assert not example.cuts[span.start + 1 : span.start + span.length].any()
            if span.modality == "image":
                assert example.token[span.start - 1] == begin
                assert (example.token[part] == slot).all()
                assert example.token[span.start + span.length] == end
                assert not example.cuts[span.start]
        assert (taken <= 1).all()
        assert taken.sum() == np.isin(example.token, [slot, objective_processor.span_slot_id]).sum()
        assert [span.start for span in example.placed] == sorted(span.start for span in example.placed)

    check()


def test_same_seed_same_example(
    case: str,
    objective_cases: dict[str, tuple[str, dict[str, Any]]],
    build: Callable,
    objective_processor: KosmosProcessor,
    objective_words: list[str],
) -> None:
    """Also from an objective that is built anew, as in every worker; and another seed draws otherwise."""
    name, options = objective_cases[case]
    document = Document("k", [Text(prose(objective_words))])
    again = objectives.get(name, objective_processor, **options)
    first = [build(case)(document, seed) for seed in range(8)]
    second = [again(document, seed) for seed in reversed(range(8))][::-1]
    for a, b in zip(first, second, strict=True):
        for column in ("token", "label", "weight", "block", "position", "position_in_span", "cuts"):
            assert (getattr(a, column) == getattr(b, column)).all()
    assert case == "causal" or len({(a.token.tobytes(), a.weight.tobytes()) for a in first}) > 1


def test_windows_can_be_undone_one_by_one(
    case: str, build: Callable, objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """A long document is cut into windows; between them the packer may cut, and each is whole in itself."""
    if case in WHOLE:
        pytest.skip("has no windows")
    undo = Undo(objective_processor)
    document = Document("k", [Text(prose(objective_words))])
    for seed in range(6):
        example = build(case, chunk_tokens=30)(document, seed)
        bounds = [0, *np.flatnonzero(example.cuts).tolist(), len(example)]
        assert len(bounds) == 5
        found: Symbols = []
        for start, stop in itertools.pairwise(bounds):
            part = slice(start, stop)
            columns = {
                column: getattr(example, column)[part]
                for column in ("token", "label", "weight", "document", "block", "position", "position_in_span", "cuts")
            }
            columns["position"] = columns["position"] - columns["position"][0]
            window = Example(**columns, placed=[])
            symbols_of = undo(case, window)
            # a window that ends its targets with </s> but not the document, or reads its last token without a label
            closed = stop == len(example) or symbols_of[-1] not in (-100, 2)
            found += symbols_of if closed else symbols_of[:-1]
        assert found == original(document, objective_processor)
