"""What one sees of a run: a readable line every few steps, and every step in ``metrics.jsonl``.

The line on a terminal, for example::

    step 120/2000  loss 2.314 (text 3.10 pairs 1.20)  exposure 82%  lr 1.9e-04  |g| 0.83  4.1k tok/s  wait 1%  eta 3m12s

Exposure is the share of the tokens that carry loss.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from kosmos.atomic import write_atomically
from kosmos.modalities import MODALITIES
from kosmos.read_json import parse_json

from .config import LogConfig
from .engine import StepResult
from .runs import flatten
from .trackers import open_tracker


class RunLog:
    """Writes ``metrics.jsonl``, the terminal and the trackers; only rank 0 has one.

    :meth:`step` shows a step, :meth:`commit` writes its row; samples and held-out losses come between the two.
    """

    def __init__(self, metrics: Path, config: LogConfig, total_steps: int, run_name: str, start_step: int) -> None:
        self.config, self.total = config, total_steps
        self.console = Console(emoji=False, soft_wrap=True, highlight=False)
        self._path = metrics
        self.tokens = cut_after(metrics, start_step)
        self._file: IO[str] = metrics.open("a", encoding="utf-8")
        self.trackers = [open_tracker(name, metrics.parent, run_name, start_step) for name in config.tracking]
        self._row: dict[str, Any] = {}
        self._since = _Window()
        self._began = time.perf_counter()
        self._start_step = start_step

    def step(self, step: int, result: StepResult, rate: float, seconds: float, waited: float, **extra: Any) -> None:
        """Take in one step: ``seconds`` it took, ``waited`` of them for data."""
        self.tokens += result.tokens
        if step == self._start_step + 1:
            self._began = time.perf_counter()  # what comes first takes longer than a step
        row: dict[str, Any] = {
            "step": step,
            "loss": result.loss,
            "tokens": self.tokens,
            "supervised": result.supervised,
            "loss_exposure": round(result.supervised / max(1, result.tokens), 4),
            "source_loss": result.source_loss,
            "source_tokens": result.source_tokens,
            **_encoded(result),
            "lr": rate,
            "grad_norm": result.grad_norm,
            **({"part_norms": result.part_norms} if result.part_norms else {}),
            "seconds": round(seconds, 5),
            "tokens_per_second": round(result.tokens / max(seconds, 1e-9), 1),
            "data_wait": round(waited / max(seconds, 1e-9), 4),
            **extra,
        }
        if result.skipped:
            row["skipped"] = result.skipped
            self.say(f"[yellow]step {step}: update skipped, {result.skipped}[/yellow]")
        self._row = row
        self._since.add(result, seconds, waited)
        if step % self.config.every == 0 or step == self.total or step == self._start_step + 1:
            self.console.print(self._line(step, rate, result.grad_norm, extra))
            self._since = _Window()

    def commit(self, **more: Any) -> None:
        """Write the last step's row, with what was found out after it, to ``metrics.jsonl`` and the trackers."""
        row = {**self._row, **more}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self.trackers:
            numbers = {name: value for name, value in flatten(row).items() if isinstance(value, (int, float))}
            step = int(numbers.pop("step"))
            for tracker in self.trackers:
                tracker.log(step, numbers)

    def rewind(self, step: int) -> None:
        """Drop the rows of later steps: they are made again, from other batches."""
        self._file.close()
        self.tokens = cut_after(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")

    def say(self, text: str) -> None:
        """A message between the step lines."""
        self.console.print(text)

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        for tracker in self.trackers:
            tracker.close()

    def _line(self, step: int, rate: float, norm: float, extra: dict[str, Any]) -> str:
        mean = self._since
        by_source = " ".join(f"{name} {loss:.3g}" for name, loss in mean.by_source().items())
        speed = mean.tokens / max(mean.seconds, 1e-9)
        timed = step - self._start_step - 1
        per_step = (time.perf_counter() - self._began) / max(1, timed)
        parts = [
            f"step {step}/{self.total}",
            f"loss [bold]{mean.loss():.4g}[/bold]" + (f" ({by_source})" if len(mean.sources) > 1 else ""),
            f"exposure {mean.supervised / max(1, mean.tokens):.0%}",
            f"lr {rate:.2e}",
            f"|g| {norm:.3g}",
            f"{_short(speed)} tok/s",
            f"wait {100 * mean.waited / max(mean.seconds, 1e-9):.0f}%",
            *([f"mfu {100 * extra['mfu']:.1f}%"] if extra.get("mfu") else []),
            *([f"mem {extra['memory_gb']:.1f}G"] if extra.get("memory_gb") else []),
            f"eta {_duration(per_step * (self.total - step)) if timed > 0 or step == self.total else '–'}",
        ]
        return "  ".join(parts)


class _Window:
    """Sums since the last line on the terminal."""

    def __init__(self) -> None:
        self.tokens = self.supervised = self.seconds = self.waited = self.weighted = self.weight = 0.0
        self.sources: dict[str, list[float]] = {}

    def add(self, result: StepResult, seconds: float, waited: float) -> None:
        self.tokens += result.tokens
        self.supervised += result.supervised
        self.seconds += seconds
        self.waited += waited
        if result.loss == result.loss:
            self.weighted += result.loss * result.supervised
            self.weight += result.supervised
        for name, loss in result.source_loss.items():
            self.sources.setdefault(name, []).append(loss)

    def loss(self) -> float:
        return self.weighted / self.weight if self.weight else float("nan")

    def by_source(self) -> dict[str, float]:
        return {name: sum(losses) / len(losses) for name, losses in self.sources.items()}


def cut_after(path: Path, step: int) -> int:
    """Drop lines of later steps than ``step`` (a resumed run writes them again); return the tokens up to there."""
    if not path.exists():
        return 0
    kept, tokens = [], 0
    for line in path.read_text(encoding="utf-8").splitlines():
        row = _parse(line)
        if row is not None and row["step"] <= step:
            kept.append(line)
            tokens = row.get("tokens", tokens)
    write_atomically(path, "".join(line + "\n" for line in kept))
    return tokens


def _parse(line: str) -> dict[str, Any] | None:
    """A line, or None if a kill cut it short."""
    try:
        return parse_json(line)
    except json.JSONDecodeError:
        return None


def _short(number: float) -> str:
    return f"{number:.0f}" if number < 1000 else f"{number / 1e3:.3g}k" if number < 1e6 else f"{number / 1e6:.3g}M"


def _duration(seconds: float) -> str:
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"


def _encoded(result: StepResult) -> dict[str, int]:
    """What the encoders read, by the names that rows of metrics have; entities only where there are some."""
    found = {kind.logged: result.encoded[name] for name, kind in MODALITIES.items() if kind.logged}
    always = {kind.logged for kind in MODALITIES.values() if kind.size}
    return {name: count for name, count in found.items() if count or name in always}
