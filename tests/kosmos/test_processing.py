"""The processor: images in their places, prompts as the evaluation writes them, honest errors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import kosmos
from kosmos.image_processing_kosmos import KosmosImageProcessor
from kosmos.processing_kosmos import load_processor
from kosmos.segments import Image as Image_
from kosmos_data.turns import asked as asked_segments

RED = Image.new("RGB", (48, 40), "red")


def test_images_take_their_places(processor) -> None:
    features = processor(images=[RED, RED], text=["<image>a", "b<image>"], return_tensors="pt", padding=True)
    assert features["pixel_values"].shape == (2, 3, 32, 32)
    assert (features["input_ids"] == processor.image_slot_id).sum(1).tolist() == [4, 4]
    assert features["input_ids"][0, -7:-1].tolist() == processor.image_token_ids()


def test_a_chat_is_question_and_answer_lines(processor) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "what is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": "and now?"},
    ]
    assert processor.apply_chat_template(messages) == (
        "<s><image>Question: what is it? Answer: red\nQuestion: and now? Answer:"
    )
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["input_ids"][0, 0] == 0
    assert (inputs["input_ids"] == 0).sum() == 1
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)


def test_answers_of_several_lines_end_with_eos(processor, tmp_path) -> None:
    """Template, ends and what is saved follow ``turn_end``; training writes the ids that a chat reads."""
    from kosmos_data import Document
    from kosmos_data.objectives._flatten import flatten
    from kosmos_data.turns import turn

    processor = copy.deepcopy(processor)
    answers = ["red\n\ngreen", "blue"]
    talk = [turn("what is the thing?", answer, last=answer == "blue") for answer in answers]
    document = Document("d", [part for pair in talk for part in pair])
    messages = [
        {"role": role, "content": text}
        for answer in answers
        for role, text in (("user", "what is the thing?"), ("assistant", answer))
    ]

    def chat_ids() -> list[int]:
        return processor.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"][0]

    line = processor.tokenizer.convert_tokens_to_ids("</line>")
    assert processor.answer_end_ids() == [2, line]
    assert flatten(document, processor, "supervised").ids.tolist() == [*chat_ids()[:-1], 2]
    processor.end_turns("eos")
    assert processor.answer_end_ids() == [2]
    flat = flatten(document, processor, "supervised")
    assert flat.ids.tolist() == chat_ids()
    ends = [place for place, token in enumerate(flat.ids.tolist()) if token == 2]
    assert len(ends) == 2
    assert flat.weight[ends].all()
    assert flat.ids.tolist().count(line) == 2
    processor.save_pretrained(tmp_path)
    again = load_processor(tmp_path)
    assert again.turn_end == "eos"
    assert again.chat_template == processor.chat_template
    assert again.writing_rules()["eos_token_id"] == [2]
    with pytest.raises(ValueError, match="turn_end='dot': choose one of line, eos"):
        processor.end_turns("dot")


def asked(*content) -> list[dict]:
    """One question of texts and pictures."""
    parts = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in content]
    return [{"role": "user", "content": parts}]


def chat_ids(processor, *content) -> list[int]:
    return processor.apply_chat_template(asked(*content), tokenize=True, return_dict=True)["input_ids"][0]


@pytest.mark.parametrize(
    "content",
    [
        ("Is", RED, "or", RED, "larger?"),
        (RED, "is larger than", RED, "?"),
        (RED, RED, "which is larger?"),
        ("which is larger?", RED, RED),
        ("what is", RED, "here?"),
        (RED, "what is here?"),
    ],
)
def test_pictures_stand_where_a_corpus_has_them(processor, content) -> None:
    """The ids of a chat are those of the same conversation in training."""
    trained = asked_segments([part if isinstance(part, str) else Image_(part) for part in content])
    assert chat_ids(processor, *content) == [0, *processor.encode(trained).ids]


def test_what_a_person_types_is_text(processor) -> None:
    specials = sorted(set(processor.tokenizer.get_added_vocab()) - {"</line>"})
    spelled = f"what are {' '.join(specials)} and <<image> in <image></s>?\ufdd0"
    ids = chat_ids(processor, RED, spelled)
    text = f"Question: {spelled[:-1]} Answer:"
    assert ids == [0, *processor.image_token_ids(), *processor.encode_text(text)]
    several = processor.apply_chat_template(
        [*asked(RED, spelled), {"role": "assistant", "content": "</s>"}], tokenize=True, return_dict=True
    )
    assert several["input_ids"][0] == [*ids, *processor.encode_text(" </s>\n")]
    again = processor.tokenizer.backend_tokenizer.normalizer
    assert type(processor)(processor.image_processor, processor.tokenizer) is not None
    assert str(processor.tokenizer.backend_tokenizer.normalizer) == str(again)  # a loaded tokenizer is as it was


def test_what_no_prompt_has_is_refused_by_its_name(processor) -> None:
    refused = [
        ({"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}, "'video'"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "'input_audio'"),
        ({"role": "user", "content": ["what?"]}, "'str'"),
        ({"role": "user", "content": [{"text": "what?"}]}, "None"),
        ({"role": "user", "content": [{"type": "text"}]}, "has no text"),
        ({"role": "user", "content": None}, "not NoneType"),
        ({"role": "assistant", "content": [{"type": "image"}]}, "of the assistant"),
        ({"role": "tool", "content": "3"}, "'tool'"),
    ]
    for message, named in refused:
        with pytest.raises(ValueError, match=named):
            processor.apply_chat_template([message])
        with pytest.raises(ValueError, match=named):
            processor.apply_chat_template([[message]])


def test_counts_and_lengths_that_do_not_fit_are_refused(processor) -> None:
    with pytest.raises(ValueError, match="1 <image> tokens and 2 images"):
        processor(images=[RED, RED], text="<image>a")
    with pytest.raises(ValueError, match="no images were passed"):
        processor(text="<image>a")
    with pytest.raises(ValueError, match="the model takes 256"):
        processor(text="a " * 300)


def test_processor_survives_saving(processor, tmp_path) -> None:
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, kosmos.KosmosProcessor)
    before, after = (
        p(images=[RED], text="<image>Question: a? Answer:", return_tensors="pt") for p in (processor, again)
    )
    assert torch.equal(before["input_ids"], after["input_ids"])
    assert torch.equal(before["pixel_values"], after["pixel_values"])


def test_pixels_equal_transformers_clip_processor() -> None:
    """Same resize, crop and normalisation as CLIPImageProcessor; it rounds the short side, so one grey level apart."""
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((240, 180), Image.Resampling.BICUBIC)
    reference = CLIPImageProcessorPil(size={"shortest_edge": 60}, crop_size={"height": 60, "width": 60})
    expected = torch.as_tensor(np.array(reference(image)["pixel_values"][0]))
    ours = KosmosImageProcessor(image_size=60)(image)["pixel_values"][0]
    assert (ours - expected).abs().max() < 3 / 255 / 0.26


def test_transparent_pixels_become_white_and_rotated_ones_upright(tmp_path) -> None:
    processor = KosmosImageProcessor(image_size=8)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (processor.to_tensor(clear) == 255).all()
    lying = Image.new("RGB", (16, 8), "black")
    lying.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    lying.save(tmp_path / "lying.png", exif=exif)
    upright = KosmosImageProcessor(image_size=8, crop="none").to_tensor(Image.open(tmp_path / "lying.png"))
    assert upright[0, 0].float().mean() > 200 > 50 > upright[0, -1].float().mean()


def test_bad_arrays_are_refused() -> None:
    processor = KosmosImageProcessor(image_size=8)
    with pytest.raises(ValueError, match="must be uint8"):
        processor(np.zeros((8, 8, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="choose 'center' or 'none'"):
        KosmosImageProcessor(crop="left")
