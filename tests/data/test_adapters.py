"""Each published format, in a tiny sample written by hand, becomes the documents that one expects."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kosmos.cli import main
from kosmos_data import Corpus, Document, Image, Text
from kosmos_data.adapters import convert
from kosmos_data.adapters.interleaved import url_name

Png = Callable[..., bytes]


def imported(name: str, source: Path, images: Path | None = None) -> tuple[list[Document], dict[str, int]]:
    out = source.parent / f"out-{name}"
    _, skipped = convert(name, source, out, images)
    return list(Corpus(out)), dict(skipped)


def question(text: str) -> Text:
    return Text(f"Question: {text} Answer:", supervised=False)


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_img2dataset(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/00000.tar", "w") as tar:
        for key, caption in (("000000000", "a dog"), ("000000001", "")):
            record = json.dumps({"url": "http://x/y.jpg", "caption": caption, "status": "success"}).encode()
            for kind, data in (("jpg", make_png(1)), ("json", record), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    documents, skipped = imported("img2dataset", tmp_path / "in")
    assert documents == [Document("00000/000000000", [Image(make_png(1)), Text("a dog")])]
    assert skipped == {"empty": 1}


def test_coco_captions(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(make_png(1))
    body = {
        "images": [{"id": 7, "file_name": "1.png"}, {"id": 8, "file_name": "gone.png"}],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": "A dog.\n"},
            {"id": 2, "image_id": 7, "caption": "One dog"},
            {"id": 3, "image_id": 8, "caption": "No dog"},
        ],
    }
    documents, skipped = imported("coco-captions", write(tmp_path / "captions.json", body), tmp_path / "images")
    picture = Image(make_png(1))
    assert documents == [
        Document("7-1", [picture, Text("A dog.")]),
        Document("7-2", [picture, Text("One dog")]),
    ]
    assert skipped == {"image missing": 1}


def test_karpathy_takes_the_training_split_only(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "1.jpg").write_bytes(make_png(1))
    images = [
        {"filename": "1.jpg", "split": split, "sentences": [{"raw": f"A {split} dog."}]} for split in ("train", "test")
    ]
    documents, _ = imported("karpathy", write(tmp_path / "dataset_flickr30k.json", {"images": images}))
    assert documents == [Document("1-0", [Image(make_png(1)), Text("A train dog.")])]


def test_vqav2(tmp_path: Path, make_png: Png) -> None:
    folder = tmp_path / "vqa"
    asked = [
        {"image_id": 9, "question_id": 9000, "question": "What is it?"},
        {"image_id": 9, "question_id": 9001, "question": "Is it red?"},
        {"image_id": 9, "question_id": 9002, "question": "Unanswered?"},
    ]
    answered = [
        {"question_id": 9000, "multiple_choice_answer": "dog"},
        {"question_id": 9001, "multiple_choice_answer": "no"},
    ]
    write(folder / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": asked})
    write(folder / "v2_mscoco_train2014_annotations.json", {"annotations": answered})
    (folder / "COCO_train2014_000000000009.jpg").write_bytes(make_png(1))
    documents, skipped = imported("vqav2", folder)
    expected = [Image(make_png(1)), question("What is it?"), Text(" dog\n"), question("Is it red?"), Text(" no")]
    assert documents == [Document("9", expected)]
    assert skipped == {"no answer": 1}


def test_llava(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_bytes(make_png(1))
    talk = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A dog."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes."},
    ]
    records = [
        {"id": "x/1", "image": "a/1.png", "conversations": talk},
        {"id": "2", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"id": "3", "image": "gone.png", "conversations": talk},
        {"id": "4", "conversations": talk},
        {"id": "5", "conversations": talk[:1]},
    ]
    documents, skipped = imported("llava", write(tmp_path / "llava.json", records))
    assert documents[0].segments == [
        Image(make_png(1)),
        question("What is it?"),
        Text(" A dog.\n"),
        question("Sure?"),
        Text(" Yes."),
    ]
    assert documents[1].segments == [question("Hi"), Text(" Hello")]
    assert len(documents) == 2
    assert skipped == {"image missing": 2, "no conversation": 1}


def test_obelics(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / url_name("http://x/1.png")).write_bytes(make_png(1))
    lines = [
        {"images": [None, "http://x/1.png", None, "http://x/2.png"], "texts": ["Intro", None, "More", None]},
        {"images": [None], "texts": ["too", "long"]},
    ]
    path = tmp_path / "obelics.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
    documents, skipped = imported("obelics", path)
    assert [document.segments for document in documents] == [[Text("Intro"), Image(make_png(1)), Text("More")]]
    assert skipped == {"image missing": 1, "broken json": 2}


def test_mmc4(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "d1.png").write_bytes(make_png(1))
    record = {
        "url": "http://x",
        "text_list": ["First.", "Second."],
        "image_info": [{"image_name": "d1.png", "matched_text_index": 1, "matched_sim": 0.3}],
        "similarity_matrix": [[0.1, 0.3]],
    }
    path = tmp_path / "docs_shard_0.jsonl"
    path.write_text(json.dumps(record))
    documents, _ = imported("mmc4", path)
    segments = [Text("First."), Image(make_png(1)), Text("Second.")]
    assert documents == [Document("docs_shard_0-00000000", segments, {"url": "http://x"})]


def test_text_from_json_lines(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "c4-train.0.jsonl.gz", "wt") as file:
        file.write('{"text": "One.\\nTwo.", "url": "http://x", "list": [1]}\n{"text": " "}\n[]\n')
    documents, skipped = imported("text", tmp_path / "c4-train.0.jsonl.gz")
    assert documents == [Document("c4-train-00000000", [Text("One.\nTwo.")], {"url": "http://x"})]
    assert skipped == {"empty": 1, "broken json": 1}


def test_text_from_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["One", "Two"]}), tmp_path / "x.parquet")
    documents, _ = imported("text", tmp_path / "x.parquet")
    assert [document.segments[0].text for document in documents] == ["One", "Two"]


def test_import_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "One"}\nx\n')
    assert main(["data", "import", "text", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 documents, 0 images in 1 shards" in printed
    assert "skipped 1 × broken json" in printed
    for arguments, message in (
        (["txt", "a", "--out", "o"], "did you mean 'text'"),
        (["text", str(tmp_path / "nowhere"), "--out", str(tmp_path / "o")], "no such file"),
    ):
        assert main(["data", "import", *arguments]) == 2
        assert message in capsys.readouterr().err
    write(tmp_path / "c.json", {"images": [], "annotations": [{"id": 1}]})
    assert main(["data", "import", "coco-captions", str(tmp_path / "c.json"), "--out", str(tmp_path / "o3")]) == 2
    assert "is not in the format 'coco-captions': 'image_id'" in capsys.readouterr().err
    (tmp_path / "b.jsonl").write_text("x\n")
    assert main(["data", "import", "text", str(tmp_path / "b.jsonl"), "--out", str(tmp_path / "o2")]) == 2
    assert "no usable record" in capsys.readouterr().err
