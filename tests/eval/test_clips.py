"""Items with sounds and videos: real files through a task's marks, contexts, ranking, shards and the sample log."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration, KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos.audio import AudioReader
from kosmos.segments import Audio, Video
from kosmos.video import VideoReader
from kosmos_data import Document, Text, write_shards
from kosmos_eval import contamination, corpus_items, prompts, tasks
from kosmos_eval.compare import clusters_of, read_samples
from kosmos_eval.evaluate import evaluate
from kosmos_eval.gallery import gallery
from kosmos_eval.items import Item
from kosmos_eval.readers import load_items

pytest.importorskip("av")

WHISPER = {"model_type": "whisper", "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "vocab_size": 60}
WHISPER |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
WHISPER |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_source_positions": 150, "pad_token_id": 0}
WHISPER |= {"bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1, "init_std": 0.3}
NAMES = {"pigeon": "un colom", "rat": "una rateta", "wapiti": "un wapiti", "zebu": "un zebu"}


@pytest.fixture(scope="module")
def clips(repository: Path) -> Path:
    return repository / "tests/fixtures/media"


@pytest.fixture(scope="module")
def pair() -> tuple[KosmosForConditionalGeneration, KosmosProcessor]:
    """A random model that sees, hears and sees videos, and its processor."""
    marks = ["<audio>", "<audio_slot>", "</audio>", "<video>", "<video_slot>", "</video>"]
    words = [f"Question: what is said? Answer: {name}" for name in NAMES.values()]
    tokenizer = train_tokenizer(words * 5, 200, marks)
    whisper = {"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 3}
    audio = AudioReader(num_tokens=3, extractor=whisper)
    readers = {"audio": audio, "video": VideoReader(num_tokens=4, num_frames=3)}
    processor = KosmosProcessor(KosmosImageProcessor(image_size=16), tokenizer, 4, max_length=256, readers=readers)
    torch.manual_seed(0)
    vit = {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8}
    model = KosmosForConditionalGeneration(
        KosmosConfig(
            text_config={
                "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "max_position_embeddings": 256,
            },
            vision_config={"model_config": {"embed_dim": 16, "vision_cfg": vit}},
            connector_config={"kind": "resampler", "num_queries": 4, "num_heads": 2, "depth": 1, "head_dim": 8},
            image_token_id=processor.image_slot_id,
            audio_config={"model_config": WHISPER},
            audio_connector_config={"num_queries": 3, "num_heads": 2},
            audio_token_id=processor.token_id("<audio_slot>"),
            video_connector_config={"num_queries": 4, "num_heads": 2, "num_frames": 3},
            video_token_id=processor.token_id("<video_slot>"),
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, processor


@pytest.fixture(scope="module")
def data(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four real names as the recipe writes them, and two films."""
    root = tmp_path_factory.mktemp("clips")
    for split in ("test", "train"):
        folder = root / split
        (folder / "sounds").mkdir(parents=True)
        rows = []
        for name, said in NAMES.items():
            shutil.copy(next(clips.rglob(f"{name}_desc_ca.ogg")), folder / f"sounds/{name}.ogg")
            rows.append({"id": name, "files": [f"{name}.ogg"], "answers": [said], "candidates": list(NAMES.values())})
        for file in ("names.jsonl", "languages.jsonl"):
            (folder / file).write_text("\n".join(map(json.dumps, rows if split == "test" else rows[:2])))
    films = [{"id": file, "files": [file], "answers": ["un colom"]} for file in ("milky_way.webp",)]
    films.append({"id": "phone", "files": ["carphone_distorted.mp4"], "answers": ["un zebu"]})
    (root / "films.jsonl").write_text("\n".join(map(json.dumps, films)))
    for film in films:
        shutil.copy(clips / film["files"][0], root)
    return root


FILMS = [
    "dataset.annotations=films.jsonl",
    "dataset.images={file_name}",
    "prompt.template=<video>Question: what? Answer:",
    "decoding.candidates=un colom,un zebu",
]


