"""``kosmos demo``: the whole of the project once, on real images, on a laptop: from a corpus to a chat.

Seven steps, each of them a command that one can run alone; here they share a process, so that libraries load once. A
step whose result lies in the folder is not repeated, and an interrupted training goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from kosmos import settings

_HERE = Path(__file__).resolve().parent
# Beside the package in the source tree, inside it in an installed wheel.
CONFIGS = next((p for p in (_HERE.parent / "configs" / "demo", _HERE / "configs" / "demo") if p.is_dir()), _HERE)
YAML_ROOT = "runs/demo"
"""The folder that the demo's YAMLs name; another ``--out`` takes its place."""

CORPORA = ("pairs", "qa", "interleaved", "text")
FEW_SHOT_QUESTIONS = 1000
"""Of the test questions, for the model before tuning: prompts with eight images are long."""

QUESTIONS = ("what shape is in the image?", "what color is the shape?", "is there a red shape in the image?")


@dataclass
class Demo:
    """Where the demo works and how it speaks."""

    out: Path
    console: Console = field(default_factory=Console)
    steps_factor: float = 1.0
    limit: int | None = None

    def path(self, *names: str) -> Path:
        return self.out.joinpath(*names)

    def settings(self, cls: type, name: str) -> Any:
        """A demo YAML with its paths below ``out`` and its steps scaled."""
        values = _moved(settings.read_yaml(CONFIGS / f"{name}.yaml"), self.out)
        values["steps"] = max(4, round(values["steps"] * self.steps_factor))
        for section, key in (("optim", "warmup"), ("checkpoint", "every"), ("samples", "every")):
            if key in values.get(section, {}):
                values[section][key] = min(values[section][key], values["steps"])
        if "warmup" in values:
            values["warmup"] = min(values["warmup"], values["steps"])
        return settings.from_dict(cls, values, f"{name}.yaml: ")


def run_demo(
    out: str | Path, console: Console | None = None, steps_factor: float = 1.0, limit: int | None = None
) -> list[dict[str, Any]]:
    """Do all steps in ``out`` and return the rows of its ``results.json``.

    Args:
        out: the folder, ``runs/demo`` for the command.
        console: where to speak.
        steps_factor: scales all trainings, for a quick look (0.05) or a better model (2).
        limit: evaluate on so many questions and images only; None: on all of them.
    """
    demo = Demo(Path(out), console or Console(), steps_factor, limit)
    demo.out.mkdir(parents=True, exist_ok=True)
    stages: tuple[tuple[str, Callable[[Demo], None]], ...] = (
        ("Corpus: captions, questions, interleaved pages and speeches from two installed packages", make_corpus),
        ("Tokenizer: SentencePiece on the corpus, in KOSMOS's id layout", make_tokenizer),
        ("Vision: a small CLIP learns from caption pairs and is frozen", make_vision),
        ("Pretraining: a causal decoder reads text, pairs and interleaved pages (DeepSpeed)", pretrain),
        ("Instruction tuning: loss on the answers only", tune),
        ("Evaluation: images and questions that the model has never seen", evaluate),
        ("Chat", chat),
    )
    started = time.perf_counter()
    for number, (title, stage) in enumerate(stages, 1):
        demo.console.rule(f"[bold]{number}/{len(stages)}  {title}", align="left")
        begun = time.perf_counter()
        stage(demo)
        demo.console.print(f"[dim]{time.perf_counter() - begun:.0f} s[/]")
    rows = json.loads(demo.path("results.json").read_text(encoding="utf-8"))
    _close(demo, rows, time.perf_counter() - started)
    return rows


