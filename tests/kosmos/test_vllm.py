"""A checkpoint in vLLM itself, where it is installed: what it answers is what ``generate()`` answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kosmos import Conversation, KosmosProcessor
from kosmos.pictures import as_data_uri

pytest.importorskip("vllm")

QUESTIONS = [
    ["what is the red thing?"],
    [Image.new("RGB", (40, 30), "red"), "what is the red thing?"],
    [Image.new("RGB", (40, 30), "blue"), Image.new("RGB", (30, 30), "green"), "what is the green thing?"],
]
ASK = """
import json, sys
from vllm import LLM, SamplingParams
folder, questions = (json.loads(argument) for argument in sys.argv[1:])
llm = LLM(folder, dtype="float32", seed=0, max_num_seqs=4, limit_mm_per_prompt={"image": 2}, enforce_eager=True)
sampling = SamplingParams(temperature=0.0, max_tokens=12, prompt_logprobs=0)
answers = llm.chat([[{"role": "user", "content": parts}] for parts in questions], sampling, use_tqdm=False)
def logprobs(one):
    return [found[token].logprob for token, found in zip(one.prompt_token_ids[1:], one.prompt_logprobs[1:])]
said = [[list(one.prompt_token_ids), logprobs(one), list(one.outputs[0].token_ids)] for one in answers]
print("ANSWERS" + json.dumps(said))
"""


@pytest.fixture(scope="module")
def entry_point(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder of packages where vLLM finds the plug-in as pyproject.toml has it, installed or not."""
    groups = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["entry-points"]
    folder = tmp_path_factory.mktemp("packages")
    (folder / "kosmos_of_a_test-0.dist-info").mkdir()
    (folder / "kosmos_of_a_test-0.dist-info" / "METADATA").write_text("Name: kosmos-of-a-test\nVersion: 0\n")
    lines = [f"{name} = {value}" for name, value in groups["vllm.general_plugins"].items()]
    (folder / "kosmos_of_a_test-0.dist-info" / "entry_points.txt").write_text(
        "\n".join(["[vllm.general_plugins]", *lines])
    )
    return folder


def ask(checkpoint: Path, entry_point: Path, questions: list[list[Any]]) -> list[Any]:
    """Prompt ids, the log probability of each behind the first, and the ids of the answer, by question."""
    contents = [
        [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": as_data_uri(part)}}
            for part in question
        ]
        for question in questions
    ]
    given = [json.dumps(value) for value in (str(checkpoint), contents)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(entry_point), *filter(None, sys.path)]),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", ASK, *given], env=environment, capture_output=True, text=True, timeout=1200
    )
    found = [line for line in run.stdout.splitlines() if line.startswith("ANSWERS")]
    assert found, run.stdout[-3000:] + run.stderr[-6000:]
    return json.loads(found[0].removeprefix("ANSWERS"))


@pytest.fixture(scope="module")
def checkpoint(
    speaker: Callable, processor: KosmosProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Make a checkpoint; vLLM's kernels for a CPU take heads of 32 and wider."""

    def make(text: dict[str, Any] | None = None, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("vllm")
        speaker(text={"num_attention_heads": 2, **(text or {})}, **options).save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    return make


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "options",
    [{}, {"position": "rope", "connector": "resampler"}, {"position": "sinusoidal", "images": False}],
    ids=str,
)
@torch.no_grad()
def test_vllm_answers_as_we_do(checkpoint: Callable[..., Path], entry_point: Path, options: dict[str, Any]) -> None:
    folder, questions = checkpoint(**options), QUESTIONS if options.get("images", True) else QUESTIONS[:1]
    chat = Conversation(folder)
    for question, (prompt, logprobs, answer) in zip(questions, ask(folder, entry_point, questions), strict=True):
        parts = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in question
        ]
        inputs = chat.processor.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = inputs["input_ids"]
        assert prompt == ids[0].tolist()
        assert answer == chat.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
        logits = chat.model(**inputs).logits[0, :-1]
        logits[:, chat.model.generation_config.suppress_tokens] = -torch.inf  # as vLLM's are too
        expected = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-4, rtol=0)
