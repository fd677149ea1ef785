"""``kosmos share``: a folder to give away, with its code and a model card that says what is known and what is not.

The card is written from what the run directory holds: ``config.yaml`` (data, objectives, steps), ``environment.json``
(versions, fingerprints of the data) and the rows of a ``results.json`` of ``kosmos eval``. What is not there, the card
says is not known.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .loading import find_checkpoint, load

if TYPE_CHECKING:
    from .modeling_kosmos import KosmosForConditionalGeneration
    from .processing_kosmos import KosmosProcessor

LIMITS = """\
- Answers are short and of the kinds that it was trained on; to other questions it answers too, and wrongly.
- It says nothing of how sure it is. It was not trained to refuse, and nothing filters what it writes.
- What the corpora lack (languages, places, people, kinds of pictures) the model lacks."""

USE = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{folder}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{folder}", trust_remote_code=True)
```

With the package `kosmos` installed: `kosmos chat {folder}`, `kosmos serve {folder}`."""


def share(
    checkpoint: str | Path, folder: str | Path, licence: str | None = None, results: str | Path | None = None
) -> Path:
    """Write a checkpoint, its code and its card to a new folder, and return that.

    Args:
        checkpoint: checkpoint folder or run directory.
        folder: must be empty or not exist.
        licence: of the weights, an identifier of the hub such as ``mit``; None: the card says that none was given.
        results: a ``results.json`` of ``kosmos eval``; None: that of the run directory, if there is one.

    Raises:
        ValueError: the folder holds something.
        FileNotFoundError: there is no checkpoint.
    """
    from .configuration_kosmos import KosmosConfig
    from .image_processing_kosmos import KosmosImageProcessor
    from .modeling_kosmos import KosmosForConditionalGeneration
    from .processing_kosmos import KosmosProcessor

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already; give a new folder")
    source = find_checkpoint(checkpoint)
    model, processor = load(source, device="cpu")
    card = model_card(model, processor, source, folder.resolve().name, licence, results)
    classes: dict[Any, str] = {
        KosmosConfig: "AutoConfig",
        KosmosForConditionalGeneration: "AutoModelForImageTextToText",
        KosmosProcessor: "AutoProcessor",
        KosmosImageProcessor: "AutoImageProcessor",
    }
    try:  # with the code, but only here: what is saved elsewhere in this program stays as it was
        for kind, door in classes.items():
            kind.register_for_auto_class(door)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    finally:
        for kind in classes:
            kind._auto_class = None
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def model_card(
    model: KosmosForConditionalGeneration,
    processor: KosmosProcessor,
    checkpoint: Path,
    name: str,
    licence: str | None = None,
    results: str | Path | None = None,
) -> str:
    """Return the card in Markdown, with the hub's header.

    Args:
        model: whose sizes it states.
        processor: whose example questions it states.
        checkpoint: the folder that the model was read from; a run directory may be two levels above it.
        name: heading.
        licence, results: see :func:`share`.

    Raises:
        ValueError: ``results`` are no rows of ``kosmos eval``.
    """
    run = checkpoint.parent.parent
    settings, started = _read(run / "config.yaml") or {}, _read(run / "environment.json") or []
    scores = _scores(results, run)
    header = ["library_name: transformers", "pipeline_tag: image-text-to-text", "tags: [kosmos, metalm]"]
    header += [f"license: {licence}"] if licence else []
    sections = {
        f"# {name}": _what(model, checkpoint),
        "## Use": USE.format(folder=name),
        "## Data": _data(settings, started),
        "## Training": _training(settings, started),
        "## Scores": scores,
        "## Limits": LIMITS + _questions(processor),
        "## Licence": licence or "None was given for these weights: ask who published them before you use them.",
    }
    body = "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items())
    return "\n".join(["---", *header, "---", "", body, ""])


def _what(model: KosmosForConditionalGeneration, checkpoint: Path) -> str:
    """The model in sentences: sizes, and what reads pictures and spans."""
    config, text = model.config, model.config.get_text_config()
    count = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        f"A KOSMOS-1 / MetaLM model of {count:,} parameters: a causal decoder of {text.num_hidden_layers} layers, "
        f"width {text.hidden_size}, vocabulary {text.vocab_size:,}."
    ]
    if config.vision_config is not None:
        lines.append(f"A vision encoder reads pictures, each of which takes {config.num_image_tokens} places.")
    if config.span_encoder_config is not None:
        lines.append("A bidirectional encoder reads the stretches of text that are marked as spans.")
    entities: Any = config.entity_config
    if entities is not None:
        known = ", ".join(f"{size:,} of the kind {kind}" for kind, size in entities.kinds.items())
        lines.append(f"It knows entities, each in one place: {known}.")
    return " ".join(lines) + f"\n\nWritten from the checkpoint `{checkpoint.name}`."


def _data(settings: Mapping[str, Any], started: Sequence[Any]) -> str:
    """A row for each source of the run."""
    sources = (settings.get("data") or {}).get("sources") or []
    if not sources:
        return "Not known: the checkpoint was not read from a run directory."
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
        return "Not known: the checkpoint was not read from a run directory."
    begin = (settings.get("model") or {}).get("checkpoint")
    lines = [f"- {settings.get('steps', '?')} steps, from {f'`{begin}`' if begin else 'random weights'}"]
    data = settings.get("data") or {}
    lines.append(f"- {data.get('rows_per_step', '?')} rows of {data.get('row_tokens', '?')} tokens a step")
    if started:
        packages = ", ".join(f"{name} {version}" for name, version in (started[-1].get("packages") or {}).items())
        lines.append(f"- commit {started[-1].get('commit') or 'not known'}; {packages}")
    return "\n".join(lines)


def _scores(results: str | Path | None, run: Path) -> str:
    """The rows of a results.json, each beside what guessing scores."""
    path = Path(results) if results is not None else run / "eval" / "results.json"
    rows = _read(path)
    if rows is None and results is not None:
        raise ValueError(f"{path}: no results of kosmos eval")
    if rows is None:
        return "None: it was not evaluated, or its results were not given (`kosmos share --results`)."
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
    models = sorted({str(row.get("model")) for row in scored})
    return _table(table) + f"\n\nRows of `kosmos eval` for {', '.join(models) or 'no model'}."


def _questions(processor: KosmosProcessor) -> str:
    asked = processor.example_questions
    return f"\n- It was trained on questions such as: {'; '.join(asked)}" if asked else ""


def _table(rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _read(path: Path) -> Any:
    """A YAML or JSON file, None if there is none that can be read."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def main(argv: Sequence[str]) -> int:
    """``kosmos share CHECKPOINT FOLDER [--licence mit] [--results FILE]``."""
    parser = argparse.ArgumentParser(
        prog="kosmos share",
        description="Write a folder to give away: weights, processor, code for trust_remote_code, and a model card.",
    )
    parser.add_argument("checkpoint", help="checkpoint folder or run directory, e.g. runs/demo/tune")
    parser.add_argument("folder", help="new folder")
    parser.add_argument("--licence", help="of the weights, as the hub calls it, e.g. mit")
    parser.add_argument("--results", help="results.json of kosmos eval (RUN/eval/results.json)")
    arguments = parser.parse_args(list(argv))
    folder = share(arguments.checkpoint, arguments.folder, arguments.licence, arguments.results)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0
