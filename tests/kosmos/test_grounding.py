"""Phrases and boxes in and out: KOSMOS-2's bins and tokens, equal to transformers' processor, and honest errors."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Kosmos2Processor
from transformers.models.kosmos2.processing_kosmos2 import coordinate_to_patch_index

from kosmos import Conversation, KosmosForConditionalGeneration, KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos.docking import take_tokenizer
from kosmos.grounding import TOKENS, from_bins, read_answer, to_bins, to_picture, to_view
from kosmos.segments import Phrase, Text
from kosmos.terminal import print_boxes
from kosmos.tokenization_kosmos import GROUNDING_TOKENS
from kosmos.transcript import with_pictures

SNOWMAN = "An image of a snowman by a fire."
BOXES = ((0.4, 0.05, 0.98, 0.82), (0.1, 0.0, 1.0, 0.9))
SENTENCE = Text(SNOWMAN, boxes=(Phrase(12, 21, BOXES), Phrase(25, 31, ((0.17, 0.02, 0.48, 0.89),))))


@pytest.fixture(scope="module")
def grounded() -> KosmosProcessor:
    """A processor with the tokens for boxes."""
    words = [SNOWMAN, "Question: what is in the image? Answer: a red dog, two cats", "the snow\nfell"] * 5
    tokenizer = train_tokenizer(words, vocab_size=150, grounding=True)
    return KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, num_image_tokens=4, max_length=256)


pieces = st.one_of(
    st.sampled_from(
        [*TOKENS[:6], "<patch_index_0044>", "<patch_index_0863>", "<patch_index_9>", "</image>", "<image>"]
    ),
    st.sampled_from(
        ["<phrase> a dog</phrase><object><patch_index_0001><patch_index_0034></object>", "<", ">", " ", "\n"]
    ),
    st.sampled_from(
        [
            "<object><patch_index_0044><patch_index_0044></delimiter_of_multi_objects/>"
            "<patch_index_0032><patch_index_0040></object>"
        ]
    ),
    st.text("ab <>é\n", max_size=6),
)


@settings(max_examples=400)
@given(st.lists(pieces, max_size=12))
def test_generated_texts_are_read_as_transformers_reads_them(parts: list[str]) -> None:
    text = "".join(parts)
    theirs = Kosmos2Processor.post_process_generation(SimpleNamespace(eoi_token="</image>"), text)
    assert KosmosProcessor.post_process_generation(None, text) == theirs


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_bins_are_transformers(edges: list[float]) -> None:
    box = (*map(min, edges[:2], edges[2:]), *map(max, edges[:2], edges[2:]))
    if box[0] == box[2] or box[1] == box[3]:
        return
    upper, lower = to_bins(box)
    assert 0 <= upper <= lower < 1024
    if min(box[2:]) > 1e-9:  # nearer to 0 theirs is a negative bin
        assert (upper, lower) == coordinate_to_patch_index(box, 32)
    assert max(abs(a - b) for a, b in zip(from_bins(upper, lower), box, strict=True)) <= 1 / 32 + 1e-12


def test_a_grounded_text_is_written_as_kosmos_2_does(grounded) -> None:
    encoded = grounded.encode([SENTENCE])
    bins = [f"<patch_index_{index:04d}>" for box in BOXES for index in to_bins(box)]
    assert GROUNDING_TOKENS == TOKENS
    spelled = grounded.tokenizer.decode(encoded.ids)
    first = f"<phrase> a snowman</phrase><object>{bins[0]}{bins[1]}</delimiter_of_multi_objects/>{bins[2]}{bins[3]}"
    assert (
        spelled.replace("> ", ">")
        .replace(" <", "<")
        .startswith(f"<grounding>An image of{first}</object>".replace("> ", ">"))
    ), spelled
    words = [token for token in grounded.tokenizer.convert_ids_to_tokens(encoded.ids) if token not in TOKENS]
    assert grounded.tokenizer.convert_tokens_to_string(words) == SNOWMAN
    assert [encoded.ids[stop - 1] for _, stop in encoded.whole] == [grounded.grounding_ids["</object>"]] * 2


words = st.lists(st.sampled_from(["red", "dog", ",", " ", ".", "two cats", "\n"]), min_size=1, max_size=8)


@settings(max_examples=150)
@given(words, st.data())
def test_what_is_written_is_read_back(grounded, parts: list[str], data: st.DataObject) -> None:
    """Any cut of any text: its words stay what they were, and phrases and bins come back."""
    text = grounded.tokenizer.decode(grounded.encode_text("".join(parts)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6, unique=True)))
    spans = [
        (a, b)
        for a, b in zip(cuts[::2], cuts[1::2], strict=False)
        if text[a:b].strip(" \n,.") and text[a:b] == text[a:b].strip()
    ]
    phrases = tuple(Phrase(a, b, (BOXES[0],)) for a, b in spans)
    ids = grounded.encode([Text(text, boxes=phrases)]).ids
    read, found = read_answer(grounded, ids)
    assert read == text.strip()
    indent = len(text) - len(text.lstrip())
    assert [(one.begin + indent, one.end + indent) for one in found] == spans
    assert all(to_bins(one.boxes[0])[0] == to_bins(BOXES[0])[0] for one in found)


def test_a_word_cut_in_two_and_a_phrase_without_boxes(grounded) -> None:
    ids = grounded.encode([Text("snowman", boxes=(Phrase(0, 4),))]).ids
    known = grounded.grounding_ids
    assert ids[:2] == [known["<grounding>"], known["<phrase>"]]
    assert known["<object>"] not in ids
    assert read_answer(grounded, ids) == ("snowman", ())


def test_language_models_tokenizers_take_boxes_too(tmp_path) -> None:
    """A byte-level tokenizer puts no space in front by itself; the text comes out as it went in."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        [SNOWMAN] * 5, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<eos>"])
    )
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>").save_pretrained(tmp_path)
    LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(tmp_path)
    processor = KosmosProcessor(KosmosImageProcessor(), take_tokenizer(tmp_path, GROUNDING_TOKENS))
    for text, begin, end in ((SNOWMAN, 12, 21), ("a  snowman’s fire", 3, 10), ("  fire, snow", 2, 6)):
        ids = processor.encode([Text(text, boxes=(Phrase(begin, end, BOXES[:1]),))]).ids
        plain = [token for token in ids if token not in processor.grounding_ids.values()]
        assert plain == processor.encode([Text(text)]).ids or processor.tokenizer.decode(
            plain
        ) == processor.tokenizer.decode(processor.encode([Text(text)]).ids)
        assert [text.strip()[one.begin : one.end] for one in read_answer(processor, ids)[1]] == [text[begin:end]]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0.2, 0.1, 1.2, 0.5), "outside the picture"),
        ((-0.1, 0.1, 0.2, 0.5), "outside the picture"),
        ((0.5, 0.1, 0.2, 0.5), "empty or reversed"),
        ((0.2, 0.5, 0.3, 0.5), "empty or reversed"),
        ((0.2, math.nan, 0.3, 0.5), "is no box"),
        ((0.2, 0.1, math.inf, 0.5), "is no box"),
        ((0.2, 0.1, 0.3), "is no box"),
        (("0", "0", "1", "1"), "is no box"),
        (7, "is no box"),
    ],
)
def test_what_is_no_box_is_refused_in_one_line(box, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Phrase(0, 1, (box,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("phrases", [[(3, 9)], [(-1, 2)], [(2, 2)], [(0, 3), (2, 4)], [(3, 4)]])
def test_phrases_are_separate_parts_of_the_text(phrases: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"is no part of a text|overlaps"):
        Text("red dog"[:5], boxes=tuple(Phrase(begin, end) for begin, end in phrases))


def test_a_tokenizer_without_the_tokens_is_said_to_lack_them(processor) -> None:
    with pytest.raises(ValueError, match="make it with grounding: true"):
        processor.encode([SENTENCE])


def test_a_crop_moves_boxes_and_back() -> None:
    """200×100 pixels: the middle square begins at a quarter of the width."""
    assert to_view((0.25, 0.0, 0.75, 1.0), (200, 100), "center") == (0, 0, 1, 1)
    assert to_view((0.5, 0.2, 0.75, 0.4), (200, 100), "center") == (0.5, 0.2, 1, 0.4)
    assert to_view((0.0, 0.0, 0.29, 1.0), (200, 100), "center") is None  # an eighth is left
    assert to_view((0.0, 0.0, 0.2, 1.0), (200, 100), "none") == (0, 0, 0.2, 1)
    back = to_picture([Phrase(0, 1, ((0.5, 0.2, 1.0, 0.4),))], (200, 100), "center")
    assert back[0].boxes == ((0.5, 0.2, 0.75, 0.4),)


@pytest.fixture(scope="module")
def pointing(grounded, config_factory) -> tuple[KosmosForConditionalGeneration, list[int]]:
    """A model that writes one grounded answer, whatever it is asked: each output is the token behind the last."""
    ids = [*grounded.encode([Text("two cats", boxes=(Phrase(4, 8, ((0.25, 0.5, 0.75, 1.0),)),))]).ids[1:], 2]
    begin, slot, *_, end = grounded.image_token_ids()
    config = config_factory(text={"vocab_size": len(grounded.tokenizer)})
    config.image_token_id, config.boi_token_id, config.eoi_token_id = slot, begin, end
    config.num_image_tokens = config.connector_config.num_queries = 4
    model = KosmosForConditionalGeneration(config).eval()
    return model, ids


def test_a_chat_draws_what_the_answer_points_at(grounded, pointing, monkeypatch, capsys) -> None:
    model, ids = pointing
    asked: list[list[int]] = []

    def generate(**options):
        asked.append(options["input_ids"][0].tolist())
        streamer = options["streamer"]
        for row in (options["input_ids"], *torch.tensor(ids)[:, None]):
            streamer.put(row)
        streamer.end()
        return torch.tensor([asked[-1] + ids])

    monkeypatch.setattr(model, "generate", generate)
    chat = Conversation(model, grounded, grounding=True)
    wide = Image.new("RGB", (80, 40), "white")
    assert chat.ask("what is in the image?", images=wide) == "two cats"
    assert asked[0][-1] == grounded.grounding_ids["<grounding>"]
    (said,) = chat.messages[-1]["content"]
    assert said["text"] == "two cats"
    ((phrase, (box,)),) = [(entry["phrase"], entry["boxes"]) for entry in said["boxes"]]
    assert phrase == [4, 8]
    assert box == pytest.approx([0.25 + 0.5 * 8.5 / 32, 16.5 / 32, 0.25 + 0.5 * 23.5 / 32, 31.5 / 32])  # of the whole
    print_boxes(chat)
    assert capsys.readouterr().out == "  cats: 0.38 0.52 0.62 0.98\n"
    drawn = with_pictures(chat.messages)[-1]["content"][-1]["image"]
    assert drawn.size == wide.size
    colours = set(map(tuple, np.asarray(drawn).reshape(-1, 3).tolist()))
    assert (230, 25, 75) in colours  # the first of COLOURS
    assert set(map(tuple, np.asarray(wide).reshape(-1, 3).tolist())) == {(255, 255, 255)}
    assert with_pictures(chat.messages)[-1]["content"][-1]["image"] is drawn  # a page asks with every token
    assert chat._repr_html_().count("<img") == 2
    assert chat.export()["messages"][-1]["content"][0]["boxes"] == said["boxes"]
    chat.ask("and now?")  # the next turn reads what was said
    assert "two cats" in grounded.tokenizer.decode(asked[1])


def test_a_model_without_the_tokens_does_not_ground(processor, config) -> None:
    model = KosmosForConditionalGeneration(config(images=False, text={"vocab_size": len(processor.tokenizer)}))
    with pytest.raises(ValueError, match="no tokens for phrases and boxes"):
        Conversation(model, processor, grounding=True)
