"""Reviews with their explanations, for the objective ``peter``: JSON, JSON lines, parquet and CSV.

The published data of PETER is ``reviews.pickle`` with files of the numbers of each part beside it
(``1/train.index``). A pickle is a program, and is not opened; the same records as JSON are, and so are the index files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import errors
from ..document import Document, is_blank
from ..errors import BadSample, Tally
from ..reviews import review
from ._files import ending, files, matching, packed, read_list, read_table, records

TABLES = (*packed("*.json", "*.jsonl", "*.ndjson", "*.csv", "*.tsv"), "*.parquet")
TEXTS = ("explanation", "text", "review")
_PICKLES = (".pickle", ".pkl", ".p")


def reviews(source: Path, images: Path, tally: Tally, field: str | None = None) -> Iterator[Document]:
    """``{"user": …, "item": …, "rating": 4, "explanation": "the rooms are clean", "feature": "rooms"}`` a record.

    PETER's ``"template": [feature, adjective, sentence, score]`` is read as well. ``source`` may be an index file,
    which names the records of one part by number, with the reviews in its folder or the one above. Ids become names.

    Raises:
        ValueError: the reviews are a pickle.
    """
    wanted = _numbers(source) if source.suffix.lower() == ".index" else None
    for number, record in _records(_reviews_of(source), tally):
        if wanted is None or number in wanted:
            yield from tally.usable(f"review {number}", _documents, number, record, field)


def _documents(number: int, record: dict[str, Any], field: str | None) -> Iterator[Document]:
    user, item = (_identity(record, name) for name in ("user", "item"))
    feature, explanation = record.get("feature"), record.get(field) if field else None
    if field is None and isinstance(template := record.get("template"), list) and len(template) == 4:
        feature, _, explanation, _ = template
    elif field is None:
        explanation = next((record[name] for name in TEXTS if record.get(name)), None)
    if not isinstance(explanation, str) or is_blank(explanation):
        there = ", ".join(map(str, list(record)[:8])) or "none"
        raise BadSample(errors.FIELDS, f"no {field or ', '.join(TEXTS)} in the fields {there}; --field names another")
    features = feature if isinstance(feature, list) else [feature] if feature else []
    named = [str(one).strip() for one in features]
    yield Document(f"{number:08d}", review(user, item, _rating(record.get("rating")), explanation.strip(), named))


def _identity(record: dict[str, Any], name: str) -> str:
    identity = record.get(name)
    if isinstance(identity, bool) or not isinstance(identity, (str, int)) or not str(identity).strip():
        raise BadSample(errors.FIELDS, f"no {name} in the fields {', '.join(map(str, list(record)[:8])) or 'none'}")
    return str(identity).strip()


def _rating(given: Any) -> float | None:
    """A rating as a number; none where there is none."""
    if given is None or given == "":
        return None
    try:
        rating = float(given)
    except (TypeError, ValueError):
        rating = float("nan")
    if isinstance(given, bool) or not abs(rating) < 1e6:
        raise BadSample(errors.FIELDS, f"the rating {str(given)[:40]!r} is no number")
    return rating


def _reviews_of(source: Path) -> Path:
    """The file of reviews that a file, a folder or an index names."""
    if source.suffix.lower() == ".index":
        found = matching(source.parent, *TABLES) or matching(source.parent.parent, *TABLES)
        if not found:
            _refuse_pickles([*source.parent.iterdir(), *source.parent.parent.iterdir()])
            raise FileNotFoundError(f"{source}: no reviews beside it or in the folder above (JSON, CSV or parquet)")
    else:
        _refuse_pickles([source] if source.is_file() else [] if matching(source, *TABLES) else list(source.iterdir()))
        found = files(source, *TABLES)
    if len(found) > 1:
        raise ValueError(f"{found[0].parent} holds several files of reviews: give one of {', '.join(map(str, found))}")
    return found[0]


def _refuse_pickles(paths: list[Path]) -> None:
    for path in paths:
        if path.suffix.lower() in _PICKLES:
            raise ValueError(
                f"{path} is a pickle, which can run programs when it is read; where you trust it: python -c "
                f"\"import json, pickle; json.dump(pickle.load(open('{path.name}', 'rb')), open('reviews.json', 'w'))\""
            )


def _records(path: Path, tally: Tally) -> Iterator[tuple[int, dict[str, Any]]]:
    if ending(path) in (".csv", ".tsv"):
        yield from read_table(path, tally)
    elif ending(path) == ".json":
        for number, record in enumerate(read_list(path, tally)):
            if isinstance(record, dict):
                yield number, record
            else:
                tally.count(errors.JSON, f"{path.name}: record {number} is a {type(record).__name__}")
    else:
        yield from ((number, record) for number, (_, record) in enumerate(records(path, tally)))


def _numbers(path: Path) -> set[int]:
    try:
        return {int(word) for word in path.read_text(encoding="utf-8-sig").split()}
    except ValueError as error:
        raise ValueError(f"{path}: an index file holds the numbers of reviews, separated by spaces: {error}") from error
