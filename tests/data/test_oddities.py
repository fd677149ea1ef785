"""Odd archives, tables and JSON of every layout: documents + counted = records, and never a traceback.

The kinds of oddity are those that real files had. ``KOSMOS_SEEDS=2000 pytest tests/data/test_oddities.py`` draws more.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from kosmos_data import BadSample, Corpus, adapters
from kosmos_data.adapters import convert
from kosmos_data.check import check_corpus, index_folder

from .odd_layouts import LAYOUTS
from .odd_records import Odd, Png
from .odd_tars import pairs_tar

SEEDS = int(os.environ.get("KOSMOS_SEEDS", "500"))


def test_every_format_is_here() -> None:
    assert {name.split()[0] for name in LAYOUTS} == set(adapters.FORMATS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_documents_and_counted_are_all_records(tmp_path: Path, make_png: Png, name: str) -> None:
    used = refused = counted = 0
    for seed in range(SEEDS // len(LAYOUTS)):
        place = tmp_path / str(seed)
        place.mkdir()
        odd = Odd(seed, place, make_png)
        source = LAYOUTS[name](odd)
        begun = time.monotonic()
        try:
            _, tally = convert(name.split()[0], source, place / "out", place if source.is_file() else None)
        except ValueError as error:
            assert str(source) in str(error), seed  # noqa: PT017 - a source of which nothing can be used is named
            refused += 1
        else:
            documents = sum(1 for _ in Corpus(place / "out"))
            assert odd.records is None or documents + tally.records == odd.records, (seed, tally)
            assert all(tally.examples[reason] for reason in tally)
            assert not [problem for report in check_corpus(place / "out") for problem in report.problems], seed
            used, counted = used + documents, counted + tally.records
        assert time.monotonic() - begun < 10
    assert used > 10
    assert counted + refused > 5


def test_odd_tars_read_where_they_lie(tmp_path: Path, make_png: Png) -> None:
    """Indexed, and read sample by sample: each is a document or a bad sample, whatever the tar holds."""
    documents = 0
    for seed in range(SEEDS // 4):
        place = tmp_path / str(seed)
        place.mkdir()
        path = pairs_tar(Odd(seed, place, make_png))
        try:
            index_folder(place)
            corpus = Corpus(place)
        except ValueError as error:
            assert str(place) in str(error), seed  # noqa: PT017
            assert path.exists()
            continue
        for index in range(len(corpus)):
            with contextlib.suppress(BadSample):
                documents += len(corpus[index].segments) > 0
        list(check_corpus(place))
    assert documents > SEEDS // 8
