"""Languages of real sentences; near-duplicates against the comparison of all pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos_data import Document, Image, Text

pytest.importorskip("datatrove")
pytest.importorskip("py3langid")

from datatrove.data import Document as PlainText
from datatrove.utils.text import simplify_text

from kosmos_data.clean.filters import Filters, plain_name, source_of
from kosmos_data.clean.manifest import (
    DOCUMENT_DTYPE,
    PICTURE_DTYPE,
    content_digest,
    may_be_near,
    short_hash,
)
from kosmos_data.clean.options import CleanOptions
from kosmos_data.clean.selection import REASONS, select
from kosmos_data.web.minhash import Minhash, read_clusters
from kosmos_data.web.rules import NearRules
from kosmos_data.web.text_quality import Words

OTHERS = {
    "de": "Alle glücklichen Familien gleichen einander, jede unglückliche ist auf ihre eigene Weise unglücklich.",
    "fr": "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, mes yeux se fermaient.",
    "es": "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo.",
    "it": "Nel mezzo del cammin di nostra vita mi ritrovai per una selva oscura, ché la diritta via era smarrita.",
    "pt": "Ao verme que primeiro roeu as frias carnes do meu cadáver dedico como saudosa lembrança estas memórias.",
    "ru": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "el": "Άνδρα μοι έννεπε, Μούσα, πολύτροπον, ος μάλα πολλά πλάγχθη, επεί Τροίης ιερόν πτολίεθρον έπερσε.",
    "ja": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
}
ENGLISH = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife.",
    "Call me Ishmael.",
    "An image of a red triangle",
    "red panda",
    "face with tears of joy",
    "42 + 17 = 59",
    "",
)


def test_real_sentences_of_other_languages_go_and_english_ones_stay() -> None:
    filters = Filters(CleanOptions())
    assert [name for name, text in OTHERS.items() if not filters.is_foreign(text)] == []
    assert [text for text in ENGLISH if filters.is_foreign(text)] == []
    french = Filters(CleanOptions(language="fr"))
    assert not french.is_foreign(OTHERS["fr"])
    assert french.is_foreign(ENGLISH[0])
    every = Filters(CleanOptions(language="any"))
    assert not any(every.is_foreign(text) for text in [*OTHERS.values(), *ENGLISH])


def test_sources_are_found_where_corpora_name_them() -> None:
    assert source_of({"meta": {"pile_set_name": "Github"}, "title": "x"}) == "Github"
    assert source_of({"source": "wiki", "pile_set_name": "ArXiv"}) == "ArXiv"
    assert source_of({"origin": "here", "source": "there"}, "origin") == "here"
    assert source_of({"source": "there"}, "origin") is None
    assert source_of({"source": 3, "meta": "none"}) is None
    assert plain_name("PubMed Central") == plain_name("pubmed_central") != plain_name("PubMed Abstracts")


def shingles(text: str) -> set[tuple[str, ...]]:
    words = Words().word_tokenize(simplify_text(text))
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


def jaccard(first: set[tuple[str, ...]], second: set[tuple[str, ...]]) -> float:
    return len(first & second) / len(first | second)


def test_near_duplicates_are_those_of_the_comparison_of_all(
    tmp_path: object, parts: list[str], edited: Callable[..., str]
) -> None:
    shares = (0.002, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3)
    texts = [*parts, *(edited(part, shares[n % len(shares)], n) for n, part in enumerate(parts))]
    minhash = Minhash(tmp_path, NearRules())  # type: ignore[arg-type]
    minhash.signature().run((PlainText(text, str(n)) for n, text in enumerate(texts)), 0, 1)
    for rank in range(minhash.tasks):
        minhash.match().run(None, rank, minhash.tasks)
    minhash.cluster()(None, 0, 1)
    clusters = read_clusters(minhash.clusters, np.zeros(len(texts), int))
    found = [shingles(text) for text in texts]
    expected, variance, together = 0.0, 0.0, 0
    for a, b in itertools.combinations(range(len(texts)), 2):
        met = clusters[a] == clusters[b] >= 0
        alike = jaccard(found[a], found[b])
        assert met or alike < 0.95, (a, b, alike)
        assert not met or alike > 0.3, (a, b, alike)
        chance = 1 - (1 - alike**8) ** 14
        expected, variance, together = expected + chance, variance + chance * (1 - chance), together + met
    assert 10 < together < len(parts)
    assert abs(together - expected) < 4 * variance**0.5 + 1e-9  # four standard deviations


def test_only_what_the_model_reads_makes_a_copy() -> None:
    text = [Image(b"1"), Text("a b")]
    same = Document("other", text, {"url": "elsewhere"})
    assert content_digest(Document("k", text)) == content_digest(same)
    others = [[Image(b"2"), Text("a b")], [Image(b"1"), Text("a  b")], text[::-1], [Image(b"1"), Text("a b", False)]]
    assert len({content_digest(Document("k", segments)) for segments in [text, *others]}) == 5
    assert [may_be_near(Document("k", segments)) for segments in [text, *others]] == [True, True, True, True, False]


def test_texts_too_short_for_shingles_are_compared_whole() -> None:
    assert short_hash("A red dog.", 5) == short_hash("a  red, dog", 5) != short_hash("a red cat", 5)
    assert short_hash("a red dog and a cat", 5) == 0
    assert short_hash("…!", 5) == 0
    assert short_hash("", 5) != 0


ROW = st.tuples(st.integers(0, 3), st.integers(-1, 2), st.booleans(), st.lists(st.integers(0, 2), max_size=2))


@settings(max_examples=200, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=14), st.booleans())
def test_of_each_group_one_stays_and_every_other_names_it(
    rows: list[tuple[int, int, bool, list[int]]], near: bool
) -> None:
    rows = [(digest, cluster if may else -1, may, shown) for digest, cluster, may, shown in rows]
    first = {digest: row for row in reversed(rows) for digest in [row[0]]}
    rows = [first[digest] for digest, *_ in rows]  # equal documents are equal in all
    documents = np.zeros(len(rows), DOCUMENT_DTYPE)
    pictures = []
    for number, (digest, _, may, shown) in enumerate(rows):
        documents[number] = (number, str(digest).encode(), may, 0, len(shown), 10 + digest, 512, 0)
        pictures += [
            (number, at, str(kind).encode(), 2 ** (20 * kind) * 0xFFFFF) for at, kind in enumerate(shown) if may
        ]
    clusters = np.array([row[1] for row in rows])
    chosen = select(documents, np.array(pictures, PICTURE_DTYPE), clusters, NearRules() if near else None)
    for number, (digest, cluster, _, shown) in enumerate(rows):
        reason, instead = REASONS[chosen.reasons[number]], int(chosen.instead[number])
        assert (reason == "") == (instead < 0)
        if reason:
            assert chosen.kept[instead]
        if reason == "exact duplicate":
            assert digest in [row[0] for row in rows[:number]]
        elif reason:
            assert (cluster, shown) == (rows[instead][1], rows[instead][3])
            assert cluster >= 0
    kept = [rows[number] for number in np.flatnonzero(chosen.kept)]
    assert len({row[0] for row in kept}) == len(kept)
    if near:
        groups = [(row[1], tuple(row[3])) for row in kept if row[1] >= 0]
        assert len(set(groups)) == len(groups)
    else:
        assert {row[0] for row in kept} == {row[0] for row in rows}
