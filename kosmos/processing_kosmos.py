"""Segments → ids: the one place where text, images and text spans become what a model reads.

Training documents, evaluation prompts and chats all pass here, through :meth:`KosmosProcessor.encode`, the processor's
call too, which finds ``<image>`` and ``<span>…</span>`` in a text. Layout: KOSMOS-1 table 21, KOSMOS-2
``laion2b_loader.py``; text spans as in MetaLM (arXiv 2206.06336, section 2.3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.processing_utils import BatchFeature, MultiModalData, ProcessorMixin
from transformers.utils import GENERATION_CONFIG_NAME

from .entities import Rows, parse_entity, spell_entity
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
from .image_processing_kosmos import KosmosImageProcessor
from .modalities import MODALITIES, Modality, normalize_pixels, stack_inputs
from .modality import Reader
from .plain_prompts import PlainPrompts
from .segments import (
    SEGMENTS,
    Encoded,
    Entity,
    Image,
    Persona,
    Placed,
    Segment,
    Span,
    Text,
    Token,
    TooLong,
    modality_name,
)
from .tokenization_kosmos import (
    BOS,
    ENTITY_BEGIN,
    ENTITY_END,
    EOS,
    ESCAPE,
    IMAGE_BEGIN,
    IMAGE_END,
    IMAGE_SLOT,
    LINE_END,
    SPAN_BEGIN,
    SPAN_END,
    SPAN_SLOT,
    encode_text,
    escape,
    ignore_escapes,
)

SPAN_FOLDER = "span_tokenizer"
ROLES = ("system", "developer", "user", "assistant")

# Question and answer as KOSMOS-1 evaluates them (section 4, "Question: {question} Answer: {answer}"): one turn a line,
# or each answer up to its </s>, so that it may have several lines. A turn's only picture stands before its question,
# several stand where the question has them: so are conversations written (kosmos_data/turns.py).
_TURN = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message.role == "assistant" -%}
    {%- generation -%}
    {{- " " -}}
    {%- if message.content is string -%}{{- message.content -}}
    {%- else -%}{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}{%- endif -%}
    {{- TURN_END -}}
    {%- endgeneration -%}
  {%- else -%}
    {%- set text = namespace(value="") -%}
    {%- if message.content is string -%}{%- set text.value = message.content -%}
    {%- else -%}
      {%- set one = message.content | selectattr("type", "equalto", "image") | list | length == 1 -%}
      {%- for part in message.content -%}
        {%- if part.type == "image" and (one or not text.value | trim) -%}
          {{- "<image>" -}}{%- set text.value = text.value ~ " " -%}
        {%- elif part.type == "image" -%}{%- set text.value = text.value ~ "<image>" -%}
        {%- elif part.type == "span" -%}{%- set text.value = text.value ~ "<span>" ~ part.text ~ "</span>" -%}
        {%- else -%}{%- set text.value = text.value ~ part.text -%}{%- endif -%}
      {%- endfor -%}
    {%- endif -%}
    {%- if message.role in ("system", "developer") -%}{{- text.value ~ "\\n" -}}
    {%- else -%}{{- "Question: " ~ text.value | trim ~ " Answer:" -}}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
"""
CHAT_TEMPLATES = {"line": _TURN.replace("TURN_END", '"\\n"'), "eos": _TURN.replace("TURN_END", "eos_token")}

