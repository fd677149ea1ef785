"""Messages → prompt: the chat templates, what a person may put into a message, and how an answer ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers.processing_utils import ProcessorMixin

from .entities import spell_entity
from .further_segments import further_modalities, segment_of
from .modalities import MODALITIES
from .modality import Reader
from .segments import WRITTEN, Entity
from .tokenization_kosmos import ENTITY_BEGIN, ENTITY_END, LINE_END, escape
from .turn_order import ROLES, as_turns, refuse_calls, refuse_empty

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


class ChatProcessor(ProcessorMixin):
    """What a processor knows of chats; its constructor sets what is declared here."""

    tokenizer: Any
    turn_end: str
    answer_ends: list[str] | None
    readers: dict[str, Reader]
    routed: bool
    token_id: Callable[[str], int]
    placeholder_ids: Callable[[], list[int]]
    plain_prompts: Any

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
        return [*ends, *self.line_end_ids()] if self.turn_end == "line" else ends

    def line_end_ids(self) -> list[int]:
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

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; what a person typed stays text, even where it spells ``<image>`` or ``</s>``.

        Args:
            conversation: messages, or a batch of them, in the order that ``turn_order`` says. A content is text or a
                list of parts: text, image, span, OpenAI's ``image_url``, and those of further modalities:
                ``{"type": "audio", "audio": "dog.ogg"}``.

        Raises:
            ValueError: a role or a part that no Kosmos prompt has, naming its type; messages in another order, or a
                question without words.
        """
        batched = bool(conversation) and not isinstance(conversation[0], dict)
        taken: dict[str, list[Any]] = {}
        given = conversation if batched else [conversation]
        turns = [as_turns(list(map(self._checked, chat))) for chat in given]
        chats = [[self._plain(turn, taken) for turn in chat] for chat in turns]
        for chat in turns:
            refuse_empty(chat)
        if kwargs.get("tokenize") and (taken or self.plain_prompts.changes):  # transformers calls this processor then
            further = {"further": taken} if taken else {}
            kwargs["processor_kwargs"] = {**(kwargs.get("processor_kwargs") or {}), **further, "by_template": True}
        made: Any = super().apply_chat_template(chats if batched else chats[0], *args, **kwargs)
        if self.routed and kwargs.get("tokenize") and kwargs.get("return_dict"):
            made["writing"] = self.written(given, made, bool(kwargs.get("add_generation_prompt")))
        return made

    def written(self, chats: Sequence[Any], inputs: Mapping[str, Any], asks: bool) -> Any:
        """Which outputs wrote an answer, or write the next one, (B, T): attention routing trains with them so.

        Found by the lengths of the prompts that end before and behind an answer: what an encoder reads takes more
        places than its mark has letters, so that the template's own mask of answers would be displaced.

        Args:
            chats: messages of each row.
            inputs: ``input_ids`` and ``attention_mask`` (B, T) of them, tensors or lists.
            asks: whether each row ends where an answer begins.
        """
        rows = []
        for chat, mask in zip(chats, inputs["attention_mask"], strict=True):
            real = [place for place, seen in enumerate(mask) if seen]
            row = [False] * len(mask)
            for begin, end in self._answers(as_turns(list(map(self._checked, chat)))):
                row[real[0] + begin - 1 : real[0] + end - 1] = [True] * (end - begin)
            row[real[-1]] = row[real[-1]] or asks
            rows.append(row)
        return rows if isinstance(inputs["input_ids"], list) else inputs["attention_mask"].new_tensor(rows).bool()

    def _answers(self, turns: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
        """Where the tokens of each answer begin and end."""

        def length(until: int, asks: bool) -> int:
            options = {"tokenize": True, "return_tensors": "pt", "add_generation_prompt": asks}
            return self.apply_chat_template(turns[:until], **options).shape[1]

        places = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        return [(length(place, True), length(place + 1, False)) for place in places]

    def _plain(self, message: dict[str, Any], taken: dict[str, list[Any]]) -> dict[str, Any]:
        """A message whose texts spell no special token; what further modalities read goes to ``taken``, by name."""
        role, content = message["role"], message["content"]
        if isinstance(content, str):
            return {**message, "content": escape(self.tokenizer, content)}
        return {**message, "content": [self._plain_part(part, role, taken) for part in content]}

    def _checked(self, message: Any) -> dict[str, Any]:
        """The message as it is; ValueError where no prompt has its role, its content or a part of it."""
        if not isinstance(message, dict):
            raise ValueError(
                f"a message has a role and a content, this is a {type(message).__name__}: {str(message)[:80]}"
            )
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"a message of the role {role!r}; a conversation has {', '.join(ROLES)}")
        refuse_calls(message)
        if not isinstance(content, (str, list, tuple)):
            raise ValueError(f"the content of a message is text or a list of parts, not {type(content).__name__}")
        for part in () if isinstance(content, str) else content:
            self._kind(part, role)
        return message

    def _kind(self, part: Any, role: str) -> str:
        """The type of a part; ValueError where no message of this role holds it."""
        kind: Any = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind == "image_url" and part.get("image_url"):
            kind = "image"
        unread = set(further_modalities()) - set(self.readers)
        known = ("text", *(() if role == "assistant" else (name for name in MODALITIES if name not in unread)))
        if not isinstance(part, dict) or kind not in known:
            raise ValueError(f"a part of the type {kind!r} in a message of the {role}; it may hold {', '.join(known)}")
        if kind in WRITTEN and not isinstance(part.get("text"), str):
            raise ValueError(f"a part of the type {kind!r} has no text: {str(part)[:80]}")
        return kind

    def _plain_part(self, part: dict[str, Any], role: str, taken: dict[str, list[Any]]) -> dict[str, Any]:
        kind = self._kind(part, role)
        if part["type"] == "image_url":
            given = part["image_url"]
            return {"type": "image", "url": given["url"] if isinstance(given, dict) else given}
        if kind in WRITTEN:
            return {**part, "text": escape(self.tokenizer, part["text"])}
        if kind == "entity":  # as text between its marks, which a template writes as it is
            try:
                given = part.get("entity")
                spelled = spell_entity((given if isinstance(given, Entity) else Entity(given)).ids)
            except TypeError as error:
                raise ValueError(f"a part of the type 'entity': {error}") from error
            return {**part, "text": f"{ENTITY_BEGIN}{escape(self.tokenizer, spelled)}{ENTITY_END}"}
        if kind in further_modalities():  # the mark stands where it is, in any chat template
            taken.setdefault(kind, []).append(segment_of(kind, part))
            return {"type": "text", "text": MODALITIES[kind].mark}
        return part
