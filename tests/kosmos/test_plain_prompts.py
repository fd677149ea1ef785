"""What a user gives ``generate()`` is what training and evaluation write: ``processor(text=…)`` as ``encode``."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image as Pictures
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kosmos import KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos.segments import Image, Span, Text, Token
from kosmos.tokenization_kosmos import IMAGE_BEGIN, IMAGE_END, OWN_TOKENS

RED = Pictures.new("RGB", (20, 16), "red")
WORDS = ["An image of a red boat. Question: who sails it? Answer: the fish"] * 4
PROMPTS: list[tuple[str, list[Any]]] = [
    ("An image of", [Text("An image of")]),
    ("<image>An image of", [Image(b""), Text("An image of")]),
    ("<image> An image of ", [Image(b""), Text(" An image of ")]),
    ("a <image>, not\n<image>red?", [Text("a "), Image(b""), Text(", not\n"), Image(b""), Text("red?")]),
    (
        "<image>Question: <span>the red boat</span>who sails it? Answer:",
        [Image(b""), Text("Question: "), Span("the red boat"), Text("who sails it? Answer:")],
    ),
    ("a red</s><image>boat", [Text("a red"), Token("</s>"), Image(b""), Text("boat")]),
]


def taken_over(kind: str) -> PreTrainedTokenizerFast:
    """A language model's tokenizer with our tokens: bytes as GPT-2 has them, with BOS as Llama 3, or "▁" as Llama 2."""
    pieces = pre_tokenizers.ByteLevel.alphabet() if kind != "llama2" else sorted({*"".join(WORDS), "▁", "\n"})
    backend = Tokenizer(models.BPE({piece: number for number, piece in enumerate(sorted(pieces))}, []))
    backend.pre_tokenizer = (
        pre_tokenizers.Metaspace(prepend_scheme="first")
        if kind == "llama2"
        else pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    ours = [IMAGE_BEGIN, IMAGE_END, *OWN_TOKENS]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="</s>", pad_token="</s>", padding_side="left",
        extra_special_tokens=["<|user|>", *ours],
    )  # fmt: skip
    if kind != "gpt2":
        begin = ("<|begin|>", tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[begin]
        )
    return tokenizer


@pytest.fixture(scope="module", params=["kosmos", "gpt2", "llama3", "llama2"])
def processor(request: pytest.FixtureRequest) -> KosmosProcessor:
    tokenizer = train_tokenizer(WORDS, 120) if request.param == "kosmos" else taken_over(request.param)
    return KosmosProcessor(KosmosImageProcessor(image_size=16), tokenizer, num_image_tokens=2)


def call(processor: KosmosProcessor, text: str | list[str], **options: Any) -> Any:
    count = "".join([text] if isinstance(text, str) else text).count("<image>")
    ids = processor(text=text, images=[RED] * count or None, **options)["input_ids"]
    return ids[0] if isinstance(text, str) and isinstance(ids[0], list) else ids


@pytest.mark.parametrize(("prompt", "segments"), PROMPTS, ids=[prompt for prompt, _ in PROMPTS])
def test_a_call_writes_as_a_document(processor: KosmosProcessor, prompt: str, segments: list[Any]) -> None:
    expected = processor.encode([Token("<s>"), *segments]).ids
    assert call(processor, prompt) == expected


def test_a_batch_is_padded_in_front(processor: KosmosProcessor) -> None:
    prompts, wanted = zip(*PROMPTS[1:3], strict=True)
    rows = call(processor, list(prompts), padding=True)
    for row, segments in zip(rows, wanted, strict=True):
        expected = processor.encode([Token("<s>"), *segments]).ids
        assert row[len(row) - len(expected) :] == expected


def test_what_a_template_wrote_stays(processor: KosmosProcessor) -> None:
    """Begun with a token of the language model, called by ``apply_chat_template``, or without special tokens."""
    processor.chat_template = "{% for message in messages %}{{ message.content[0].text }}:<image>{% endfor %}it"
    content = [{"type": "text", "text": "user"}, {"type": "image", "image": RED}]
    found = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True)
    written = "user:" + "".join(processor.tokenizer.convert_ids_to_tokens(processor.image_token_ids())) + "it"
    assert found["input_ids"][0] == processor.tokenizer(written)["input_ids"]
    bare = processor.tokenizer(written, add_special_tokens=False)["input_ids"]
    assert call(processor, "user:<image>it", add_special_tokens=False) == bare
    if "<|user|>" in processor.tokenizer.get_vocab():
        spelled = processor.tokenizer(f"<|user|>{written}")["input_ids"]
        assert call(processor, "<|user|>user:<image>it") == spelled


def test_it_is_saved_as_before(processor: KosmosProcessor, tmp_path: Any) -> None:
    before = processor.to_dict()
    call(processor, "An image of")
    assert processor.to_dict() == before
    processor.save_pretrained(tmp_path)
    assert call(KosmosProcessor.from_pretrained(tmp_path), "<image>red") == call(processor, "<image>red")
