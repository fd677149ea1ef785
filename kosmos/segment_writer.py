"""Segments → ids: text, special tokens, and the places of what encoders read, between their marks.

Layout: KOSMOS-1 table 21, KOSMOS-2 ``laion2b_loader.py``; text spans as in MetaLM (arXiv 2206.06336, section 2.3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from .entities import Rows, parse_entity
from .further_segments import as_segment
from .grounding import BEGIN as GROUNDING
from .grounding import (
    NEXT_OBJECT,
    OBJECT,
    OBJECT_END,
    PHRASE,
    PHRASE_END,
    TOKENS,
    Grounded,
    read_grounded,
    to_bins,
)
from .modalities import MODALITIES, Modality
from .modality import Reader
from .segments import WRITTEN, Encoded, Entity, Image, Persona, Placed, Segment, Span, Text, Token, modality_name
from .tokenization_kosmos import BOS, ENTITY_BEGIN, ENTITY_END, EOS, ESCAPE, IMAGE_END, encode_text


class SegmentWriter:
    """What a processor knows of segments; its constructor sets what is declared here."""

    tokenizer: Any
    entities: dict[str, int | Sequence[str]] | None
    personas: str
    image_marks: bool
    readers: dict[str, Reader]
    _rows: Rows
    _marks: dict[tuple[str, ...], tuple[list[int], ...]]
    _space: str

    def encode(self, segments: Iterable[Segment | list[int]], skip_empty: bool = False) -> Encoded:
        """Write segments as ids: text, special tokens, and the places of what encoders read between their marks.

        Args:
            segments: in reading order; a list of ids is written as it is.
            skip_empty: leave out what its encoder has nothing to read of, instead of refusing it.

        Returns:
            The ids, without ``<s>`` and ``</s>`` unless they are among the segments, and what was placed in them.

        Raises:
            TooLong: a ValueError; a span is longer than its encoder reads.
            ValueError: a special token that the tokenizer does not have (all of a grounded text are needed), or a
                segment without anything to read.
        """
        encoded = Encoded()
        for segment in segments:
            if isinstance(segment, Text) and segment.boxes is not None:
                self._write_grounded(segment, encoded)
            elif isinstance(segment, Text):
                encoded.ids += self.encode_text(segment.text)
            elif isinstance(segment, Token):
                encoded.ids.append(self.token_id(segment.text))
            elif isinstance(segment, list):
                encoded.ids += segment
            elif isinstance(segment, Persona):
                for part in self.persona_parts(segment):
                    self._read(part, encoded, skip_empty)
            else:
                self._read(segment, encoded, skip_empty)
            encoded.edges.append(len(encoded.ids))
        return encoded

    def _read(self, segment: Any, encoded: Encoded, skip_empty: bool) -> None:
        """Append the places of a segment that an encoder reads."""
        modality = MODALITIES[modality_name(segment)]
        payload = modality.payload(self, segment)
        if payload is not None:
            self.place(modality, payload, encoded)
        elif not skip_empty:
            raise ValueError(f"{segment} is empty: the encoder of {modality.name}s needs at least one token")

    def persona_parts(self, persona: Persona) -> list[Entity] | list[Span]:
        """What encoders read of a persona: entities in the order of its keys, or one span with all of it."""
        if self.personas == "entities":
            return [Entity({key: text}) for key, text in persona.pairs()]
        return [Span(persona.as_text())]

    def persona_message(self, values: Mapping[str, str | list[str]]) -> list[dict[str, Any]]:
        """A persona as parts of a message, with which a chat begins.

        Raises:
            ValueError: it is no persona.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a persona is a mapping of keys and texts, not {values!r}")
        try:
            parts = self.persona_parts(Persona(dict(values)))
        except (TypeError, ValueError) as error:
            raise ValueError(str(error)) from error
        return [
            {"type": (kind := modality_name(part)), **({"text": part.text} if kind in WRITTEN else {kind: part})}
            for part in parts
        ]

    def _write_grounded(self, segment: Text, encoded: Encoded) -> None:
        """Append a text with its phrases and boxes, as KOSMOS-2 writes them, to ``encoded``."""
        assert segment.boxes is not None
        known, text, at = self.grounding_ids, segment.text, 0
        if not known:
            raise ValueError(
                "the text has boxes, but the tokenizer no tokens for them; make it with grounding: true "
                "(kosmos tokenizer, or model.decoder), or leave boxes out of the document"
            )
        encoded.ids.append(known[GROUNDING])
        for phrase in segment.boxes:
            encoded.ids += self._part(text, at, phrase.begin)
            start, at = len(encoded.ids), phrase.end
            encoded.ids += [known[PHRASE], *self._part(text, phrase.begin, at), known[PHRASE_END]]
            mark = OBJECT
            for box in phrase.boxes:
                encoded.ids += [known[mark], *(known[f"<patch_index_{index:04d}>"] for index in to_bins(box))]
                mark = NEXT_OBJECT
            if phrase.boxes:
                encoded.ids.append(known[OBJECT_END])
                encoded.whole.append((start, len(encoded.ids)))
        encoded.ids += self._part(text, at, len(text))

    def _part(self, text: str, begin: int, stop: int) -> list[int]:
        """Ids of ``text[begin:stop]`` such that all parts together spell the text; a space goes with what follows it.

        A part that begins within a word, as the full stop behind a phrase, gets no space in front.
        """
        if self._space:
            begin = len(text[:begin].rstrip(" "))
        if begin == 0:
            return self.encode_text(text[:stop])
        within_word = not text[begin - 1].isspace() and not text[begin : begin + 1].isspace()
        return (
            self.continue_text(text[begin:stop]) if within_word or self._space else self.encode_text(text[begin:stop])
        )

    @cached_property
    def grounding_ids(self) -> dict[str, int]:
        """The ids of the tokens for phrases and boxes by their names; empty where the tokenizer has not all of them."""
        known = self.tokenizer.get_added_vocab()
        return {token: known[token] for token in TOKENS} if all(token in known for token in TOKENS) else {}

    def place(self, modality: Modality, payload: Any, encoded: Encoded) -> None:
        """Append the placeholders of what the modality's encoder reads, with the marks around them, to ``encoded``."""
        if modality.marks not in self._marks:  # looked up once: a corpus has millions of images
            self._marks[modality.marks] = tuple([self.token_id(mark)] if mark else [] for mark in modality.marks)
        begin, slot, end = self._marks[modality.marks]
        if modality.name == "image" and not self.image_marks:
            begin = end = []
        (length,) = modality.places(self, {modality.inputs[0]: [payload]})
        encoded.placed.append(Placed(modality.name, len(encoded.ids) + len(begin), length, payload))
        encoded.ids += [*begin, *slot * length, *end]

    def reader(self, modality: str) -> Any:
        """Return how segments of a further modality are read.

        Raises:
            ValueError: this processor does not read them.
        """
        if modality not in self.readers:
            raise ValueError(
                f"this processor reads no {modality}; that of a model which does has readers={{{modality!r}: …}}"
            )
        return self.readers[modality]

    def places_of(self, modality: str) -> int:
        """Return the places that one input of a further modality takes."""
        return self.reader(modality).num_tokens

    def token_id(self, token: str) -> int:
        """Return the id of a special token; ValueError where the tokenizer has none of this name."""
        tokenizer = self.tokenizer
        found: Any = tokenizer.convert_tokens_to_ids(token)
        unknown = found is None or (found == tokenizer.unk_token_id and token != tokenizer.unk_token)
        if unknown and token in (BOS, EOS):
            found = tokenizer.bos_token_id if token == BOS else tokenizer.eos_token_id
        elif unknown:
            raise ValueError(f"the tokenizer has no special token {token}; make it with extra_tokens=[{token!r}]")
        return found

    def encode_text(self, text: str) -> list[int]:
        """Ids of one text segment; special tokens spelled out in it stay plain text."""
        if self._space:  # one between two segments, wherever they are encoded
            text = text.rstrip(" ")
            text = text if not text or text[0].isspace() else self._space + text
        return encode_text(self.tokenizer, text)

    def continue_text(self, text: str) -> list[int]:
        """Ids of text whose beginning belongs to the word before it: no space is put in front of its first letters."""
        if self._space:  # this tokenizer puts none
            return encode_text(self.tokenizer, text.rstrip(" "))
        space = next((at for at, letter in enumerate(text) if letter.isspace()), len(text))
        backend = self.tokenizer.backend_tokenizer
        head = backend.normalizer.normalize_str(text[:space])
        return [token.id for token in backend.model.tokenize(head)] + self.encode_text(text[space:])

    def opening(self) -> str:
        """What a prompt must begin with to begin as a document does: BOS, where the tokenizer does not write it."""
        begins = self.tokenizer("red")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        return "" if begins else self.tokenizer.bos_token

    def entity_row(self, entity: Entity) -> np.ndarray:
        """The row () of an entity in the tables of a model; that of the unknown for an id that is not known.

        Raises:
            ValueError: there is no such kind.
        """
        ((kind, identity),) = entity.ids.items()
        return np.array(self._rows(kind, identity))

    def entity_kinds(self) -> dict[str, int] | None:
        """How many ids each kind has, as ``entity_config.kinds`` of a model; None: this processor has no entities."""
        return None if self.entities is None else dict(self._rows.sizes)

    def image_token_ids(self) -> list[int]:
        """The ids of one image's place in a document: ``<image>``, Q slots, ``</image>``, or the slots alone."""
        return self.encode([Image(b"")]).ids

    def placeholder_ids(self) -> list[int]:
        """The slots of every modality: places for features, which a model must not write."""
        known = self.tokenizer.get_added_vocab()
        return [known[modality.marks[1]] for modality in MODALITIES.values() if modality.marks[1] in known]

    def post_process_generation(self, text: str, cleanup_and_extract: bool = True) -> str | tuple[str, list[Grounded]]:
        """Take phrases and boxes out of a generated text, as transformers' ``Kosmos2Processor`` does.

        Args:
            text: decoded with its special tokens; what stands before the last ``</image>`` is left out.
            cleanup_and_extract: False: return the text with its tokens.

        Returns:
            The text without tokens, and of each phrase: itself, (begin, end) in that text, and its boxes (x1, y1, x2,
            y2) in shares of what the model saw.
        """
        caption = text.rsplit(IMAGE_END, 1)[-1]
        return read_grounded(caption) if cleanup_and_extract else caption

    def _take_entities(self, prompt: str, placed: list[Placed]) -> str:
        """The prompt with slots in the place of its entities, which are appended to ``placed``."""
        if self.entities is None or ENTITY_BEGIN not in prompt:
            return prompt
        pieces = re.split(f"{ENTITY_BEGIN}(.*?){ENTITY_END}", prompt, flags=re.DOTALL)
        for at in range(1, len(pieces), 2):
            encoded = self.encode([Entity(parse_entity(pieces[at].replace(ESCAPE, "")))])
            placed += encoded.placed
            pieces[at] = self._spell(encoded)
        return "".join(pieces)

    def _take_given(
        self, prompts: list[str], modality: Modality, given: Sequence[Any], placed: list[Placed]
    ) -> list[str]:
        """The prompts with slots in the place of a modality's marks; what they stand for is appended to ``placed``."""
        count = sum(prompt.count(modality.mark) for prompt in prompts)
        if count != len(given):
            raise ValueError(
                f"the text holds {count} {modality.mark} and {len(given) or 'no'} {modality.name} were given; each "
                "stands where its mark is"
            )
        waiting = iter(given)

        def spelled(_: re.Match) -> str:
            encoded = self.encode([as_segment(modality.name, next(waiting))])
            placed.extend(encoded.placed)
            return self._spell(encoded)

        return [re.sub(re.escape(modality.mark), spelled, prompt) for prompt in prompts]

    def _spell(self, encoded: Encoded) -> str:
        """Special tokens as a text, of which transformers' processor makes the same ids again."""
        return "".join(self.tokenizer.convert_ids_to_tokens(encoded.ids))


def puts_space(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer writes a text as if a space stood in front of it."""
    plain, spaced = (encode_text(tokenizer, text) for text in ("red", " red"))
    return plain == spaced or tokenizer.convert_ids_to_tokens(plain)[0].startswith("▁")
