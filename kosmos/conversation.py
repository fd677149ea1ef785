"""Talk with a model about images: one :class:`Conversation` behind every door that a person comes by.

The prompt is the processor's chat template, that is the question-and-answer lines which the model was tuned and is
evaluated on; an answer ends where the checkpoint's rules of writing say, usually at the end of its line.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias

from .loading import load

if TYPE_CHECKING:
    from PIL.Image import Image

    from .modeling_kosmos import KosmosForConditionalGeneration
    from .processing_kosmos import KosmosProcessor

    Picture: TypeAlias = str | Path | Image


class Conversation:
    """A chat of several turns with several images.

    Args:
        model: a Kosmos model, or the path of a checkpoint or run directory.
        processor: its processor; read from the same path if ``model`` is one.
        system: text in front of the conversation.
        max_new_tokens: longest answer, in tokens.
        **generation: anything ``generate()`` takes, e.g. ``do_sample=True, temperature=0.7``; greedy by default.

    In a notebook the conversation shows itself as pictures and turns.
    """

    def __init__(
        self,
        model: KosmosForConditionalGeneration | str | Path,
        processor: KosmosProcessor | None = None,
        system: str | None = None,
        max_new_tokens: int = 64,
        **generation: Any,
    ) -> None:
        if isinstance(model, (str, Path)):
            model, processor = load(model)
        if processor is None:
            raise ValueError("give the processor that belongs to the model: Conversation(model, processor)")
        model.take_rules(processor)
        self.model = model
        self.processor = processor
        self.system = system
        self.generation = {"max_new_tokens": max_new_tokens, "do_sample": False, **generation}
        self.messages: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Forget all turns and images."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, question: str, images: Sequence[Picture] | Picture = (), context: Sequence[str] | str = ()) -> str:
        """Put a question, with new images or about earlier ones, and return the answer.

        Args:
            question: what is asked.
            images: pictures shown before it.
            context: texts before it that the bidirectional text encoder reads (MetaLM), for a model that has one.

        Raises:
            ValueError: the conversation has outgrown the model, an image cannot be read, or a context is given to a
                model without a text encoder.
        """
        return "".join(self.stream(question, images, context))

    def stream(
        self, question: str, images: Sequence[Picture] | Picture = (), context: Sequence[str] | str = ()
    ) -> Iterator[str]:
        """Like :meth:`ask`, piece by piece as the answer is written."""
        spans = [context] if isinstance(context, str) else list(context)
        if spans and self.model.config.span_encoder_config is None:
            raise ValueError("a context was given, but this model has no text encoder; write it into the question")
        parts = [*_image_parts(images), *({"type": "span", "text": text} for text in spans)]
        asked = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
        inputs = self._inputs([*self.messages, asked])
        answer = ""
        for piece in self._generate(inputs):
            answer += piece
            yield piece
        self.messages += [asked, {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]}]

    def prompt(self) -> str:
        """The text of all turns as the model reads it."""
        return self.processor.apply_chat_template(self.messages)

    def _inputs(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        inputs: Any = self.processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        return {name: inputs[name].to(self.model.device) for name in inputs}

    def _generate(self, inputs: dict[str, Any]) -> Iterator[str]:
        """Run ``generate()`` in a thread; its errors are raised here."""
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failures: list[BaseException] = []

        def generate() -> None:
            try:
                self.model.generate(**inputs, **self.generation, streamer=streamer)
            except BaseException as error:
                failures.append(error)
                streamer.end()

        thread = Thread(target=generate, daemon=True)
        thread.start()
        first = True
        for piece in streamer:
            text = piece.replace("\n", "")
            text = text.lstrip() if first else text
            if text:
                first = False
                yield text
        thread.join()
        if failures:
            raise failures[0]

    def _repr_html_(self) -> str:
        rows = []
        for message in self.messages:
            parts = message["content"] if isinstance(message["content"], list) else [{"text": message["content"]}]
            body = "".join(_html_part(part) for part in parts)
            side = "left" if message["role"] == "assistant" else "right"
            rows.append(f'<div style="text-align:{side};margin:6px 0"><b>{message["role"]}</b><br>{body}</div>')
        return f'<div style="max-width:640px;font-family:sans-serif">{"".join(rows) or "(nothing said yet)"}</div>'


def _image_parts(images: Sequence[Picture] | Picture) -> list[dict[str, Any]]:
    given: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
    return [{"type": "image", "image": open_picture(image)} for image in given]


def open_picture(picture: Picture) -> Image:
    """A Pillow image from a path or an image.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, truncated, or far too large.
    """
    import PIL.Image

    if isinstance(picture, PIL.Image.Image):
        return picture
    path = Path(picture)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        image = PIL.Image.open(path)
        image.load()
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    return image


def _html_part(part: dict[str, Any]) -> str:
    if part.get("type") != "image":
        return html.escape(part["text"])
    buffer = io.BytesIO()
    image = part["image"].convert("RGB")
    image.thumbnail((256, 256))
    image.save(buffer, "PNG")
    return (
        f'<img style="min-width:96px" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"><br>'
    )
