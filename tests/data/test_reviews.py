"""Reviews: from the published layouts to documents, and what the objective ``peter`` learns of them."""

from __future__ import annotations

import csv
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kosmos import KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos.entities import Targets
from kosmos.tokenization_kosmos import ENTITY_TOKENS
from kosmos_data import BadSample, Corpus, DataConfig, Document, Entity, SourceConfig, Text, build_loader, objectives
from kosmos_data import recipes as recipes_of
from kosmos_data.adapters import convert
from kosmos_data.document import from_files, to_files
from kosmos_data.entity_names import read_kinds
from kosmos_data.inspection import inspect
from kosmos_data.replay import global_batches, rows_of
from kosmos_data.reviews import features_of, review
from kosmos_data.shards import write_shards

RECORDS = [
    {"user": "ann", "item": 7, "rating": 4, "template": ["rooms", "clean", "the rooms are clean", 1]},
    {"user": "bob", "item": "x", "rating": 2.5, "explanation": "dear", "feature": ["price", "food"]},
    {"user": "ann", "item": "x", "text": "fine"},
]
WANTED = [
    review("ann", "7", 4.0, "the rooms are clean", ["rooms"]),
    review("bob", "x", 2.5, "dear", ["price", "food"]),
    review("ann", "x", None, "fine"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn reviews of 12 users and 10 items."""
    out = tmp_path_factory.mktemp("reviews") / "out"
    recipes_of.make("reviews", out, ["users=12", "items=10"])
    return out


@pytest.fixture(scope="module")
def processor(corpus: Path) -> KosmosProcessor:
    """A processor that knows the users and items of the training part."""
    texts = [document.text for document in Corpus(corpus / "train")]
    tokenizer = train_tokenizer(texts, 120, extra_tokens=ENTITY_TOKENS)
    kinds = read_kinds([corpus / "train"])
    return KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, 1, entities=kinds)


def test_published_layouts(tmp_path: Path) -> None:
    """JSON, JSON lines and CSV give the same documents; ids become names, in ``entities.json``."""
    (tmp_path / "a.json").write_text(json.dumps(RECORDS))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*RECORDS, {"user": "ann"}]))
    rows = [{"user": "ann", "item": "7", "rating": "4", "explanation": "the rooms are clean", "feature": "rooms"}]
    rows += [{"user": "ann", "item": "x", "rating": "", "explanation": "fine", "feature": ""}]
    with (tmp_path / "c.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*rows, rows[0] | {"rating": "good"}])
    for name, wanted, skipped in (("a.json", WANTED, 0), ("b.jsonl", WANTED, 1), ("c.csv", [WANTED[0], WANTED[2]], 1)):
        out = tmp_path / f"out-{name[0]}"
        _, tally = convert("reviews", tmp_path / name, out)
        assert [list(document.segments) for document in Corpus(out)] == wanted
        assert sum(tally.values()) == skipped
    assert json.loads((tmp_path / "out-a" / "entities.json").read_text()) == {
        "user": ["ann", "bob"],
        "item": ["7", "x"],
    }
    assert features_of(next(iter(Corpus(tmp_path / "out-a")))) == ["rooms"]


def test_parts_by_index_and_pickles(tmp_path: Path) -> None:
    """An index file names a part's records; a pickle is not opened, wherever it is found."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "train.index").write_text("0 2\n")
    (tmp_path / "reviews.pickle").write_bytes(pickle.dumps(RECORDS))
    for source in ("1/train.index", "reviews.pickle", "."):
        with pytest.raises(ValueError, match=r"reviews\.pickle is a pickle, which can run programs .*json\.dump"):
            convert("reviews", tmp_path / source, tmp_path / "none")
    (tmp_path / "reviews.json").write_text(json.dumps(RECORDS))
    convert("reviews", tmp_path / "1" / "train.index", tmp_path / "train")
    assert [list(document.segments) for document in Corpus(tmp_path / "train")] == [WANTED[0], WANTED[2]]
    (tmp_path / "1" / "train.index").write_text("0 two")
    with pytest.raises(ValueError, match="an index file holds the numbers of reviews"):
        convert("reviews", tmp_path / "1" / "train.index", tmp_path / "other")


def test_an_entity_on_disk() -> None:
    """An entity and its rating come back as they were; what is none is a bad sample."""
    document = Document("a", [Entity({"user": 7}, 4.5), Entity({"item": "tea"}), Text("good")])
    files = to_files(document)
    assert json.loads(files["json"])["segments"][:2] == [
        {"entity": {"user": 7}, "rating": 4.5},
        {"entity": {"item": "tea"}},
    ]
    assert from_files("a", files) == document
    for wrong in ({"user": 1, "item": 2}, [7], {"user": None}):
        with pytest.raises(BadSample, match="an entity is one kind and its id"):
            from_files("a", {"json": json.dumps({"segments": [{"entity": wrong}]}).encode()})
    with pytest.raises(BadSample, match="rating"):
        from_files("a", {"json": json.dumps({"segments": [{"entity": {"user": 1}, "rating": "good"}]}).encode()})


def test_names_and_numbers_do_not_mix(tmp_path: Path) -> None:
    """A kind has names or numbers, in a corpus and over several."""
    numbers = [Document("a", [Entity({"user": 3}), Text("x")])]
    names = [Document("b", [Entity({"user": "ann"}), Text("x")])]
    with pytest.raises(ValueError, match="names in some documents, numbers in others"):
        write_shards(tmp_path / "both", numbers + names)
    write_shards(tmp_path / "numbers", numbers)
    write_shards(tmp_path / "names", names)
    assert read_kinds([tmp_path / "numbers"]) == {"user": 4}
    with pytest.raises(ValueError, match="names in one corpus and numbers in another"):
        read_kinds([tmp_path / "numbers", tmp_path / "names"])
    (tmp_path / "names" / "entities.json").write_text('{"user": [1]}')
    with pytest.raises(ValueError, match="each kind has a list of names or a number"):
        read_kinds([tmp_path / "names"])
    assert read_kinds([tmp_path]) is None


def test_peter_is_the_papers(corpus: Path, processor: KosmosProcessor) -> None:
    """The mask, and the targets with the weights of means over words; features only where they are asked for."""
    document = Document("a", review("u1", "i2", 4.0, "the food is poor", ["food"]))
    make = objectives.get("peter", processor, explanation=2.0, context=1.0, rating=0.5)
    example = make(document, 0)
    words = processor.encode_text(" the food is poor")
    assert example.token.tolist() == [
        0,
        *processor.encode(document.segments[:2]).ids,
        *processor.encode_text(" Explanation:"),
        *words,
    ]
    assert example.block.tolist() == [-1, 0, 0] + [-1] * (len(example) - 3)
    written = len(words) + 1  # the </s> too
    np.testing.assert_allclose(example.weight[-written:], 1 / written)
    assert not example.weight[:-written].any()
    rows = [int(processor.entity_row(one)) for one in document.segments[:2]]  # type: ignore[arg-type]
    assert [placed.payload for placed in example.placed] == [
        Targets(rows[0], 4.0, 0.25),
        Targets(rows[1], words=tuple(words), word_weight=0.5 / len(words)),
    ]
    assert not example.cuts.any()
    assert (objectives.get("peter", processor, bidirectional=False)(document, 0).block == -1).all()
    with_features = objectives.get("peter", processor, features=True)(document, 0)
    assert len(with_features) == len(example) + len(processor.encode_text(" Features: food"))
    assert with_features.weight[with_features.weight > 0].tolist() == example.weight[example.weight > 0].tolist()
    for wrong in (document.segments[1:], [*document.segments, Entity({"user": "u2"})]):
        with pytest.raises(BadSample, match="a review has one user and one item"):
            make(Document("b", wrong), 0)
    with pytest.raises(ValueError, match="the first weight must be above 0"):
        objectives.get("peter", processor, explanation=0.0)
    with pytest.raises(ValueError, match=r"knows no entities of the kind 'hotel', but (item, user|user, item)"):
        objectives.get("peter", processor, item="hotel")


def test_packed_rows_on_any_number_of_ranks(corpus: Path, processor: KosmosProcessor) -> None:
    """Every review keeps its targets beside its ids, and two ranks read what one reads, in the same order."""
    source = SourceConfig("reviews", str(corpus / "train"), objective={"name": "peter"})
    config = DataConfig([source], row_tokens=64, rows_per_step=4, rows_per_micro_batch=2, lanes=4)
    slot = processor.token_id("<entity_slot>")
    batch = next(build_loader(config, processor))
    for micro in batch.micro_batches:
        assert len(micro["entity_ids"]) == (micro["input_ids"] == slot).sum() > 4
        assert (micro["entity_ratings"][0::2, 1] > 0).all()
        assert not micro["entity_ratings"][1::2, 1].any()
        assert (micro["entity_word_weight"][1::2] > 0).all()
        labels = micro["shift_labels"][micro["shift_labels"] >= 0].tolist()
        words = [word for word in micro["entity_words"].flatten().tolist() if word >= 0]
        assert words == [label for label in labels if label != processor.tokenizer.eos_token_id]
    assert sum(len(row["entity_words"]) for row in rows_of(batch)) == sum(
        len(m["entity_ids"]) for m in batch.micro_batches
    )
    orders = []
    for ranks in (1, 2):
        batches = global_batches(config, processor, ranks)
        rows = [row for _ in range(3) for row in next(batches)[0]]
        names = ("input_ids", "entity_ids", "entity_ratings")
        orders.append([{name: row[name].tolist() for name in names} for row in rows])
        batches.close()
    assert orders[0] == orders[1]


def test_inspect_shows_entities(corpus: Path, processor: KosmosProcessor) -> None:
    """A person sees who rated what, and the two places that see each other."""
    console = Console(file=io.StringIO(), width=100)
    inspect(str(corpus / "train"), console, "peter", processor)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "with entities" in shown
    assert "rating" in shown
    assert "{[entity × 1]}{[entity × 1]}" in shown


def test_the_drawn_reviews_are_decided_by_their_ids(corpus: Path) -> None:
    """A user names one feature, in one form; an item has one quality in each; a pair is in one part only."""
    form, quality, pairs = {}, {}, set()
    for part in ("train", "test"):
        for document in Corpus(corpus / part):
            user, item = (next(iter(one.ids.values())) for one in document.segments if isinstance(one, Entity))
            (feature,), said = features_of(document), document.segments[-1].text.split()
            (found,) = {"poor", "fair", "great"} & set(said)
            pattern = [word.replace(found, "Q") for word in said]
            assert form.setdefault(user, (feature, pattern)) == (feature, pattern)
            assert quality.setdefault((item, feature), found) == found
            assert (user, item) not in pairs
            pairs.add((user, item))
    assert len(pairs) == 120
