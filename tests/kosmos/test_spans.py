"""Text spans in prompts: `<span>text</span>` and chat parts go through the text encoder, also beside images."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, BertTokenizerFast

from kosmos import KosmosConfig, KosmosForConditionalGeneration, KosmosProcessor
from kosmos.configuration_kosmos import KosmosSpanEncoderConfig
from kosmos.encoders import SpanEncoder

RED = Image.new("RGB", (48, 40), "red")


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory) -> BertTokenizerFast:
    """A BERT tokenizer of a few words, split into letters otherwise."""
    letters = "abcdefghijklmnopqrstuvwxyz?.:"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "red", *letters]
    vocabulary += [f"##{letter}" for letter in letters]
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(vocabulary)}, model_max_length=24)


@pytest.fixture(scope="module")
def with_spans(processor, wordpiece) -> KosmosProcessor:
    """A processor whose text encoder has its own tokenizer."""
    return KosmosProcessor(
        processor.image_processor, processor.tokenizer, num_image_tokens=4, max_length=64, span_tokenizer=wordpiece
    )


@pytest.fixture(scope="module")
def model(with_spans, wordpiece) -> KosmosForConditionalGeneration:
    """Tiny, with a vision tower and a text encoder."""
    torch.manual_seed(0)
    config = KosmosConfig(
        text_config={
            "vocab_size": len(with_spans.tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        vision_config={
            "model_config": {
                "embed_dim": 16,
                "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
            }
        },
        connector_config={"kind": "xconnector", "num_queries": 4, "num_heads": 2},
        image_token_id=with_spans.image_slot_id,
        boi_token_id=None,
        eoi_token_id=None,
        span_encoder_config={
            "model_config": {
                "model_type": "bert",
                "vocab_size": len(wordpiece),
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            }
        },
        span_token_id=with_spans.span_slot_id,
    )
    return KosmosForConditionalGeneration(config).eval()


def test_a_span_takes_a_place_for_each_token_of_its_encoder(with_spans, wordpiece) -> None:
    features = with_spans(text="Question: <span>what is red?</span> Answer:", return_tensors="pt")
    ids = features["input_ids"][0].tolist()
    assert features["span_input_ids"].tolist() == [wordpiece.convert_tokens_to_ids(["[CLS]", "what", "is", "red", "?"])]
    plain = with_spans.encode_text
    assert ids == [0, *plain("Question:"), *[with_spans.span_slot_id] * 4, *plain("Answer:")]
    assert "span_input_ids" not in with_spans(text="Question: what? Answer:", return_tensors="pt")


def test_batches_keep_the_spans_row_by_row(with_spans) -> None:
    texts = ["<span>red</span> and <span>is red</span>", "none", "<span>what</span>"]
    features = with_spans(text=texts, return_tensors="pt", padding=True)
    assert features["span_attention_mask"].sum(1).tolist() == [2, 3, 2]
    assert (features["input_ids"] == with_spans.span_slot_id).sum(1).tolist() == [3, 0, 1]


def test_without_its_own_tokenizer_the_encoder_shares_the_decoders(processor) -> None:
    features = processor(text="a <span>what is the red</span>", return_tensors="pt")
    assert features["span_input_ids"][0].tolist() == [0, *processor.encode_text("what is the red")]


def test_chat_template_has_spans_beside_images(with_spans) -> None:
    """Several turns, images and spans in any of them, as one batch of inputs."""
    messages = [
        {"role": "user", "content": [{"type": "image", "image": RED}, {"type": "span", "text": "what is red"}]},
        {"role": "assistant", "content": "this"},
        {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "span", "text": "is red"}]},
    ]
    assert with_spans.apply_chat_template(messages) == (
        "<s><image>Question: <span>what is red</span> Answer: this\nQuestion: and <span>is red</span> Answer:"
    )
    inputs = with_spans.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["span_attention_mask"].sum(1).tolist() == [4, 3]
    assert (inputs["input_ids"] == with_spans.span_slot_id).sum() == 5
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)


def test_span_tokenizer_is_saved_with_the_processor(with_spans, processor, tmp_path) -> None:
    with_spans.save_pretrained(tmp_path / "with")
    again = AutoProcessor.from_pretrained(tmp_path / "with")
    text = "<span>what is red</span> a"
    before, after = (one(text=text, return_tensors="pt") for one in (with_spans, again))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (again.max_span_length, again.num_image_tokens, again.max_length) == (24, 4, 64)
    processor.save_pretrained(tmp_path / "without")
    assert AutoProcessor.from_pretrained(tmp_path / "without").span_tokenizer is None
    assert not (tmp_path / "without" / "span_tokenizer").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<span>a", "1 <span> and 0 </span>"),
        ("a</span><span>b", "must come in pairs"),
        ("<span><span>a</span></span>", "2 <span> and 2 </span>"),
        ("<span> </span>", "is empty"),
        ("<span_slot> a", "the processor adds slots"),
        ("<span>" + "red " * 40 + "</span>", "has 41 tokens, the text encoder reads 24"),
    ],
)
def test_spans_that_cannot_be_read_are_refused(with_spans, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_spans(text=text)


def test_counts_that_differ_name_both(model, with_spans) -> None:
    inputs = with_spans(text="<span>what is red</span>", return_tensors="pt")
    with pytest.raises(ValueError, match="2 span tokens, that is 2 features, but input_ids hold 3 placeholders"):
        model(input_ids=inputs["input_ids"], span_input_ids=inputs["span_input_ids"][:, :3])
    with pytest.raises(ValueError, match=r"3 placeholders .* no span_input_ids were given"):
        model(input_ids=inputs["input_ids"])


def test_encoders_and_ids_that_cannot_work(model, with_spans) -> None:
    """An encoder that transformers does not know; ids of another tokenizer; spans that no position is left for."""
    with pytest.raises(ValueError, match=r"knows no model_type 'berd'; try 'bert'"):
        SpanEncoder(KosmosSpanEncoderConfig(model_config={"model_type": "berd"}))
    inputs = with_spans(text="<span>what is red</span>", return_tensors="pt")
    with pytest.raises(ValueError, match=r"hold id 999, but the span encoder's vocabulary is \d+"):
        model(input_ids=inputs["input_ids"], span_input_ids=inputs["span_input_ids"].clamp(min=999))
    slots = torch.full((1, 600), with_spans.span_slot_id)
    with pytest.raises(ValueError, match="are 601 long, but the span encoder reads 512"):
        model(input_ids=slots, span_input_ids=torch.zeros((1, 601), dtype=torch.long))


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_reads_spans_and_images(model, with_spans, beams: int) -> None:
    """A batch answers as its rows alone; changing a span's last word changes what is read at its first place."""
    prompts = ["<image>Question: <span>what is red</span> Answer:", "<span>is red</span> <image>An image of"]
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams}
    together = model.generate(
        **with_spans(images=[[RED], [RED]], text=prompts, return_tensors="pt", padding=True), **options
    )
    for row, prompt in zip(together, prompts, strict=True):
        alone = model.generate(**with_spans(images=[RED], text=prompt, return_tensors="pt"), **options)[0]
        assert row[-4:].tolist() == alone[-4:].tolist()

    hidden = []
    for word in ("red", "is"):
        inputs = with_spans(text=f"<span>what is {word}</span> a", return_tensors="pt")
        with torch.no_grad():
            hidden.append(model.model(**inputs).last_hidden_state[0, 1])
    assert not torch.allclose(*hidden, atol=1e-4), "the first place of a span must know its last word"
