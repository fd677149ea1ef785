"""The harness plug-ins on a local task, offline; each needs its harness installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos_eval.adapters.harness import HarnessModel
from kosmos_eval.prompts import Prompt


@pytest.fixture(scope="module")
def checkpoint(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "toy"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def plain(model: KosmosForConditionalGeneration, context: list[int], target: list[int]) -> tuple[float, bool]:
    logits = model(input_ids=torch.tensor([context + target])).logits[0, len(context) - 1 : -1].log_softmax(-1)
    wanted = torch.tensor(target)
    return float(logits.gather(1, wanted[:, None]).sum()), bool((logits.argmax(-1) == wanted).all())


def test_log_likelihoods_and_greedy_flags(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, checkpoint: Path
) -> None:
    harness = HarnessModel(checkpoint, "cpu")
    context = "Question: is it a red circle? Answer:"
    first = harness.generate([(Prompt((context,)), {"until": ["\n"], "max_gen_toks": 1})])[0]
    requests = [(Prompt((context,)), text) for text in (" yes", " blue square", f" {first}")] + [(Prompt(()), "red")]
    answers = harness.log_likelihoods(requests)
    for (prompt, text), answer in zip(requests, answers, strict=True):
        ids = [0, *processor.encode_text(prompt.text)]
        score, greedy = plain(model, ids, processor.encode_text(text))
        assert answer == (pytest.approx(score, abs=1e-4), greedy)


def test_long_prompts_are_cut_with_a_warning(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    harness = HarnessModel(checkpoint, "cpu")
    texts = harness.generate([(Prompt(("red circle " * 500 + "Answer:",)), {"until": ["\n"], "max_gen_toks": 4})])
    assert len(texts) == 1
    assert harness.truncated == 1
    assert "cut at the front" in caplog.text


def test_lm_eval_runs_a_local_task(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    from kosmos_eval.adapters.lm_eval import KosmosLM

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"is it a {color} circle?", "choices": ["yes", "no"], "gold": i % 2}
            for i, color in enumerate(["red", "blue", "green", "black"])]  # fmt: skip
    (tmp_path / "test.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "toy.yaml").write_text(
        f"task: toy\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'test.json'}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: 'Question: {{question}} Answer:'\n"
        "doc_to_choice: choices\ndoc_to_target: gold\nmetric_list:\n  - metric: acc\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    model = KosmosLM(checkpoint, device="cpu")
    result = lm_eval.simple_evaluate(model=model, tasks=["toy"], task_manager=manager, bootstrap_iters=0)
    assert result["results"]["toy"]["acc,none"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert len(result["samples"]["toy"]) == 4


def test_lm_eval_rolling_log_likelihood(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, checkpoint: Path
) -> None:
    pytest.importorskip("lm_eval")
    from kosmos_eval.adapters.lm_eval import KosmosLM

    text = "a red circle is it a blue square"
    (total,) = KosmosLM(checkpoint, device="cpu").loglikelihood_rolling([SimpleNamespace(args=(text,))])
    assert total == pytest.approx(plain(model, [0], processor.encode_text(text))[0], abs=1e-4)
    assert math.isfinite(total)


def test_lmms_eval_adapter_answers_about_images(checkpoint: Path, toy_data: Path) -> None:
    pytest.importorskip("lmms_eval")
    from lmms_eval.models.registry_v2 import ModelRegistryV2
    from PIL import Image

    from kosmos_eval.adapters.lmms_eval import KosmosLmms, manifest
    from kosmos_eval.engine import Engine
    from kosmos_eval.tasks import Decoding

    registry = ModelRegistryV2()
    registry.register_manifest(manifest)
    assert registry.get_model_class("kosmos") is KosmosLmms
    images = sorted((toy_data / "test/images").glob("*.png"))[:3]
    adapter = KosmosLmms(str(checkpoint), device="cpu")
    adapter.task_dict = {"toy": {"test": images}}

    def visual(path: Path) -> list[Any]:
        return [Image.open(path)]

    requests = [
        SimpleNamespace(args=("what color is it?", {"until": ["\n"], "max_new_tokens": 6}, visual, i, "toy", "test"))
        for i in range(3)
    ]
    answers = adapter.generate_until(requests)
    engine = Engine(adapter.harness.runner)
    prompts = [Prompt((image, "Question: what color is it? Answer:"), (1,)) for image in images]
    expected = sorted(
        (a.index, a.text) for batch in engine.generate(prompts, Decoding(max_new_tokens=6), [0] * 3) for a in batch
    )
    assert answers == [text for _, text in expected]
    likelihoods = adapter.loglikelihood(
        [SimpleNamespace(args=("is it?", " yes", visual, i, "toy", "test")) for i in range(3)]
    )
    assert len({round(score, 4) for score, _ in likelihoods}) == 3
