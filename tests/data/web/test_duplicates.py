"""Near-duplicates and the selection: one of each cluster stays, the same one for any order of the input."""

from __future__ import annotations

import hashlib
import io
import itertools
import random

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos_data.document import Document, Image, Text
from kosmos_data.web.draft import look_at, page_key
from kosmos_data.web.hamming import hamming, near_groups, near_pairs
from kosmos_data.web.page import ImageReference
from kosmos_data.web.rules import DuplicateRules, ImageRules
from kosmos_data.web.selection import DOCUMENT_DTYPE, PAGE_REASONS, PICTURE_DTYPE, PICTURE_REASONS, is_drawn, select
from kosmos_data.web.stages import with_images

pytest.importorskip("imagehash")


def _hashes(seed: int, count: int = 200) -> np.ndarray:
    """Random 64-bit hashes, half of them a few bits away from another."""
    rng = random.Random(seed)
    found = [rng.getrandbits(64) for _ in range(count // 2)]
    for base in found[:]:
        for bit in rng.sample(range(64), rng.randint(0, 5)):
            base ^= 1 << bit
        found.append(base)
    return np.array(found, dtype=np.uint64)


@pytest.mark.parametrize("bits", [0, 1, 3, 6])
def test_near_pairs_are_those_of_the_comparison_of_all(bits: int) -> None:
    unique = np.unique(_hashes(bits))
    slow = {
        (i, j)
        for i, j in itertools.combinations(range(len(unique)), 2)
        if (int(unique[i]) ^ int(unique[j])).bit_count() <= bits
    }
    first, second = near_pairs(unique, bits)
    assert {tuple(sorted(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)} == slow
    assert slow or bits == 0


def test_groups_are_connected_components() -> None:
    # 0 – 7 – 63 is a chain of steps of three bits; the ends differ in six.
    groups = near_groups(np.array([0b111111, 0, 1 << 60, 0b111, 0], dtype=np.uint64), 3)
    assert groups[0] == groups[1] == groups[3] == groups[4]
    assert groups[2] == groups[1]  # one bit from 0
    far = near_groups(np.array([0, 0b1111], dtype=np.uint64), 3)
    assert far[0] != far[1]
    assert len(near_groups(np.array([], dtype=np.uint64), 3)) == 0
    with pytest.raises(ValueError, match="0 to 13"):
        near_groups(np.array([1], dtype=np.uint64), 14)


def test_hamming_is_the_number_of_differing_bits() -> None:
    a, b = _hashes(1), _hashes(2)
    assert hamming(a, b).tolist() == [(int(x) ^ int(y)).bit_count() for x, y in zip(a, b, strict=True)]


def _drawing(seed: int, side: int = 200) -> PIL.Image.Image:
    rng = random.Random(seed)
    image = PIL.Image.new("RGB", (side, side), tuple(rng.randrange(256) for _ in range(3)))
    draw = PIL.ImageDraw.Draw(image)
    for _ in range(12):
        corners = sorted(rng.randrange(side) for _ in range(2)), sorted(rng.randrange(side) for _ in range(2))
        box = (corners[0][0], corners[1][0], corners[0][1], corners[1][1])
        draw.rectangle(box, fill=tuple(rng.randrange(256) for _ in range(3)))
    return image


def _encoded(image: PIL.Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_recompressed_and_resized_images_are_near_and_others_are_not() -> None:
    reference = ImageReference("http://x/i")
    originals = [look_at(reference, _encoded(_drawing(seed), "PNG")).phash for seed in range(20)]
    copies = [
        look_at(reference, _encoded(_drawing(seed).resize((150, 150)), "JPEG", quality=60)).phash for seed in range(20)
    ]
    groups = near_groups(np.array(originals + copies, dtype=np.uint64), DuplicateRules().image_bits)
    together = [groups[seed] == groups[seed + 20] for seed in range(20)]
    assert sum(together) >= 18  # a perceptual hash is a heuristic
    assert len(set(groups[:20])) == 20


class _Corpus:
    """Rows for ``select`` made by hand: documents as (key, characters, [(sha256, phash, pixels), …], cluster)."""

    def __init__(self, entries: list[tuple[str, int, list[tuple[str, int, int]], int]]) -> None:
        self.documents = np.zeros(len(entries), dtype=DOCUMENT_DTYPE)
        self.clusters = np.array([entry[3] for entry in entries], dtype=np.int64)
        rows = []
        for row, (key, characters, images, _) in enumerate(entries):
            self.documents[row] = (key.encode(), _digest(characters, images), len(images), 1, characters, 100, 0, row)
            rows += [(row, at, sha.encode(), phash, pixels) for at, (sha, phash, pixels) in enumerate(images)]
        self.pictures = np.array(rows, dtype=PICTURE_DTYPE)

    def select(self, images: ImageRules, duplicates: DuplicateRules) -> tuple[dict[str, str], dict[str, list[str]]]:
        """Reason per document and reasons of its pictures, by key and length."""
        chosen = select(self.documents, self.pictures, self.clusters, images, duplicates)
        names = [f"{entry['key'].decode()} {entry['characters']}" for entry in self.documents]
        reasons = {name: PAGE_REASONS[code] for name, code in zip(names, chosen.documents, strict=True)}
        of_pictures: dict[str, list[str]] = {name: [] for name in names}
        for row, code in zip(self.pictures["document"], chosen.pictures, strict=True):
            of_pictures[names[row]].append(PICTURE_REASONS[code])
        return reasons, of_pictures


def _digest(characters: int, images: list[tuple[str, int, int]]) -> bytes:
    return hashlib.sha256(f"{characters}{images}".encode()).hexdigest()[:32].encode()


_ALL = ImageRules(keep_one_image=1.0)


def _image(number: int, pixels: int = 10_000) -> tuple[str, int, int]:
    return f"{number:032x}", (number * 0x9E3779B97F4A7C15) % 2**64, pixels


def test_one_document_of_an_address_and_of_a_cluster_stays() -> None:
    corpus = _Corpus(
        [
            ("a", 100, [_image(1), _image(2)], -1),
            ("a", 900, [_image(3)], -1),  # the same address with fewer images
            ("b", 100, [_image(4)], 7),
            ("c", 200, [_image(5)], 7),  # the same text, longer
            ("d", 200, [_image(6)], 7),
        ]
    )
    reasons, _ = corpus.select(_ALL, DuplicateRules())
    assert reasons == {
        "a 100": "",
        "a 900": "same address",
        "b 100": "near-duplicate text",
        "c 200": "",
        "d 200": "near-duplicate text",
    }


def test_equals_are_told_apart_by_key_and_content_never_by_order() -> None:
    same_text = [(key, 100, [_image(number)], 7) for number, key in enumerate("cab")]
    same_page = [("k", 100, [_image(number), _image(9 - number)], -1) for number in range(3)]
    smallest = min(range(3), key=lambda number: _digest(100, same_page[number][2]))
    for entries, number in ((same_text, 1), (same_page, smallest)):
        for order in itertools.permutations(entries):
            corpus = _Corpus(list(order))
            kept = select(corpus.documents, corpus.pictures, corpus.clusters, _ALL, DuplicateRules()).kept
            assert [order[row] for row in np.flatnonzero(kept)] == [entries[number]]


def test_pictures_repeated_copied_everywhere_and_too_many() -> None:
    near = ("f" * 32, _image(1)[1] ^ 0b101, 20_000)
    documents = [
        ("a", 1, [_image(1), _image(1), *(_image(number) for number in range(10, 17))], -1),
        ("b", 1, [near, _image(2)], -1),  # like a's first image, and larger
        ("c", 1, [_image(3)], -1),
        ("d", 1, [_image(2), _image(4)], -1),
        *((f"e{number}", 1, [_image(3), _image(20 + number)], -1) for number in range(3)),
    ]
    duplicates = DuplicateRules(boilerplate_pages=3)
    reasons, pictures = _Corpus(documents).select(_ALL, duplicates)
    _, again, everywhere, copy, beyond = PICTURE_REASONS
    assert pictures["a 1"] == [copy, again, "", "", "", "", "", beyond, beyond]
    assert pictures["b 1"] == ["", ""]
    assert pictures["c 1"] == [everywhere]
    assert reasons["c 1"] == "no image left"
    assert pictures["d 1"] == [copy, ""]
    assert pictures["e0 1"] == [everywhere, ""]
    exact = _Corpus(documents).select(_ALL, DuplicateRules(boilerplate_pages=3, image_bits=-1))[1]
    assert exact["a 1"][:2] == ["", again]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_selection_is_the_same_for_any_order(data: st.DataObject) -> None:
    keys = st.sampled_from("abcdefgh")
    image = st.integers(1, 9).map(lambda n: _image(n, 1000 * (n % 3)))
    entry = st.tuples(keys, st.integers(1, 9), st.lists(image, min_size=1, max_size=4), st.integers(-1, 2))
    entries = data.draw(st.lists(entry, min_size=1, max_size=12, unique_by=lambda e: (e[0], e[1])))
    shuffled = data.draw(st.permutations(entries))
    rules = ImageRules(max_per_document=2), DuplicateRules(boilerplate_pages=4)
    straight = _Corpus(entries).select(*rules)
    assert _Corpus(shuffled).select(*rules) == straight
    kept = {name.split()[0]: name for name, reason in straight[0].items() if reason != "same address"}
    assert set(kept) == {entry[0] for entry in entries}  # exactly one of every address
    for cluster in range(3):
        alive = [f"{k} {n}" for k, n, _, c in entries if c == cluster and straight[0][f"{k} {n}"] != "same address"]
        survivors = [name for name in alive if straight[0][name] != "near-duplicate text"]
        assert len(survivors) == min(1, len(alive))  # exactly one of every cluster


def test_clusters_may_have_any_numbers() -> None:
    """Two pages, one in a cluster whose number is that of no page: both stay, in either order."""
    entries = [("a", 1, [_image(1, 1000)], -1), ("b", 1, [_image(2, 2000)], 2)]
    for ordered in (entries, entries[::-1]):
        assert set(_Corpus(ordered).select(ImageRules(keep_one_image=1.0), DuplicateRules())[0].values()) == {""}


def test_half_of_the_single_images_is_drawn_by_hash() -> None:
    keys = [page_key(f"http://example.org/page/{number}").encode() for number in range(4000)]
    drawn = [key for key in keys if is_drawn(key, 0.5)]
    assert abs(len(drawn) - 2000) < 4 * (4000 * 0.25) ** 0.5  # four standard deviations of the binomial
    assert [key for key in reversed(keys) if is_drawn(key, 0.5)] == drawn[::-1]
    assert set(drawn) <= {key for key in keys if is_drawn(key, 0.8)}
    assert all(is_drawn(key, 1.0) for key in keys)
    assert not any(is_drawn(key, 0.0) for key in keys)
    # The keys order the shards: what is drawn must not depend on the bits that do that.
    low = sum(key < b"8" for key in drawn)
    assert abs(low - len(drawn) / 2) < 4 * (len(drawn) * 0.25) ** 0.5


def test_only_documents_with_one_image_left_are_drawn() -> None:
    entries = [(f"{number:03d}", 1, [_image(2 * number), _image(2 * number + 1)], -1) for number in range(100)]
    entries += [(f"x{number:03d}", 1, [_image(1000 + number)], -1) for number in range(100)]
    reasons, _ = _Corpus(entries).select(ImageRules(), DuplicateRules(image_bits=-1))
    assert all(not reason for name, reason in reasons.items() if name[0] != "x")
    gone = {name for name, reason in reasons.items() if reason == "one image, not drawn"}
    assert 25 < len(gone) < 75
    assert gone == {f"x{number:03d} 1" for number in range(100) if not is_drawn(f"x{number:03d}".encode(), 0.5)}


def test_a_removed_image_joins_the_texts_around_it() -> None:
    segments = [Text("a"), Image(b"1"), Text("b"), Image(b"2"), Image(b"3"), Text("c")]
    document = Document("k", segments, {"url": "u", "images": [{"url": n} for n in "123"]})
    shorter = with_images(document, 0b100)
    assert list(shorter.segments) == [Text("a\nb"), Image(b"3"), Text("c")]
    assert shorter.meta == {"url": "u", "images": [{"url": "3"}]}
    assert with_images(document, 0b111) == document
