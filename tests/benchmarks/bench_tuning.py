"""What each tuning method trains, holds and takes: python tests/benchmarks/bench_tuning.py [--steps 12]

A model of the demo's shape, packed rows with images, all methods in one process, turn and turn about, so that seconds
compare. Memory is what learning adds to the frozen weights: gradients, moments of AdamW, and the tensors that the
backward pass keeps, each once. ``--preset`` counts a larger model on the meta device instead; nothing is computed.
``--demo runs/demo`` trains each method from what ``make demo`` leaves before its question tuning, on the corpora of
train/configs/tuning/easy_vqa_lora.yaml, and asks easy-VQA's test questions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[1] / "train")]  # tiny.py

import torch  # noqa: E402

from kosmos.tuning import Tuning, attach  # noqa: E402

DEMO = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "dropout": 0.0}
METHODS: dict[str, Tuning | None] = {
    "all parameters": None,
    "LoRA, r = 16": Tuning("lora"),
    "DoRA, r = 16": Tuning("lora", dora=True),
    "IA³": Tuning("ia3"),
    "prefix, 16 tokens": Tuning("prefix"),
    "prompt, 16 tokens": Tuning("prompt"),
    "P-tuning, 16 tokens": Tuning("p_tuning"),
    "Adapter, Pfeiffer, d/16": Tuning("adapter"),
    "Adapter, Houlsby, d/16": Tuning("adapter", placement="houlsby"),
}


# AdamW's rates, chosen before any score: full tuning's, three times it for what is put between layers, ten times it for
# the few numbers of IA³ and of virtual tokens.
RATES = {"all parameters": 1e-3, "IA³": 1e-2, "prompt, 16 tokens": 1e-2, "P-tuning, 16 tokens": 1e-2}
OTHER_RATE = 3e-3


def world(folder: Path) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Settings, processor and inputs of a model of the demo's shape."""
    import tiny

    from kosmos import settings
    from kosmos_train.build import build_processor
    from kosmos_train.config import TrainConfig
    from kosmos_train.corpora import open_loader
    from kosmos_train.distributed import World

    values = tiny.make_world(folder)
    values["model"]["overrides"] = {"text_config": DEMO}
    values["data"] |= {"row_tokens": 512, "rows_per_step": 4, "rows_per_micro_batch": 4}
    config = settings.from_dict(TrainConfig, values)
    processor = build_processor(config)
    loader = open_loader(config.data, processor, World(0, 1, 0, torch.device("cpu")), None)
    batches = []
    for _ in range(4):
        micro = next(loader).micro_batches[0]
        micro.pop("source_ids")
        micro["pixel_values"] = processor.image_processor.normalize(micro["pixel_values"])
        batches.append(micro)
    return config, processor, batches


class Subject:
    """One method on its own copy of the model."""

    def __init__(self, config: Any, processor: Any, tuning: Tuning | None) -> None:
        from kosmos_train.build import build_model
        from kosmos_train.optim import parameter_groups

        self.model = build_model(config, processor).train()
        self.total = sum(parameter.numel() for parameter in self.model.parameters())
        if tuning is not None:
            attach(self.model, tuning)
        self.adam = torch.optim.AdamW(parameter_groups(self.model, config.optim), lr=1e-3)
        self.learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.seconds: list[float] = []
        self.kept = 0

    def step(self, batch: dict[str, Any]) -> None:
        """One update, timed."""
        began = time.perf_counter()
        self.model(**batch).loss.backward()
        self.adam.step()
        self.adam.zero_grad()
        self.seconds.append(time.perf_counter() - began)

    def measure(self, batch: dict[str, Any]) -> None:
        """Bytes that the backward pass keeps, beside the weights."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        found: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.model(**batch).loss
        self.kept = sum(found.values())
        del loss

    def row(self, full: Subject) -> list[str]:
        """Its line of the table."""
        count = sum(parameter.numel() for parameter in self.learning)
        state = 4 * count + sum(value.nbytes for held in self.adam.state.values() for value in held.values())
        ratio = statistics.median(a / b for a, b in zip(self.seconds, full.seconds, strict=True))
        return [
            f"{count:,}", f"{100 * count / self.total:.2f} %", f"{state / 2**20:.2f}", f"{self.kept / 2**20:.0f}",
            f"{ratio:.2f}",
        ]  # fmt: skip


def measure(steps: int) -> None:
    """Print the table of the demo's shape."""
    with tempfile.TemporaryDirectory() as folder:
        config, processor, batches = world(Path(folder))
        subjects = {name: Subject(config, processor, tuning) for name, tuning in METHODS.items()}
        full = subjects["all parameters"]
        for number in range(steps + 1):
            for subject in subjects.values():
                subject.step(batches[number % len(batches)])
        for subject in subjects.values():
            del subject.seconds[0]
            subject.measure(batches[0])
    print(
        f"{full.total:,} parameters; to train them all takes {statistics.median(full.seconds):.2f} s a step "
        "of 4 rows of 512 tokens"
    )
    table(
        ["method", "trained", "share", "gradients + Adam, MiB", "activations, MiB", "time of a step"],
        {name: subject.row(full) for name, subject in subjects.items()},
    )


