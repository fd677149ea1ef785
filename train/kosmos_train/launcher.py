"""torchrun with the exit code of its ranks, for schedulers: ``python -m kosmos_train.launcher`` and torchrun's options.

torchrun itself ends with 1 whatever went wrong. Here, as with ``kosmos train`` alone, 75 says that a signal ended the
run early (started again it resumes) and 2 that settings or data are wrong (starting it again does not help).

``kosmos train --processes N`` has torchrun's agent start its ranks, too, but forked from one server that has imported
the libraries: most of a short training's start are these imports, and ``kosmos demo`` starts ranks three times.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import re
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from typing import Any

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from kosmos.cli import main as kosmos

from .pretrain import INTERRUPTED

PRELOAD = ["kosmos_train.build", "kosmos_train.corpora", "kosmos.cost", "open_clip", "timm"]
"""They ask for no GPU when they are imported: a process that has opened one could not be forked."""
PRELOAD_ON_CPU = ["kosmos_train.loop", "kosmos_train.engine", "deepspeed.runtime.zero.muon.muon_optimizer"]
"""DeepSpeed looks for accelerators when it is imported."""

AGENT = re.compile(r"(\w+_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+")
"""Variables by which torchrun's agent tells a rank who it is."""
MISTAKE = 2
"""Exit code of a rank whose settings or data are wrong (kosmos/cli.py)."""
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that the agent hands on to its ranks."""

# The agent names the caller in its log messages, by a walk through all that is imported: half a second of each start.
dynamic_rendezvous.get_method_name = lambda depth=2: "rendezvous"


def main(argv: Sequence[str]) -> int:
    """Run torchrun; return 0, the exit code of the rank that failed first, or 75 after a signal."""
    return _exit_code(lambda: torchrun.main(list(argv)))


def launch_here(processes: int, words: Sequence[str]) -> int:
    """Run ``kosmos WORDS`` in so many ranks on this machine; return an exit code as :func:`main` does."""
    prepare()
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=str(uuid.uuid4()), rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, start_method="forkserver",
    )  # fmt: skip
    # the server may be older than a variable; what the agent says to each rank stays
    given = {name: value for name, value in os.environ.items() if not AGENT.fullmatch(name)}
    for loud in ("multiprocessing.api", "agent.server.api"):  # one shows our stack, one calls Ctrl-C a death signal
        logging.getLogger(f"torch.distributed.elastic.{loud}").setLevel(logging.CRITICAL)
    return _exit_code(lambda: elastic_launch(config, _rank)(list(words), given))


def prepare() -> None:
    """Start the server of :func:`launch_here` if there is none; it imports while we go on."""
    devices = torch.cuda.is_available()
    # One thread a rank unless the user wants more, as torchrun has it; OpenMP reads this when torch is imported.
    wanted = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cuda" if devices else "cpu"}
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD + ([] if devices else PRELOAD_ON_CPU))
    os.environ.update(ours)
    try:
        forkserver.ensure_running()
    finally:
        for name in ours:
            del os.environ[name]


def _rank(words: list[str], environment: dict[str, str]) -> None:
    """Be one rank: in a session of its own, so that Ctrl-C reaches it through the agent alone, once."""
    os.setsid()
    os.environ.update(environment)
    gc.freeze()  # the million objects of the libraries stay: no collection looks at them again
    if code := kosmos(words):  # a rank that ended well must return, or the agent waits for it
        sys.stdout.flush()
        sys.exit(code)


def _exit_code(launch: Callable[[], Any]) -> int:
    # Every micro-batch has another number of pictures: without this the GPU's memory falls into pieces.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        launch()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode != MISTAKE:  # which the ranks have told
            print(f"kosmos: {error}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode  # killed by a signal: as shells say
    except SignalException as error:
        print(f"kosmos: ended by {error.sigval.name}; --resume goes on", file=sys.stderr)
        return INTERRUPTED
    finally:  # the agent leaves its own, and the demo has more to do
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
