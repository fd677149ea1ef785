"""Two tasks' adapters and their fusion: python tests/benchmarks/bench_fusion.py [--demo runs/demo] [--seeds 0 1 2]

On the demo's folder (``make demo``). Stage one trains an adapter on questions about pictures (easy-VQA), another on
questions about a context in words (reading); stage two trains attention over both, frozen, on both corpora mixed
(arXiv 2005.00247). Each is then asked both tasks by the evaluator, in one process that switches between them. A seed
changes first values and order of the data.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

TASKS = {"easy_vqa": "corpus/qa", "reading": "corpus/reading"}
FUSION = "fusion"
METRICS = ("vqa", "accuracy")  # of all items of a task


def train_one(demo: Path, run: Path, tuning: dict[str, Any], tasks: list[str], steps: int, seed: int, lr: float) -> int:
    """Train one tuning on the corpora of some tasks; returns the number of parameters that learnt."""
    from safetensors import safe_open

    from kosmos import settings
    from kosmos.tuning import find_adapter
    from kosmos_train import train
    from kosmos_train.config import TrainConfig

    objective = {"name": "causal", "loss": "supervised"}
    sources = [{"name": task, "shards": str(demo / TASKS[task]), "objective": objective} for task in tasks]
    rows = {"row_tokens": 512, "rows_per_step": 4, "rows_per_micro_batch": 4, "max_images_per_row": 40, "seed": seed}
    values = {
        "model": {"checkpoint": str(demo / "instruct")},
        "tuning": tuning,
        "data": rows | {"sources": sources},
        "turn_end": "line",
        "steps": steps,
        "seed": seed,
        "optim": {"lr": lr, "warmup": 10, "weight_decay": 0.0},
        "checkpoint": {"every": steps},
        "log": {"every": 20},
    }
    train(settings.from_dict(TrainConfig, values), str(run))
    with safe_open(find_adapter(run) / "adapter_model.safetensors", framework="pt") as file:
        kept = [key for key in file.keys() if tuning["method"] == "adapter" or ".fusions." in key]  # noqa: SIM118
        return sum(file.get_tensor(key).numel() for key in kept)


def score(demo: Path, runs: list[Path], limit: int) -> dict[str, dict[str, float]]:
    """Score of each run on each task, and of the model without any (``base``)."""
    from kosmos import load
    from kosmos.tuning import use
    from kosmos_eval.evaluate import evaluate

    model, processor = load(demo / "instruct", "cpu", adapters=runs)
    found: dict[str, dict[str, float]] = {}
    for name in (None, *(run.name for run in runs)):
        use(model, name)
        found[name or "base"] = {}
        for task in TASKS:
            rows = evaluate(model, processor, task, demo / "corpus/eval", limit=limit, with_baselines=False)
            (found[name or "base"][task],) = [row["value"] for row in rows if row["metric"] in METRICS]
    return found


def run_seed(demo: Path, out: Path, seed: int, steps: int, limit: int, reduction: float) -> dict[str, dict[str, float]]:
    """Both stages with one seed."""
    adapter = {"method": "adapter", "reduction": reduction}
    runs = [out / task for task in TASKS]
    for task, run in zip(TASKS, runs, strict=True):
        count = train_one(demo, run, adapter, [task], steps, seed, 3e-3)
    fusion = {"method": "fusion", "adapters": [str(run) for run in runs]}
    fused = train_one(demo, out / FUSION, fusion, list(TASKS), steps, seed, 1e-3)
    print(f"seed {seed}: {count:,} parameters an adapter, {fused:,} the fusion", flush=True)
    return score(demo, [*runs, out / FUSION], limit)


def table(found: list[dict[str, dict[str, float]]]) -> None:
    """Print Markdown: the mean of the seeds and each seed, and how far the fusion is from the better single adapter."""
    print(f"| | {' | '.join(TASKS)} |\n| --- | ---: | ---: |")
    for name in found[0]:
        cells = [[scores[name][task] for scores in found] for task in TASKS]
        shown = [f"{statistics.mean(each):.3f} ({', '.join(f'{one:.3f}' for one in each)})" for each in cells]
        print(f"| {name} | {' | '.join(shown)} |")
    for task in TASKS:
        gaps = [100 * (scores[FUSION][task] - max(scores[single][task] for single in TASKS)) for scores in found]
        print(f"{task}: fusion less the better adapter {', '.join(f'{gap:+.1f}' for gap in gaps)} points")


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100, help="of each training")
    parser.add_argument("--limit", type=int, default=1000, help="items of each task")
    parser.add_argument("--reduction", type=float, default=4.0, help="width of the decoder over that of an adapter")
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for seed in asked.seeds:
            out = Path(folder) / str(seed)
            found.append(run_seed(asked.demo, out, seed, asked.steps, asked.limit, asked.reduction))
            print(f"seed {seed}: {found[-1]}", flush=True)
    table(found)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
