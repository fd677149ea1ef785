"""What our loop adds to a bare DeepSpeed loop: python tests/benchmarks/bench_train.py [--steps 30]

The same model, batches and optimiser, turn and turn about in one process; the bare loop is forward, backward, step and
nothing else. The bar is 3 %. Printed with it: where a step's time goes, and what a checkpoint costs.
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

OVERRIDES = {
    "text_config": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "dropout": 0.0,
    }
}


def settings_for(root: Path, stage: int) -> Any:
    """The demo's size: 4 layers of width 128, 8 rows of 512 tokens."""
    import tiny

    from kosmos import settings
    from kosmos_train import TrainConfig

    values = tiny.make_world(root)
    values["model"]["overrides"] = OVERRIDES
    values["data"] |= {"row_tokens": 512, "rows_per_step": 8, "rows_per_micro_batch": 4}
    values |= {"engine": {"zero_stage": stage}, "log": {"every": 10}, "steps": 10_000, "checkpoint": {"every": 10_000}}
    return settings.from_dict(TrainConfig, values)


def bare_step(engine: Any, batch: Any) -> None:
    """One step as DeepSpeed's own examples write it."""
    for micro in batch.micro_batches:
        loss = engine.deepspeed(**engine._moved(micro)[0]).loss
        engine.deepspeed.backward(loss, scale_wrt_gas=False)
    engine.optimizer.begin(lambda norm: None)
    engine.deepspeed.step()


def measure(steps: int, stage: int) -> dict[str, float]:
    """Median seconds of a step in our loop and in the bare one, and of the ratio of neighbours."""
    from kosmos_train.build import build_model, build_processor
    from kosmos_train.corpora import open_loader
    from kosmos_train.distributed import start
    from kosmos_train.engine import Engine
    from kosmos_train.loop import Loop
    from kosmos_train.run_dir import RunDir

    with tempfile.TemporaryDirectory() as folder:
        config = settings_for(Path(folder) / "world", stage)
        world, processor = start(), build_processor(config)
        loader = open_loader(config.data, processor, world, None)
        batches = [next(loader) for _ in range(steps)]
        names = [source.name for source in config.data.sources]
        ours, bare = (Engine(build_model(config, processor), processor, config, world, names) for _ in range(2))
        run = RunDir(Path(folder) / "run")
        run.open(config, False, world)
        loop = Loop(config, run, ours, processor, loader, [], None, {"frozen": {}})
        seconds: dict[str, list[float]] = {"ours": [], "bare": []}
        processor_seconds: dict[str, list[float]] = {"ours": [], "bare": []}
        source = iter(batches)
        with loop.interrupt:
            for index, batch in enumerate(batches):
                turns = [
                    ("ours", lambda: our_step(loop, source)),
                    ("bare", lambda b=batch: bare_step(bare, b)),
                ]
                for name, turn in turns if index % 2 else turns[::-1]:
                    began, used = time.perf_counter(), time.process_time()
                    turn()
                    seconds[name].append(time.perf_counter() - began)
                    processor_seconds[name].append(time.process_time() - used)
        began = time.perf_counter()
        loop.save()
        saved = time.perf_counter() - began
        loop.close()
    ratios, used = (
        [a / b for a, b in zip(kind["ours"][3:], kind["bare"][3:], strict=True)]
        for kind in (seconds, processor_seconds)
    )
    return {
        "ours": statistics.median(seconds["ours"][3:]),
        "bare": statistics.median(seconds["bare"][3:]),
        "ratio": statistics.median(ratios),
        "processor ratio": statistics.median(used),
        "checkpoint": saved,
    }


def our_step(loop: Any, source: Any) -> None:
    """One turn of Loop.run, without the checkpoint."""
    loop._between_steps(loop._one_step(source))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--stage", type=int, default=1, choices=(0, 1, 2, 3))
    arguments = parser.parse_args()
    found = measure(arguments.steps, arguments.stage)
    print(
        f"ZeRO-{arguments.stage}: ours {1e3 * found['ours']:.1f} ms, bare {1e3 * found['bare']:.1f} ms a step, "
        f"ratio {found['ratio']:.4f}, of processor time {found['processor ratio']:.4f} (bar 1.03)"
    )
    print(f"checkpoint: {1e3 * found['checkpoint']:.0f} ms")


if __name__ == "__main__":
    main()