def log_of(out: Path, task: str, context: str = "image+text") -> list[dict[str, Any]]:
    return [json.loads(line) for line in next(out.rglob(f"{task}-0shot-{context}.jsonl")).read_text().splitlines()]


def test_sounds_are_ranked_as_the_model_hears_them(pair: Any, data: Path, tmp_path: Path) -> None:
    """Scores are the log-likelihoods of the model itself behind the sound; shuffled, those behind another's."""
    model, processor = pair
    task = tasks.load("spoken_names", ["decoding.normalisation=sum"])
    rows = evaluate(model, processor, task, data, contexts=("image+text", "shuffled", "text-only"), out=tmp_path)
    assert {(row["context"], row["n"]) for row in rows if not row.get("baseline")} == {
        ("image+text", 4), ("shuffled", 4), ("text-only", 4)
    }  # fmt: skip
    heard, other, blind = (log_of(tmp_path, "spoken_names", context) for context in
                           ("image+text", "shuffled", "text-only"))  # fmt: skip
    for record in heard:
        assert record["prompt"] == "<audio>Question: what is said? Answer:"
        assert record["files"][0]["file"] == f"{record['id']}.ogg"
        assert record["images"] == []
        sound = Audio(data / f"test/sounds/{record['id']}.ogg")
        for name, score in zip(NAMES.values(), record["scores"], strict=True):
            assert score == pytest.approx(likelihood(model, processor, [sound], name), abs=1e-3)
    assert all(len({tuple(record["scores"]) for record in log}) == 4 for log in (heard, other))
    assert len({tuple(record["scores"]) for record in blind}) == 1
    swapped = {record["id"]: record["files"][0]["file"] for record in other}
    assert all(f"{name}.ogg" != file for name, file in swapped.items())
    samples = read_samples(next(tmp_path.rglob("spoken_names-0shot-shuffled.jsonl")))
    assert len(set(clusters_of(samples))) == 4
    with pytest.raises(ValueError, match="image"):
        gallery(tmp_path, data, tmp_path / "g.png", task="spoken_names", shots=0, context="image+text")


def likelihood(model: Any, processor: Any, files: list[Any], answer: str) -> float:
    """Log-probability of an answer behind files and the question, by one plain pass."""
    tail = [Text("Question: what is said? Answer:"), Text(f" {answer}")]
    encoded = processor.encode([*files, *tail])
    ids = torch.tensor([[processor.tokenizer.bos_token_id, *encoded.ids]])
    count = len(processor.encode(tail[1:]).ids)
    features = processor.reader("audio").features(files[0].data.read_bytes())
    with torch.no_grad():
        logits = model(input_ids=ids, audio_features=torch.from_numpy(features)[None]).logits[0].log_softmax(-1)
    places = torch.arange(ids.shape[1] - count - 1, ids.shape[1] - 1)
    return float(logits[places, ids[0, -count:]].sum())


def test_demonstrations_languages_and_marginals(pair: Any, data: Path, tmp_path: Path) -> None:
    """Solved sounds before the question; other recordings in the place of the item's for a marginal likelihood."""
    model, processor = pair
    changes = ["demonstrations.split=train", "decoding.normalisation=marginal", "decoding.other_images=2"]
    rows = evaluate(model, processor, tasks.load("spoken_names", changes), data, out=tmp_path)
    assert [row["n"] for row in rows if row["model"] == "model"] == [4]
    task = tasks.load("spoken_languages", ["demonstrations.split=train"])
    for folder in ("test", "train"):  # other examples, so that none is the question itself
        assert len(load_items(task, data, folder)) == (4 if folder == "test" else 2)
    item = load_items(task, data, "test")[2]
    shown = prompts.build(task, item, load_items(task, data, "train")[:1])
    assert shown.text.count("<audio>") == len(shown.files) == 2
    other = prompts.with_last_image(shown, data / "test/sounds/rat.ogg")
    assert other.files == [shown.files[0], data / "test/sounds/rat.ogg"]
    assert isinstance(other.segments[-2], Audio)
    with pytest.raises(ValueError, match="rices compares images"):
        tasks.load("spoken_names", ["demonstrations.split=train", "demonstrations.method=rices"])


