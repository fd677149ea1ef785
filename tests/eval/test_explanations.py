"""Explanations of recommendations: their metrics by hand, and the command over a small model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration, KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos.cli import main
from kosmos.tokenization_kosmos import ENTITY_TOKENS
from kosmos_data import Corpus, Document, Entity, Text, objectives, recipes, write_shards
from kosmos_data.entity_names import read_kinds
from kosmos_eval import corpus_items
from kosmos_eval.explanations import explain
from kosmos_eval.metrics import explanations as metrics

TEXTS = ["the food is great", "the food is poor", "great rooms and food", "the food is great"]


def test_metrics_by_hand() -> None:
    """Each figure as it is counted with pencil and paper."""
    assert metrics.unique_sentence_ratio(TEXTS) == 0.75
    named = metrics.named_features(TEXTS, ["food", "rooms", "pool"])
    assert named == [{"food"}, {"food"}, {"food", "rooms"}, {"food"}]
    assert metrics.feature_matching_ratio(named, [["food"], ["pool"], ["rooms", "pool"], ["pool"]]) == 0.5
    assert metrics.feature_coverage_ratio(named, ["food", "rooms", "pool"]) == pytest.approx(2 / 3)
    pairs = [len(a & b) for i, a in enumerate(named) for b in named[i + 1 :]]
    assert metrics.feature_diversity(named) == sum(pairs) / len(pairs) == 1.0
    assert metrics.feature_diversity([{"food"}, {"rooms"}]) == 0.0
    assert metrics.distinct_n(["a b a", "b"], 1) == 0.5
    assert metrics.distinct_n(["a b a", "b"], 2) == 1.0
    assert metrics.distinct_n(["a"], 2) == 0.0
    errors = metrics.rating_errors([1, 5, 3], [0, 6, 4.5])  # the first two are clipped to the scale
    assert errors == {"rmse": pytest.approx(math.sqrt(1.5**2 / 3)), "mae": pytest.approx(0.5)}
    assert metrics.bleu(["the food is great"], ["the food is great"], 4) == pytest.approx(1.0)
    assert metrics.bleu(["the the the food"], ["the food is great"], 1) == pytest.approx(0.5)


def test_rouge_is_the_librarys() -> None:
    """F1 of one text, by hand: 2 of 4 words and 1 of 3 pairs are common."""
    pytest.importorskip("rouge_score")
    scores = metrics.rouge(["the food was bad"], ["the food is great"])
    assert scores == {"rouge1": pytest.approx(0.5), "rouge2": pytest.approx(1 / 3), "rougeL": pytest.approx(0.5)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn reviews, and a checkpoint of random weights with the processor that fits it."""
    root = tmp_path_factory.mktemp("explanations")
    recipes.make("reviews", root / "reviews", ["users=12", "items=10"])
    train = Corpus(root / "reviews" / "train")
    tokenizer = train_tokenizer([document.text for document in train], 120, extra_tokens=ENTITY_TOKENS)
    kinds = read_kinds([root / "reviews" / "train"])
    processor = KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, 1, entities=kinds)
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = KosmosConfig(
        text_config={**text, "num_attention_heads": 2, "position_type": "rope", "max_position_embeddings": 64},
        vision_config=None,
        entity_config={"kinds": processor.entity_kinds(), "hidden_size": 16, "rating": True},
        entity_token_id=processor.token_id("<entity_slot>"),
    )
    processor.save_pretrained(root / "model")
    KosmosForConditionalGeneration(config).save_pretrained(root / "model")
    return root


def test_the_batch_answers_as_each_alone(world: Path) -> None:
    """Padding changes nothing, also where features make the prompts of different lengths; a rating is the user's."""
    test, objective = world / "reviews" / "test", {"name": "peter", "features": True}
    options = {"objective": objective, "limit": 6, "max_new_tokens": 5}
    together, alone = (explain(world / "model", test, batch=size, **options) for size in (6, 1))
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.predicted for one in together] == pytest.approx([one.predicted for one in alone], abs=1e-5)
    model, processor = (
        kind.from_pretrained(world / "model") for kind in (KosmosForConditionalGeneration, KosmosProcessor)
    )
    first = together[0].document
    example = objectives.from_settings(objective, processor)(first, 0)
    rows = torch.tensor([one.payload.row for one in example.placed])
    token, block = (torch.from_numpy(column)[None].long() for column in (example.token, example.block))
    with torch.no_grad():
        ratings = model.eval()(input_ids=token, block_ids=block, entity_ids=rows).ratings
    assert together[0].predicted == pytest.approx(float(ratings[0]), abs=1e-5)
    assert together[0].rating == first.segments[0].rating


def test_the_command_and_its_control(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures as JSON and the texts as lines; with users swapped what is predicted is another's."""
    found = {}
    for swap in ("none", "user", "both"):
        out = tmp_path / f"{swap}.jsonl"
        words = ["eval", "explanations", str(world / "model"), str(world / "reviews" / "test"), "--swap", swap]
        assert main([*words, "--limit", "8", "--out", str(out)]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert figures["reviews"] == 8
        assert {"rmse", "mae", "rmse_of_mean", "bleu_1", "bleu_4", "distinct_2", "usr", "fmr", "fcr", "div"} <= set(
            figures
        )
        found[swap] = [json.loads(line) for line in out.read_text().splitlines()]
    for swap in ("user", "both"):
        assert [row["key"] for row in found[swap]] == [row["key"] for row in found["none"]]
        assert all(a["predicted"] != b["predicted"] for a, b in zip(found[swap], found["none"], strict=True))
    write_shards(tmp_path / "said", [Document("a", [Text("no review")])])
    for corpus, options, message in (
        (world / "reviews" / "test", ["--objective", "causal"], "as 'peter' has trained them"),
        (world / "reviews" / "test", ["--objective", "3"], "neither a name nor settings"),
        (world / "reviews" / "test", ["--objective", "{name: ["], "neither a name nor settings"),
        (world / "reviews" / "test", ["--limit", "0"], "limit 0 must be at least 1"),
        (tmp_path / "said", [], "a review has one user and one item"),
        (tmp_path / "said", ["--swap", "user"], "a: a review has one user; evaluation skips nothing"),
    ):
        assert main(["eval", "explanations", str(world / "model"), str(corpus), *options]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.strip().splitlines()) == 1


def test_swapping_draws_others(world: Path) -> None:
    """Every review gets an id that is not its own, and nothing else changes."""
    from random import Random

    from kosmos_eval.explanations import swapped

    processor = KosmosProcessor.from_pretrained(world / "model")
    make = objectives.get("peter", processor)
    documents = list(Corpus(world / "reviews" / "test"))
    for swap, changes in (("user", [True, False]), ("item", [False, True]), ("both", [True, True])):
        for old, new in zip(documents, swapped(documents, swap, make, Random(0)), strict=True):  # type: ignore[arg-type]
            pairs = list(zip(old.segments, new.segments, strict=True))
            ids = [(a.ids, b.ids) for a, b in pairs if isinstance(a, Entity) and isinstance(b, Entity)]
            assert [a != b for a, b in ids] == changes
            assert [a for a, _ in pairs[2:]] == [b for _, b in pairs[2:]]


def test_reviews_are_no_questions(world: Path) -> None:
    """A task reads turns of texts and images; ids in between are refused, not lost."""
    with pytest.raises(ValueError, match=r"has the entity user u\d+, rating .*, which a task cannot ask about"):
        corpus_items.read(world / "reviews" / "test")
