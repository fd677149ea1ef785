"""METEOR 1.5 and SPICE through pycocoevalcap, for machines that have Java.

Both are Java programs with large data files and no faithful port; a look-alike under the same name would be worse
than none. So they run only where ``pip install pycocoevalcap`` and ``java`` are present and are refused with a reason
elsewhere. METEOR's jar comes with pycocoevalcap. SPICE also needs CoreNLP 3.6.0 (400 MB from nlp.stanford.edu), and on
Java 16 and later its serialiser may only look into Java's own classes when told so, which is done here.

METEOR's matcher is the Java part; its final formula (Denkowski and Lavie 2014, English parameters) is applied here to
the match counts, since the corpus score is a function of their sum and a bootstrap needs that sum.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_OPENED = (
    "lang",
    "util",
    "util.concurrent",
    "math",
    "net",
    "text",
    "io",
)  # packages that SPICE's serialiser looks into
_MATCHER_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


def available() -> bool:
    """Whether METEOR and SPICE can be tried here."""
    return shutil.which("java") is not None and importlib.util.find_spec("pycocoevalcap") is not None


def meteor_counts(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """The 23 match counts of METEOR per item, (N, 23); :func:`meteor_from_counts` scores them or their sums."""
    result, truth = _tokenized("meteor", predictions, references)
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    lines = [scorer._stat(result[i][0], truth[i]) for i in range(len(predictions))]
    return np.array([[float(number) for number in line.split()] for line in lines])


def meteor_from_counts(counts: np.ndarray) -> np.ndarray:
    """METEOR from counts (..., 23): 4 lengths, matches (4 matchers x content/function x both sides), 3 chunk counts."""
    candidate, reference, candidate_function, reference_function = (counts[..., i] for i in range(4))
    matches = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 2, 2)
    weighted = np.einsum("...mfs,m,f->...s", matches, _MATCHER_WEIGHTS, np.array([_DELTA, 1 - _DELTA]))
    candidate_length = _DELTA * (candidate - candidate_function) + (1 - _DELTA) * candidate_function
    reference_length = _DELTA * (reference - reference_function) + (1 - _DELTA) * reference_function
    precision = _divide(weighted[..., 0], candidate_length)
    recall = _divide(weighted[..., 1], reference_length)
    mean = _divide(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    chunks, matched = counts[..., 20], (counts[..., 21] + counts[..., 22]) / 2
    whole = (counts[..., 21] == candidate) & (counts[..., 22] == reference) & (chunks == 1)
    fragmentation = np.where(whole, 0.0, _divide(chunks, matched))
    return mean * (1 - _GAMMA * fragmentation**_BETA)


def spice_per_item(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """SPICE F-scores per item; the corpus value is their mean."""
    result, truth = _tokenized("spice", predictions, references)
    from pycocoevalcap.spice.spice import Spice

    opened = " ".join(f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPENED)
    before = os.environ.get("JDK_JAVA_OPTIONS")
    os.environ["JDK_JAVA_OPTIONS"] = (
        f"{before or ''} {opened}".strip()
    )  # read by Java 9 and later; Java 8 needs nothing
    try:
        _, scores = Spice().compute_score(truth, result)
    finally:
        if before is None:
            del os.environ["JDK_JAVA_OPTIONS"]
        else:
            os.environ["JDK_JAVA_OPTIONS"] = before
    return [float(score["All"]["f"]) for score in scores]


def require(name: str) -> None:
    """ValueError, saying what is missing, unless METEOR and SPICE can run here."""
    if not available():
        raise ValueError(
            f"metric {name!r} is a Java program: it needs `java` on the PATH and `pip install pycocoevalcap`; "
            "bleu, rouge_l and cider need neither"
        )
    if name == "spice":
        missing = [file for file in _CORENLP if not (_spice_folder() / file).is_file()]
        if missing:
            raise ValueError(
                f"metric 'spice' needs {missing[0]} in {_spice_folder()}; with a network, this brings it: "
                "python -m pycocoevalcap.spice.get_stanford_models"
            )


def _spice_folder() -> Path:
    found = importlib.util.find_spec("pycocoevalcap")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "spice" / "lib"


def _tokenized(
    name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    require(name)
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    result = tokenizer.tokenize({i: [_caption(text)] for i, text in enumerate(predictions)})
    truth = tokenizer.tokenize({i: [_caption(text) for text in refs] for i, refs in enumerate(references)})
    return result, truth


def _caption(text: str) -> dict[str, str]:
    """On one line whatever its white space: the program pairs lines with images by their number."""
    return {"caption": " ".join(text.split())}


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator * 1.0), where=denominator != 0)
