"""Golden files of the evaluation tests (see tests/fixtures/eval/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).parents[1] / "fixtures" / "eval"


@pytest.fixture(scope="session")
def goldens() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def coco_sample(goldens: Path) -> dict[str, Any]:
    """The 1,000 published sample captions: ids, predictions, references, and the official scores."""
    captions = json.loads((goldens / "captions_official/captions.json").read_text())
    expected = json.loads((goldens / "captions_official/expected_scores.json").read_text())
    ids = [str(identifier) for identifier in expected["image_ids"]]
    return {
        "ids": ids,
        "predictions": [captions["cands"][i] for i in ids],
        "references": [captions["refs"][i] for i in ids],
        "expected": expected,
    }
