"""The harness plug-ins on local tasks, offline.

Where lm-eval or lmms-eval is not installed, the adapters' own work is tested with stand-ins for the few names that they
import, and the tests that run the harness itself are skipped.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos_eval.adapters.harness import HarnessModel
from kosmos_eval.model import EvaluatedModel, in_order
from kosmos_eval.prompts import Pair, Prompt
from kosmos_eval.tasks import Decoding


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


def stand_in(monkeypatch: pytest.MonkeyPatch, package: str, modules: dict[str, dict[str, Any]]) -> None:
    """Put the few names that an adapter imports from its harness in the harness's place, where it is not installed."""
    for name in [package, *modules]:
        module = ModuleType(name)
        module.__dict__.update(modules.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, f"kosmos_eval.adapters.{package}", raising=False)


def lm_eval_adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    if importlib.util.find_spec("lm_eval") is None:
        stand_in(
            monkeypatch,
            "lm_eval",
            {
                "lm_eval.api": {},
                "lm_eval.api.model": {"LM": type("LM", (), {})},
                "lm_eval.api.registry": {"register_model": lambda name: lambda model: model},
            },
        )
    return importlib.import_module("kosmos_eval.adapters.lm_eval")


def lmms_eval_adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    if importlib.util.find_spec("lmms_eval") is None:
        stand_in(
            monkeypatch,
            "lmms_eval",
            {
                "lmms_eval.api": {},
                "lmms_eval.api.instance": {"GenerationResult": lambda text: SimpleNamespace(text=text)},
                "lmms_eval.api.model": {"lmms": type("lmms", (), {})},
                "lmms_eval.models": {},
                "lmms_eval.models.registry_v2": {"ModelManifest": lambda **names: SimpleNamespace(**names)},
            },
        )
    return importlib.import_module("kosmos_eval.adapters.lmms_eval")


