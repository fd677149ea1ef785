"""Captions whose phrases have boxes: GRIT, as KOSMOS-2's authors published it, and files in its fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kosmos.segments import Box, Phrase, check_box

from .. import errors
from ..document import PICTURES, Document, Image, Text
from ..errors import BadSample, Tally
from ..tars import find_tars
from ._files import LINES, caption, image, matching, records
from ._tar_samples import Files, tar_samples

LEAST_SCORE = 0.65  # KOSMOS-2's ``box_score_threshold``
ROUNDING = 1e-3  # what a detector's edge may lie outside of the picture and is put on its border


def grit(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """Records with ``caption``, and ``ref_exps`` or ``noun_chunks`` of [begin, end, x1, y1, x2, y2, score].

    Read are the tars that img2dataset writes of GRIT with ``--save_additional_columns '["noun_chunks", "ref_exps"]'``,
    and JSON lines or parquet with a picture's file in ``image``. Of the expressions those count that lie in no other
    (the release's mode ``expression``), of the boxes those with a score of 0.65 or more. A box that is none, and a
    phrase that overlaps another in part, are counted and left out; a caption without any stays an ordinary pair.
    """

    def document(key: str, record: Mapping[str, Any], picture: Image) -> Iterator[Document]:
        text = record["caption"]
        caption(text)  # refuses an empty one; the places of phrases count its blanks
        phrases = _phrases(record, text, key, tally)
        yield Document(key, [picture, Text(text, boxes=phrases or None)])

    def in_files(key: str, read: Files) -> Iterator[Document]:
        files = read()
        picture = next((files[kind] for kind in PICTURES if files.get(kind)), None)
        if picture is None:
            raise BadSample(errors.IMAGE_MISSING, key)
        yield from document(key, json.loads(files["json"]), Image(picture))

    def in_record(key: str, record: Mapping[str, Any]) -> Iterator[Document]:
        yield from document(key, record, image(images, record["image"]))

    tars = matching(source, "*.tar") if source.is_dir() else [source] if source.suffix.lower() == ".tar" else []
    if not tars and (
        source.is_file() or matching(source, *LINES)
    ):  # img2dataset leaves a table beside each of its tars
        for key, record in records(source, tally):
            yield from tally.usable(key, in_record, key, record)
        return
    for path in tars or find_tars(source):
        for key, read in tar_samples(path, tally):
            yield from tally.usable(key, in_files, key, read)


def _phrases(record: Mapping[str, Any], text: str, key: str, tally: Tally) -> tuple[Phrase, ...]:
    """The phrases of a record that can be written; what cannot is counted as a part that was left out."""
    found: dict[tuple[int, int], list[Box]] = {}
    for entry in record.get("ref_exps") or record.get("noun_chunks") or ():
        try:
            begin, end, *box, score = entry
            if score < LEAST_SCORE:
                tally.count(errors.BOX_UNSURE, f"{key}: {score:.2f}", record=False)
                continue
            one = check_box([_rounded(edge) for edge in box])
            found.setdefault((int(begin), int(end)), []).append(one)
        except (TypeError, ValueError) as error:
            tally.count(errors.BOXES, f"{key}: {error}", record=False)
    kept: tuple[Phrase, ...] = ()
    for (begin, end), boxes in sorted(found.items(), key=lambda pair: (pair[0][0], -pair[0][1])):
        if kept and end <= kept[-1].end:  # within the expression before it
            continue
        try:
            kept = Text(text, boxes=(*kept, Phrase(begin, end, tuple(boxes)))).boxes or ()
        except ValueError as error:
            tally.count(errors.BOXES, f"{key}: {error}", record=False)
    return kept


def _rounded(edge: float) -> float:
    return min(1.0, max(0.0, edge)) if -ROUNDING <= edge <= 1 + ROUNDING else edge
