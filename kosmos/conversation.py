"""Talk with a model about images: one :class:`Conversation` behind every door that a person comes by.

The prompt is the processor's chat template, that is the question-and-answer lines which the model was tuned and is
evaluated on; an answer ends where the checkpoint's rules of writing say: at ``</s>``, or at the end of its line too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import extrapolation
from .answer_options import by_hand, check_options, with_defaults
from .given_parts import GivenParts
from .grounding import BEGIN as GROUNDING
from .grounding import read_answer, to_picture
from .loading import find_model, load
from .pictures import upright
from .segments import TooLong
from .transcript import as_html, exported, parts_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from .given_parts import Part, Picture
    from .modeling_kosmos import KosmosForConditionalGeneration
    from .processing_kosmos import KosmosProcessor


class Conversation:
    """A chat of several turns with several images.

    Args:
        model: a Kosmos model, or the path of a checkpoint or run directory.
        processor: its processor; read from the same path if ``model`` is one.
        system: text in front of the conversation.
        persona: who answers, ``{"president": "Abraham Lincoln"}``, for a model that was trained with personas.
        alpha: how much the persona counts, 0 to 1, for a model with attention routing; None: as the model thinks fit.
        max_new_tokens: longest answer, in tokens; 64, unless ``generation`` says how long it may be.
        grounding: let answers have phrases with boxes (KOSMOS-2): ``<grounding>`` begins each answer.
        extrapolate: read up to so many training lengths, by blockwise causal attention (``kosmos.extrapolation``).
        adapter: one or several tunings of the model (``kosmos.tuning``); the first answers until :meth:`use`.
        **generation: anything ``generate()`` takes, e.g. ``do_sample=True, temperature=0.7``; greedy by default. Beams
            write no answer piece by piece, it comes as a whole.

    Attributes:
        messages: what was said, as the chat template takes it.
        checkpoint: the folder that speaks, if it was read from one.
        forgotten: the number of turns that were dropped because the context was used up.

    In a notebook the conversation shows itself as pictures and turns.
    """

    def __init__(
        self,
        model: KosmosForConditionalGeneration | str | Path,
        processor: KosmosProcessor | None = None,
        system: str | None = None,
        max_new_tokens: int | None = None,
        adapter: Sequence[str | Path] | str | Path = (),
        persona: Mapping[str, str | list[str]] | None = None,
        alpha: float | None = None,
        grounding: bool = False,
        extrapolate: int | None = None,
        **generation: Any,
    ) -> None:
        self.checkpoint: Path | None = None
        adapters = [adapter] if isinstance(adapter, (str, Path)) else list(adapter)
        if isinstance(model, (str, Path)):
            self.checkpoint = find_model(model)
            model, processor = load(self.checkpoint, adapters=adapters)
            adapters = []
        if processor is None:
            raise ValueError("give the processor that belongs to the model: Conversation(model, processor)")
        self._own_turn_end = _own_turn_end(model, processor)
        check_options(model, generation)
        if extrapolate is not None:
            extrapolation.extrapolate(model, processor, extrapolate)
        model.take_rules(processor)
        self.model = model
        self.processor = processor
        if adapters:
            from .tuning import load_tuned

            self._write_as(load_tuned(model, adapters)[0])
        self._given = GivenParts(model, processor)
        self.system = system
        self.persona = [] if persona is None else self._given.persona(persona)
        self._may_point = bool(processor.grounding_ids)
        if grounding and not self._may_point:
            raise ValueError("grounding: this model's tokenizer has no tokens for phrases and boxes")
        self.grounding = grounding
        self.generation = with_defaults(max_new_tokens, generation) | by_hand(model, alpha)
        self.messages: list[dict[str, Any]] = []
        self.forgotten = 0
        self.reset()

    def use(self, adapter: str | None) -> None:
        """Answer with another of the model's adapters from now on, by its name; None: with the model as it was.

        Raises:
            ValueError: no such adapter.
        """
        from .tuning import use

        use(self.model, adapter)
        self._write_as(adapter)

    def _write_as(self, adapter: str | None) -> None:
        """Let turns end as the adapter, or the model itself, was trained: that is part of the prompt."""
        from .tuning.methods import attachments

        chosen = attachments(self.model)[adapter].turn_end if adapter is not None else None
        self.processor.end_turns(chosen or self._own_turn_end)
        self.model.take_rules(self.processor)

    def reset(self) -> None:
        """Forget all turns and images."""
        text = [{"type": "text", "text": self.system}] if self.system else []
        content = [*self.persona, *text] if self.persona else self.system
        self.messages = [{"role": "system", "content": content}] if content else []
        self.forgotten = 0

    def ask(
        self,
        question: str | Sequence[str | Picture],
        images: Sequence[Picture] | Picture | None = (),
        context: Sequence[str] | str = (),
        forget: bool = False,
    ) -> str:
        """Put a question, with new images or about earlier ones, and return the answer.

        Args:
            question: what is asked. Or a list of texts and pictures in their order, ``["Is", red, "or", blue, "new"]``:
                in it a ``Path`` is a picture and a ``str`` is text. What else an encoder of the model reads is one of
                its segments: ``[Audio(Path("dog.ogg")), "what animal is it?"]``.
            images: pictures shown before it: paths, Pillow images, arrays (H, W, 3) of uint8, or a file's bytes.
            context: texts before it that the bidirectional text encoder reads (MetaLM), for a model that has one.
            forget: drop the oldest turns where the conversation has outgrown the model, instead of refusing.

        Raises:
            TooLong: a ValueError; the conversation has outgrown the model.
            ValueError: nothing is asked, an image or sound cannot be read, or the model has no encoder for what is
                given.
        """
        return "".join(self.stream(question, images, context, forget))

    def stream(
        self,
        question: str | Sequence[str | Picture],
        images: Sequence[Picture] | Picture | None = (),
        context: Sequence[str] | str = (),
        forget: bool = False,
    ) -> Iterator[str]:
        """Like :meth:`ask`, piece by piece as the answer is written.

        Who leaves the loop early, stops the model; what it has written until then is the answer.
        """
        yield from self.stream_parts(self.question(question, images, context), forget)

    def stream_parts(self, parts: list[Part], forget: bool = False) -> Iterator[str]:
        """Like :meth:`stream`, for the parts of a message; those of :meth:`take_back` for instance."""
        from .streaming import stream_answer  # it imports torch

        asked = {"role": "user", "content": parts}
        inputs = self._inputs_of(asked, forget)
        answer, ids = "", list[int]()
        whole = False
        try:
            for piece in stream_answer(self.model, self.processor, inputs, self.generation, ids):
                answer += piece
                yield piece
            whole = True
        except (GeneratorExit, KeyboardInterrupt):
            whole = bool(answer.strip())
            raise
        finally:
            if whole:
                said = {"type": "text", "text": answer.strip(), **self._boxes(ids, parts)}
                self.messages += [asked, {"role": "assistant", "content": [said]}]

    def _boxes(self, ids: list[int], parts: list[Part]) -> Part:
        """The text and the boxes of an answer that points at something; nothing for any other."""
        if not self._may_point:  # an answer may also end because the interpreter does: nothing is left to decode with
            return {}
        text, phrases = read_answer(self.processor, ids)
        shown = [*self.pictures(), *(part["image"] for part in parts if part["type"] == "image")]
        if not phrases or not shown:
            return {}
        whole = to_picture(phrases, upright(shown[-1]).size, self.processor.image_processor.crop)
        return {"text": text, "boxes": [phrase.as_json() for phrase in whole]}

    def question(
        self,
        question: str | Sequence[str | Picture],
        images: Sequence[Picture] | Picture | None = (),
        context: Sequence[str] | str = (),
    ) -> list[Part]:
        """Return the parts of a message that puts a question; arguments and errors are those of :meth:`ask`."""
        return self._given.question(question, images, context)

    def take_back(self) -> list[Part]:
        """Remove the last question and its answer and return the question's parts, to ask it again or otherwise.

        Raises:
            ValueError: nothing was asked yet.
        """
        if len(self.messages) < 2:
            raise ValueError("nothing was asked yet")
        *self.messages, asked, _ = self.messages
        return asked["content"]

    def fork(self, messages: Sequence[dict[str, Any]] | None = None) -> Conversation:
        """Return another conversation with the same model, which begins with ``messages`` or with nothing."""
        other = copy.copy(self)
        other.generation = dict(self.generation)
        other.reset()
        if messages:
            other.messages = list(messages)
        return other

    def show(self) -> None:
        """Show a page to chat on, in a notebook or a browser: pictures are dropped, answers streamed.

        Raises:
            ModuleNotFoundError: gradio is not installed (``pip install -e ".[web-chat]"``).
        """
        from .web_chat import show

        show([self], wait=False)

    def pictures(self) -> list[Image]:
        """Return the pictures that the model sees, in order."""
        return [part["image"] for part in self._all_parts() if part["type"] == "image"]

    def prompt(self) -> str:
        """Return the text of all turns as the model reads it, ``<image>`` where a picture stands; "" without any."""
        if not self.messages:
            return ""
        from .tokenization_kosmos import ESCAPE

        return self.processor.apply_chat_template(self.messages).replace(ESCAPE, "")

    def export(self) -> dict[str, Any]:
        """Return the conversation as JSON takes it: who speaks, how, the messages with their pictures, the prompt."""
        plain = (str, int, float, bool, type(None))
        messages = [{**message, "content": [exported(part) for part in parts_of(message)]} for message in self.messages]
        return {
            "checkpoint": str(self.checkpoint) if self.checkpoint else None,
            "generation": {name: value for name, value in self.generation.items() if isinstance(value, plain)},
            "messages": messages,
            "prompt": self.prompt(),
        }

    def save(self, path: str | Path) -> None:
        """Write the conversation to a file: ``.html`` to look at, anything else as JSON (:meth:`export`)."""
        import json

        path = Path(path)
        page = f'<!doctype html><meta charset="utf-8"><title>Kosmos</title>{self._repr_html_()}'
        text = page if path.suffix.lower() == ".html" else json.dumps(self.export(), ensure_ascii=False, indent=1)
        path.write_text(text, encoding="utf-8", errors="replace")  # what a terminal hands on may be half a character

    def readable(self, segment: Any) -> Any:
        """Return a segment with the bytes of its files.

        Raises:
            ValueError: the model has no encoder that reads it.
            FileNotFoundError: no such file.
        """
        return self._given.segment(segment)

    def take(self, path: Path, kind: str | None = None) -> Any:
        """Read a file for the next question: a picture, or a segment of another kind.

        Args:
            kind: ``audio``, ``video`` …; None: a picture, but what this model reads otherwise, by the file's name.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no picture, or the model has no encoder that reads it.
        """
        return self._given.file(path, kind)

    def _inputs_of(self, asked: dict[str, Any], forget: bool) -> dict[str, Any]:
        """What the model reads; with ``forget`` the oldest turns are dropped until it fits."""
        while True:
            try:
                return self._inputs([*self.messages, asked])
            except TooLong:
                head = 1 if self.system or self.persona else 0
                turns = self.messages[head:]
                if not forget or not turns:
                    raise
                self.messages = [*self.messages[:head], *turns[2:]]
                self.forgotten += 1

    def _inputs(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        import torch.nn.functional as F

        inputs = self.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        if self.model.config.is_routed and "writing" not in inputs:  # a checkpoint from before its processor knew
            inputs["writing"] = self.processor.written([messages], inputs, asks=True)
        if self.grounding:  # as a grounded answer begins in a document
            added = {"input_ids": self.processor.token_id(GROUNDING), "attention_mask": 1, "writing": True}
            for name in added.keys() & inputs.keys():
                inputs[name] = F.pad(inputs[name], (0, 1), value=added[name])
        return {name: inputs[name].to(self.model.device) for name in inputs}

    def _all_parts(self) -> list[Part]:
        return [part for message in self.messages for part in parts_of(message)]

    def _repr_html_(self) -> str:
        return as_html(self.messages)


def _own_turn_end(model: KosmosForConditionalGeneration, processor: KosmosProcessor) -> str:
    """How answers of the model itself end, though its processor may be that of an adapter which it already has."""
    if not getattr(model, "attached", None):
        return processor.turn_end
    from .tuning.storage import turn_end_in

    origin = str(model.name_or_path)
    return (turn_end_in(origin) if origin else None) or processor.turn_end
