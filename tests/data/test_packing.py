"""Rows against what was put in: nothing lost, nothing doubled, images whole, fields as a slow reference says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmos.segments import Placed
from kosmos_data.example import Example, Flat, shifted
from kosmos_data.packing import (
    BLOCK,
    DOCUMENT,
    IGNORED,
    LABEL,
    POOL,
    POSITION,
    SOURCE,
    TOKEN,
    Entry,
    Packer,
    Piece,
    Space,
    empty_row,
    fill_row,
)

BOS, PAD, SLOTS = 0, 1, 3


def make_example(shape: list[int], start: int, sentence: int = 0) -> Example:
    """``shape``: numbers of text tokens, −1 for an image; ids count up from ``start``, so every token is known.

    ``sentence``: every so many tokens one ends a sentence, if it is no part of an image.
    """
    weight, cuts, placed = [0.0], [True], []
    for part in shape:
        if part < 0:
            placed.append(Placed("image", len(weight) + 1, SLOTS, np.full((3, 2, 2), (start + len(weight)) % 251)))
        length = SLOTS + 2 if part < 0 else part
        weight += [float(part > 0)] * length
        cuts += [True] + [part > 0] * (length - 1)
    ids = np.array([BOS, *range(start + 1, start + len(weight)), 2], dtype=np.int32)
    example = shifted(Flat(ids, np.array([*weight, 1.0], dtype=np.float32), placed, np.array([*cuts, True])))
    if sentence:
        example.ends[sentence:-1:sentence] = True
        example.ends[:-1] &= example.cuts[:-1] & example.cuts[1:]
    return example


MODES = {
    "cut": {"cut_all": True},
    "best_fit": {"cut_all": False},
    "sentences": {"cut_all": True, "sentences": True},
}
SHAPES = st.lists(st.one_of(st.just(-1), st.integers(1, 60)), min_size=1, max_size=6)


def pack_all(examples: list[Example], packer: Packer, pool_size: int) -> list[list[Piece]]:
    """Rows of pieces until everything is placed."""
    waiting = [Entry(ordinal, example) for ordinal, example in enumerate(examples)]
    pool: list[Entry] = []
    rows: list[list[Piece]] = []
    while waiting or pool:
        space, row = Space(packer.row_tokens, packer.max_images), []
        while space.tokens > 0:
            while waiting and len(pool) < pool_size:
                pool.append(waiting.pop(0))
            choice = (packer.longest if row else packer.oldest)(pool, space)
            if choice is None:
                break
            index, stop = choice
            piece = pool[index].take(stop, pool[index].ordinal)
            row.append(piece)
            space.tokens -= piece.length
            space.images -= piece.images
            if stop == len(piece.example):
                del pool[index]
        assert row, "nothing fits an empty row"
        rows.append(row)
    return rows


@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=15),
    tokens=st.integers(20, 90),
    cap=st.integers(1, 4),
    mode=st.sampled_from(sorted(MODES)),
    sentence=st.sampled_from([0, 1, 7, 40]),
)
def test_nothing_is_lost_doubled_or_torn(
    shapes: list[list[int]], tokens: int, cap: int, mode: str, sentence: int
) -> None:
    packer = Packer(tokens, cap, **MODES[mode])
    examples = [make_example(shape, 1000 * n, sentence) for n, shape in enumerate(shapes)]
    assert all(packer.possible(example) for example in examples)
    rows = pack_all(examples, packer, POOL[mode])
    placed: dict[int, list[tuple[int, int]]] = {n: [] for n in range(len(examples))}
    for row in rows:
        assert sum(piece.length for piece in row) <= tokens
        assert sum(piece.images for piece in row) <= cap
        for piece in row:
            placed[piece.source].append((piece.start, piece.stop))
            for span in piece.example.placed:
                region = range(span.start - 1, span.start + span.length + 1)
                inside = [piece.start <= at < piece.stop for at in region if at < len(piece.example)]
                assert all(inside) or not any(inside)
    for ordinal, parts in placed.items():
        assert parts[0][0] == 0
        assert parts[-1][1] == len(examples[ordinal])
        assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))
        if mode == "best_fit" and len(examples[ordinal]) <= tokens and Entry(0, examples[ordinal]).images <= cap:
            assert len(parts) == 1, "best_fit cuts only what no row could hold"


@given(shapes=st.lists(SHAPES, min_size=1, max_size=6), mask=st.booleans())
def test_rows_hold_what_a_slow_reference_says(shapes: list[list[int]], mask: bool) -> None:
    packer = Packer(70, 3, cut_all=True)
    for pieces in pack_all([make_example(shape, 1000 * n) for n, shape in enumerate(shapes)], packer, 1):
        row = empty_row(0, 70, PAD)
        fill_row(row, pieces, BOS, document_mask=mask)
        expected, images = [], []
        for number, piece in enumerate(pieces):
            example, local = piece.example, 0
            if piece.start > 0:
                expected.append((BOS, IGNORED, number if mask else 0, local if mask else len(expected), 0.0))
                local += 1
            for at in range(piece.start, piece.stop):
                label = example.label[at] if example.weight[at] > 0 else IGNORED
                position = local if mask else len(expected)
                expected.append((example.token[at], label, number if mask else 0, position, example.weight[at]))
                local += 1
            images += [s.payload[0, 0, 0] for s in example.placed if piece.start <= s.start < piece.stop]
        length = len(expected)
        got = [row.fields[f, :length].tolist() for f in (TOKEN, LABEL, DOCUMENT, POSITION)]
        assert list(zip(*got, row.weight[:length].tolist(), strict=True)) == expected
        assert (row.fields[DOCUMENT, length:] == -1).all()
        assert (row.fields[SOURCE, length:] == -1).all()
        assert (row.fields[LABEL, length:] == IGNORED).all()
        assert (row.fields[TOKEN, length:] == PAD).all()
        assert [image.payload[0, 0, 0] for image in row.placed] == images


def test_blocks_of_different_documents_stay_apart() -> None:
    one, other = make_example([5], 0), make_example([5], 100)
    for example in (one, other):
        example.block[:3] = 0
    row = empty_row(0, 20, PAD)
    fill_row(row, [Piece(e, 0, 0, len(e), 0) for n, e in enumerate((one, other))], BOS, document_mask=False)
    assert row.fields[BLOCK, :12].tolist() == [0, 0, 0, -1, -1, -1, 1, 1, 1, -1, -1, -1]


@pytest.mark.parametrize(("length", "fits"), [(30, True), (31, False)])
def test_an_example_that_may_not_be_cut_must_fit(length: int, fits: bool) -> None:
    example = make_example([length - 1], 0)
    example.cuts[:] = False
    assert len(example) == length
    assert Packer(30, 4, cut_all=True).possible(example) is fits


@pytest.mark.parametrize("images", [3, 4])
def test_a_stretch_with_more_images_than_a_row_holds_is_impossible(images: int) -> None:
    example = make_example([5, *[-1] * images, 5], 0)
    example.cuts[:] = False
    example.cuts[3] = True
    assert Packer(80, 3, cut_all=False).possible(example) is (images == 3)


def test_best_fit_opens_with_the_oldest_and_fills_the_gap_with_the_longest_that_fits() -> None:
    packer = Packer(30, 4, cut_all=False)
    pool = [Entry(n, make_example([size], 100 * n)) for n, size in enumerate([25, 8, 12, 10])]
    assert packer.oldest(pool, Space(30, 4)) == (0, 26)
    assert packer.longest(pool, Space(12, 4)) == (3, 11)
    assert packer.longest(pool, Space(8, 4)) is None


def test_the_best_of_several_cuts_fills_the_gap() -> None:
    """Examples that no row holds whole and that may be cut at few places, as windows of a denoising objective."""
    pool = [Entry(n, make_example([60], 100 * n)) for n in range(3)]
    for entry, places in zip(pool, ([25, 40], [18, 29], [17, 35]), strict=True):
        entry.example.cuts[:] = False
        entry.example.cuts[places] = True
    assert Packer(40, 4, cut_all=False).longest(pool, Space(30, 4)) == (1, 29)
    assert Packer(40, 4, cut_all=False).longest(pool, Space(15, 4)) is None


def test_nearest_is_what_brings_a_source_closest_to_its_goal() -> None:
    packer = Packer(60, 4, cut_all=False)
    pool = [Entry(n, make_example([size], 100 * n)) for n, size in enumerate([24, 7, 13, 39])]
    assert packer.nearest(pool, Space(60, 4), 12.0) == (2, 14)
    assert packer.nearest(pool, Space(60, 4), 5.0) == (1, 8)
    assert packer.nearest(pool, Space(60, 4), 4.0) is None, "taking one would leave it as far off as before"
    assert packer.nearest(pool, Space(20, 4), 30.0) == (2, 14), "only what fits"
