"""Dialogues as people have them become what a chat reads: roles, system turns, pictures, several turns, and counts."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from kosmos.cli import main
from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import Corpus, DataConfig, Document, Image, SourceConfig, Text, build_loader, write_shards
from kosmos_data.adapters import convert
from kosmos_data.adapters.interleaved import url_name
from kosmos_data.objectives._flatten import flatten
from kosmos_data.turns import turn

Png = Callable[..., bytes]
QUESTION, ANSWER = {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A dog."}
GONE = {"role": "user", "content": [{"type": "image", "image": "gone.png"}, {"type": "text", "text": "What is it?"}]}


def imported(name: str, source: Path, **options: Any) -> tuple[list[Document], Any]:
    out = source.parent / f"out-{name}"
    _, tally = convert(name, source, out, **options)
    return list(Corpus(out)), tally


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def shown(document: Document) -> list[str]:
    """Segments as a person reads them: pictures as ``#`` and their first bytes' number, questions in brackets."""
    return [
        "#" if isinstance(one, Image) else one.text if one.supervised else f"[{one.text}]" for one in document.segments
    ]


def part(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def test_messages_with_pictures_of_every_kind(tmp_path: Path, make_png: Png) -> None:
    for number, name in enumerate(("a.png", url_name("https://x.org/b.png"))):
        (tmp_path / name).write_bytes(make_png(number))
    address = "data:image/png;base64," + base64.b64encode(make_png(2)).decode()
    content = [
        part("text", text="Is"), part("image_url", image_url={"url": "a.png"}), part("text", text="or"),
        part("image", url="https://x.org/b.png"), part("input_text", text="like"),
        part("input_image", image_url=address), part("text", text="?"),
    ]  # fmt: skip
    said = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": content}, ANSWER, QUESTION]
    source = lines(tmp_path / "m.v1.jsonl", {"id": 7, "messages": [*said, {**ANSWER, "content": "One\ntwo"}]})
    (document,), tally = imported("messages", source)
    assert shown(document) == [
        "[Be short.\n]", "[Question: Is]", "#", "[or]", "#", "[like]", "#", "[? Answer:]", " A dog.\n",
        "[Question: What is it? Answer:]", " One\ntwo",
    ]  # fmt: skip
    assert document.images == [Image(make_png(number)) for number in range(3)]
    assert (document.key, document.meta, dict(tally)) == ("m-00000000", {"id": 7}, {})


def test_layouts_with_the_pictures_beside_the_messages(tmp_path: Path, make_png: Png) -> None:
    """TRL's rows: parts without a picture, texts without a mark, texts with marks; prompt and completion."""
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(make_png(number))
    both = ["0.png", "1.png"]
    placed = {
        "role": "user",
        "content": [part("text", text="Is"), part("image"), part("image"), part("text", text="?")],
    }
    marked = {"role": "user", "content": "<image> or <image>?"}
    source = lines(
        tmp_path / "t.jsonl",
        {"images": both, "messages": [placed, ANSWER]},
        {"images": both, "messages": [marked, ANSWER]},
        {"image": "0.png", "messages": [QUESTION, ANSWER, QUESTION, ANSWER]},
        {"image": "0.png", "prompt": [QUESTION], "completion": [ANSWER]},
        {"image": "0.png", "prompt": "What is it?", "completion": "A dog."},
        {"images": both, "messages": [{"role": "user", "content": "<image>?"}, ANSWER]},
        {"images": both[:1], "messages": [marked, ANSWER]},
    )
    documents, tally = imported("parquet", source)
    question, answer = "[Question: What is it? Answer:]", " A dog."
    assert list(map(shown, documents)) == [
        ["[Question: Is]", "#", "#", "[? Answer:]", answer],
        ["#", "[Question: or]", "#", "[? Answer:]", answer],
        ["#", question, f"{answer}\n", question, answer],
        ["#", question, answer],
        ["#", question, answer],
    ]
    assert dict(tally) == {"no <image> mark": 1, "image missing": 1}


def test_parquet_and_datasets_folders_with_picture_bytes(tmp_path: Path, make_png: Png) -> None:
    """The Cauldron and FineVision; nothing but the bytes' header is looked at."""
    datasets = pytest.importorskip("datasets")
    texts = [{"user": "What is it?", "assistant": "A dog."}, {"user": "Sure?", "assistant": "Yes."}]
    rows = [
        {"images": [{"bytes": make_png(number), "path": None}] * 2, "texts": texts, "source": "x"}
        for number in range(70)
    ]
    rows[1]["images"] = [{"bytes": b"no picture", "path": "a.png"}]
    rows[2]["texts"] = [texts[0] | {"assistant": None}]
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "train-00000.parquet"))
    found = []
    for name, source in (("cauldron", tmp_path / "saved"), ("parquet", tmp_path / "train-00000.parquet")):
        documents, tally = imported(name, source)
        assert len(documents) == 68
        assert dict(tally) == {"image broken": 1, "empty": 1}
        found.append([(document.segments, document.meta) for document in documents])
    assert found[0] == found[1]
    question = [Text("Question: What is it? Answer:", supervised=False), Text(" A dog.\n")]
    more = [Text("Question: Sure? Answer:", supervised=False), Text(" Yes.")]
    assert found[0][0] == ([Image(make_png(0)), Image(make_png(0)), *question, *more], {"source": "x"})
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"ARROW")
    with pytest.raises(ValueError, match=r"data-00000-of-00001\.arrow: not a whole arrow file"):
        convert("cauldron", tmp_path / "saved", tmp_path / "o")