# In front of a template that expects each message's content to be a string: the parts of a message become one.
PARTS_TO_TEXT = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- if message.content is string or message.content is not defined or message.content is none -%}
    {%- set flat.messages = flat.messages + [message] -%}
  {%- else -%}
    {%- set text = namespace(value="") -%}
    {%- for part in message.content -%}
      {%- if part.type == "image" -%}{%- set text.value = text.value ~ "<image>" -%}
      {%- elif part.type == "span" -%}{%- set text.value = text.value ~ "<span>" ~ part.text ~ "</span>" -%}
      {%- else -%}{%- set text.value = text.value ~ part.text -%}{%- endif -%}
    {%- endfor -%}
    {%- set flat.messages = flat.messages + [dict(message, content=text.value)] -%}
  {%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""


def with_parts(template: str) -> str:
    """Return a language model's chat template that also takes messages of several parts, images and spans."""
    return PARTS_TO_TEXT + template


class KosmosProcessor(ProcessorMixin):
    """Tokenizer and image processor of a Kosmos checkpoint, and the tokenizer of its text encoder where it has one.

    Text between ``<span>`` and ``</span>`` of a prompt goes through the bidirectional text encoder: it takes as many
    places as it has tokens there, or ``num_span_tokens``. The two marks themselves are not written, as MetaLM puts
    nothing around a span.

    Args:
        image_processor: how pictures are resized and normalised.
        tokenizer: a fast tokenizer in the KOSMOS layout (:mod:`kosmos.tokenization_kosmos`).
        num_image_tokens: Q, the number of places that one image takes in the decoder.
        max_length: longest prompt in tokens; longer ones are refused. None: no limit.
        chat_template: Jinja template; question and answer, one turn a line, by default. A part of a message
            ``{"type": "span", "text": …}`` is read by the text encoder.
        span_tokenizer: of the bidirectional text encoder; None: it shares ``tokenizer``. Saved in a folder of its own.
        turn_end: what ends an answer, in training and in chat: ``line``, the end of its line, as in few-shot prompts,
            or ``eos``, its own ``</s>``, so that answers may have several lines.
        num_span_tokens: places that one text span takes in the decoder, the queries of the span connector; None, for a
            connector without queries: one for each token.
        answer_ends: the tokens that end an answer with or without its line's end; ``</s>`` by default.
        example_questions: questions of the kind that the model was trained on; a chat greets with them.
        entities: the kinds of entities, of each how many ids there are or their names in order. A prompt writes one as
            ``<entity>user: 7</entity>``, a message as a part ``{"type": "entity", "entity": {"user": 7}}``.
        personas: how a persona is read: as ``entities``, its keys are kinds, or as a ``span`` of the text encoder.
        readers: how segments of further modalities are read, by name: ``{"audio": AudioReader(num_tokens=64)}``, or
            its fields as a mapping. The tokenizer has their marks (``<audio>``, ``<audio_slot>``, ``</audio>``).

    A tokenizer that was taken over from a language model (docking.py) has other names for ``<s>`` and ``</s>``, which
    are found by either. Where it does not put a space in front of a text itself, as KOSMOS's does, ``encode_text``
    does.

    Raises:
        ValueError: ``num_span_tokens`` below 1, another value of ``personas``, or a reader of an unknown modality or
            with unknown fields.
    """

    def __init__(
        self,
        image_processor: KosmosImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
        num_image_tokens: int = 64,
        max_length: int | None = None,
        chat_template: str | None = None,
        span_tokenizer: Any = None,
        num_span_tokens: int | None = None,
        turn_end: str = "line",
        answer_ends: Sequence[str] | None = None,
        example_questions: Sequence[str] | None = None,
        entities: Mapping[str, int | Sequence[str]] | None = None,
        personas: str = "entities",
        readers: Mapping[str, Reader | Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        if turn_end not in CHAT_TEMPLATES:
            raise ValueError(f"turn_end={turn_end!r}: choose one of {', '.join(CHAT_TEMPLATES)}")
        self.turn_end = turn_end
        if num_span_tokens is not None and num_span_tokens < 1:
            raise ValueError(f"num_span_tokens={num_span_tokens}: a span takes at least one place; None: one a token")
        self.span_tokenizer = span_tokenizer if not isinstance(span_tokenizer, bool) else None
        self.span_slot_id: int = tokenizer.convert_tokens_to_ids(SPAN_SLOT)
        self.num_image_tokens = num_image_tokens
        self.num_span_tokens = num_span_tokens
        self.max_length = max_length
        self.answer_ends = None if answer_ends is None else list(answer_ends)
        self._space = "" if puts_space(tokenizer) else " "
        self.example_questions = list(example_questions or [])
        self.entities = None if entities is None else dict(entities)
        self._rows = Rows(entities or {})
        if personas not in ("entities", "span"):
            raise ValueError(f"personas={personas!r}: a persona is read as entities or as a span")
        self.personas = personas
        self.readers = {name: make_reader(name, given) for name, given in (readers or {}).items()}
        self.image_token = IMAGE_BEGIN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_BEGIN)
        self.image_slot_id: int = tokenizer.convert_tokens_to_ids(IMAGE_SLOT)
        self._marks: dict[tuple[str, ...], tuple[list[int], ...]] = {}
        ignore_escapes(tokenizer)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATES[turn_end])

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
        try:
            parts = self.persona_parts(Persona(dict(values)))
        except (TypeError, ValueError) as error:
            raise ValueError(str(error)) from error
        return [
            {"type": "entity", "entity": part} if isinstance(part, Entity) else {"type": "span", "text": part.text}
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

    def place(self, modality: Modality, payload: Any, encoded: Encoded) -> None:
        """Append the placeholders of what the modality's encoder reads, with the marks around them, to ``encoded``."""
        if modality.marks not in self._marks:  # looked up once: a corpus has millions of images
            self._marks[modality.marks] = tuple([self.token_id(mark)] if mark else [] for mark in modality.marks)
        begin, slot, end = self._marks[modality.marks]
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

    @cached_property
    def _plain_prompts(self) -> PlainPrompts:
        return PlainPrompts(self)

    def encode_span(self, text: str) -> list[int]:
        """What the text encoder reads of a span: its begin token, then the text.

        Differs from a BERT's pretraining: no ``[SEP]`` ends the text.
        """
        if self.span_tokenizer is None:
            return [self.tokenizer.bos_token_id, *self.encode_text(text)]
        tokenizer = self.span_tokenizer
        begin: int | None = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
        if begin is None:
            raise ValueError(f"the span tokenizer {type(tokenizer).__name__} has neither a CLS nor a BOS token")
        # quiet: its own warning about long texts is answered by an error where the encoder's limit is known
        return [
            begin,
            *tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"],
        ]

    @property
    def max_span_length(self) -> int | None:
        """Most tokens of a span that the text encoder reads, its begin token included; None: not known."""
        limit = getattr(self.span_tokenizer, "model_max_length", None)
        return limit if limit is not None and limit < 1_000_000 else None

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
        """The ids of one image's place in a document: ``<image>``, Q slots, ``</image>``."""
        return self.encode([Image(b"")]).ids

    def placeholder_ids(self) -> list[int]:
        """The slots of every modality: places for features, which a model must not write."""
        known = self.tokenizer.get_added_vocab()
        return [known[modality.marks[1]] for modality in MODALITIES.values() if modality.marks[1] in known]

    def end_turns(self, turn_end: str) -> None:
        """Let answers end in another way from now on, and with them chats, unless their template is somebody's own.

        Raises:
            ValueError: neither ``line`` nor ``eos``.
        """
        if turn_end not in CHAT_TEMPLATES:
            raise ValueError(f"turn_end={turn_end!r}: choose one of {', '.join(CHAT_TEMPLATES)}")
        if self.chat_template in CHAT_TEMPLATES.values():
            self.chat_template = CHAT_TEMPLATES[turn_end]
        self.turn_end = turn_end

    def answer_end_ids(self) -> list[int]:
        """The tokens that end an answer: ``</s>`` (or ``answer_ends``), with ``turn_end: line`` also its line's end."""
        ends = [self.tokenizer.eos_token_id]
        if self.answer_ends is not None:
            ends = [self.token_id(token) for token in self.answer_ends]
        return [*ends, *self._line_end_ids()] if self.turn_end == "line" else ends

    def _line_end_ids(self) -> list[int]:
        """The token of a line's end; none where the tokenizer of a language model has no single one."""
        if LINE_END in self.tokenizer.get_vocab():
            return [self.tokenizer.convert_tokens_to_ids(LINE_END)]
        newline = self.tokenizer("\n", add_special_tokens=False)["input_ids"]
        return newline if len(newline) == 1 else []

    def writing_rules(self) -> dict[str, Any]:
        """How an answer is written, as fields of a GenerationConfig: its ends, its padding, and what it never holds.

        A model takes them once (``take_rules``) and keeps them in ``generation_config.json``; nothing else says them.
        """
        return {
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.answer_end_ids(),
            "pad_token_id": self.tokenizer.pad_token_id,
            "suppress_tokens": self.placeholder_ids(),
        }

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenise prompts and prepare their pictures.

        What else encoders read is given by the name of its modality, one for each mark in the text:
        ``processor(text="<audio> what animal is it?", audio=[Path("dog.ogg")])``.

        Args:
            images: one picture, a list, or a list of lists; in reading order, one for each ``<image>`` of the text.
            text: one prompt or a batch, text spans between ``<span>`` and ``</span>``. It is written as documents are:
                BOS is added in front, unless it or another token of the language model stands there, and a space in
                front of each text, whatever the tokenizer does; with ``add_special_tokens=False`` it stays as it is.
            **kwargs: ``return_tensors="pt"``, ``padding=True`` … as for any processor.

        Returns:
            ``input_ids`` and ``attention_mask`` (B, T), with images ``pixel_values`` (I, 3, S, S), with spans
            ``span_input_ids`` and ``span_attention_mask`` (S, L), with entities ``entity_ids`` (I,), row by row; so are
            the inputs of further modalities.

        Raises:
            ValueError: the number of pictures differs from the number of ``<image>``, or that of sounds from the number
                of ``<audio>`` (or so, for any modality), ``<span>`` and ``</span>`` do not
                alternate, a span is empty, or (``TooLong``) a span is too long for its encoder, or a prompt is longer
                than ``max_length``.
        """
        placed: list[Placed] = []
        given = dict(kwargs.pop("further", {}))  # by apply_chat_template, as transformers passes its own audio=None
        given |= {name: _listed(kwargs.pop(name)) for name in _further() if kwargs.get(name) is not None}
        by_template = kwargs.pop("by_template", False)  # said by apply_chat_template
        plain = not by_template and {**kwargs, **kwargs.get("text_kwargs", {})}.get("add_special_tokens", True)
        if text is not None:
            prompts = [text] if isinstance(text, str) else list(text)
            prompts = [self._take_entities(self._take_spans(prompt, placed), placed) for prompt in prompts]
            known = self.tokenizer.get_added_vocab()
            for name, modality in _further().items():
                if name in given or modality.mark in known:  # elsewhere a spelled mark is text
                    prompts = self._take_given(prompts, modality, given.get(name, []), placed)
            if plain:
                prompts = [self._plain_prompts.write(prompt) for prompt in prompts]
            text = prompts[0] if isinstance(text, str) else prompts
        features = super().__call__(images=images, text=text, **kwargs)
        features.update(normalize_pixels(stack_inputs(placed), self.image_processor))
        if text is not None and self.max_length is not None:
            longest = max((len(ids) for ids in features["input_ids"]), default=0)
            if longest > self.max_length:
                raise TooLong(
                    f"the prompt has {longest} tokens, the model takes {self.max_length} "
                    f"(an image counts {self.num_image_tokens + 2}); shorten it or use fewer images"
                )
        return features

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; what a person typed stays text, even where it spells ``<image>`` or ``</s>``.

        Args:
            conversation: messages, or a batch of them. A content is text or a list of parts: text, image, span,
                OpenAI's ``image_url``, and those of further modalities: ``{"type": "audio", "audio": "dog.ogg"}``.

        Raises:
            ValueError: a role or a part that no Kosmos prompt has, naming its type.
        """
        batched = bool(conversation) and not isinstance(conversation[0], dict)
        taken: dict[str, list[Any]] = {}
        chats = [
            [self._plain(message, taken) for message in chat] for chat in (conversation if batched else [conversation])
        ]
        if kwargs.get("tokenize") and (taken or self._plain_prompts.changes):  # transformers calls this processor then
            further = {"further": taken} if taken else {}
            kwargs["processor_kwargs"] = {**(kwargs.get("processor_kwargs") or {}), **further, "by_template": True}
        return super().apply_chat_template(chats if batched else chats[0], *args, **kwargs)

    def _plain(self, message: Any, taken: dict[str, list[Any]]) -> dict[str, Any]:
        """A message whose texts spell no special token; what further modalities read goes to ``taken``, by name."""
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"a message of the role {role!r}; a conversation has {', '.join(ROLES)}")
        if isinstance(content, str):
            return {**message, "content": escape(self.tokenizer, content)}
        if not isinstance(content, (list, tuple)):
            raise ValueError(f"the content of a message is text or a list of parts, not {type(content).__name__}")
        return {**message, "content": [self._plain_part(part, role, taken) for part in content]}

    def _plain_part(self, part: Any, role: str, taken: dict[str, list[Any]]) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind == "image_url" and part.get("image_url"):
            given = part["image_url"]
            kind, part = "image", {"type": "image", "url": given["url"] if isinstance(given, dict) else given}
        unread = set(_further()) - set(self.readers)
        known = ("text", *(() if role == "assistant" else (name for name in MODALITIES if name not in unread)))
        if not isinstance(part, dict) or kind not in known:
            raise ValueError(f"a part of the type {kind!r} in a message of the {role}; it may hold {', '.join(known)}")
        if kind in ("text", "span"):
            if not isinstance(part.get("text"), str):
                raise ValueError(f"a part of the type {kind!r} has no text: {str(part)[:80]}")
            return {**part, "text": escape(self.tokenizer, part["text"])}
        if kind == "entity":  # as text between its marks, which a template writes as it is
            try:
                given = part.get("entity")
                spelled = spell_entity((given if isinstance(given, Entity) else Entity(given)).ids)
            except TypeError as error:
                raise ValueError(f"a part of the type 'entity': {error}") from error
            return {**part, "text": f"{ENTITY_BEGIN}{escape(self.tokenizer, spelled)}{ENTITY_END}"}
        if kind in _further():  # the mark stands where it is, in any chat template
            taken.setdefault(kind, []).append(_segment(kind, part))
            return {"type": "text", "text": MODALITIES[kind].mark}
        return part

    def _take_spans(self, prompt: str, placed: list[Placed]) -> str:
        """The prompt with slots in the place of its spans, which are appended to ``placed``."""
        marks = re.findall(f"{SPAN_BEGIN}|{SPAN_END}", prompt)
        if marks != [SPAN_BEGIN, SPAN_END] * (len(marks) // 2):
            raise ValueError(
                f"the prompt has {marks.count(SPAN_BEGIN)} {SPAN_BEGIN} and {marks.count(SPAN_END)} {SPAN_END}; they "
                "must come in pairs, one span after the other"
            )
        if SPAN_SLOT in prompt:
            raise ValueError(
                f"the prompt holds {SPAN_SLOT}: write {SPAN_BEGIN}text{SPAN_END}, the processor adds slots"
            )
        pieces = re.split(f"{SPAN_BEGIN}(.*?){SPAN_END}", prompt, flags=re.DOTALL)
        for at in range(1, len(pieces), 2):
            encoded = self.encode([Span(pieces[at].replace(ESCAPE, ""))])
            placed += encoded.placed
            pieces[at] = self._spell(encoded)
        return "".join(pieces)

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
            encoded = self.encode([_as_segment(modality.name, next(waiting))])
            placed.extend(encoded.placed)
            return self._spell(encoded)

        return [re.sub(re.escape(modality.mark), spelled, prompt) for prompt in prompts]

    def _spell(self, encoded: Encoded) -> str:
        """Special tokens as a text, of which transformers' processor makes the same ids again."""
        return "".join(self.tokenizer.convert_ids_to_tokens(encoded.ids))

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that every Kosmos processor has; transformers insists on each of these."""
        return ["image_processor", "tokenizer"]

    def to_dict(self) -> dict[str, Any]:
        """Settings as saved; of the span tokenizer only whether there is one."""
        kept, readers = (self.span_tokenizer, self.readers)
        self.span_tokenizer, self.readers = None, {}
        try:
            settings = super().to_dict()
        finally:
            self.span_tokenizer, self.readers = kept, readers
        for name in ("span_tokenizer", "readers"):
            settings.pop(name, None)
        if kept is not None:
            settings["span_tokenizer"] = True
        if readers:
            settings["readers"] = {name: asdict(reader) for name, reader in readers.items()}
        return settings

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """As everywhere in transformers; the span tokenizer goes to the folder ``span_tokenizer``.

        Beside a model that brought no rules of writing they are completed in its ``generation_config.json``.
        """
        folder = Path(save_directory)
        if self.span_tokenizer is not None:
            self.span_tokenizer.save_pretrained(folder / SPAN_FOLDER)
        if (folder / "config.json").is_file():
            given = (folder / GENERATION_CONFIG_NAME).is_file()
            rules = GenerationConfig.from_pretrained(folder) if given else GenerationConfig()
            if rules.suppress_tokens is None:
                rules.update(**self.writing_rules())
                rules.save_pretrained(folder)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from loaded parts; the span tokenizer was put among them by ``_get_arguments_from_pretrained``."""
        if len(args) > len(cls.get_attributes()):
            kwargs["span_tokenizer"] = args.pop()
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        args = super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)
        if (processor_dict or {}).get("span_tokenizer"):
            folder = "/".join(filter(None, [kwargs.pop("subfolder", ""), SPAN_FOLDER]))
            args.append(AutoTokenizer.from_pretrained(pretrained_model_name_or_path, subfolder=folder, **kwargs))
        return args

    def validate_inputs(self, images: Any = None, text: Any = None, **kwargs: Any) -> None:
        """As in transformers, which counts the images from 5.18 on."""
        super().validate_inputs(images=images, text=text, **kwargs)
        if text is not None:
            tokens = sum(prompt.count(IMAGE_BEGIN) for prompt in ([text] if isinstance(text, str) else text))
            given = 0 if images is None else len(make_flat_list_of_images(images))
            if tokens != given:
                raise ValueError(
                    f"the text holds {tokens} {IMAGE_BEGIN} tokens and {given or 'no'} images were passed; each image "
                    f"stands where its {IMAGE_BEGIN} is"
                )

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """What ``<image>`` becomes in the text."""
        return self._spell(self.encode([Image(b"")]))

    def _get_num_multimodal_tokens(self, image_sizes: list | None = None, **kwargs: Any) -> MultiModalData:
        count = 0 if image_sizes is None else len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens + 2] * count, num_image_patches=[1] * count)


