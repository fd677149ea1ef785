"""The model card beside a checkpoint: what is known of it and what is not, in Markdown with the hub's header.

It is written from what lies there: the checkpoint's configuration, the headers of its weights, and of its run
``config.yaml`` (data, objectives, steps), ``environment.json`` (versions, fingerprints of the data) and the scores of
``kosmos eval``. What is not there, the card says is not known.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from .hub import is_name
from .licences import Licence
from .limits import read_object
from .settings import parse_yaml

LIMITS = """\
- Answers are short and of the kinds that it was trained on; to other questions it answers too, and wrongly.
- It says nothing of how sure it is. It was not trained to refuse, and nothing filters what it writes.
- What the corpora lack (languages, places, people, kinds of pictures) the model lacks."""

TAGS = "tags: [kosmos, metalm]"
LONGEST_CARD = 1_000_000  # bytes; ours have a few thousand
UNLICENSED = "None was given for these weights: ask who published them before you use them."
UNKNOWN = "Not known: what it was made from was no checkpoint in its run directory, which would say so."

USES = {
    "code": """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained({quoted}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({quoted}, trust_remote_code=True)
```

With the package `kosmos` installed: `kosmos chat {name}`, `kosmos serve {name}`.""",
    "kosmos": """\
With the package `kosmos` installed: `kosmos chat {name}`, `kosmos serve {name}`, and in Python

```python
import kosmos

model, processor = kosmos.load({quoted})
```

`kosmos share {name} FOLDER` makes a folder of it that loads where the package is not installed.""",
    "adapter": "`kosmos chat BASE --adapter {name}`, where BASE is the model that it was trained on; "
    "`kosmos merge {name} --out FOLDER` makes one model of the two where the method allows it.",
    "kosmos-2": "`Kosmos2ForConditionalGeneration.from_pretrained({quoted})` of transformers.",
}


def model_card(
    checkpoint: Path,
    name: str | None = None,
    source: Path | None = None,
    licence: Licence | None = None,
    results: str | Path | None = None,
) -> str:
    """Return the card of a checkpoint or adapter folder.

    Args:
        checkpoint: a folder with ``config.json`` or ``adapter_config.json``; of its weights the headers are read.
        name: heading, and the folder in the examples; None: the folder's name.
        source: the folder that it was made from, whose run is described, or whose own card describes one that is not
            here (of ``kosmos merge``, for instance); None: it is that itself.
        licence: of the weights; None: the card says that none was given.
        results: a ``results.json`` of ``kosmos eval``; None: that of this step, or of the run, if there is one.

    Raises:
        ValueError: ``results`` are no rows of ``kosmos eval``.
    """
    source, name = source or checkpoint, _line(name or checkpoint.resolve().name)
    run, kind = run_of(source), _kind(checkpoint)
    earlier = {} if run else _earlier(source)
    settings: Any = _read(run / "config.yaml") if run else None
    started: Any = _read(run / "environment.json") if run else None
    header = ["library_name: transformers", "pipeline_tag: image-text-to-text", TAGS]
    header += licence.header if licence else []
    sections = {
        f"# {name}": f"{_what(checkpoint, kind)}\n\nMade from {_origin(source, run)}.",
        "## Use": USES[kind].format(name=shlex.quote(name), quoted=json.dumps(name, ensure_ascii=False)),
        "## Data": earlier.get("Data") or _described(_data, settings, started),
        "## Training": earlier.get("Training") or _described(_training, settings, started),
        "## Scores": (earlier.get("Scores") if results is None else None) or _scores(results, source),
        "## Limits": LIMITS + _questions(checkpoint),
        "## Licence": licence.name if licence else UNLICENSED,
    }
    body = "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items())
    return "\n".join(["---", *header, "---", "", body, ""])


def _earlier(source: Path) -> dict[str, str]:
    """Sections of the card of a folder that is no checkpoint in its run: what kosmos merge made has one that knows."""
    card = source / "README.md"
    try:
        if not card.is_file() or card.stat().st_size > LONGEST_CARD:
            return {}
        text = card.read_text(encoding="utf-8")
    except (OSError, ValueError):  # a page that cannot be read is none of ours
        return {}
    if TAGS not in text.splitlines():  # somebody else's page
        return {}
    parts = (part.partition("\n\n") for part in text.split("\n## ")[1:])
    return {title: body.strip() for title, _, body in parts}


def _described(section: Callable[..., str], settings: Any, started: Any) -> str:
    """A section about the run; what was written into its folder by hand may be anything."""
    try:
        return section(settings or {}, started or [])
    except (AttributeError, KeyError, TypeError, IndexError, ValueError):
        return UNKNOWN


def run_of(checkpoint: Path) -> Path | None:
    """Return the run directory of ``RUN/checkpoints/step-000100``; None for a folder that lies elsewhere."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None


def _origin(source: Path, run: Path | None) -> str:
    """What the folder was made from; without the folders of this machine above it, which concern nobody else."""
    if run is not None:  # a checkpoint that is just being written has another name until it is whole
        step = source.name.removeprefix(".").removesuffix(".partial")
        return f"`{_line(step)}` of the run `{_line(run.resolve().name)}`"
    return f"`{_line(source)}`" if is_name(source) else f"`{_line(source.name)}`"


def _named(where: Any) -> str:
    """A model that something else names: by its path where that says nothing of this machine."""
    path = Path(str(where)).expanduser()
    return _origin(path, run_of(path)) if path.is_absolute() else f"`{_line(where)}`"


def _line(value: Any) -> str:
    """What a folder, a YAML or JSON file says, as words of a line; a name may hold anything."""
    return " ".join(str(value).replace("`", "'").split())


def _kind(checkpoint: Path) -> str:
    """Which of ``USES`` a folder is."""
    if (checkpoint / "adapter_config.json").is_file():
        return "adapter"
    described = read_object(checkpoint / "config.json")
    if described.get("model_type") != "kosmos":
        return "kosmos-2"
    return "code" if "auto_map" in described else "kosmos"


def _what(checkpoint: Path, kind: str) -> str:
    """The model in sentences: sizes, and what its encoders read."""
    from .configuration_kosmos import KosmosConfig
    from .modalities import MODALITIES

    count = f"{_count(checkpoint):,}"
    if kind == "adapter":
        return _adapter(read_object(checkpoint / "adapter_config.json"), count)
    if kind == "kosmos-2":
        return f"A KOSMOS-2 model of {count} parameters, as transformers reads it."
    config = KosmosConfig.from_pretrained(checkpoint)
    text = config.get_text_config()
    lines = [
        f"A KOSMOS-1 / MetaLM model of {count} parameters: a causal decoder of {text.num_hidden_layers} layers, "
        f"width {text.hidden_size}, vocabulary {text.vocab_size:,}."
    ]
    kinds = [kind for kind in MODALITIES.values() if kind.about is not None and kind.described(config) is not None]
    return " ".join([*lines, *(kind.about(config) for kind in kinds if kind.about is not None)])


def _adapter(described: Mapping[str, Any], count: str) -> str:
    """An adapter in a sentence."""
    method = _line(described.get("peft_type", "?")).lower()
    base = described.get("base_model_name_or_path")
    meant = _named(base) if base else "a model that it does not name"
    return f"An adapter ({method}) of {count} parameters, for {meant}."


def _count(folder: Path) -> int:
    """The numbers in the weights. Nothing is built: on a rank of ZeRO-3 that would wait for the others."""
    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            total += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no mapping
    return total


def _data(settings: Mapping[str, Any], started: Sequence[Any]) -> str:
    """A row for each source of the run."""
    sources = (settings.get("data") or {}).get("sources") or []
    if not sources:
        return UNKNOWN
    known = (started[-1].get("data") or {}) if started else {}
    rows = [["source", "weight", "objective", "documents", "images", "fingerprint"]]
    for source in sources:
        found = known.get(source["name"], {})
        objective = source.get("objective") or {}
        kind = objective.get("name", "?") if isinstance(objective, Mapping) else objective
        rows.append([source["name"], source.get("weight", 1), kind, *(found.get(key, "?") for key in rows[0][3:])])
    return _table(rows) + "\n\nHow the corpora were made, and their licences, is on the cards of their recipes."


def _training(settings: Mapping[str, Any], started: Sequence[Any]) -> str:
    """Steps, where they began, and the versions that ran them."""
    if not settings:
        return UNKNOWN
    begin = (settings.get("model") or {}).get("checkpoint")
    lines = [f"- {settings.get('steps', '?')} steps, from {_named(begin) if begin else 'random weights'}"]
    tuning = settings.get("tuning") or {}
    if tuning.get("method"):
        lines.append(f"- learnt by {tuning['method']}, the rest is the base's")
    data = settings.get("data") or {}
    lines.append(f"- {data.get('rows_per_step', '?')} rows of {data.get('row_tokens', '?')} tokens a step")
    if started:
        packages = ", ".join(f"{name} {version}" for name, version in (started[-1].get("packages") or {}).items())
        lines.append(f"- commit {started[-1].get('commit') or 'not known'}; {packages}")
    return "\n".join(lines)


def _scores(results: str | Path | None, source: Path) -> str:
    """The rows of a results.json, each beside what guessing scores: the given one, or that of the step or the run."""
    run = run_of(source)
    found = [] if run is None else [run / "eval" / source.name / "results.json", run / "eval" / "results.json"]
    path = Path(results) if results is not None else next((path for path in found if path.is_file()), None)
    if path is None:
        return "None: it was not evaluated, or its results were not given (`kosmos share --results`)."
    rows = _read(path)
    if rows is None and results is not None:
        raise ValueError(f"{path}: no results of kosmos eval")
    try:
        scored, table = _scored(rows, path)
    except ValueError as error:
        if results is not None:
            raise
        return f"None that can be read: {error}"  # a checkpoint of a run is not lost for that
    models = sorted({str(row.get("model")) for row in scored})
    return _table(table) + f"\n\nRows of `kosmos eval` for {', '.join(map(_named, models)) or 'no model'}."


def _scored(rows: Any, path: Path) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """The rows of the model itself, and what the card shows of them; ValueError if they are no rows."""
    try:
        scored = [row for row in rows if not row.get("baseline")]
        table = [["task", "shots", "context", "metric", "score", "95 % interval", "without seeing"]]
        for row in scored:
            blind = (row.get("baselines") or {}).values()
            interval = f"{row['low']:.3f} to {row['high']:.3f}"
            line = [row["task"], row["shots"], row["context"], row["metric"], f"{row['value']:.3f}", interval]
            table.append([*line, f"{max(blind):.3f}" if blind else "?"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: these are no rows of kosmos eval ({error!r})") from error
    return scored, table


def _questions(checkpoint: Path) -> str:
    described = _read(checkpoint / "processor_config.json")
    asked = described.get("example_questions") if isinstance(described, dict) else None
    questions = [_line(one) for one in asked if isinstance(one, str)] if isinstance(asked, list) else []
    return f"\n- It was trained on questions such as: {'; '.join(questions)}" if questions else ""


def _table(rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(_line(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _read(path: Path) -> Any:
    """A YAML or JSON file, None if there is none that can be read."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else parse_yaml(text)
    except (OSError, ValueError, RecursionError):
        return None
