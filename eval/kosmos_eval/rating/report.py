"""Who won: what people judged as shares with intervals, for each rater and for all, and how far they agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kosmos.plain import counted

from . import judgements
from .agreement import krippendorff_alpha, same_share, win_rate
from .judgements import Judgement


def summary(paths: Sequence[Path]) -> dict[str, Any]:
    """What files of ratings say; of two judgements of a person about an item the later line, or file, counts.

    Returns:
        ``systems``; ``raters``: a row of :func:`_row` for each; ``all``: the same over all; ``alpha`` (Krippendorff's,
        nominal) and ``same`` (share of pairs of judgements) over the ``shared`` items that several people judged by
        looking; ``left``: how often the left text was chosen, of ``decided``.

    Raises:
        FileNotFoundError, ValueError: no such file, no ratings in it, or ratings of several inputs.
    """
    made: list[Judgement] = []
    for path in paths:
        read = judgements.read(path)
        if made and read:
            judgements.check_inputs(str(path), read[0].inputs, made[0].inputs)
        made += read
    if not made:
        raise ValueError(f"{', '.join(map(str, paths))}: no ratings; kosmos eval rate A B writes them")
    systems = list(made[0].inputs)
    counting = list(judgements.latest(made).values())
    raters = sorted({one.rater for one in counting})
    by_item: dict[str, list[str | None]] = defaultdict(list)
    for one in counting:
        if one.judgement != "skip" and not one.same:
            by_item[one.item].append(one.winner)
    shared = [values for values in by_item.values() if len(values) > 1]
    decided = [one.judgement for one in counting if one.winner is not None]
    return {
        "systems": systems,
        "questions": sorted({one.question for one in counting}),
        "raters": {name: _row([one for one in counting if one.rater == name], systems) for name in raters},
        "all": _row(counting, systems),
        "shared": len(shared),
        "alpha": krippendorff_alpha(shared),
        "same": same_share(shared),
        "decided": len(decided),
        "left": decided.count("left") / len(decided) if decided else None,
    }


def _row(counting: Sequence[Judgement], systems: Sequence[str]) -> dict[str, Any]:
    """Numbers of judgements, and the win rate of the first system: the mean over items of the mean over raters."""
    scores: dict[str, list[float]] = defaultdict(list)
    for one in counting:
        if one.judgement != "skip":
            scores[one.item].append(0.5 if one.winner is None else float(one.winner == systems[0]))
    row: dict[str, Any] = {name: sum(one.winner == name for one in counting) for name in systems}
    row |= {f"{name}s": sum(one.judgement == name for one in counting) for name in ("tie", "skip")}
    row |= {"same": sum(one.same for one in counting), "items": len(scores)}
    rate, low, high = win_rate([sum(own) / len(own) for own in scores.values()]) if scores else (None, None, None)
    return row | {"win_rate": rate, "low": low, "high": high}


def text(found: dict[str, Any]) -> str:
    """A summary as people read it."""
    first, second = found["systems"]
    rows = [*found["raters"].items(), *([("all", found["all"])] if len(found["raters"]) > 1 else [])]
    head = ["rater", first, second, "ties", "skipped", "items", f"win rate of {first}"]
    cells = [head, *([name, *_cells(row, first, second)] for name, row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"{first} against {second}, blind: {' / '.join(found['questions'])}", ""]
    for line in cells:
        others = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        lines.append("  ".join((line[0].ljust(widths[0]), *others)).rstrip())
    lines += ["", "A tie counts half; a skipped item does not count. 95 % interval over items (Wilson's)."]
    if same := found["all"]["same"]:
        lines.append(f"{counted(same, 'tie')} nobody was asked about: both texts are the same.")
    if found["decided"]:
        lines.append(f"The left text was chosen in {found['left']:.0%} of {counted(found['decided'], 'decision')}.")
    return "\n".join([*lines, _agreement(found)]) if len(found["raters"]) > 1 else "\n".join(lines)


def _cells(row: dict[str, Any], first: str, second: str) -> list[str]:
    numbers = [str(row[name]) for name in (first, second, "ties", "skips", "items")]
    if row["win_rate"] is None:
        return [*numbers, "–"]
    return [*numbers, f"{row['win_rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"]


def _agreement(found: dict[str, Any]) -> str:
    if not found["shared"]:
        return "No item was judged by several raters, so their agreement is not known."
    alpha = "not defined, as all said the same" if found["alpha"] is None else f"{found['alpha']:.3f}"
    return (
        f"Agreement on {counted(found['shared'], 'item')} of several raters: Krippendorff's alpha (nominal) {alpha}; "
        f"{found['same']:.0%} of the pairs of judgements are the same."
    )
