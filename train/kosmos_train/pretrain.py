"""``kosmos train CONFIG run=DIR [key=value …] [--resume]``: pretraining and, with another YAML, tuning.

    kosmos train train/configs/small.yaml run=runs/small data.workers=4 --processes 2
    torchrun --nproc-per-node 8 -m kosmos_train.pretrain train/configs/kosmos1.yaml run=runs/kosmos1 --resume

:func:`train` is the same for programs. Exit code 75 says that a signal ended the run early and ``--resume`` goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kosmos import settings
from kosmos.plain import pasted

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
EXAMPLES = {
    "train": "train/configs/small.yaml run=runs/small",
    "tune": "train/configs/demo/tune.yaml run=runs/my-tune",  # small.yaml begins with nothing and marks no answers
}


@dataclass(frozen=True)
class Outcome:
    """What a call of :func:`train` ended with."""

    step: int
    """Completed steps of the run."""
    finished: bool
    """False when a signal ended it early."""
    checkpoint: Path | None
    """The newest checkpoint."""


def train(config: Any, run_dir: str | Path, resume: bool = False) -> Outcome:
    """Train as ``config`` (a :class:`kosmos_train.config.TrainConfig`) says, leaving everything in ``run_dir``.

    Call it on every process of the job; without a launcher one process is the job. With ``resume`` it goes on from the
    newest whole checkpoint of ``run_dir``, or starts if there is none.

    Raises:
        ValueError: settings or data that cannot work, a run that exists already, training that diverged.
        OSError: the run directory cannot be written.
    """
    from .checkpoint import find_latest
    from .distributed import check_machines, start
    from .inputs import check_inputs
    from .run_dir import RunDir, default_threads

    default_threads()
    world = start(config.engine.timeout_minutes)
    config.check(world.size)
    run, resumed = RunDir(run_dir), goes_on(run_dir, resume)
    # one rank looks; what another cannot see, its own reader says
    world.attempt("looking for its inputs", lambda: check_inputs(config, resumed) if world.is_main else None)
    check_machines(world, config.engine.precision)
    with closing(run):
        run.open(config, resume, world)
        loop = _assemble(config, run, resume, world)
        try:
            finished = loop.run()
        finally:
            loop.close()
    return Outcome(loop.step, finished, find_latest(run.checkpoints))


def goes_on(run_dir: str | Path, resume: bool) -> bool:
    """Whether a run begins with a checkpoint of its own."""
    from .checkpoint import find_latest
    from .run_dir import RunDir

    return resume and find_latest(RunDir(run_dir).checkpoints) is not None


def _assemble(config: Any, run: Any, resume: bool, world: Any) -> Any:
    """Build the loop and what it needs, from the newest checkpoint if there is one."""
    from kosmos.cost import model_cost

    from . import checkpoint
    from .build import build_model, build_processor, origins
    from .corpora import describe, held_out_batches, open_loader
    from .engine import Engine
    from .fitting import check_free_memory
    from .loop import Loop

    latest = checkpoint.find_latest(run.checkpoints) if resume else None
    state = checkpoint.read_state(latest) if latest else {}
    processor = build_processor(config)
    loader = open_loader(config.data, processor, world, state.get("loader"))
    model = build_model(config, processor, latest)
    cost = model_cost(model, config.data.row_tokens) if world.device.type == "cuda" else None  # the log's MFU asks
    check_free_memory(config, model, cost, world)
    if latest:
        checkpoint.check_fingerprint(state["frozen"], model)
    else:
        state["frozen"] = checkpoint.fingerprint(model)
    if world.is_main:
        run.record_launch(state.get("step", 0), world, describe(config.data), origins(config.model))
    engine = Engine(model, processor, config, world, [source.name for source in config.data.sources])
    if latest:
        engine.restore(latest, state)
    held_out = held_out_batches(config.eval, processor, world) if config.eval.every else []
    return Loop(config, run, engine, processor, loader, held_out, cost, state)


def _plan(config: Any, gpus: int | None, run: str | None) -> int:
    """``--dry-run``; what a ``run`` to be resumed has done already is not to go any more."""
    import torch

    from .checkpoint import find_latest, read_state
    from .dry_run import dry_run
    from .run_dir import RunDir

    latest = find_latest(RunDir(run).checkpoints) if run else None
    if run and latest:
        RunDir(run).check_same(config)
    devices = gpus if gpus is not None else torch.cuda.device_count() or None
    dry_run(config, devices, read_state(latest)["step"] if latest else 0)
    return 0


def main(argv: Sequence[str]) -> int:
    """The command ``kosmos train``."""
    return _command("train", argv)


def tune(argv: Sequence[str]) -> int:
    """The command ``kosmos tune``: the same, but it learns the answers unless it is told otherwise (answers.py)."""
    return _command("tune", argv)


def _command(verb: str, argv: Sequence[str]) -> int:
    from .answers import answers_learnt, learn_answers
    from .arguments import add_run_arguments, parse_run_arguments, require_run
    from .config import TrainConfig
    from .inputs import check_inputs, missing_inputs, unfit_inputs

    parser = argparse.ArgumentParser(
        prog=f"kosmos {verb}",
        description="Pretrain or tune a model. Settings come from a YAML and key=value overrides. "
        "tune learns answers only, each with an end of its own, unless the YAML says otherwise.",
        epilog=f"example: kosmos {verb} {EXAMPLES[verb]} optim.lr=1e-4 --resume",
    )
    add_run_arguments(parser, "kosmos_train.config:TrainConfig")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of run=DIR, or start")
    parser.add_argument("--dry-run", action="store_true", help="check all, print size, memory and time; no training")
    parser.add_argument("--processes", type=int, default=1, help="start so many on this machine, as torchrun does (1)")
    parser.add_argument("--gpus", type=int, help="devices that --dry-run plans for (those of this machine, or 1)")
    arguments, run = parse_run_arguments(parser, argv)
    config = settings.load(TrainConfig, arguments.config, arguments.overrides)
    if verb == "tune":
        learn_answers(config)
        if int(os.environ.get("RANK", "0")) == 0:
            resumed = run is not None and goes_on(run, arguments.resume)
            if not (missing_inputs(config, resumed) or unfit_inputs(config)):  # all of them are named further on
                for line in list(answers_learnt(config)):
                    if arguments.processes == 1 or arguments.dry_run:  # of several ranks the first says it
                        print(line, file=sys.stderr)
    if arguments.dry_run:
        return _plan(config, arguments.gpus, run if arguments.resume else None)
    if arguments.processes < 1:
        raise ValueError(f"--processes {arguments.processes}: at least 1 is needed")
    if arguments.processes > 1:
        from .run_dir import RunDir

        config.check(arguments.processes)  # what every rank would say, once
        check_inputs(config, goes_on(require_run(run), arguments.resume))
        with closing(RunDir(require_run(run))) as folder:
            folder.check(config, arguments.resume)
        words = [arguments.config, *arguments.overrides, f"run={require_run(run)}"]
        from .launcher import launch_here

        return launch_here(arguments.processes, [verb, *words, *(["--resume"] if arguments.resume else [])])
    outcome = train(config, require_run(run), arguments.resume)
    if outcome.finished and int(os.environ.get("RANK", "0")) == 0:
        named = pasted(run)
        print(
            f"{run}: {outcome.step:,} steps are done; next: kosmos chat {named}, kosmos eval {named} --help, "
            f"kosmos runs plot {named}"
        )
    return 0 if outcome.finished else INTERRUPTED


if __name__ == "__main__":
    from kosmos.cli import main as kosmos

    named = sys.argv[1:2] in (["train"], ["tune"])  # which of them, a launcher says in front
    sys.exit(kosmos(sys.argv[1:] if named else ["train", *sys.argv[1:]]))
