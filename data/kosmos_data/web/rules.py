"""The thresholds of every filter, with the source of each default. What KOSMOS-1 states is kept as it states it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TextRules:
    """Which text is kept.

    Args:
        language: language to keep, as py3langid names it (KOSMOS-1: English only).
        language_confidence: least probability that the text is in it. Ours; FineWeb asks 0.65 of fastText.
        max_junk_share: a paragraph with more than this share of URLs, hashtags, mentions and emoji among its words is
            left out. KOSMOS-1 removes "gibberish text containing emojis, hashtags, and URL links"; the figure is ours.
        min_words: fewest words of a page (Gopher).
        max_words: most words of a page (Gopher).
        min_mean_word_length: characters (Gopher).
        max_mean_word_length: characters (Gopher).
        max_symbol_ratio: most hash signs, and most ellipses, per word (Gopher).
        min_alphabetic_share: least share of words with a letter (Gopher).
        min_stop_words: of the, be, to, of, and, that, have, with, at least so many must occur (Gopher).
        max_repeated_lines: largest share of lines that occurred before in the page (Gopher, table A1; its limits for
            repeated phrases of 2 to 10 words hold too).
        max_repeated_line_characters: the same by characters (Gopher).
    """

    language: str = "en"
    language_confidence: float = 0.8
    max_junk_share: float = 0.3
    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: int = 3
    max_mean_word_length: int = 10
    max_symbol_ratio: float = 0.1
    min_alphabetic_share: float = 0.8
    min_stop_words: int = 2
    max_repeated_lines: float = 0.3
    max_repeated_line_characters: float = 0.2


@dataclass
class ImageRules:
    """Which images are kept, and how many of them.

    Args:
        min_side: pixels of the shorter side (KOSMOS-1: "smaller than 64 by 64").
        min_colour_range: an image whose lightest and darkest pixel differ by less in all three channels (0–255) has one
            colour (KOSMOS-1: "single-colored"; the tolerance is for JPEG's noise).
        max_aspect_ratio: longer ÷ shorter side (DataComp's basic filter: 3).
        max_per_page: a page with more images is a gallery and dropped (OBELICS: 30); at most 64.
        max_per_document: later ones are left out (KOSMOS-1: five).
        keep_one_image: share of the documents with exactly one image that stay (KOSMOS-1: half), by hash of the key.
    """

    min_side: int = 64
    min_colour_range: int = 8
    max_aspect_ratio: float = 3.0
    max_per_page: int = 30
    max_per_document: int = 5
    keep_one_image: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.max_per_page <= 64:
            raise ValueError(f"max_per_page is {self.max_per_page}; choose 1 to 64")
        if not 0 <= self.keep_one_image <= 1:
            raise ValueError(f"keep_one_image is {self.keep_one_image}; it is a share, 0 to 1")


@dataclass
class HeldOut:
    """Evaluation data that no page may contain (KOSMOS-1 filters downstream test data from its text).

    Args:
        texts: files: ``.txt`` (a text per line), ``.json`` or ``.jsonl`` (every string in it, so that VQAv2, COCO and
            the like work as published), or folders of shards. A page that shares 13 words in a row with one is dropped
            (GPT-3).
        images: folders of pictures, searched with all below them; a page that shows one is dropped.
        image_bits: also a picture whose perceptual hash differs in at most so many of 64 bits; -1: equal bytes only.
    """

    texts: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    image_bits: int = 3


@dataclass
class NearRules:
    """What counts as the same text or image again.

    Args:
        ngram: words per shingle of minhash (datatrove, FineWeb: 5).
        buckets: bands of minhash; two texts are candidates when all hashes of one band agree (14).
        hashes_per_bucket: with 14 bands of 8, texts of Jaccard similarity 0.8 meet with probability 0.92.
        image_bits: images are alike when their perceptual hashes differ in at most so many of 64 bits; 0: equal hashes
            only; -1: equal bytes only. Ours: 3 joins re-encoded and resized copies.
    """

    ngram: int = 5
    buckets: int = 14
    hashes_per_bucket: int = 8
    image_bits: int = 3


@dataclass
class DuplicateRules(NearRules):
    """What counts as the same page or image again; on top of :class:`NearRules`:

    Args:
        image_pages: on how many pages an image may stay. The larger copy stays, then the smaller key.
        boilerplate_pages: an image on more pages than this is an icon, a logo or an advertisement and goes from all of
            them (OBELICS: 10).
    """

    image_pages: int = 1
    boilerplate_pages: int = 10


SOURCES = {
    "no image": "KOSMOS-1",
    "too many images": "OBELICS",
    "links, hashtags or emoji": "KOSMOS-1",
    "cookie notice, JavaScript warning or overlong word": "C4",
    "lorem ipsum": "C4",
    "other language": "KOSMOS-1",
    "too few words": "Gopher",
    "too many words": "Gopher",
    "words too short on average": "Gopher",
    "words too long on average": "Gopher",
    "too many hash signs": "Gopher",
    "too many ellipses": "Gopher",
    "nearly all lines are bullets": "Gopher",
    "too many lines end in an ellipsis": "Gopher",
    "too few words with a letter": "Gopher",
    "too few stop words": "Gopher",
    "repeated lines": "Gopher",
    "repeated phrases": "Gopher",
    "too small": "KOSMOS-1",
    "one colour": "KOSMOS-1",
    "too long and thin": "DataComp",
    "no usable image": "KOSMOS-1",
    "shares 13 words with an evaluation text": "GPT-3, KOSMOS-1",
    "shows an evaluation image": "ours",
    "source left out": "KOSMOS-1",
    "tag such as <PERSON>": "KOSMOS-1",
    "exact duplicate": "KOSMOS-1",
    "near-duplicate text, pictures alike": "ours",
    "same address": "ours",
    "near-duplicate text": "FineWeb, KOSMOS-1",
    "again on the same page": "OBELICS",
    "on too many pages": "OBELICS",
    "copy of an image on another page": "ours",
    "no image left": "KOSMOS-1",
    "beyond the first few": "KOSMOS-1",
    "one image, not drawn": "KOSMOS-1",
}
"""Where each rule comes from, by the reason that the ledger counts it under."""
