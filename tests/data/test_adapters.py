"""Each published format, in a tiny sample written by hand, becomes the documents that one expects."""

from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from kosmos.cli import main
from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import BadSample, Corpus, DataConfig, Document, Image, SourceConfig, Text, build_loader
from kosmos_data.adapters import convert
from kosmos_data.adapters.interleaved import url_name
from kosmos_data.document import from_files

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


@pytest.fixture
def img2dataset(tmp_path: Path, make_png: Png) -> Path:
    """What img2dataset leaves: a tar, its table and its statistics. The second of three captions is empty."""
    folder = tmp_path / "in"
    write(folder / "00000_stats.json", {"count": 3, "successes": 3})
    (folder / "00000.parquet").write_bytes(b"PAR1")
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for key, caption in (("000000000", "a dog"), ("000000001", ""), ("000000002", "two\ncats\n")):
            record = json.dumps({"url": "http://x/y.jpg", "caption": caption, "status": "success"}).encode()
            for kind, data in (("jpg", make_png(1)), ("json", record), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


def test_img2dataset(img2dataset: Path, make_png: Png) -> None:
    documents, skipped = imported("img2dataset", img2dataset)
    assert documents == [
        Document("00000/000000000", [Image(make_png(1)), Text("a dog")]),
        Document("00000/000000002", [Image(make_png(1)), Text("two\ncats")]),
    ]
    assert skipped == {"empty": 1}


def test_img2dataset_in_place(img2dataset: Path, make_png: Png, processor: KosmosProcessor) -> None:
    """The loader reads the tars as they are once they are indexed, and counts the bad sample."""
    before = (img2dataset / "00000.tar").read_bytes()
    assert main(["data", "index", str(img2dataset)]) == 0
    assert (img2dataset / "00000.tar").read_bytes() == before
    corpus = Corpus(img2dataset)
    assert corpus[0] == Document("000000000", [Image(make_png(1)), Text("a dog")])
    assert (corpus.shards[0].documents, corpus.shards[0].images) == (3, 2)
    with pytest.raises(BadSample, match="empty"):
        corpus[1]
    config = DataConfig([SourceConfig("pairs", str(img2dataset), 1.0)], row_tokens=64, max_bad_rate=0.9)
    config.rows_per_step = config.rows_per_micro_batch = 1
    batch = next(build_loader(config, processor))
    assert len(batch.micro_batches[0]["pixel_values"]) > 1
    assert set(batch.stats["skipped"]) == {"empty"}


def test_a_pair_without_json_or_picture(make_png: Png) -> None:
    assert from_files("k", {"png": make_png(1), "txt": b" a dog "}) == Document(
        "k", [Image(make_png(1)), Text("a dog")]
    )
    for files, reason in (({"txt": b"a"}, "image missing"), ({"png": b"x"}, "neither json nor txt")):
        with pytest.raises(BadSample, match=reason):
            from_files("k", files)


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


def test_vqav2_never_mixes_splits(tmp_path: Path, make_png: Png) -> None:
    for split, answer in (("train2014", "dog"), ("val2014", "cat")):
        asked = {"questions": [{"image_id": 9, "question_id": 1, "question": "What is it?"}]}
        write(tmp_path / f"v2_OpenEnded_mscoco_{split}_questions.json", asked)
        answered = {"annotations": [{"question_id": 1, "multiple_choice_answer": answer}]}
        write(tmp_path / f"v2_mscoco_{split}_annotations.json", answered)
    (tmp_path / "COCO_train2014_000000000009.jpg").write_bytes(make_png(1))
    with pytest.raises(ValueError, match=r"several question files: give one of .*train2014_questions\.json"):
        imported("vqav2", tmp_path)
    documents, _ = imported("vqav2", tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json")
    assert documents[0].segments[-1] == Text(" dog")
    (tmp_path / "v2_mscoco_train2014_annotations.json").unlink()
    with pytest.raises(ValueError, match="0 annotation files beside it are of the same split"):
        convert("vqav2", tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", tmp_path / "out2")


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


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("<image> or <image>, which is red?", ["#", "Question: or", "#", ", which is red? Answer:"]),
        ("<image>\n<image>\nSame?", ["#", "#", "Question: Same? Answer:"]),
        ("Is <image> like <image>", ["Question: Is", "#", "like", "#", "Answer:"]),
        ("What is it?\n<image>", ["#", "Question: What is it? Answer:"]),
    ],
)
def test_llava_with_several_images(tmp_path: Path, make_png: Png, said: str, expected: list[str]) -> None:
    names = [f"{number}.png" for number in range(said.count("<image>"))]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(make_png(number))
    talk = [{"from": "human", "value": said}, {"from": "gpt", "value": "Yes."}]
    path = write(tmp_path / "llava.json", [{"id": "1", "image": names, "conversations": talk}])
    *asked, answer = imported("llava", path)[0][0].segments
    assert ["#" if isinstance(segment, Image) else segment.text for segment in asked] == expected
    assert [segment for segment in asked if isinstance(segment, Image)] == [
        Image(make_png(n)) for n in range(len(names))
    ]
    assert not any(segment.supervised for segment in asked if isinstance(segment, Text))
    assert answer == Text(" Yes.")


def test_obelics(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / url_name("http://x/1.png")).write_bytes(make_png(1))
    lines = [
        {
            "images": [None, "http://x/1.png", None, "http://x/2.png"],
            "texts": ["Intro", None, "More", None],
            "metadata": "[null, {}, null, {}]",
            "general_metadata": '{"url": "http://x", "warc_filename": "y"}',
        },
        {"images": [None], "texts": ["too", "long"]},
    ]
    path = tmp_path / "obelics.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
    documents, skipped = imported("obelics", path)
    assert [document.segments for document in documents] == [[Text("Intro"), Image(make_png(1)), Text("More")]]
    assert documents[0].meta == {"url": "http://x"}
    assert skipped == {"image missing": 1, "broken json": 2}


def test_mmc4(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "d1.png").write_bytes(make_png(1))
    record = {
        "url": "http://x",
        "text_list": ["First.", "Second."],
        "image_info": [{"image_name": "d1.png", "matched_text_index": 1, "matched_sim": 0.3}],
        "similarity_matrix": [[0.1, 0.3]],
    }
    path = tmp_path / "docs_shard_0.jsonl.zip"  # as it is published
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("docs_shard_0.jsonl", json.dumps(record))
    documents, _ = imported("mmc4", path)
    segments = [Text("First."), Image(make_png(1)), Text("Second.")]
    assert documents == [Document("docs_shard_0-00000000", segments, {"url": "http://x"})]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".zip"])