def _further() -> dict[str, Modality]:
    """The modalities whose inputs a prompt marks and a call is given by name; the others have ways of their own."""
    return {name: modality for name, modality in MODALITIES.items() if modality.reader is not None}


def _listed(given: Any) -> list[Any]:
    """One input or several; transformers hands on a batch as a list of lists."""
    if not isinstance(given, (list, tuple)):
        return [given]
    return [one for each in given for one in (each if isinstance(each, (list, tuple)) else [each])]


def make_reader(name: str, given: Reader | Mapping[str, Any]) -> Reader:
    """Return how segments of a further modality are read.

    Args:
        name: of the modality.
        given: a reader, or its fields; with ``encoder``, a folder, what was published there fills them.

    Raises:
        ValueError: there is no such modality, it has no such field, or a number of places below 1.
        FileNotFoundError: the folder does not say how its encoder reads.
    """
    kind = MODALITIES[name].reader if name in MODALITIES else None
    if kind is None:
        known = ", ".join(name for name, modality in MODALITIES.items() if modality.reader)
        raise ValueError(f"readers.{name}: there are readers of {known}")
    if isinstance(given, Reader):
        return given
    settings = dict(given)
    folder = settings.pop("encoder", None)
    try:
        made = kind(**settings) if folder is None else kind.of(Path(folder), **settings)
    except TypeError as error:
        names = ", ".join(["encoder", *(field.name for field in fields(kind))])
        raise ValueError(f"readers.{name} has the fields {names}; got {', '.join(given)}") from error
    if not isinstance(made.num_tokens, int) or made.num_tokens < 1:
        raise ValueError(f"readers.{name}.num_tokens is {made.num_tokens}: one takes at least one place")
    return made


