"""What explanations of recommendations and ratings are judged by (Li et al. 2021), and how varied texts are.

The released code's rules: texts are words between spaces, a feature is one such word, a rating is clipped to the scale
before it is compared. Shares are from 0 to 1, where the papers' tables have per cent for BLEU and ROUGE. BLEU is this
package's corpus BLEU over the same words, which is the released code's; ROUGE is rouge_score's F1, without stemming.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from . import captions


def unique_sentence_ratio(texts: Sequence[str]) -> float:
    """Return how many different texts there are, as a share of all (USR)."""
    return len({tuple(text.split()) for text in texts}) / len(texts)


def named_features(texts: Sequence[str], features: Collection[str]) -> list[set[str]]:
    """Return which of the features each text names."""
    known = set(features)
    return [known & set(text.split()) for text in texts]


def feature_matching_ratio(named: Sequence[set[str]], wanted: Sequence[Collection[str]]) -> float:
    """Return the share of texts that name the feature they should, one of them where they have several (FMR)."""
    return float(np.mean([bool(found & set(given)) for found, given in zip(named, wanted, strict=True)]))


def feature_coverage_ratio(named: Sequence[set[str]], features: Collection[str]) -> float:
    """Return the share of all features that some text names (FCR)."""
    return len(set().union(*named)) / len(set(features))


def feature_diversity(named: Sequence[set[str]]) -> float:
    """Return how many features two texts share on average, over all pairs (DIV); less is more diverse."""
    counts = Counter(feature for found in named for feature in found)
    pairs = len(named) * (len(named) - 1) / 2
    return sum(count * (count - 1) / 2 for count in counts.values()) / pairs if pairs else 0.0


def rating_errors(ratings: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Return ``rmse`` and ``mae``, predictions clipped to the scale that the ratings have."""
    given = np.asarray(ratings, dtype=np.float64)
    error = np.clip(np.asarray(predicted, dtype=np.float64), given.min(), given.max()) - given
    return {"rmse": float(np.sqrt(np.mean(error**2))), "mae": float(np.mean(np.abs(error)))}


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return different n-grams as a share of all n-grams of all texts (Li et al. 2016); 0 without any."""
    words = [text.split() for text in texts]
    grams = Counter(tuple(one[at : at + n]) for one in words for at in range(len(one) - n + 1))
    return len(grams) / total if (total := sum(grams.values())) else 0.0


def bleu(texts: Sequence[str], references: Sequence[str], order: int) -> float:
    """Return corpus BLEU up to n-grams of ``order``, of one reference each."""
    return captions.bleu(texts, [[one] for one in references])[order - 1].corpus


def rouge(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the mean F1 of ROUGE-1, -2 and -L by name.

    Raises:
        ValueError: rouge_score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise ValueError("ROUGE needs a package that is missing: pip install rouge-score") from error
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names)
    scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in names}
