"""What the batch of a step costs the training thread, with the thread that makes batches ready and without.

    nice -n -19 python tests/benchmarks/bench_ahead.py [--rows 9] [--images 12] [--steps 30]

Worker processes hand over rows of 2,048 tokens with pictures of 224 pixels that they made long before, as they do when
they are ahead; between two steps the training thread sleeps, as it does while a GPU computes. Printed are wall time and
CPU time of the training thread alone, medians. The bar is 2 ms with the thread. Nothing is pinned where no GPU is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.segments import Placed
from kosmos_data.ahead import Ahead
from kosmos_data.batch import collate
from kosmos_data.packing import empty_row
from kosmos_data.workers import WorkerPool


def produce(rows: int, images: int, worker: int, workers: int) -> Iterator[list[Any]]:
    """In a worker: its rows of each step, made once."""
    mine = []
    for number in range(worker, rows, workers):
        row = empty_row(number, 2048, 1)
        row.placed = [Placed("image", 0, 64, np.full((3, 224, 224), number, np.uint8)) for _ in range(images)]
        mine.append(row)
    while True:
        yield mine


def batches(pool: WorkerPool) -> Iterator[dict[str, torch.Tensor]]:
    """Received and collated, as the loader does."""
    while True:
        rows = sorted((row for item in pool.next_items() for row in item), key=lambda row: row.number)
        yield collate(rows)


def cost(following: Callable[[], object], steps: int) -> tuple[float, float]:
    """Median wall and CPU time of this thread for the next batch, in milliseconds."""
    wall, processor = [], []
    for _ in range(steps):
        time.sleep(0.4)
        began, used = time.perf_counter(), time.thread_time()
        following()
        wall.append(1e3 * (time.perf_counter() - began))
        processor.append(1e3 * (time.thread_time() - used))
    return statistics.median(wall[3:]), statistics.median(processor[3:])


def main() -> None:
    """Measure without and with the thread."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=9)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = KosmosForConditionalGeneration(KosmosConfig.preset("kosmos-1"))

    def prepare(batch: Any) -> None:
        batch["layout"] = model.model.describe_rows(batch["input_ids"], document_ids=batch["document_ids"])

    pool = WorkerPool(partial(produce, arguments.rows, arguments.images), arguments.workers)
    made = batches(pool)

    def here() -> None:
        prepare(next(made))

    plain = cost(here, arguments.steps)
    ahead = Ahead(made, prepare)
    threaded = cost(lambda: next(ahead), arguments.steps)
    ahead.close()
    pool.close()
    for name, (wall, processor) in (("on the training thread", plain), ("by the thread ahead", threaded)):
        print(f"{arguments.rows} rows × {arguments.images} pictures, {name}: {wall:.2f} ms, CPU {processor:.2f} ms")


if __name__ == "__main__":
    main()