def marks_of(modalities: Iterable[str]) -> list[str]:
    """Return the special tokens of further modalities, which a tokenizer needs to write them."""
    return [mark for name in modalities for mark in MODALITIES[name].marks if mark]


def _as_segment(kind: str, content: Any) -> Any:
    """The segment that ``content`` is, or is the content of; ValueError where more than its content is needed."""
    made: Any = SEGMENTS[kind]
    if isinstance(content, made):
        return content
    try:
        return made(content)
    except TypeError as error:
        names = ", ".join(each.name for each in fields(made))
        raise ValueError(f"a {kind} is given as {made.__name__}({names}): {error}") from error


def _segment(kind: str, part: Mapping[str, Any]) -> Any:
    """The segment of a message's part, which has its content under the part's type, ``url`` or ``path``."""
    content = next((part[key] for key in (kind, "path", "url") if part.get(key) is not None), None)
    if content is None:
        raise ValueError(f"a part of the type {kind!r} has no {kind!r}: {str(part)[:80]}")
    if isinstance(content, SEGMENTS[kind]):
        return content
    others = [each.name for each in fields(SEGMENTS[kind])[1:]]
    if missing := [name for name in others if name not in part]:
        raise ValueError(f"a part of the type {kind!r} has no {missing[0]!r}: {str(part)[:80]}")
    try:
        return SEGMENTS[kind](content, *(part[name] for name in others))
    except TypeError as error:
        raise ValueError(f"a part of the type {kind!r}: {error}") from error


def puts_space(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer writes a text as if a space stood in front of it."""
    plain, spaced = (encode_text(tokenizer, text) for text in ("red", " red"))
    return plain == spaced or tokenizer.convert_ids_to_tokens(plain)[0].startswith("▁")


def load_processor(folder: str | Path) -> KosmosProcessor:
    """The processor in a local folder; FileNotFoundError if there is none."""
    folder = Path(folder)
    if not (folder / "processor_config.json").is_file():
        raise FileNotFoundError(f"{folder}: no processor here (processor_config.json is missing)")
    return KosmosProcessor.from_pretrained(folder)
