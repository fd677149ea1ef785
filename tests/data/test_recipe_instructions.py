"""Recipe instructions: turns as the chat template writes them, answers alone supervised, a split by content."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from kosmos_data import Corpus, Document, Text, recipes
from kosmos_data.recipes import instructions
from kosmos_data.recipes.instructions import Talk
from kosmos_data.recipes.packages import PackageUnavailable
from kosmos_data.recipes.wordnet import Synset

YAML = """categories: [x]
conversations:
- - What is AI?
  - Artificial
    Intelligence.
- - Hello
  - Hi
  - How are you?
- - Alone
- just a line
- - Write code.
  - "Here: ``` x ```"
"""
FAQ = """<html xmlns="http://www.w3.org/1999/xhtml"><body><div class="chapter">
<div class="section"><div class="titlepage"><h2 class="title">1.2.\xa0What is it?</h2></div>
  <p>One two <em>three</em>[3].</p><p>Four five six.</p><p>Seven eight nine ten eleven.</p></div>
<div class="section"><div class="titlepage"><h2>1.3.\xa0Which are there?</h2></div><p>These.</p><p>Namely:</p>
  <ul><li>A</li></ul><p>Behind the list.</p>
  <div class="section"><div class="titlepage"><h3>1.3.1. Notes</h3></div><p>A note.</p></div></div>
<div class="section"><div class="titlepage"><h2>1.4. Why?</h2></div><pre>ls</pre></div>
</div></body></html>"""


def test_dialogues(tmp_path: Path) -> None:
    (tmp_path / "english").mkdir()
    (tmp_path / "english/ai.yml").write_text(YAML)
    skipped: Counter[str] = Counter()
    talks = list(instructions.dialogues(tmp_path, ["english"], skipped))
    assert talks == [
        Talk("english-ai-0000", "what is ai?", (("What is AI?", "Artificial Intelligence."),)),
        Talk("english-ai-0001", "hello", (("Hello", "Hi"),)),
    ]
    assert skipped == {"not a dialogue": 2, "has a listing": 1}
    with pytest.raises(ValueError, match="no dialogues in 'klingon'; known: english"):
        list(instructions.dialogues(tmp_path, ["klingon"], skipped))


def test_questions_of_the_faq(tmp_path: Path) -> None:
    (tmp_path / "a.en.html").write_text(FAQ, encoding="utf-8")
    skipped: Counter[str] = Counter()
    talks = list(instructions.questions(tmp_path, 8, skipped))
    assert [talk.turns for talk in talks] == [
        (("What is it?", "One two three. Four five six."),),
        (("Which are there?", "These."),),
    ]
    assert skipped == {"title is no question": 1, "no paragraph of that length": 1}


def test_words_with_one_meaning() -> None:
    def synset(number: int, word: str, *examples: str) -> Synset:
        return Synset(f"noun-{number:08d}", "noun", (word,), "noun.act", f"meaning {number}", examples)

    many = [synset(number, f"word{number}", f"a word{number} here", "b") for number in range(60)]
    talks = instructions.definitions([*many, synset(60, "Bank"), synset(61, "bank")], 1000)
    assert [talk.key for talk in talks] == [synset.name for synset in many]
    expected = {
        kind
        for number in range(60)
        for kind in (
            (f'Define "word{number}".', f"meaning {number}"),
            (f'What does "word{number}" mean?', f"meaning {number}"),
            (f'Which noun means "meaning {number}"?', f"word{number}"),
            (f'Use "word{number}" in a sentence.', f"a word{number} here"),
        )
    }
    assert {talk.turns[0] for talk in talks} < expected
    assert len({talk.turns[0][0].split()[0] for talk in talks}) == 4
    assert instructions.definitions(many[::-1], 7) == sorted(instructions.definitions(many, 7), key=lambda t: t.key)


def test_only_answers_are_supervised() -> None:
    talk = Talk("k", "g", (("Hello", "Hi"), ("Who?", "Me")))
    segments = [
        Text("Question: Hello Answer:", False),
        Text(" Hi\n"),
        Text("Question: Who? Answer:", False),
        Text(" Me"),
    ]
    assert instructions.document("faq", talk) == Document("faq/k", segments, {"source": "faq"})


def test_the_real_sources(tmp_path: Path) -> None:
    try:
        report = recipes.make("instructions", tmp_path / "out", ["definitions=500", f"cache={tmp_path / 'cache'}"])
    except OSError as error:
        pytest.skip(f"no registry: {error}")
    assert report["talks"]["dialogues"] > 1800
    assert report["talks"]["words"] == 500
    assert report["talks"]["faq"] > 100  # 200 in version 11.1; another Debian has another
    asked = []
    for name in ("instructions", "held_out"):
        documents = list(Corpus(tmp_path / "out" / name))
        assert len(documents) == report["documents"][name]
        for document in documents:
            assert [segment.supervised for segment in document.segments] == [False, True] * (
                len(document.segments) // 2
            )
            assert all("\n" not in segment.text.rstrip("\n") for segment in document.segments)
        asked.append({document.segments[0].text.lower() for document in documents})
    assert not asked[0] & asked[1]
    assert json.loads((tmp_path / "out/report.json").read_text())["sources"][0]["version"] == "1.3.3"


def test_a_collection_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without npm and apt-get: left out where that is wanted, else an error, as with nothing left."""
    monkeypatch.setenv("PATH", str(tmp_path))
    options = [f"cache={tmp_path / 'cache'}", "collections=[words, faq]"]
    with pytest.raises(PackageUnavailable, match="npm"):
        recipes.make("instructions", tmp_path / "a", options)
    with pytest.raises(PackageUnavailable, match="apt-get"):
        recipes.make("instructions", tmp_path / "b", [*options, "optional=true"])
    with pytest.raises(ValueError, match="no collection 'songs' of instructions; known: dialogues, words, faq"):
        recipes.make("instructions", tmp_path / "c", [f"cache={tmp_path / 'cache'}", "collections=[songs]"])
