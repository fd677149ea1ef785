"""The tokenizer: KOSMOS ids, text that cannot forge special tokens, segments that tokenise like the whole."""

from __future__ import annotations

import json

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from kosmos.configuration_kosmos import PRESETS
from kosmos.tokenization_kosmos import (
    GROUNDING_TOKENS,
    KOSMOS1_TOKENS,
    OWN_TOKENS,
    encode_text,
    tokenizer_from_sentencepiece,
    train_tokenizer,
)

TEXTS = ["Question: what colour is the shape? Answer: red", "A small cat sat on the mat.\nIt slept."] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=150)


def test_ids_follow_the_kosmos_layout(tokenizer) -> None:
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<s>", "<pad>", "</s>", "<unk>"]
    specials = (*KOSMOS1_TOKENS, *OWN_TOKENS)
    first = len(tokenizer) - len(specials)
    assert tokenizer.convert_ids_to_tokens(range(first, len(tokenizer))) == list(specials)


def test_a_64000_piece_model_gives_the_published_ids() -> None:
    """KOSMOS-1 has 64,007 ids and KOSMOS-2 65,037; our additions come behind them."""
    pieces = 64000 - 3
    first = 4 + pieces
    assert [first + KOSMOS1_TOKENS.index(token) for token in ("<mask>", "<image>", "</line>")] == [64001, 64003, 64006]
    assert first + len(KOSMOS1_TOKENS) == 64007
    assert first + len(KOSMOS1_TOKENS) + len(GROUNDING_TOKENS) == 65037


def ids_named(settings: dict) -> list[tuple[str, int]]:
    """Every ``…_token_id`` of a preset, also within its parts."""
    found = [pair for value in settings.values() if isinstance(value, dict) for pair in ids_named(value)]
    own = [(key, value) for key, value in settings.items() if key.endswith("_token_id") and value is not None]
    return found + own


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.json")))
def test_every_id_of_a_preset_is_the_layouts(name: str) -> None:
    """A preset's vocabulary is the pieces and KOSMOS's tokens; its ids are where our tokenizer puts these names."""
    preset = json.loads((PRESETS / f"{name}.json").read_text())
    size, grounding = preset["text_config"]["vocab_size"], name == "kosmos-2"
    pieces = size - 4 - len(KOSMOS1_TOKENS) - (len(GROUNDING_TOKENS) if grounding else 0)
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = 1
    for piece in ("<unk>", "<s>", "</s>", *(f"piece{number}" for number in range(pieces))):
        model.pieces.add(piece=piece, score=-1.0)
    tokenizer = tokenizer_from_sentencepiece(model.SerializeToString(), grounding=grounding)
    assert len(tokenizer) == size + len(OWN_TOKENS)
    names = {
        "image_token_id": "<image_slot>", "boi_token_id": "<image>", "eoi_token_id": "</image>",
        "span_token_id": "<span_slot>", "pad_token_id": "<pad>", "bos_token_id": "<s>", "eos_token_id": "</s>",
    }  # fmt: skip
    ids = ids_named(preset)
    assert ids
    assert ids == [(key, tokenizer.convert_tokens_to_ids(names[key])) for key, _ in ids]


def test_pieces_equal_sentencepiece_itself(tmp_path) -> None:
    """Same pieces as the SentencePiece library on the same model, id shifted by one."""
    model = tmp_path / "model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(model), vocab_size=120, hard_vocab_limit=False, minloglevel=2
    )
    reference = sentencepiece.SentencePieceProcessor(model_file=f"{model}.model")
    ours = tokenizer_from_sentencepiece(f"{model}.model")
    for text in ("what is the cat?", "The  red   shape sat", "ﬁne Ａ"):
        expected = reference.encode(text, out_type=int)
        assert encode_text(ours, text) == [index + 1 if index >= 3 else 3 for index in expected]


def test_newlines_are_line_tokens_and_come_back(tokenizer) -> None:
    ids = encode_text(tokenizer, "a cat\n\nsat \n on")
    assert ids.count(tokenizer.convert_tokens_to_ids("</line>")) == 3
    assert tokenizer.decode(ids) == "a cat\n\nsat\non"


@pytest.mark.parametrize("token", ["<s>", "</s>", "<image>", "<image_slot>", "<mask>", "<pad>"])
def test_plain_text_cannot_spell_a_special_token(tokenizer, token: str) -> None:
    ids = encode_text(tokenizer, f"the {token} cat")
    assert tokenizer.convert_tokens_to_ids(token) not in ids
    assert tokenizer.decode(ids) == f"the {token} cat"


words = st.text(alphabet="abc <>/Question:?\n", max_size=30)


@given(st.lists(words, max_size=4))
def test_segments_tokenise_like_the_joined_text(tokenizer, segments: list[str]) -> None:
    joined = [index for segment in segments for index in encode_text(tokenizer, segment)]
    assert encode_text(tokenizer, " ".join(segment.strip(" ") for segment in segments)) == joined


def test_saved_tokenizer_reads_back(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    prompt = "<image><image_slot></image>a cat\nsat"
    assert again(prompt)["input_ids"] == tokenizer(prompt)["input_ids"]
    assert again.image_slot_token_id == tokenizer.convert_tokens_to_ids("<image_slot>")


def test_frequent_words_are_one_piece(tokenizer) -> None:
    assert "▁Question" in tokenizer.convert_ids_to_tokens(encode_text(tokenizer, "Question"))


def test_bad_models_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer(["", " \n"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tokenizer_from_sentencepiece(tmp_path / "nowhere.model")
    (tmp_path / "bad.model").write_bytes(b"\xff\xff not a model")
    with pytest.raises(ValueError, match=r"bad\.model: not a SentencePiece model"):
        tokenizer_from_sentencepiece(tmp_path / "bad.model")
    with pytest.raises(ValueError, match="given twice"):
        train_tokenizer(TEXTS, 100, extra_tokens=["<mask>"])