def test_instructions_and_pairs(tmp_path: Path) -> None:
    (tmp_path / "alpaca.json").write_text(
        json.dumps(
            [
                {"instruction": "Name it.", "input": "", "output": "A dog."},
                {
                    "instruction": "Sum.",
                    "input": "1 2",
                    "output": "3",
                    "system": "Short.",
                    "history": [["Hi", "Ho"]],
                },
                {"instruction": "Name it.", "context": "It barks.", "response": "A dog."},
                {"instruction": "Name it.", "input": "", "output": " "},
            ]
        )
    )
    documents, tally = imported("alpaca", tmp_path / "alpaca.json")
    assert list(map(shown, documents)) == [
        ["[Question: Name it. Answer:]", " A dog."],
        ["[Short.\n]", "[Question: Hi Answer:]", " Ho\n", "[Question: Sum.\n1 2 Answer:]", " 3"],
        ["[Question: Name it.\nIt barks. Answer:]", " A dog."],
    ]
    assert dict(tally) == {"empty": 1}
    pairs = [{"inputs": "2 + 2", "targets": "4"}, {"question": "Who?", "answer": "I"}, {"input": "a", "output": 5}]
    documents, tally = imported("flan", lines(tmp_path / "f.jsonl", *pairs))
    assert list(map(shown, documents)) == [["[Question: 2 + 2 Answer:]", " 4"], ["[Question: Who? Answer:]", " I"]]
    assert dict(tally) == {"fields missing or of another kind": 1}


def test_what_is_left_out_is_counted_by_its_reason(tmp_path: Path) -> None:
    """An answer in front and a question at the end leave a dialogue; the rest of these cost it."""
    system, tool = {"role": "system", "content": "Short."}, {"role": "tool", "content": "{}"}
    talks = {
        "kept": [ANSWER, QUESTION, ANSWER, QUESTION],
        "no role": [QUESTION, {"content": "A dog."}],
        "tool": [QUESTION, {"role": "assistant", "content": None, "tool_calls": []}, tool, ANSWER],
        "two questions": [QUESTION, QUESTION, ANSWER],
        "system later": [QUESTION, ANSWER, system, QUESTION, ANSWER],
        "no answers": [QUESTION, {"role": "assistant", "content": " "}],
        "no question": [{"role": "user", "content": [part("text", text=" ")]}, ANSWER],
        "video": [{"role": "user", "content": [part("video", video="a.mp4")]}, ANSWER],
        "gone": [{"role": "user", "content": [part("image", image="gone.png")]}, ANSWER],
        "none": [],
    }
    source = lines(tmp_path / "m.jsonl", *({"messages": talk} for talk in talks.values()))
    documents, tally = imported("messages", source)
    assert list(map(shown, documents)) == [
        ["[Question: What is it? Answer:]", " A dog."],
        ["[Question: What is it? What is it? Answer:]", " A dog."],
    ]
    assert dict(tally) == {
        "answer without question": 1, "no answer": 1, "role missing or unknown": 2, "no conversation": 2, "empty": 2,
        "fields missing or of another kind": 1, "image missing": 1,
    }  # fmt: skip
    assert tally.records == len(talks) - 2
    assert tally.examples["role missing or unknown"] == [
        "m-00000001: a message without role",
        "m-00000002: role 'tool'",
    ]
    assert "message 3 is the system's" in tally.examples["no conversation"][0]


