"""What a study leaves: ``study.json``, ``study.md`` with its tables, and two pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kosmos.atomic import write_atomically

Study = dict[str, Any]


def write(study: Study, folder: Path) -> None:
    """All of it, into ``folder``."""
    write_atomically(folder / "study.json", json.dumps(study, indent=1))
    write_atomically(folder / "study.md", markdown(study))
    draw_losses(study, folder / "study-loss.png")
    if study["tuning"]:
        draw_accuracies(study, folder / "study-tuning.png")


def markdown(study: Study) -> str:
    """The tables, each with a line on how to read it."""
    parts = ["# Study of objectives", _conditions(study), "## Pretraining at equal FLOPs", pretraining(study)]
    if study["tuning"]:
        parts += ["## Fine-tuning on real labels", tuning(study)]
    return "\n\n".join(parts) + "\n"


def _conditions(study: Study) -> str:
    made = study["conditions"]
    lines = [
        f"`{made['command']}`, {made['date']}, {made['hardware']}, {study['minutes']:.0f} minutes; "
        f"{study['budget']:.3g} FLOPs an objective, "
        f"{made['parameters']:,} parameters in the decoder, {made['vocabulary']:,} tokens in the vocabulary."
    ]
    if study["encoder"]:
        own = study["encoder"]
        lines.append(
            f"The text encoder was pretrained by masked modelling for {own['flops']:.3g} FLOPs (masked loss "
            f"{own['first_loss']:.2f} → {own['last_loss']:.2f} nats), which are part of the semi-causal budget."
        )
    return " ".join(lines)


def pretraining(study: Study) -> str:
    """One line an objective."""
    blanks = study["blanks"]
    heads = ["objective", "held-out causal loss", *(f"blanks: {name}" for name in blanks)]
    heads += ["loss exposure", "tokens/s", "steps", "tokens", "short"]
    rows = []
    for name, arm in study["arms"].items():
        cells = [name, f"{arm['held_out_loss']:.3f}"]
        cells += [_share(arm["cloze"][blank]) for blank in blanks]
        cells += [f"{arm['loss_exposure']:.0%}", f"{arm['tokens_per_second']:,.0f}", f"{arm['steps']:,}"]
        rows.append([*cells, f"{arm['tokens'] / 1e6:.2f} M", str(arm["fallbacks"])])
    for guess in ("majority", "chance"):
        rows.append([f"*{guess}*", "", *(f"{known[guess]:.1%}" for known in blanks.values()), *[""] * 5])
    notes = (
        "Held-out loss: nats a token on plain causal rows of held-out text, whatever the objective; a model that was "
        "never trained on such rows is outside what it knows. Blanks: zero-shot accuracy with its 95 % bootstrap "
        "interval, each model asked in the form it was trained in. Tokens/s: median over the steps of a run of one "
        "thread beside another. Short: windows too short for the objective, which stayed causal."
    )
    return _table(heads, rows) + "\n\n" + notes


def tuning(study: Study) -> str:
    """One line an arm, and the paired differences."""
    sets = study["tuning"]
    arms = list(next(iter(sets.values()))["arms"])
    heads = [
        "fine-tuned from, input",
        *(f"{name}, {found['guess']['classes']} classes" for name, found in sets.items()),
    ]
    rows = [[arm, *(_seeds(found["arms"][arm]) for found in sets.values())] for arm in arms]
    for guess in ("majority", "chance"):
        rows.append([f"*{guess}*", *(f"{found['guess'][guess]:.1%}" for found in sets.values())])
    lines = [
        f"- {name}: {pair['second']} − {pair['first']} = {100 * pair['difference']:+.1f} points "
        f"[{100 * pair['low']:+.1f}, {100 * pair['high']:+.1f}], p = {pair['p_value']:.3f}"
        for name, found in sets.items()
        for pair in found["differences"]
    ]
    notes = (
        "Accuracy over all seeds with its 95 % bootstrap interval over test items, in brackets each seed. Differences "
        "are paired by item and seed. The interval does not hold the chance of pretraining: each model was pretrained "
        "once."
    )
    return _table(heads, rows) + "\n\n" + "\n".join(lines) + "\n\n" + notes


def _share(found: dict[str, Any]) -> str:
    return f"{found['value']:.1%} ± {50 * (found['high'] - found['low']):.1f}"


def _seeds(found: dict[str, Any]) -> str:
    return f"{_share(found)} ({', '.join(f'{100 * seed:.1f}' for seed in found['seeds'])})"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def draw_losses(study: Study, path: Path) -> None:
    """Held-out causal loss against FLOPs, one curve an objective."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for number, (name, arm) in enumerate(study["arms"].items()):
        places, losses = zip(*arm["curve"], strict=True)
        axes.plot(places, losses, marker="o^s"[number // 10 % 3], markersize=4, color=f"C{number % 10}", label=name)
    axes.set(xlabel="training FLOPs, encoders included", ylabel="held-out causal loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def draw_accuracies(study: Study, path: Path) -> None:
    """Accuracies after fine-tuning with their intervals, and those of each seed."""
    pyplot = _pyplot()
    sets = study["tuning"]
    figure, panels = pyplot.subplots(1, len(sets), figsize=(1 + 4.5 * len(sets), 3.6), squeeze=False)
    for axes, (name, found) in zip(panels[0], sets.items(), strict=True):
        arms = found["arms"]
        values = [100 * arm["value"] for arm in arms.values()]
        errors = [
            [100 * (arm["value"] - arm["low"]) for arm in arms.values()],
            [100 * (arm["high"] - arm["value"]) for arm in arms.values()],
        ]
        axes.errorbar(range(len(arms)), values, errors, fmt="o", capsize=5)
        for place, arm in enumerate(arms.values()):
            axes.plot([place + 0.12] * len(arm["seeds"]), [100 * seed for seed in arm["seeds"]], ".", color="gray")
        axes.axhline(100 * found["guess"]["majority"], linestyle="--", color="gray", label="majority")
        axes.set(title=f"{name} ({found['guess']['classes']} classes)", ylabel="accuracy, %")
        axes.set_xticks(range(len(arms)), list(arms), rotation=12, fontsize=8)
        axes.set_xlim(-0.5, len(arms) - 0.5)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    _save(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    _pyplot().close(figure)
