"""One call on a GPU: is it right, and how fast is it.

    python tests/benchmarks/gpu.py --seconds 480 [--out gpu.json] [--only correct,step] [--device cpu]

Correctness comes first (every way of attending, position type and precision, compiled or not, recomputed or not,
against a CPU in fp32; packed = alone; decoding = forward), then kernels, products, a block, the loss, the tower, a
whole micro-batch with its kernels, the training run itself from shards, and decoding against Hugging Face's Kosmos-2
and Kosmos-2.5. A section begins only while there is time for it. Each prints its lines as they come; at the end, and
into ``--out`` after each section, comes one JSON object. The exit code is 1 if a comparison failed or a section raised.

Where kosmos is not installed: ``PYTHONPATH=.:data:train:eval``. Beside torch (2.11 on) it needs transformers, timm,
torchvision, sentencepiece, rich, deepspeed (hjson, pydantic), open_clip_torch (ftfy), webdataset (braceexpand) and
jsonargparse; for Triton's launcher a C compiler. ``--device cpu`` runs all of it with a tiny model, to try the script.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import gpu_correct
import gpu_run
import gpu_speed


class Call:
    """Runs the sections while there is time, and keeps what they found.

    Args:
        seconds: of the whole call.
        out: the file that the JSON object is written into.
        only: names of sections; none: all.
    """

    def __init__(self, seconds: float, out: Path | None, only: list[str]) -> None:
        self.began, self.seconds, self.out, self.only = time.monotonic(), seconds, out, only
        self.found: dict[str, Any] = {"machine": machine(), "sections": {}, "skipped": [], "failed": []}

    @property
    def left(self) -> float:
        """Seconds until the call is to be over."""
        return self.seconds - (time.monotonic() - self.began)

    def section(self, name: str, needs: float, run: Callable[[], Iterator[tuple[str, Any]]]) -> None:
        """Run one section if ``needs`` seconds are left for it; what it raises ends this section alone."""
        if self.only and name not in self.only:
            return
        if self.left < needs:
            print(f"== {name}: left out, {self.left:.0f} seconds are left", flush=True)
            self.found["skipped"].append(name)
            return
        print(f"== {name} ({self.seconds - self.left:.0f} s)", flush=True)
        kept = self.found["sections"].setdefault(name, {})
        try:
            for key, value in run():
                kept[key] = value
                print(f"  {key}  {value if isinstance(value, dict) else f'{value:.4g}'}", flush=True)
        except Exception as error:  # the other sections may still say something
            traceback.print_exc(limit=-4)
            self.found["failed"].append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
        finally:
            gc.collect()
            torch.compiler.reset()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            self.write()

    def write(self) -> None:
        """Keep what is known so far: a call may be killed."""
        self.found["seconds"] = round(self.seconds - self.left, 1)
        if self.out is not None:
            self.out.write_text(json.dumps(self.found, indent=1))


def machine() -> dict[str, Any]:
    """What this runs on."""
    cuda = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }


def compared(call: Call, device: torch.device) -> Iterator[tuple[str, dict[str, Any]]]:
    """All comparisons with the CPU; what is out of its tolerance counts as failed."""
    for check in gpu_correct.everything(device, compiled=device.type == "cuda"):
        if not check.passed:
            call.found["failed"].append(f"{check.name}: off by {check.error:.3g}, more than {check.tolerance:g}")
        yield check.name, {"error": check.error, "tolerance": check.tolerance, "passed": check.passed}
        if call.left < 0:
            raise TimeoutError("the time is up before the last comparison")


def main(argv: Sequence[str] | None = None) -> int:
    """The whole call; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480.0, help="of the whole call (480)")
    parser.add_argument("--out", type=Path, help="file for the JSON object, written after each section")
    parser.add_argument("--only", default="", help="names of sections with commas between")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, or cpu to try")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    size, run = (gpu_speed.FULL, gpu_run.Run()) if on_gpu else (gpu_speed.TINY, gpu_run.TINY)
    call = Call(arguments.seconds, arguments.out, [name for name in arguments.only.split(",") if name])
    print(f"{call.found['machine']}", flush=True)

    call.section("correct", 30, lambda: compared(call, device))
    call.section("attention", 30, lambda: iter(gpu_speed.attention_kernels(size, device).items()))
    call.section("products", 10, lambda: iter(gpu_speed.products(size, device).items()))
    call.section("block", 30, lambda: iter(gpu_speed.block(size, device, on_gpu).items()))
    call.section("loss", 20, lambda: iter(gpu_speed.loss(size, device).items()))
    call.section("tower", 30, lambda: iter(gpu_speed.tower(size, device, on_gpu).items()))
    call.section("step", 60, lambda: iter(gpu_speed.step(size, device, on_gpu).items()))
    # decoding is short, but its static caches are compiled: a third of what is left belongs to it
    call.section("run", 120, lambda: iter(gpu_run.training(run, call.left * 2 / 3).items()))
    batches, tokens = ((1, 8, 64), 64) if on_gpu else ((2,), 4)
    call.section("decoding", 40, lambda: gpu_speed.decoding(size, device, batches, tokens))

    call.write()
    print(json.dumps(call.found))
    return 1 if call.found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
