"""The page of evidence: a table of all claims and a section each, drawn from the JSON that their trials left.

docs/evidence.md           drawn here, nothing in it is typed
docs/evidence/CLAIM.json   what a trial wrote
docs/evidence/CLAIM.png    its curve, where the points are numbers
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kosmos.atomic import write_atomically

from .claims import Claim, cell_name, every

Found = dict[str, Any]
OUTCOMES = {"holds": "**holds**", "open": "not shown", "not": "**does not hold**"}
HEAD = """\
# Evidence

What the papers claim, tried here: small models, real text and pictures from packages, minutes on a processor. Each
claim has a control, several seeds and 95 % intervals, and one command that does it all again. What does not hold is
printed as such. This page is drawn from the JSON files that the commands wrote, by
`python -m kosmos_train.study page=docs/evidence.md readme=README.md`. Minutes are those of one core, whatever else ran.

A claim **holds** where the whole interval of each of its comparisons lies on the expected side, and **does not hold**
where one lies wholly on the other; else it is not shown. Intervals draw both seeds and items anew (bootstrap). Models
of this size show what a part does, not what a large model gains by it.
"""


def draw(page: Path) -> str:
    """Draw the page from the JSON files beside it, and return its text.

    Raises:
        FileNotFoundError: there is none.
    """
    found = read(page)
    for one in found:
        if is_curve(one):
            draw_curve(one, page.with_suffix("") / f"{one['name']}.png")
    text = markdown(found, page.stem)
    write_atomically(page, text)
    return text


def read(page: Path) -> list[Found]:
    """What the trials beside a page left, in its order.

    Raises:
        FileNotFoundError: nothing.
    """
    folder = page.with_suffix("")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise FileNotFoundError(f"{folder} has no CLAIM.json: try a claim first, python -m kosmos_train.study --list")
    return sorted(found, key=lambda one: (one["row"], one["name"]))


def markdown(found: Sequence[Found], folder: str) -> str:
    """The page's text; ``folder``: where pictures and JSON files lie."""
    heads = ["claim", "paper", "outcome", "measured", "minutes"]
    rows = [
        [f"[{one['claim']}](#{one['name']})", one["paper"], outcome(one), headline(one), f"{one['minutes']:.0f}"]
        for one in found
    ]
    parts = [HEAD.rstrip(), table(heads, rows), *(section(one, folder) for one in found)]
    if missing := [claim for claim in every() if claim.name not in {one["name"] for one in found}]:
        parts.append(_missing(missing))
    return "\n\n".join(parts) + "\n"


def outcome(found: Found) -> str:
    """The worst of a claim's comparisons in words, and how many hold where not all do."""
    verdicts = [one["verdict"] for one in found["comparisons"]]
    worst = OUTCOMES[next(kind for kind in ("not", "open", "holds") if kind in verdicts)]
    held = verdicts.count("holds")
    return worst if held in (0, len(verdicts)) else f"{worst}; {held} of {len(verdicts)} comparisons hold"


def headline(found: Found) -> str:
    """All comparisons with their intervals."""
    return "<br>".join(f"{one['words']}: {signed(one)}" for one in found["comparisons"])


def section(found: Found, folder: str) -> str:
    """One claim: words, cells, comparisons, curve, and how it was made."""
    name = found["name"]
    parts = [f'<a id="{name}"></a>\n\n## {found["claim"]}', f"*{found['paper']}*: {found['says']}"]
    parts.append(f"Figure: {found['figure']}. Control: {found['control']}")
    if described := [f"- {arm}: {what}" for arm, what in found["arms"].items() if what]:
        parts.append("\n".join(described))
    parts.append(_cells(found))
    parts.append("\n".join(_comparison(one) for one in found["comparisons"]))
    if is_curve(found):
        parts.append(f"![{found['claim']}]({folder}/{name}.png)")
    seeds = f"{len(found['seeds'])} seeds, {found['items']} items"
    made = f"`{found['command']}`: {found['minutes']:.1f} minutes, {found['hardware']}, {found['date']}; {seeds}. "
    parts.append(f"{made}[{name}.json]({folder}/{name}.json)")
    if found["limits"]:
        parts.append(f"Limits: {found['limits']}")
    return "\n\n".join(parts)


def _cells(found: Found) -> str:
    """Arms by points; beside each value half of its interval, in brackets the seeds where there is one point."""
    points = list(dict.fromkeys(cell["point"] for cell in found["cells"]))
    cells = {cell_name(cell["arm"], cell["point"]): cell for cell in found["cells"]}
    heads = [found["axis"] or "arm", *(point or "figure" for point in points)]
    rows = []
    for arm in dict.fromkeys(cell["arm"] for cell in found["cells"]):
        own = [cells.get(cell_name(arm, point)) for point in points]
        shown = ["" if cell is None else _half(cell) for cell in own]
        if len(points) == 1 and own[0] is not None:
            shown[0] += f" ({', '.join(f'{seed:.3f}' for seed in own[0]['seeds'])})"
        rows.append([arm, *shown])
    return table(heads, rows)


def _half(cell: Found) -> str:
    return f"{cell['value']:.3f} ± {(cell['high'] - cell['low']) / 2:.3f}"


def _comparison(one: Found) -> str:
    than = f", expected {one['expect']} {one['than']:g}"
    seeds = ", ".join(f"{seed:+.3f}" for seed in one["seeds"])
    return f"- {one['words']}: {signed(one)}{than}: {OUTCOMES[one['verdict']]} (seeds {seeds})"


def signed(one: Found) -> str:
    """A figure with its interval, each with its sign."""
    return f"{one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"


def _missing(claims: Sequence[Claim]) -> str:
    rows = [[claim.claim, claim.paper, f"`{command(claim)}`"] for claim in claims]
    return "## Not measured yet\n\n" + table(["claim", "paper", "command"], rows)


def command(claim: Claim) -> str:
    """What tries a claim and draws the page anew."""
    return f"python -m kosmos_train.study {claim.name} run=runs/evidence page=docs/evidence.md"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def is_curve(found: Found) -> bool:
    """Whether the points are three or more numbers."""
    points = dict.fromkeys(cell["point"] for cell in found["cells"])
    return len(points) > 2 and all(_is_number(point) for point in points)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def draw_curve(found: Found, path: Path) -> None:
    """One line an arm over the points, with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for number, arm in enumerate(dict.fromkeys(cell["arm"] for cell in found["cells"])):
        own = sorted((cell for cell in found["cells"] if cell["arm"] == arm), key=lambda cell: float(cell["point"]))
        places = [float(cell["point"]) for cell in own]
        errors = [[one["value"] - one["low"] for one in own], [one["high"] - one["value"] for one in own]]
        marker = "os^Dv"[number % 5]
        axes.errorbar(places, [one["value"] for one in own], errors, marker=marker, markersize=4, capsize=3, label=arm)
    axes.set(xlabel=found["axis"], ylabel=found["figure"].split(",")[0][:60])
    if found["logarithmic"]:
        axes.set_xscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