def test_lm_eval_rolling_log_likelihood(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    text = "a red circle is it a blue square"
    adapter = lm_eval_adapter(monkeypatch).KosmosLM(checkpoint, device="cpu")
    (total,) = adapter.loglikelihood_rolling([SimpleNamespace(args=(text,))])
    assert total == pytest.approx(plain(model, [0], processor.encode_text(text))[0], abs=1e-4)
    assert math.isfinite(total)
    context, words = "Question: is it a red circle? Answer:", " yes"
    ((score, _),) = adapter.loglikelihood([SimpleNamespace(args=(context, words))])
    expected = plain(model, [0, *processor.encode_text(context)], processor.encode_text(words))[0]
    assert score == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def lmms(checkpoint: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The adapter with a task of three pictures."""
    adapter = lmms_eval_adapter(monkeypatch).KosmosLmms(str(checkpoint), device="cpu")
    adapter.task_dict = {"toy": {"test": pictures(toy_data)}}
    return adapter


def pictures(toy_data: Path) -> list[Path]:
    return sorted((toy_data / "test/images").glob("*.png"))[:3]


def visual(path: Path) -> list[Any]:
    return [Image.open(path)]


OPTIONS = {"until": ["\n"], "max_new_tokens": 6}


def asked(question: str, *between: Any) -> list[Any]:
    return [SimpleNamespace(args=(question, *between, i, "toy", "test")) for i in range(3)]


def expected_answers(adapter: Any, prompts: list[Prompt]) -> list[str]:
    """The model's own answers to the prompts."""
    model = EvaluatedModel(adapter.harness.runner)
    return in_order(model.generate(prompts, Decoding(max_new_tokens=6), [0] * len(prompts)))


def test_lmms_eval_answers_about_images(lmms: Any, toy_data: Path) -> None:
    answers = lmms.generate_until(asked("what color is it?", OPTIONS, visual))
    prompts = [Prompt((image, "Question: what color is it? Answer:"), (1,)) for image in pictures(toy_data)]
    assert answers == expected_answers(lmms, prompts)


def test_lmms_eval_likelihood_is_a_loss(
    lmms: Any, model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path
) -> None:
    """lmms-eval's multiple choice takes the smallest, so a log-probability would choose the worst answer."""
    losses = [one.text[0] for one in lmms.loglikelihood(asked("is it?", " yes", visual))]
    prompts = [Prompt((image, "Question: is it? Answer:"), (1,)) for image in pictures(toy_data)]
    replies = in_order(EvaluatedModel(lmms.harness.runner).log_likelihoods([Pair(one, " yes") for one in prompts]))
    assert losses == pytest.approx([-reply.nats for reply in replies], abs=1e-4)
    assert min(losses) > 0
    assert len({round(loss, 4) for loss in losses}) == 3


def test_lmms_eval_rounds_ask_the_task_what_comes_next(lmms: Any, toy_data: Path) -> None:
    """Two rounds for two documents, one for the third; the task's own state comes back to it."""
    seen: list[Any] = []

    def following(path: Path, previous_output: list[str], round_idx: int, previous_round_info: Any) -> Any:
        seen.append((path, round_idx, previous_round_info))
        done = round_idx == 2 or path == pictures(toy_data)[2]
        return (None if done else []), f"is it {previous_output[-1]}?", done, previous_output, f"after {round_idx}"

    answers = lmms.generate_until_multi_round(asked("what color is it?", OPTIONS, visual, following))
    images = pictures(toy_data)
    first = expected_answers(lmms, [Prompt((image, "Question: what color is it? Answer:"), (1,)) for image in images])
    second = expected_answers(lmms, [Prompt((f"Question: is it {text}? Answer:",)) for text in first[:2]])
    assert answers == [[first[0], second[0]], [first[1], second[1]], [first[2]]]
    assert seen == [*((image, 1, None) for image in images), *((image, 2, "after 1") for image in images[:2])]


def test_lmms_eval_images_stand_at_their_marks(lmms: Any, toy_data: Path) -> None:
    images = [Image.open(path) for path in pictures(toy_data)[:2]]
    assert lmms._prompt("which <image> or <image>?", images).text == "Question: which <image> or <image>? Answer:"
    assert lmms._prompt("which <image>?", images).text == "<image><image>Question: which ? Answer:"
    with pytest.raises(ValueError, match="reads images only"):
        lmms._prompt("what?", ["film.mp4"])


def test_lmms_eval_finds_the_plug_in() -> None:
    (entry,) = [one for one in entry_points(group="lmms_eval.models") if one.name == "kosmos"]
    assert entry.value == "kosmos_eval.adapters.lmms_eval:manifest"
    registry = pytest.importorskip("lmms_eval.models.registry_v2", reason="lmms-eval is not installed")
    from kosmos_eval.adapters.lmms_eval import KosmosLmms, manifest

    known = registry.ModelRegistryV2()
    known.register_manifest(manifest)
    assert known.get_model_class("kosmos") is KosmosLmms


UTILS = """
def visual(doc):
    return [doc["image"].convert("RGB")]
def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
def rounds(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    return visual(doc), "is it red?", round_idx == 2, previous_output, None
def count(doc, results):
    return {"rounds": float(len(results[0]))}
"""
COMMON = """
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
test_split: test
doc_to_visual: !function utils.visual
"""
OPEN = """
task: toy_open
output_type: generate_until
doc_to_text: !function utils.question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 4, until: ["\\n"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICE = """
task: toy_choice
output_type: multiple_choice
doc_to_text: !function utils.question
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROUNDS = """
task: toy_rounds
output_type: generate_until_multi_round
doc_to_text: !function utils.rounds
doc_to_target: answer
process_results: !function utils.count
generation_kwargs: {max_new_tokens: 4}
metric_list: [{metric: rounds, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.slow
def test_lmms_eval_command_on_local_tasks(checkpoint: Path, toy_data: Path, tmp_path: Path) -> None:
    """The harness's own command, offline, on three local tasks: free answers, multiple choice, two rounds."""
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (it wants an environment of its own)")
    datasets = pytest.importorskip("datasets")
    rows = [{"image": str(path), "question": "is it red?", "answer": "yes", "choices": ["yes", "no"], "gold": i % 2}
            for i, path in enumerate(pictures(toy_data))]  # fmt: skip
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / "data")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/utils.py").write_text(UTILS)
    for name, text in (("open", OPEN), ("choice", CHOICE), ("rounds", ROUNDS)):
        (tmp_path / f"tasks/{name}.yaml").write_text(COMMON.format(data=tmp_path / "data") + text)
    command = [sys.executable, "-m", "lmms_eval", "--model", "kosmos", "--model_args"]
    command += [f"pretrained={checkpoint},device=cpu", "--include_path", str(tmp_path / "tasks"), "--batch_size", "4"]
    command += ["--tasks", "toy_open,toy_choice,toy_rounds", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("*results.json")
    results = json.loads(file.read_text())["results"]
    assert results["toy_rounds"]["rounds,none"] == 2.0
    assert 0 <= results["toy_choice"]["acc,none"] <= 1
    assert "exact_match,none" in results["toy_open"]


@pytest.mark.slow
def test_lm_eval_command_on_a_local_task(checkpoint: Path, tmp_path: Path, python: str) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    rows = [{"question": f"is it {color}?", "choices": ["yes", "no"], "gold": 0} for color in ("red", "blue", "green")]
    (tmp_path / "test.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/toy.yaml").write_text(
        f"task: toy\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'test.json'}\n"
        "output_type: multiple_choice\ntest_split: test\nfewshot_split: test\ndoc_to_choice: choices\n"
        "doc_to_text: 'Question: {{question}} Answer:'\ndoc_to_target: gold\nmetric_list:\n  - metric: acc\n"
    )
    command = [python, "-m", "kosmos", "eval", "lm-eval", str(checkpoint), "--device", "cpu"]
    command += ["--include_path", str(tmp_path / "tasks"), "--tasks", "toy"]
    command += ["--num_fewshot", "1", "--output_path", str(tmp_path / "out")]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=offline)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("*results*.json")
    assert 0 <= json.loads(file.read_text())["results"]["toy"]["acc,none"] <= 1
