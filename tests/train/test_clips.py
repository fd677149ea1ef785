"""Real sounds and videos from files to answers: recipe, shards, loader, dry run, a run, chat, evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
import yaml

from kosmos import settings
from kosmos.cli import main
from kosmos.processing_kosmos import load_processor
from kosmos_data import Audio, DataConfig, Document, Text, Video, build_loader, recipes, write_shards
from kosmos_data.check import check_corpus
from kosmos_data.replay import order

pytest.importorskip("av")

CONFIGS = Path(__file__).parents[2] / "train/configs/sounds"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, stamps_cache: Path, repository: Path) -> dict[str, Any]:
    """The run of train/configs/sounds over twelve real names, a cow and two films, with a small model."""
    root = tmp_path_factory.mktemp("clips")
    recipes.make("sounds", root / "corpus", [f"cache={stamps_cache}", "held_out_every=1000000"])
    recipes.make("sounds", root / "held", [f"cache={stamps_cache}", "held_out_every=1"])
    films = [(repository / "tests/fixtures/media" / name) for name in ("carphone_distorted.mp4", "milky_way.webp")]
    write_shards(root / "films", [Document(film.stem, [Video(film.read_bytes()), Text("a film")]) for film in films])
    made = settings.read_yaml(CONFIGS / "tokenizer.yaml") | {"vocab_size": 120}
    shards = [root / "corpus" / name for name in ("names", "languages", "sounds")] + [root / "films"]
    made["readers"] |= {"video": {"num_tokens": 2, "num_frames": 3}}
    (root / "tokenizer.yaml").write_text(yaml.safe_dump(made | {"shards": [str(one) for one in shards]}))
    assert main(["tokenizer", str(root / "tokenizer.yaml"), f"run={root / 'processor'}"]) == 0
    run = settings.read_yaml(CONFIGS / "names.yaml")
    read = [one for one in shards if one.name != "sounds"]  # two ranks cannot share its one document
    run["data"] |= {"sources": [{"name": one.name, "shards": str(one)} for one in read], "rows_per_step": 2}
    run["model"]["overrides"] |= {
        "vision_config": {"image_size": 32, "model_config": {"embed_dim": 16, "vision_cfg": {
            "image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}}},
        "video_connector_config": {"kind": "xconnector", "num_heads": 2},
    }  # fmt: skip
    run |= {"processor": str(root / "processor"), "steps": 2, "log": {"every": 1}}
    run["model"]["vision_weights"] = "random"
    run["optim"] |= {"warmup": 1}
    run["data"] |= {"row_tokens": 128, "rows_per_micro_batch": 1}
    return {"root": root, "run": run}


def test_the_loader_and_what_looks_at_a_corpus(world: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Every file is read whole; the batches of one rank and of two are the same; nothing is broken."""
    processor = load_processor(world["run"]["processor"])
    config = settings.from_dict(DataConfig, world["run"]["data"])
    loader = build_loader(config, processor)
    seen = {"audio": 0, "video": 0}
    for _ in range(2):
        batch = next(loader)
        assert not batch.stats["skipped"]
        for micro in batch.micro_batches:
            seen["audio"] += len(micro.get("audio_features", ()))
            seen["video"] += len(micro.get("video_pixel_values", ()))
            assert all(features.shape == (80, 120) for features in micro.get("audio_features", ()))
    assert min(seen.values()) > 0
    same = [digest for _, digest in order(config, processor, 2, 1, 1)]
    assert same == [digest for _, digest in order(config, processor, 1, 1, 1)]
    names = world["root"] / "corpus/names"
    options = ["--objective", "causal", "--processor", world["run"]["processor"]]
    assert main(["data", "inspect", str(names), *options]) == 0
    printed = capsys.readouterr().out
    assert "▣ audio vorbis, " in printed
    assert "what is said?" in printed
    assert main(["data", "inspect", str(world["root"] / "films")]) == 0
    printed = capsys.readouterr().out
    assert "▣ video " in printed
    for folder in (names, world["root"] / "films"):
        assert sum(report.bad.total() for report in check_corpus(folder)) == 0


def test_the_dry_run_counts_sounds_and_frames(world: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = world["root"] / "run.yaml"
    path.write_text(yaml.safe_dump(world["run"]))
    assert main(["train", str(path), "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "a sound" in printed
    assert "frame" in printed


def test_from_a_run_to_answers(
    world: dict[str, Any], repository: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Two steps of the config's own run; then chat, and choices among eight, with the sound and with another."""
    run = tmp_path / "run"
    assert jobs.run(world["run"], str(run)) == {"step": 2, "finished": True}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows)
    stamps = repository / "tests/fixtures/media/stamps"
    sound = next(stamps.rglob("rat_desc_ca.ogg"))
    assert main(["chat", str(run), "--audio", str(sound), "--ask", "what is said?"]) == 0
    assert main(["chat", str(run), "--video", str(stamps.parent / "carphone_distorted.mp4"), "--ask", "what?"]) == 0
    capsys.readouterr()
    command = ["eval", str(run), "--tasks", "spoken_names", "--data", str(world["root"] / "held/eval"), "--context",
               "image+text,shuffled", "--out", str(tmp_path / "scores")]  # fmt: skip
    assert main(command) == 0
    results = json.loads((tmp_path / "scores/results.json").read_text())
    scored = [row for row in results if row["metric"] == "accuracy" and not row.get("baseline")]
    assert [(row["context"], row["n"]) for row in scored] == [("image+text", 8), ("shuffled", 8)]


def test_a_broken_recording_is_left_out_and_counted(world: dict[str, Any], tmp_path: Path, repository: Path) -> None:
    """A real file without its head; whole ones beside it are read."""
    data = next((repository / "tests/fixtures/media/stamps").rglob("rat_desc_ca.ogg")).read_bytes()
    documents = [Document("whole", [Audio(data), Text("a rat")]), Document("bad", [Audio(data[900:]), Text("a rat")])]
    write_shards(tmp_path / "c", documents, 10)
    (report,) = check_corpus(tmp_path / "c")
    assert report.bad == {"sound or video unreadable": 1}
    config = settings.from_dict(DataConfig, world["run"]["data"] | {"sources": [{"shards": str(tmp_path / "c"),
                                "name": "c"}], "max_bad_rate": 0.9})  # fmt: skip
    batch = next(build_loader(config, load_processor(world["run"]["processor"])))
    assert batch.stats["skipped"]["sound or video unreadable"] > 0
    assert any(len(micro["audio_features"]) for micro in batch.micro_batches)
