"""Text with pictures → model inputs: the one place where an image becomes ``<image> slots </image>``.

Training documents, evaluation prompts and chats all pass here: the loader uses :meth:`KosmosProcessor.encode_text` and
:meth:`KosmosProcessor.image_token_ids` segment by segment, everyone else calls the processor with ``<image>`` in the
text. Layout: KOSMOS-1 table 21 and KOSMOS-2 ``laion2b_loader.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.image_utils import ImageInput
from transformers.processing_utils import BatchFeature, MultiModalData, ProcessorMixin

from .image_processing_kosmos import KosmosImageProcessor
from .tokenization_kosmos import IMAGE_BEGIN, IMAGE_END, IMAGE_SLOT, LINE_END, encode_text

# Question and answer as KOSMOS-1 evaluates them (section 4, "Question: {question} Answer: {answer}"), one turn a line.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message.role == "assistant" -%}
    {%- generation -%}
    {{- " " -}}
    {%- if message.content is string -%}{{- message.content -}}
    {%- else -%}{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}{%- endif -%}
    {{- "\\n" -}}
    {%- endgeneration -%}
  {%- else -%}
    {%- set text = namespace(value="") -%}
    {%- if message.content is string -%}{%- set text.value = message.content -%}
    {%- else -%}
      {%- for part in message.content -%}
        {%- if part.type == "image" -%}{{- "<image>" -}}
        {%- else -%}{%- set text.value = text.value ~ part.text -%}{%- endif -%}
      {%- endfor -%}
    {%- endif -%}
    {%- if message.role == "system" -%}{{- text.value ~ "\\n" -}}
    {%- else -%}{{- "Question: " ~ text.value ~ " Answer:" -}}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
"""


class KosmosProcessor(ProcessorMixin):
    """Tokenizer and image processor of a Kosmos checkpoint.

    Args:
        image_processor: how pictures are resized and normalised.
        tokenizer: a fast tokenizer in the KOSMOS layout (:mod:`kosmos.tokenization_kosmos`).
        num_image_tokens: Q, the number of places that one image takes in the decoder.
        max_length: longest prompt in tokens; longer ones are refused. None: no limit.
        chat_template: Jinja template; question and answer, one turn a line, by default.
    """

    def __init__(
        self,
        image_processor: KosmosImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
        num_image_tokens: int = 64,
        max_length: int | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_image_tokens = num_image_tokens
        self.max_length = max_length
        self.image_token = IMAGE_BEGIN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_BEGIN)
        self.image_slot_id = tokenizer.convert_tokens_to_ids(IMAGE_SLOT)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def encode_text(self, text: str) -> list[int]:
        """Ids of one text segment; special tokens spelled out in it stay plain text."""
        return encode_text(self.tokenizer, text)

    def image_token_ids(self) -> list[int]:
        """The ids of one image's place in a document: ``<image>``, Q slots, ``</image>``."""
        return [
            self.image_token_id,
            *[self.image_slot_id] * self.num_image_tokens,
            self.tokenizer.convert_tokens_to_ids(IMAGE_END),
        ]

    def answer_end_ids(self) -> list[int]:
        """The tokens that end an answer: ``</s>`` and the end of its line."""
        return [self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids(LINE_END)]

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenise prompts and prepare their pictures.

        Args:
            images: one picture, a list, or a list of lists; in reading order, one for each ``<image>`` of the text.
            text: one prompt or a batch. ``<s>`` is added in front.
            **kwargs: ``return_tensors="pt"``, ``padding=True`` … as for any processor.

        Returns:
            ``input_ids`` and ``attention_mask`` (B, T), with images ``pixel_values`` (I, 3, S, S).

        Raises:
            ValueError: the number of pictures differs from the number of ``<image>``, or a prompt is longer than
                ``max_length``.
        """
        features = super().__call__(images=images, text=text, **kwargs)
        if text is not None and self.max_length is not None:
            longest = max((len(ids) for ids in features["input_ids"]), default=0)
            if longest > self.max_length:
                raise ValueError(
                    f"the prompt has {longest} tokens, the model takes {self.max_length} "
                    f"(an image counts {self.num_image_tokens + 2}); shorten it or use fewer images"
                )
        return features

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """What ``<image>`` becomes in the text."""
        return IMAGE_BEGIN + IMAGE_SLOT * self.num_image_tokens + IMAGE_END

    def _get_num_multimodal_tokens(self, image_sizes: list | None = None, **kwargs: Any) -> MultiModalData:
        count = 0 if image_sizes is None else len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens + 2] * count, num_image_patches=[1] * count)


def load_processor(folder: str | Path) -> KosmosProcessor:
    """The processor in a local folder; FileNotFoundError if there is none."""
    folder = Path(folder)
    if not (folder / "processor_config.json").is_file():
        raise FileNotFoundError(f"{folder}: no processor here (processor_config.json is missing)")
    return KosmosProcessor.from_pretrained(folder)
