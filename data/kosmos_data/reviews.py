"""A review as a document: who, of what, which features if it has any, and why; for the objective ``peter``."""

from __future__ import annotations

from collections.abc import Sequence

from .document import Document, Entity, Segment, Text

FEATURES = " Features: "
EXPLANATION = " Explanation:"


def review(user: str, item: str, rating: float | None, explanation: str, features: Sequence[str] = ()) -> list[Segment]:
    """Write a review as segments; only the explanation is learned as text, features are read (PETER+) or left out."""
    named = [Text(FEATURES + ", ".join(features), supervised=False)] if features else []
    return [
        Entity({"user": user}, rating),
        Entity({"item": item}),
        *named,
        Text(EXPLANATION, supervised=False),
        Text(f" {explanation}"),
    ]


def is_features(segment: Segment) -> bool:
    """Whether a segment of a review names its features."""
    return isinstance(segment, Text) and not segment.supervised and segment.text.startswith(FEATURES)


def features_of(document: Document) -> list[str]:
    """The features that a review names."""
    named = [segment.text for segment in document.segments if isinstance(segment, Text) and is_features(segment)]
    return [one.strip() for text in named for one in text.removeprefix(FEATURES).split(",")]
