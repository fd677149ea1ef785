"""Pictures seen at several scales and asked about by several templates: the means, and what cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos.modalities import IMAGE
from kosmos_eval import tasks
from kosmos_eval.evaluate import evaluate
from kosmos_eval.features import Features, zoomed
from kosmos_eval.model import EvaluatedModel
from kosmos_eval.prompts import Likelihood, Pair
from kosmos_eval.stages import Piece


def wave(size: int = 32) -> np.ndarray:
    """A picture without edges, so that two kernels of resizing agree on it; uint8 (S, S, 3)."""
    y, x = np.mgrid[:size, :size] / size
    channels = [120 + 100 * np.sin(3 * x + 2 * y), 120 + 100 * np.cos(4 * y), 60 + 120 * x]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def test_nearer_is_the_middle_as_pillow_enlarges_it() -> None:
    picture = wave()
    middle = Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC, box=(8, 8, 24, 24))
    seen = zoomed(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), 2.0)[0].permute(1, 2, 0)
    assert np.abs(seen.numpy() - np.asarray(middle, dtype=float)).max() < 3  # grey levels


def test_farther_goes_on_at_the_edges() -> None:
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = zoomed(pixels, 0.5)
    corner = pixels[:, :, :1, :1]
    assert torch.allclose(seen[:, :, :4, :4], corner.expand(1, 3, 4, 4), atol=0.3)
    assert torch.allclose(seen[:, :, :3, :3], seen[:, :, :1, :1].expand(1, 3, 3, 3), atol=1e-6)


def test_features_are_the_mean_over_the_scales(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        Image.fromarray(np.roll(wave(16), number, axis=1)).save(path)
    pieces = [Piece("image", path, path) for path in paths]
    pixels = processor.image_processor([Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        near, far = (model.model.encode(IMAGE, pixel_values=zoomed(pixels, by)).flatten(0, 1) for by in (1.0, 1.5))
        seen, once = (Features(model, processor, zooms=zooms).of(IMAGE, pieces) for zooms in ((1.0, 1.5), (1.0,)))
    assert torch.allclose(seen, (near + far) / 2, atol=1e-5)
    assert torch.allclose(once, near, atol=1e-5)
    assert not torch.allclose(near, far, atol=1e-2)


WHERE = [
    "dataset.questions={split}/vqa_questions.json", "dataset.annotations={split}/vqa_annotations.json",
    "dataset.images={split}/images/{image_id}.png", "decoding.method=rank",
    "decoding.candidates=red,blue,green,black,yes",
]  # fmt: skip


@pytest.fixture
def data(toy_data: Path, tmp_path: Path) -> Path:
    """The toy questions about pictures that look otherwise from nearer."""
    folder = tmp_path / "data"
    for split, numbers in (("train", range(24)), ("test", range(100, 112))):
        (folder / split / "images").mkdir(parents=True)
        for name in ("vqa_questions.json", "vqa_annotations.json"):
            (folder / split / name).write_text((toy_data / split / name).read_text())
        for number in numbers:
            Image.fromarray(np.roll(wave(16), number, axis=1)).save(folder / split / "images" / f"{number}.png")
    return folder


Scores = dict[str, list[float]]


def scored(model: Any, processor: Any, data: Path, out: Path, *overrides: str) -> Scores:
    """The scores of all candidates by item, as the sample log has them."""
    evaluate(model, processor, tasks.load("vqa", [*WHERE, *overrides]), data, out=out, with_baselines=False)
    log = next((out / "samples").rglob("*.jsonl"))
    return {line["id"]: line["scores"] for line in map(json.loads, log.read_text().splitlines())}


def test_a_task_says_at_which_scales_and_answers_of_others_are_not_taken_over(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, data: Path, tmp_path: Path
) -> None:
    zooms = ("[1]", "[1, 2]", "[1]")
    once, twice, again = (scored(model, processor, data, tmp_path, f"prompt.zooms={each}") for each in zooms)
    assert once == again
    assert once.keys() == twice.keys()
    assert sum(value != twice[key] for key, value in once.items()) > len(once) // 2


@pytest.mark.parametrize("normalisation", ["sum", "marginal"])
def test_a_score_is_the_mean_over_the_templates(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, data: Path, tmp_path: Path, normalisation: str
) -> None:
    templates = ["<image>Question: {question} Answer:", "<image>An image of", "<image>{question}"]
    how = [f"decoding.normalisation={normalisation}", "demonstrations.split=train", "decoding.other_images=3"]
    each = [
        scored(model, processor, data, tmp_path / str(number), *how, f"prompt.template={text}")
        for number, text in enumerate(templates)
    ]
    others = json.dumps(templates[1:])
    both = scored(model, processor, data, tmp_path, *how, f"prompt.template={templates[0]}", f"prompt.others={others}")
    for key, values in both.items():
        means = np.mean([one[key] for one in each], axis=0)
        assert np.allclose(values, means, atol=1e-4), key


def test_prompts_of_other_pictures_are_read_once_for_all_items(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[int] = []
    put = EvaluatedModel.log_likelihoods

    def counting(self: EvaluatedModel, pairs: Sequence[Pair]) -> Iterator[dict[int, Likelihood]]:
        asked.append(len({pair.prompt for pair in pairs}))
        return put(self, pairs)

    monkeypatch.setattr(EvaluatedModel, "log_likelihoods", counting)
    how = ["decoding.normalisation=marginal", "demonstrations.split=train", "decoding.other_images=3"]
    worded = ["prompt.template=<image>An image of", "prompt.others=[<image>It shows]"]
    scored(model, processor, data, tmp_path, *how, *worded)
    assert asked == [2 * (12 + 3)]  # by each template the twelve pictures and three others, whatever the questions


def test_several_templates_are_for_ranking() -> None:
    with pytest.raises(ValueError, match=r"prompt\.others \['An image of'\]: several templates need method rank"):
        tasks.load("easy_vqa", ["prompt.others=[An image of]"])
    with pytest.raises(ValueError, match=r"prompt\.others\[0\] 'An image of ' ends in white space"):
        tasks.load("easy_vqa", ["decoding.method=rank", 'prompt.others=["An image of "]'])


@pytest.mark.parametrize("zooms", ["[]", "[0]", "[1, -2]", "[11]", "[.nan]", "[.inf]"])
def test_a_scale_that_shows_nothing_is_refused(zooms: str) -> None:
    with pytest.raises(ValueError, match=r"prompt\.zooms .*0\.1 to 10"):
        tasks.load("easy_vqa", [f"prompt.zooms={zooms}"])


def test_beams_read_a_picture_once() -> None:
    with pytest.raises(ValueError, match=r"prompt\.zooms \[1\.0, 1\.2\]: method beam"):
        tasks.load("easy_vqa", ["decoding.method=beam", "decoding.num_beams=2", "prompt.zooms=[1, 1.2]"])