def make_corpus(demo: Demo) -> None:
    """Recipe ``starter``."""
    from kosmos_data import recipes

    folder = demo.path("corpus")
    if not (folder / "report.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        with Progress(console=demo.console, transient=True) as progress:
            recipes.make("starter", folder, [], progress)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    counts = ", ".join(f"{count:,} {name}" for name, count in report["documents"].items())
    demo.console.print(f"Training documents: {counts}. Test questions, put aside: {report['eval_test_questions']:,}.")


def make_tokenizer(demo: Demo) -> None:
    """Vocabulary and processor."""
    from kosmos.processing_kosmos import load_processor

    from .tokenizer import TokenizerConfig, make_processor

    folder = demo.path("processor")
    if not (folder / "processor_config.json").is_file():
        config = settings.from_dict(TokenizerConfig, _moved(settings.read_yaml(CONFIGS / "tokenizer.yaml"), demo.out))
        with Progress(console=demo.console, transient=True) as progress:
            make_processor(config, folder, progress)
    processor = load_processor(folder)
    pieces = processor.tokenizer.convert_ids_to_tokens(processor.encode_text(f"Question: {QUESTIONS[0]} Answer:"))
    demo.console.print(f"{len(processor.tokenizer):,} tokens; {' '.join(pieces)}", markup=False)


def make_vision(demo: Demo) -> None:
    """Contrastive training of the vision tower."""
    from .vision import VisionConfig, train_vision

    folder = demo.path("vision")
    result = folder / "result.json"
    if not result.is_file():
        outcome = train_vision(demo.settings(VisionConfig, "vision"), folder)
        result.write_text(json.dumps(outcome) + "\n", encoding="utf-8")
    outcome = json.loads(result.read_text(encoding="utf-8"))
    demo.console.print(f"Held-out images matched to the right one of all captions: {outcome['held_out_accuracy']:.1%}")


def pretrain(demo: Demo) -> None:
    """Pretraining."""
    _train(demo, "pretrain")


def tune(demo: Demo) -> None:
    """Instruction tuning, and the loss plot of both runs."""
    from .runs import plot

    _train(demo, "tune")
    plot([demo.path("pretrain"), demo.path("tune")], demo.path("loss.png"))


def evaluate(demo: Demo) -> None:
    """Questions and captions about the test images, with baselines; few-shot of the model before tuning."""
    from kosmos.loading import load
    from kosmos_eval import results
    from kosmos_eval.evaluate import evaluate as evaluate_task
    from kosmos_eval.gallery import gallery

    if all(demo.path(name).is_file() for name in ("results.json", "answers.png")):
        return
    common: dict[str, Any] = {
        "data": demo.path("corpus", "eval"),
        "contexts": ("image+text", "shuffled"),
        "out": demo.path("eval"),
        "console": demo.console,
    }
    few = min(FEW_SHOT_QUESTIONS, demo.limit or FEW_SHOT_QUESTIONS)
    tuned, processor = load(demo.path("tune"))
    rows = evaluate_task(tuned, processor, "easy_vqa", name="tuned", limit=demo.limit, **common)
    base, processor = load(demo.path("pretrain"))
    shots = evaluate_task(base, processor, "easy_vqa", name="pretrained", shots=(0, 2, 4, 8), limit=few, **common)
    # The baselines of all questions are rows already; here they only stand beside each score.
    rows += [row for row in shots if not results.is_baseline(row)]
    rows += evaluate_task(base, processor, "easy_vqa_caption", name="pretrained", limit=demo.limit, **common)
    samples = demo.path("eval", "samples", "tuned", "easy_vqa-0shot-image+text.jsonl")
    gallery(samples, demo.path("corpus", "eval"), demo.path("answers.png"))
    results.write(rows, demo.path("results.json"))


def chat(demo: Demo) -> None:
    """Three questions about one unseen image, through the same Conversation as the command and the notebook."""
    from kosmos import Conversation

    image = demo.path("corpus", "eval", "test", "images", "7.png")
    conversation = Conversation(demo.path("tune"))
    demo.console.print(f"image: {image}")
    for number, question in enumerate(QUESTIONS):
        answer = conversation.ask(question, images=[] if number else [image])
        demo.console.print(f"  [bold]you[/]    {question}\n  [bold]kosmos[/] {answer}")


def _train(demo: Demo, name: str) -> None:
    from .config import TrainConfig
    from .pretrain import train

    outcome = train(demo.settings(TrainConfig, name), demo.path(name), resume=True)
    if not outcome.finished:
        raise KeyboardInterrupt


def _moved(values: Any, out: Path) -> Any:
    """``values`` with every path below ``runs/demo`` put below ``out``."""
    if isinstance(values, dict):
        return {key: _moved(value, out) for key, value in values.items()}
    if isinstance(values, list):
        return [_moved(value, out) for value in values]
    if isinstance(values, str) and (values == YAML_ROOT or values.startswith(YAML_ROOT + "/")):
        return str(out) + values.removeprefix(YAML_ROOT)
    return values


def _close(demo: Demo, rows: Sequence[dict[str, Any]], seconds: float) -> None:
    from kosmos_eval.results import overall, table

    demo.console.print(table(overall(rows)))
    out = demo.out
    demo.console.print(
        f"Done in {seconds / 60:.1f} min. Look at {out}/answers.png and {out}/loss.png; all scores: "
        f"{out}/results.json. Try next:\n"
        f"  kosmos chat {out} --image {out}/corpus/eval/test/images/12.png\n"
        f"  kosmos eval {out}/tune --tasks easy_vqa --data {out}/corpus/eval --context image+text,text-only\n"
        f"  kosmos data inspect {out}/corpus/interleaved",
        markup=False,
    )


def main(argv: Sequence[str]) -> None:
    """``kosmos demo [--out DIR]``."""
    parser = argparse.ArgumentParser(
        prog="kosmos demo",
        description="Train a small KOSMOS on real images, evaluate it and talk to it: about ten minutes on two CPU "
        "cores. Interrupted, it goes on where it was; finished, it shows its results again.",
    )
    parser.add_argument("--out", default=YAML_ROOT, help=f"folder for everything ({YAML_ROOT})")
    parser.add_argument("--steps-factor", type=float, default=1.0, help="scale all trainings: 0.1 for a quick look (1)")
    parser.add_argument("--limit", type=int, help="evaluate on so many questions only (all)")
    arguments = parser.parse_args(list(argv))
    run_demo(arguments.out, steps_factor=arguments.steps_factor, limit=arguments.limit)
