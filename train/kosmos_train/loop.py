"""The loop: batch, step, log, and now and then a checkpoint, samples, held-out loss.

All ranks run it in lockstep. What one rank alone could know (a signal, an unreadable sample) is summed over the ranks
with the token counts of the step, so that all of them save, stop or rewind at the same step.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from kosmos.cost import Cost, device_peak
from kosmos.plain import escape

from . import checkpoint
from .config import TrainConfig
from .corpora import joint_order, order_votes
from .distributed import allow_tf32
from .engine import Engine, StepResult
from .guards import Interrupt, TrainingStoppedError, Watchdog
from .log import RunLog
from .optim import learning_rate
from .run_dir import RunDir
from .samples import Sampler
from .saving import Saver
from .upload import open_uploader

MAX_REWINDS = 3  # without a new checkpoint in between


class Loop:
    """Everything a run needs, assembled; :meth:`run` trains to the last step or to the first signal."""

    def __init__(
        self,
        config: TrainConfig,
        run: RunDir,
        engine: Engine,
        processor: Any,
        loader: Any,
        held_out: list[Any],
        cost: Cost | None,
        state: dict[str, Any],
    ) -> None:
        self.config, self.run_dir, self.engine, self.processor = config, run, engine, processor
        self.loader, self.held_out, self.cost = loader, held_out, cost
        self.start_step = self.step = int(state.get("step", 0))
        self.frozen = state["frozen"]
        self.loader_state: Any = None
        self.ahead: Any = None
        self.saved_step = self.step if "adam_step" in state else -1
        self.saver = Saver(engine.world, run.checkpoints, config.checkpoint.keep)
        self._halted = 0.0  # seconds that training stood still for the checkpoint under way
        self.uploader = open_uploader(config.checkpoint.upload, engine.world)
        self.rewinds = 0
        self._rewound_from: int | None = None
        main = engine.world.is_main
        self.interrupt = Interrupt()
        self.watchdog = Watchdog(config.guard.hang_minutes, run.path / f"stacks-rank{engine.world.rank}.txt")
        self.evaluator = self._open_evaluator() if config.eval.tasks_every else None
        self.sampler = Sampler(config.samples, processor, run.samples, self.step, main)
        self.log = self._open_log()
        if "guard" in state:
            engine.guard.load(state["guard"])

    def _open_log(self) -> RunLog | None:
        """The log of rank 0, None elsewhere; all ranks fail together."""
        world, run, config = self.engine.world, self.run_dir, self.config

        def start() -> RunLog | None:
            name = run.path.resolve().name
            return RunLog(run.metrics, config.log, config.steps, name, self.step) if world.is_main else None

        return world.attempt("opening the log", start)

    def _open_evaluator(self) -> Any:
        from .evaluation import TaskEvaluator  # with it comes all of kosmos_eval

        return TaskEvaluator(self.config.eval, self.processor, self.run_dir.evaluation, self.engine.world)

    def run(self) -> bool:
        """Train; True when the last step is done, False when a signal ended the run early (resume it later)."""
        if self.step >= self.config.steps:
            self._say(f"complete: {self.step} of {self.config.steps} steps; nothing is left to train")
            return True
        if said := allow_tf32(self.engine.world.device, self.config.engine.precision):
            self._say(said)
        batches = self._batches()
        with self.interrupt, self.watchdog:
            while self.step < self.config.steps:
                interrupted, written = self._one_step(batches)
                self.watchdog.beat()
                if written:
                    self._finish_checkpoint()
                self._between_steps(interrupted)
                self.watchdog.beat()
                if interrupted and self.step < self.config.steps:
                    heard = self.interrupt.received or "on another rank"
                    self._say(f"signal {heard}: saved step {self.step}; go on with --resume")
                    return False
        return True

    def _batches(self) -> Iterator[Any]:
        """The loader's batches; those of workers are received and made ready in a thread."""
        if not self.config.data.workers:
            return iter(self.loader)
        from kosmos_data.ahead import Ahead

        self.ahead = Ahead(self.loader, self.engine.prepare)
        return self.ahead

    def close(self) -> None:
        """Close files, loader workers and DeepSpeed; a checkpoint that is being written comes first."""
        self.saver.close()
        if self.log is not None:
            self.log.close()
        if self.ahead is not None:
            self.ahead.close()
        self.loader.close()
        self.engine.close()
        if self.uploader is not None:
            self.uploader.close()

    def _one_step(self, batches: Iterator[Any]) -> tuple[bool, bool]:
        """Read a batch and make the update; whether a rank has received a signal, and a checkpoint can be finished."""
        began = time.perf_counter()
        batch: Any = None
        error: Exception | None = None
        try:
            batch = next(batches)
        except Exception as caught:  # told to all ranks with the counts of the step, then raised on each
            error = caught
        rate = learning_rate(self.step + 1, self.config.optim, self.config.steps)
        votes = self._votes(batch, time.perf_counter() - began)
        result = self.engine.step(batch, self.step + 1, rate, votes, error)
        self.step += 1
        self.loader_state = batch.state
        reasons = self._bad_samples(batch, result)
        if self.log is not None:
            seconds = time.perf_counter() - began
            waited = max(result.votes[f"waited{rank}"] for rank in range(self.engine.world.size))
            measures = self._measures(result, batch.step, seconds)
            self.log.step(self.step, result, rate, seconds, waited, **measures, **reasons)
        return result.votes["interrupted"] > 0, self.saver.due(result.votes["written"])

    def _votes(self, batch: Any, waited: float) -> dict[str, float]:
        """What this rank alone knows of the step."""
        nothing: dict[str, Any] = {"positions": 0, "skipped": {}, "fallbacks": 0, "order": "0"}
        stats = nothing if batch is None else batch.stats
        return {
            "interrupted": float(self.interrupt.received is not None),
            "written": self.saver.vote(),
            # a place for each rank: the sum over ranks is what each of them waited, and the slowest decides
            **{f"waited{rank}": waited * (rank == self.engine.world.rank) for rank in range(self.engine.world.size)},
            "positions": float(stats["positions"]),
            "bad_samples": float(sum(stats["skipped"].values())),
            "fallbacks": float(stats["fallbacks"]),
            **order_votes(stats["order"]),
        }

    def _bad_samples(self, batch: Any, result: StepResult) -> dict[str, Any]:
        """Unreadable samples of this step by reason, over all ranks; nothing is exchanged when there are none."""
        if not result.votes["bad_samples"]:
            return {}
        total: Counter[str] = Counter()
        for skipped in self.engine.world.gather(batch.stats["skipped"]):
            total.update(skipped)
        return {"bad_samples": dict(total)}

    def _measures(self, result: StepResult, number: int, seconds: float) -> dict[str, Any]:
        rewound = {} if self._rewound_from is None else {"rewound_from": self._rewound_from}
        self._rewound_from = None
        measures: dict[str, Any] = {
            **rewound,
            "batch": number,
            "packed": round(result.tokens / result.votes["positions"], 4),
            "order": joint_order(result.votes),
        }
        if result.votes["fallbacks"]:  # too short for their objective: they stayed plain causal text
            measures["fallbacks"] = int(result.votes["fallbacks"])
        if self.cost is not None and (peak := device_peak()):
            flops = self.cost.flops(result.tokens, result.encoded, result.supervised)
            measures["mfu"] = round(flops / (seconds * self.engine.world.size * peak), 4)
        if self.engine.world.device.type == "cuda":
            measures["memory_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        return measures

    def _between_steps(self, interrupted: bool) -> None:
        last = self.step == self.config.steps
        # A preempted job may be killed in a minute: its checkpoint comes first.
        found = self._look(last) if last or not interrupted else {}
        if self.log is not None:
            self.log.commit(**found)
        due = self._due(self.config.checkpoint.every) and not self.engine.guard.skipped_in_row  # never amid trouble
        if interrupted or last or due:
            self.save()
            if interrupted or last:
                self._finish_checkpoint()
        elif self.engine.guard.exhausted:
            self._trouble()

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _look(self, last: bool) -> dict[str, Any]:
        """Samples, held-out loss and task scores, where they are due; what of it belongs into ``metrics.jsonl``."""
        samples, measured = self.config.samples.every, self.config.eval
        found: dict[str, Any] = {}
        if samples and (self._due(samples) or last):
            self.sampler.run(self.step, self.engine, self._say)
        if measured.every and (self._due(measured.every) or last):
            found["eval_loss"] = self._held_out_loss()
        if self.evaluator is not None and (self._due(measured.tasks_every) or last):
            found["eval_tasks"] = self.evaluator.run(self.step, self.engine, self._say, self._go_on)
        return found

    def _go_on(self) -> bool:
        """False on all ranks if a signal has come to one; asked between the parts of something long."""
        self.watchdog.beat()
        return not self.engine.world.any(self.interrupt.received is not None)

    def _held_out_loss(self) -> dict[str, float]:
        assert self.config.eval.data is not None, "TrainConfig.check() has refused this"
        losses = self.engine.evaluate(self.held_out, [source.name for source in self.config.eval.data.sources])
        self._say("  [cyan]held-out[/cyan] " + "  ".join(f"{name} {loss:.4g}" for name, loss in losses.items()))
        return losses

    def save(self) -> None:
        """Begin to write a checkpoint of this step, unless there is one; the one before is finished first."""
        if self.saved_step == self.step:
            return
        self._finish_checkpoint()
        from kosmos_data import merge_states

        if self.uploader is not None and (problem := self.uploader.finish()):
            self._say(f"[red]{escape(problem)}; training goes on with the local checkpoints[/red]")
        states = self.engine.world.gather(self.loader_state)
        state = {
            "loader": merge_states(states),
            "guard": self.engine.guard.state(),
            "frozen": self.frozen,
        }
        began = time.perf_counter()
        self.saver.start(self.step, self.engine, self.processor, state)
        self._halted = time.perf_counter() - began
        self.saved_step = self.step
        self.rewinds = 0

    def _finish_checkpoint(self) -> None:
        """Give the checkpoint that is being written its name, if there is one, and begin to upload it."""
        began = time.perf_counter()
        if (path := self.saver.finish()) is None:
            return
        if self.uploader is not None:
            self.uploader.start(path)
        halted, seconds = self._halted + time.perf_counter() - began, self.saver.seconds
        self._say(f"  [dim]checkpoint {escape(str(path))} in {seconds:.1f}s; training stood for {halted:.1f}s[/dim]")

    def _trouble(self) -> None:
        """Too many skipped updates in a row: rewind to the last checkpoint, behind the bad batches, or stop."""
        self._finish_checkpoint()
        latest = checkpoint.find_latest(self.run_dir.checkpoints)
        count = self.engine.guard.skipped_in_row
        if self.config.guard.on_trouble == "stop" or latest is None or self.rewinds >= MAX_REWINDS:
            raise TrainingStoppedError(
                f"step {self.step}: {count} updates skipped in a row (see metrics.jsonl); last checkpoint: {latest}. "
                "Go on with --resume and data.skip_steps=[…] or guard.on_trouble=rewind, or begin another run from "
                "that checkpoint (model.checkpoint=…) with a lower optim.lr, which --resume does not change"
            )
        self.rewinds += 1
        state = checkpoint.read_state(latest)
        self.engine.restore(latest, state)
        self.engine.guard.load(state["guard"])
        self._rewound_from, rewound_to = self.step, state["step"]
        self._say(
            f"[yellow]step {self.step}: {count} skipped in a row; rewound to {latest.name}, data goes on[/yellow]"
        )
        self.step = self.saved_step = rewound_to
        if self.log is not None:
            self.log.rewind(self.step)

    def _say(self, text: str) -> None:
        if self.log is not None:
            self.log.say(text)