def test_text_from_json_lines(tmp_path: Path, ending: str) -> None:
    if ending == ".zst":
        pytest.importorskip("zstandard")
    path = tmp_path / f"c4-train.0.jsonl{ending}"
    lines = '{"text": "One.\\nTwo.", "url": "http://x", "list": [1]}\n{"text": " "}\n[]\n'
    with fsspec.open(str(path), "wt", compression="infer") as file:
        file.write(lines)
    documents, skipped = imported("text", path)
    assert documents == [Document("c4-train-00000000", [Text("One.\nTwo.")], {"url": "http://x"})]
    assert skipped == {"empty": 1, "broken json": 1}


def test_text_from_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["One", "Two"]}), tmp_path / "x.parquet")
    documents, _ = imported("text", tmp_path / "x.parquet")
    assert [document.segments[0].text for document in documents] == ["One", "Two"]


@pytest.mark.parametrize("name", ["../private.png", "{folder}/private.png", "a/../../private.png"])
def test_a_record_gets_no_file_outside_the_folder_of_its_pictures(tmp_path: Path, make_png: Png, name: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "private.png").write_bytes(make_png(0))
    record = {"image": name.format(folder=tmp_path), "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}
    record["conversations"].append({"from": "gpt", "value": "A secret."})
    (tmp_path / "llava.json").write_text(json.dumps([record]))
    with pytest.raises(ValueError, match=r"no usable record .*1 × image missing"):
        convert("llava", tmp_path / "llava.json", tmp_path / "out", tmp_path / "images")


RECORDS: dict[str, Any] = {
    "coco-captions": {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": [{"id": 2, "image_id": 1, "caption": "A dog."}],
    },
    "karpathy": {"images": [{"filename": "1.png", "split": "train", "sentences": [{"raw": "A dog."}]}]},
    "llava": [
        {
            "id": "a.b",
            "image": "1.png",
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A"}],
        }
    ],
    "obelics": {"texts": ["One", None], "images": [None, "http://x/1"], "general_metadata": '{"url": "u"}'},
    "mmc4": {"text_list": ["One", "Two"], "image_info": [{"image_name": "1.png", "matched_text_index": 1}]},
    "text": {"text": "One", "n": 1},
}


def _spoiled(value: Any, rng: random.Random) -> Any:
    """One place of a JSON value replaced by something else, or gone."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        changed = value.copy()
        place = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if rng.random() < 0.3:
            del changed[place]
        else:
            changed[place] = _spoiled(value[place], rng)
        return changed
    return rng.choice([None, 5, -1.5, "x" * 300, "..", "", [], {}, [[]], True, "\ud800"])


@pytest.mark.parametrize("name", RECORDS)
def test_spoiled_records_are_counted_or_the_source_is_named(tmp_path: Path, make_png: Png, name: str) -> None:
    rng, source = random.Random(name), tmp_path / ("a.jsonl" if name in ("obelics", "mmc4", "text") else "a.json")
    (tmp_path / "1.png").write_bytes(make_png(1))
    refused = 0
    for number in range(60):
        source.write_text(json.dumps(_spoiled(RECORDS[name], rng)) + "\n")
        try:
            convert(name, source, tmp_path / str(number))
        except ValueError as error:
            assert str(source) in str(error)  # noqa: PT017 - either is right
            refused += 1
        else:
            list(Corpus(tmp_path / str(number)))
    assert refused > 5


def test_import_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "One"}\nx\n')
    assert main(["data", "import", "text", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 document, 0 images in 1 shard" in printed
    assert "skipped 1 × broken json" in printed
    for arguments, message in (
        (["txt", "a", "--out", "o"], "did you mean 'text'"),
        (["text", str(tmp_path / "nowhere"), "--out", str(tmp_path / "o")], "no such file"),
    ):
        assert main(["data", "import", *arguments]) == 2
        assert message in capsys.readouterr().err
    write(tmp_path / "c.json", {"images": [], "annotations": [{"id": 1}]})
    assert main(["data", "import", "coco-captions", str(tmp_path / "c.json"), "--out", str(tmp_path / "o3")]) == 2
    assert "annotation 0: no field 'caption'" in capsys.readouterr().err
    (tmp_path / "b.jsonl").write_text("x\n")
    assert main(["data", "import", "text", str(tmp_path / "b.jsonl"), "--out", str(tmp_path / "o2")]) == 2
    assert "no usable record" in capsys.readouterr().err
