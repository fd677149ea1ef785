"""Spam and gibberish rules for text: datatrove's filters, with our words and our names for their verdicts.

Sources: Gopher (Rae et al. 2021, appendix A1.1: quality and repetition, table A1) and C4 (Raffel et al. 2020, section
2.2). KOSMOS-1 speaks of "heuristics" against spam and incoherent text without naming them. Imported only when pages are
filtered, since it needs datatrove.
"""

from __future__ import annotations

import string

from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.word_tokenizers import WordTokenizer

from .rules import TextRules

_NAMES = {
    "gopher_short_doc": "too few words",
    "gopher_long_doc": "too many words",
    "gopher_below_avg_threshold": "words too short on average",
    "gopher_above_avg_threshold": "words too long on average",
    "gopher_too_many_hashes": "too many hash signs",
    "gopher_too_many_ellipsis": "too many ellipses",
    "gopher_too_many_bullets": "nearly all lines are bullets",
    "gopher_too_many_end_ellipsis": "too many lines end in an ellipsis",
    "gopher_below_alpha_threshold": "too few words with a letter",
    "gopher_enough_stop_words": "too few stop words",
    "dup_line_frac": "repeated lines",
    "dup_line_char_frac": "repeated lines",
    "dup_para_frac": "repeated lines",
    "dup_para_char_frac": "repeated lines",
}

_PUNCTUATION = string.punctuation + "“”‘’„«»–—…·"


class Words(WordTokenizer):
    """What white space separates, without the punctuation around it; sentences are not asked for.

    spaCy, which datatrove would use, makes every comma a word of its own, and Gopher's least share of words with a
    letter then drops half of all manuals.
    """

    def word_tokenize(self, text: str) -> list[str]:
        return [word.strip(_PUNCTUATION) or word for word in text.split()]

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


class Quality:
    """Gopher's and C4's rules with the thresholds of ``rules``."""

    def __init__(self, rules: TextRules) -> None:
        words = Words()
        self._gopher = GopherQualityFilter(
            min_doc_words=rules.min_words,
            max_doc_words=rules.max_words,
            min_avg_word_length=rules.min_mean_word_length,
            max_avg_word_length=rules.max_mean_word_length,
            max_symbol_word_ratio=rules.max_symbol_ratio,
            max_non_alpha_words_ratio=rules.min_alphabetic_share,
            min_stop_words=rules.min_stop_words,
            language=words,
        )
        self._repetition = GopherRepetitionFilter(
            dup_line_frac=rules.max_repeated_lines,
            dup_line_char_frac=rules.max_repeated_line_characters,
            language=words,
        )
        # C4 also wants full stops at line ends and five sentences, and no curly bracket: headings, captions and pages
        # about programming would go, which an interleaved corpus wants.
        self._c4 = C4QualityFilter(
            remove_citations=False,
            filter_no_terminal_punct=False,
            min_num_sentences=-1,
            min_words_per_line=-1,
            filter_curly_bracket=False,
            language=words,
        )

    def page(self, text: str) -> str | None:
        """Why Gopher would drop a page with this text, or None."""
        if not text.strip():
            return _NAMES["gopher_short_doc"]
        for rule in (self._gopher, self._repetition):
            verdict = rule.filter(Document(text, ""))
            if verdict is not True:
                return _reason(verdict)
        return None

    def paragraph(self, text: str) -> str | None:
        """Why C4 would leave out a line, or None."""
        document = Document(text, "")
        if self._c4.filter(document) is not True:
            return "lorem ipsum"
        return None if document.text else "cookie notice, JavaScript warning or overlong word"


def _reason(verdict: bool | tuple[bool, str]) -> str:
    code = verdict[1] if isinstance(verdict, tuple) else "text quality"
    return _NAMES.get(code, "repeated phrases" if "_gram" in code else code)