def test_videos_and_mixed_files(pair: Any, data: Path, tmp_path: Path) -> None:
    model, processor = pair
    task = tasks.load("spoken_languages", FILMS)
    rows = evaluate(model, processor, task, data, contexts=("image+text", "shuffled"), out=tmp_path)
    assert rows[0]["n"] == 2
    seen, other = (log_of(tmp_path, "spoken_languages", context) for context in ("image+text", "shuffled"))
    assert [one["scores"] for one in seen] == [pytest.approx(one["scores"], abs=1e-4) for one in reversed(other)]
    item = Item("one", {}, (data / "a.png", data / "b.ogg", data / "c.mp4"), ("yes",))
    mixed = tasks.load("spoken_languages", ["prompt.template=<image><audio> and <video>?"])
    built = prompts.build(mixed, item)
    assert built.segments == (data / "a.png", Audio(data / "b.ogg"), " and ", Video(data / "c.mp4"), "?")
    assert (built.text, built.images) == ("<image><audio> and <video>?", [data / "a.png"])
    assert prompts.build(mixed, item, context="text-only").segments == (" and ?",)
    with pytest.raises(ValueError, match="has 1 <audio> marks, item one has 3 files"):
        prompts.build(tasks.load("spoken_names"), item)


def test_sounds_of_shards(pair: Any, data: Path, tmp_path: Path) -> None:
    """A corpus as made for training is a task, and its sounds are found in the evaluated ones."""
    sounds = {name: (data / f"test/sounds/{name}.ogg").read_bytes() for name in NAMES}
    question = Text("Question: what is said? Answer:", supervised=False)
    documents = [Document(name, [Audio(sounds[name]), question, Text(f" {said}")]) for name, said in NAMES.items()]
    write_shards(tmp_path / "test", documents, 10)
    items = corpus_items.read(tmp_path / "test")
    assert [item.images[0].read_bytes() for item in items] == list(sounds.values())
    model, processor = pair
    task = tasks.load("shards_vqa", ["prompt.template=<audio>{question}", "demonstrations.split="])
    rows = evaluate(model, processor, task, tmp_path, contexts=("image+text", "shuffled"))
    assert rows[0]["n"] == 4
    found = contamination.check("spoken_names", data, [tmp_path / "test"])
    assert set(found.images) == set(NAMES)


def test_bad_files_are_named(pair: Any, data: Path, tmp_path: Path) -> None:
    """Missing, broken, too long, in the wrong place, both lists: one line each."""
    model, processor = pair
    (tmp_path / "test/sounds").mkdir(parents=True)
    row = {"id": "1", "files": ["a.ogg"], "answers": ["un colom"], "candidates": ["un colom", "un zebu"]}
    (tmp_path / "test/names.jsonl").write_text(json.dumps(row))
    with pytest.raises(FileNotFoundError, match=r"1 of 1 files are missing, first .*a\.ogg"):
        evaluate(model, processor, "spoken_names", tmp_path)
    shutil.copy(data / "milky_way.webp", tmp_path / "test/sounds/a.ogg")
    with pytest.raises(ValueError, match=r"a\.ogg: not a readable audio \(.*evaluation skips nothing"):
        evaluate(model, processor, "spoken_names", tmp_path)
    (tmp_path / "test/names.jsonl").write_text(json.dumps(row | {"images": ["a.ogg"]}))
    with pytest.raises(ValueError, match="two names of one list"):
        evaluate(model, processor, "spoken_names", tmp_path)


def test_a_model_that_does_not_hear(model: Any, processor: Any, data: Path) -> None:
    with pytest.raises(ValueError, match="reads no audio"):
        evaluate(model, processor, "spoken_names", data)
