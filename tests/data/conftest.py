"""Small corpora and a real, tiny processor for the data tests."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pictures

from kosmos.image_processing_kosmos import KosmosImageProcessor
from kosmos.processing_kosmos import KosmosProcessor
from kosmos.tokenization_kosmos import train_tokenizer
from kosmos_data import DataConfig, Document, Image, SourceConfig, Text, write_shards

WORDS = "a red blue green circle square triangle lies beside the old stone house and nobody knows why".split()  # noqa: SIM905 - easier to read


def png(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    """A small picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Pictures.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def make_png() -> Callable[..., bytes]:
    """:func:`png`, for tests that need picture bytes."""
    return png


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def pair(number: int) -> Document:
    rng = random.Random(f"pair {number}")
    return Document(f"{number:06d}", [Image(png(number)), Text(sentence(rng, rng.randint(2, 8)))])


def prose(number: int) -> Document:
    rng = random.Random(f"prose {number}")
    return Document(f"{number:06d}", [Text(sentence(rng, rng.randint(3, 120)))])


def lines(number: int) -> Document:
    """The words of :func:`prose` in sentences of nine; every third ends its line."""
    words = prose(number).text.split()
    ends = {8: ". ", 17: ". ", 26: ".\n"}
    return Document(f"{number:06d}", [Text("".join(word + ends.get(at % 27, " ") for at, word in enumerate(words)))])


def page(number: int) -> Document:
    rng = random.Random(f"page {number}")
    segments: list = []
    for part in range(rng.randint(1, 6)):
        segments += [Image(png(1000 * number + part)), Text(sentence(rng, rng.randint(1, 15)), part % 2 == 0)]
    return Document(f"{number:06d}", segments)


@pytest.fixture(scope="session")
def processor() -> KosmosProcessor:
    """Four slots per image, pictures of 8×8."""
    rng = random.Random(0)
    tokenizer = train_tokenizer([sentence(rng, 50) for _ in range(50)], vocab_size=120)
    return KosmosProcessor(KosmosImageProcessor(image_size=8), tokenizer, num_image_tokens=4)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora of several shards: ``pairs``, ``prose``, ``lines`` and ``pages``."""
    root = tmp_path_factory.mktemp("corpora")
    for name, make, count in (("pairs", pair, 90), ("prose", prose, 70), ("lines", lines, 70), ("pages", page, 40)):
        write_shards(root / name, (make(number) for number in range(count)), max_documents=16)
    return root


@pytest.fixture(scope="session")
def make_config(corpora: Path) -> Callable[..., DataConfig]:
    """A mix of three corpora; keyword arguments override settings. Rows of sentences read prose that has some."""

    def make(packing: str = "best_fit", **settings: object) -> DataConfig:
        sources = [
            SourceConfig("pairs", str(corpora / "pairs"), 0.5),
            SourceConfig("prose", str(corpora / ("lines" if packing == "sentences" else "prose")), 0.3),
            SourceConfig("pages", str(corpora / "pages"), 0.2, {"name": "causal", "loss": "supervised"}),
        ]
        usual: dict = {"row_tokens": 96, "rows_per_step": 8, "rows_per_micro_batch": 2, "max_images_per_row": 6}
        return DataConfig(sources, packing=packing, **(usual | settings))

    return make


@pytest.fixture(scope="session")
def objective_words() -> list[str]:
    """Eighty words that are one piece each for :func:`objective_processor`."""
    short, long = ("ka", "mo", "ti", "su", "re", "lo", "na", "pi"), ("band", "cort", "dell", "fim", "gus")
    return [a + b for a in short for b in long] + [b + a for a in short for b in long]


@pytest.fixture(scope="session")
def objective_processor(objective_words: list[str]) -> KosmosProcessor:
    """Four slots per image, and the special tokens of every objective."""
    from kosmos_data import objectives

    rng = random.Random(1)
    texts = [" ".join(rng.sample(objective_words, 40)) for _ in range(60)]
    extra = objectives.special_tokens(["ul2", "glm", "fim", "cm3"])
    tokenizer = train_tokenizer(texts, vocab_size=400, extra_tokens=extra)
    return KosmosProcessor(KosmosImageProcessor(image_size=8), tokenizer, num_image_tokens=4)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """A decoder of two layers by processor and kind of positions; always with the same weights."""
    import torch

    from kosmos import KosmosConfig, KosmosForConditionalGeneration

    def make(processor: KosmosProcessor, positions: str) -> Any:
        torch.manual_seed(0)
        text = {
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "position_type": positions,
            "max_position_embeddings": 256,
        }
        return KosmosForConditionalGeneration(KosmosConfig(text_config=text, vision_config=None, image_token_id=None))

    return make


OBJECTIVE_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "causal": ("causal", {}),
    "prefix_lm": ("prefix_lm", {}),
    "span_corruption": ("span_corruption", {"density": 0.3}),
    "ul2": ("ul2", {}),
    "ul2r": ("ul2", {"variant": "ul2r"}),
    "glm token": ("glm", {"ratio": 0.3}),
    "glm sentence": ("glm", {"levels": {"sentence": 1}}),
    "glm document": ("glm", {"levels": {"document": 1}}),
    "glm one position": ("glm", {"two_positions": False, "ratio": 0.3}),
    "span_corruption causal": ("span_corruption", {"density": 0.3, "bidirectional": False}),
    "ul2 causal": ("ul2", {"bidirectional": False}),
    "glm causal": ("glm", {"ratio": 0.3, "bidirectional": False}),
    "prefix_lm causal": ("prefix_lm", {"bidirectional": False}),
    "ul2 s uniform": ("ul2", {"variant": "ul2r", "s_targets": None}),
    "fim": ("fim", {"rate": 1.0}),
    "cm3": ("cm3", {"spans": 3}),
    "mlm": ("mlm", {"masked": 0.9, "random": 0.0}),
    "semi_causal paper": ("semi_causal", {"min_length": 3, "max_length": 8}),
    "semi_causal grid": ("semi_causal", {"sampler": "grid", "max_length": 8}),
    "semi_causal prefix": ("semi_causal", {"sampler": "prefix", "max_length": 8}),
}


@pytest.fixture(scope="session")
def objective_cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name and options of every objective that the property tests look at."""
    return OBJECTIVE_CASES


@pytest.fixture(params=OBJECTIVE_CASES)
def case(request: pytest.FixtureRequest) -> str:
    """Each of :data:`OBJECTIVE_CASES` in turn."""
    return request.param


@pytest.fixture(scope="session")
def build(objective_processor: KosmosProcessor) -> Callable[..., Any]:
    """A case by its name, with options on top."""
    from kosmos_data import objectives

    made: dict[str, Any] = {}

    def make(case: str, **more: Any) -> Any:
        key = f"{case} {more}"
        if key not in made:
            name, options = OBJECTIVE_CASES[case]
            made[key] = objectives.get(name, objective_processor, **options, **more)
        return made[key]

    return make
