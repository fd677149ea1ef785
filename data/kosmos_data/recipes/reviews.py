"""Recipe ``reviews``: drawn reviews of known preferences, where nothing but the ids tells what somebody will say.

    OUT/train  OUT/test    shards; a pair of user and item is in one of them only

Each user cares for one feature, and is more or less generous; each item is good, fair or poor in each feature. A review
names the user's feature and the item's quality in it, and the rating follows from both::

    user u7 (food, +0.5)   item i3 (food: poor)   "the food is poor"   1 + 0.5

So a user's other reviews tell the feature, an item's other reviews its qualities, and a pair that was never seen can be
foretold exactly. All of it is drawn; nobody said any of it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ..document import Document
from ..reviews import review
from ..shards import write_shards

FEATURES = ("food", "rooms", "staff", "pool", "view", "price", "music", "garden")
QUALITIES = {"poor": 1.5, "fair": 3.0, "great": 4.5}
FORMS = ("the {feature} is {quality}", "{quality} {feature} here", "i found the {feature} {quality}")


@dataclass
class Options:
    """What ``reviews`` draws.

    Args:
        users, items: how many there are.
        features: how many of the eight features users care for.
        generosity: most that a user's ratings lie above or below the usual.
        held_out: share of the pairs of user and item that go to ``test``.
        seed: of all draws.
    """

    users: int = 60
    items: int = 40
    features: int = 4
    generosity: float = 0.5
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.features <= len(FEATURES):
            raise ValueError(f"features={self.features}: there are 1 to {len(FEATURES)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must lie between 0 and 1")


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the corpus below ``out``; return counts for the report."""
    draw = random.Random(options.seed)
    features = FEATURES[: options.features]
    users = {
        f"u{number}": (draw.choice(features), draw.uniform(-options.generosity, options.generosity), draw.choice(FORMS))
        for number in range(options.users)
    }
    items = {f"i{number}": {one: draw.choice(list(QUALITIES)) for one in features} for number in range(options.items)}
    pairs = [(user, item) for user in users for item in items]
    draw.shuffle(pairs)
    tested = round(options.held_out * len(pairs))
    counts = {}
    for part, chosen in (("test", pairs[:tested]), ("train", pairs[tested:])):
        documents = [_review(user, users[user], item, items[item]) for user, item in chosen]
        write_shards(out / part, progress.track(documents, description=f"shards: {part}"))
        counts[part] = len(documents)
    return {"drawn": True, "documents": counts}


def _review(user: str, taste: tuple[str, float, str], item: str, qualities: dict[str, str]) -> Document:
    feature, generosity, form = taste
    quality = qualities[feature]
    said = form.format(feature=feature, quality=quality)
    rating = round(min(5.0, max(1.0, QUALITIES[quality] + generosity)), 2)
    return Document(f"{user}-{item}", review(user, item, rating, said, [feature]), {"source": "drawn"})