def on_paper(preset: str) -> None:
    """Print what the methods train of a preset, and the bytes of its training on one GPU in bf16."""
    from kosmos import KosmosConfig, KosmosForConditionalGeneration
    from kosmos.cost import memory, model_cost

    rows = {}
    for name, tuning in METHODS.items():
        with torch.device("meta"):
            model = KosmosForConditionalGeneration(KosmosConfig.preset(preset))
            if tuning is not None:
                attach(model, tuning)
        cost = model_cost(model, 2048)
        held = memory(cost, model.config, 1, 2048, checkpointing=True, zero_stage=1, gpus=1)
        total = sum(cost.parameters.values())
        rows[name] = [
            f"{cost.trainable:,}",
            f"{100 * cost.trainable / total:.2f} %",
            f"{sum(held.values()) / 2**30:.1f}",
        ]
    table(["method", "trained", "share", "GiB a GPU"], rows)


def learn(demo: Path, run: Path, tuning: Tuning | None, steps: int, lr: float) -> None:
    """Train one method by the trainer that ``kosmos tune`` runs."""
    from dataclasses import asdict

    from kosmos import settings
    from kosmos_train import train
    from kosmos_train.config import TrainConfig

    corpora = {"qa": 0.2, "presence": 0.4, "negation": 0.4}
    objective = {"name": "causal", "loss": "supervised"}
    sources = [
        {"name": name, "shards": str(demo / "corpus" / name), "weight": weight, "objective": objective}
        for name, weight in corpora.items()
    ]
    values: dict[str, Any] = {
        "model": {"checkpoint": str(demo / "instruct")},
        "data": {"row_tokens": 512, "rows_per_step": 4, "rows_per_micro_batch": 4, "max_images_per_row": 40}
        | {"sources": sources},
        "turn_end": "eos",
        "steps": steps,
        "optim": {"lr": lr, "warmup": 10, "weight_decay": 0.0},
        "checkpoint": {"every": steps, "keep": 1},
        "log": {"every": 50},
    }
    if tuning is not None:
        values["tuning"] = {key: value for key, value in asdict(tuning).items() if value is not None}
    train(settings.from_dict(TrainConfig, values), str(run))


def ask(demo: Path, run: Path, tuned: bool, limit: int) -> dict[str, float]:
    """Share of easy-VQA's questions answered right, with their pictures and with other ones."""
    from kosmos import load
    from kosmos_eval.evaluate import evaluate

    model, processor = load(demo / "instruct", "cpu", adapters=[run]) if tuned else load(run, "cpu")
    scores = {}
    for context in ("image+text", "shuffled"):
        rows = evaluate(
            model, processor, "easy_vqa", demo / "corpus/eval", limit=limit, contexts=[context], with_baselines=False
        )
        (scores[context],) = [row["value"] for row in rows if row["metric"] == "vqa"]
    return scores


def scores(demo: Path, steps: int, limit: int) -> None:
    """Print the table of scores."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        before = ask(demo, demo / "instruct", False, limit)
        rows["none"] = ["", *(f"{value:.3f}" for value in before.values())]
        for number, (name, tuning) in enumerate(METHODS.items()):
            lr, run = RATES.get(name, OTHER_RATE), Path(folder) / str(number)
            learn(demo, run, tuning, steps, lr)
            rows[name] = [f"{lr:g}", *(f"{value:.3f}" for value in ask(demo, run, tuning is not None, limit).values())]
            print(name, rows[name], flush=True)
    table(["method", "rate", "easy-VQA", "other pictures"], rows)


def table(heads: list[str], rows: dict[str, list[str]]) -> None:
    """Print Markdown."""
    print(f"| {' | '.join(heads)} |\n| --- |{' ---: |' * (len(heads) - 1)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Read the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--preset", help="count this preset on paper")
    parser.add_argument("--demo", type=Path, help="train from this folder of make demo and print scores")
    parser.add_argument("--limit", type=int, default=1000, help="questions asked (with --demo)")
    arguments = parser.parse_args()
    if arguments.demo:
        scores(arguments.demo, arguments.steps, arguments.limit)
    elif arguments.preset:
        on_paper(arguments.preset)
    else:
        measure(arguments.steps)


if __name__ == "__main__":
    main()