def test_long_dialogues_are_cut_at_turns(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "1.png").write_bytes(make_png(1))
    said = [
        {"from": "system", "value": "Short."},
        {"from": "human", "value": "<image>\n0?"},
        {"from": "gpt", "value": "0"},
    ]
    said += [{"from": who, "value": str(n)} for n in range(1, 5) for who in ("human", "gpt")]
    source = lines(tmp_path / "s.jsonl", {"image": "1.png", "conversations": said})
    documents, _ = imported("sharegpt", source, turns=2)
    assert [document.key for document in documents] == ["s-00000000-0", "s-00000000-1", "s-00000000-2"]
    assert [shown(document)[:3] for document in documents] == [
        ["[Short.\n]", "#", f"[Question: {asked} Answer:]"] for asked in ("0?", "2", "4")
    ]
    assert [len(document.segments) for document in documents] == [6, 6, 4]
    for name, options, message in (("sharegpt", {"turns": 0}, "at least one"), ("text", {"turns": 2}, "no dialogues")):
        with pytest.raises(ValueError, match=message):
            convert(name, source, tmp_path / "o", **options)


@pytest.mark.parametrize("turn_end", ["line", "eos"])
def test_a_document_is_what_the_chat_reads(
    tmp_path: Path, make_png: Png, processor: KosmosProcessor, turn_end: str
) -> None:
    (tmp_path / "1.png").write_bytes(make_png(1))
    content = [part("image", path=str(tmp_path / "1.png")), part("text", text="the fish")]
    said = [{"role": "system", "content": "a calm sea"}, {"role": "user", "content": content}, ANSWER, QUESTION, ANSWER]
    (document,), _ = imported("messages", lines(tmp_path / "m.jsonl", {"messages": said}))
    before = processor.turn_end
    processor.end_turns(turn_end)
    try:
        flat = flatten(document, processor, "supervised")
        asked = processor.apply_chat_template(said[:-1], tokenize=True, return_dict=True, return_tensors="pt")
    finally:
        processor.end_turns(before)
    prompt = asked["input_ids"][0].tolist()
    assert flat.ids[: len(prompt)].tolist() == prompt
    answers = processor.encode_text(" A dog.")
    ends = [processor.tokenizer.eos_token_id] if turn_end == "eos" else processor.encode_text("\n")
    learnt = [*answers, *ends, *answers, processor.tokenizer.eos_token_id]
    assert flat.ids[flat.weight > 0].tolist() == learnt


@pytest.mark.parametrize(
    ("name", "record", "said"),
    [
        (
            "messages",
            [QUESTION, ANSWER | {"content": ""}],
            "skipped: 1 × empty (first: m-00000000: an answer without text)",
        ),
        (
            "messages",
            [QUESTION, {"content": "A dog."}],
            "skipped: 1 × role missing or unknown (first: m-00000000: a message without role)",
        ),
        ("messages", [GONE, ANSWER], "skipped: 1 × image missing (first: m-00000000: "),
        ("alpaca", [QUESTION, ANSWER], "no instruction; its fields are messages"),
    ],
)
def test_nothing_usable_is_one_line(
    tmp_path: Path, name: str, record: list[Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All answers empty, a message without role, an image that is named and missing, another layout."""
    source = lines(tmp_path / "m.jsonl", {"messages": record})
    assert main(["data", "import", name, str(source), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_dialogue_longer_than_a_row_goes_on_at_a_question(
    tmp_path: Path, make_png: Png, processor: KosmosProcessor
) -> None:
    """Every piece begins with a question or its own picture; only what cannot be had so is cut as other documents."""
    picture = Image(make_png(1))
    talk = [one for n in range(12) for one in turn(f"the fish {n}", "a calm sea", last=n == 11)]
    shows = [one for n in range(6) for one in (picture, *turn("the fish", f"a calm sea {n}", last=n == 5))]
    begins = {processor.encode_text("Question:")[0], processor.image_token_ids()[0]}

    def after_bos(*documents: Document) -> set[int]:
        out = tmp_path / documents[0].key
        write_shards(out, documents)
        source = SourceConfig("c", str(out), objective={"name": "causal", "loss": "supervised"})
        config = DataConfig([source], row_tokens=64, rows_per_step=1, rows_per_micro_batch=1)
        rows = [
            batch.micro_batches[0]["input_ids"][0].tolist() for batch in islice(build_loader(config, processor), 40)
        ]
        bos = processor.tokenizer.bos_token_id
        return {token for row in rows for before, token in pairwise(row) if before == bos}

    assert after_bos(Document("talk", talk), Document("shows", shows)) == begins
    assert after_bos(Document("one", [picture, *talk])) > {processor.image_token_ids()[0]}
