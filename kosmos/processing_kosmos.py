"""The processor: :meth:`KosmosProcessor.encode` is the one place where text, images and spans become ids.

Documents, evaluation prompts and chats all pass there; the call finds ``<image>`` and ``<span>…</span>`` in a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.processing_utils import BatchFeature, MultiModalData
from transformers.utils import GENERATION_CONFIG_NAME

from .addresses import refuse_address
from .atomic import write_atomically, writing
from .chat_messages import CHAT_TEMPLATES, ChatProcessor
from .chat_messages import with_parts as with_parts
from .entities import Rows
from .further_segments import further_modalities, listed, make_reader
from .further_segments import marks_of as marks_of
from .image_processing_kosmos import KosmosImageProcessor
from .modalities import normalize_pixels, stack_inputs
from .modality import Reader
from .plain_prompts import PlainPrompts
from .segment_writer import SegmentWriter, puts_space
from .segments import Image, Placed, Span, TooLong
from .surrogates import whole
from .tokenization_kosmos import (
    BOS,
    EOS,
    ESCAPE,
    IMAGE_BEGIN,
    IMAGE_SLOT,
    SPAN_BEGIN,
    SPAN_END,
    SPAN_SLOT,
    ignore_escapes,
)

SPAN_FOLDER = "span_tokenizer"


class KosmosProcessor(SegmentWriter, ChatProcessor):  # type: ignore[misc]  # transformers has another image_token_ids
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
        image_marks: whether ``<image>`` and ``</image>`` are written around an image's places, as KOSMOS does; without
            them they stand bare in the text, as in Frozen (arXiv 2106.13884). A prompt has ``<image>`` either way.
        routed: whether the model has attention routing: a conversation's inputs then have ``writing``, which says what
            of it the model wrote. Saved beside such a model it is true.
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
        image_marks: bool = True,
        routed: bool = False,
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
        self.image_marks = image_marks
        self.routed = routed
        self.readers = {name: make_reader(name, given) for name, given in (readers or {}).items()}
        self.image_token = IMAGE_BEGIN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_BEGIN)
        self.image_slot_id: int = tokenizer.convert_tokens_to_ids(IMAGE_SLOT)
        self._marks: dict[tuple[str, ...], tuple[list[int], ...]] = {}
        ignore_escapes(tokenizer)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATES[turn_end])

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

    def encode_between_marks(self, text: str) -> list[int]:
        """Ids of a text with the marks around it that an encoder of text was trained with; spelled marks are text."""
        if self.span_tokenizer is None:
            return [self.token_id(BOS), *self.encode_text(text), self.token_id(EOS)]
        return self.span_tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]

    @property
    def max_span_length(self) -> int | None:
        """Most tokens of a span that the text encoder reads, its begin token included; None: not known."""
        limit = getattr(self.span_tokenizer, "model_max_length", None)
        return limit if limit is not None and limit < 1_000_000 else None

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
        given |= {name: listed(kwargs.pop(name)) for name in further_modalities() if kwargs.get(name) is not None}
        by_template = kwargs.pop("by_template", False)  # said by apply_chat_template
        plain = not by_template and {**kwargs, **kwargs.get("text_kwargs", {})}.get("add_special_tokens", True)
        if text is not None:
            prompts = list(map(whole, [text] if isinstance(text, str) else text))
            prompts = [self._take_entities(self._take_spans(prompt, placed), placed) for prompt in prompts]
            known = self.tokenizer.get_added_vocab()
            for name, modality in further_modalities().items():
                if name in given or modality.mark in known:  # elsewhere a spelled mark is text
                    prompts = self._take_given(prompts, modality, given.get(name, []), placed)
            if plain:
                prompts = [self.plain_prompts.write(prompt) for prompt in prompts]
            text = prompts[0] if isinstance(text, str) else prompts
        features = super().__call__(images=images, text=text, **kwargs)
        features.update(normalize_pixels(stack_inputs(placed), self.image_processor))
        if text is not None and self.max_length is not None:
            longest = max((len(ids) for ids in features["input_ids"]), default=0)
            if longest > self.max_length:
                raise TooLong(
                    f"the prompt has {longest} tokens, the model takes {self.max_length} "
                    f"(an image counts {len(self.image_token_ids())}); shorten it or use fewer images"
                )
        return features

    @cached_property
    def plain_prompts(self) -> PlainPrompts:
        """What writes a plain prompt as a document is written."""
        return PlainPrompts(self)

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
            with writing(folder):
                self.span_tokenizer.save_pretrained(folder / SPAN_FOLDER)
        if (folder / "config.json").is_file():
            given = (folder / GENERATION_CONFIG_NAME).is_file()
            rules = GenerationConfig.from_pretrained(folder) if given else GenerationConfig()
            if rules.suppress_tokens is None:
                rules.update(**self.writing_rules())
                rules.save_pretrained(folder)
        self.routed = self.routed or has_routing(folder)
        with writing(folder):
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
        return MultiModalData(num_image_tokens=[len(self.image_token_ids())] * count, num_image_patches=[1] * count)


def has_routing(folder: Path) -> bool:
    """Whether a folder holds a model with attention routing."""
    path = folder / "config.json"
    text = json.loads(path.read_bytes()).get("text_config") if path.is_file() else None
    return bool(text and text.get("routing_layers"))


def note_routing(folder: str | Path) -> None:
    """Let the processor in a folder, if one is there, know that the model has attention routing."""
    path = Path(folder) / "processor_config.json"
    if path.is_file():
        write_atomically(path, json.dumps(json.loads(path.read_bytes()) | {"routed": True}, indent=2) + "\n")


def load_processor(folder: str | Path) -> KosmosProcessor:
    """The processor in a local folder; FileNotFoundError if there is none, ValueError for an address or no name."""
    if not str(folder):
        raise ValueError("the processor's folder has no name; is a variable of the shell not set?")
    refuse_address(folder)
    folder = Path(folder)
    if not (folder / "processor_config.json").is_file():
        raise FileNotFoundError(f"{folder}: no processor here (processor_config.json is missing)")
    return KosmosProcessor.from_pretrained(folder)
