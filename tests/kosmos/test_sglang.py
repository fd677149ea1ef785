"""A checkpoint in SGLang itself, where it is installed: what it answers is what ``generate()`` answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from kosmos import Conversation
from kosmos.pictures import as_data_uri

if find_spec("sglang") is None:  # importing it would start what only its own process should
    pytest.skip("SGLang is not installed", allow_module_level=True)

RED, BLUE, GREEN = (
    Image.new("RGB", size, name) for name, size in (("red", (40, 30)), ("blue", (40, 30)), ("green", (9, 9)))
)
# the second and the third differ in their pictures alone: a cache of prefixes must not take one for the other
QUESTIONS = [
    ["what is the red thing?"],
    [RED, "what is the red thing?"],
    [BLUE, "what is the red thing?"],
    ["is ", BLUE, " or ", GREEN, " the green thing?"],
]
ASK = """
import json, sys
if __name__ == "__main__":
    import sglang
    folder, prompts, pictures = (json.loads(argument) for argument in sys.argv[1:])
    engine = sglang.Engine(
        model_path=folder, device="cpu", dtype="float32", attention_backend="torch_native", sampling_backend="pytorch",
        disable_cuda_graph=True, disable_overlap_schedule=True, mem_fraction_static=0.2, max_total_tokens=2048,
    )
    sampling = {"temperature": 0, "max_new_tokens": 12}
    said = [
        engine.generate(prompt=prompt, image_data=shown or None, sampling_params=sampling)["output_ids"]
        for prompt, shown in zip(prompts, pictures)
    ]
    print("ANSWERS" + json.dumps(said), flush=True)
    engine.shutdown()
"""


@pytest.fixture(scope="module")
def entry_point(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder of packages where SGLang finds the plug-in as pyproject.toml has it, installed or not."""
    groups = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["entry-points"]
    folder = tmp_path_factory.mktemp("packages") / "kosmos_of_a_test-0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: kosmos-of-a-test\nVersion: 0\n")
    lines = [f"{name} = {value}" for name, value in groups["sglang.srt.plugins"].items()]
    (folder / "entry_points.txt").write_text("\n".join(["[sglang.srt.plugins]", *lines]))
    return folder.parent


def ask(
    folder: Path, entry_point: Path, prompts: list[str], pictures: list[list[str]], script: Path
) -> list[list[int]]:
    """The ids of each answer. SGLang starts its processes from a file."""
    script.write_text(ASK)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(entry_point), *filter(None, sys.path)]),
    }
    given = [json.dumps(value) for value in (str(folder), prompts, pictures)]
    run = subprocess.run(
        [sys.executable, str(script), *given], env=environment, capture_output=True, text=True, timeout=1400
    )
    found = [line for line in run.stdout.splitlines() if line.startswith("ANSWERS")]
    assert found, run.stdout[-3000:] + run.stderr[-6000:]
    return json.loads(found[0].removeprefix("ANSWERS"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@torch.no_grad()
def test_sglang_answers_as_we_do(speaker_folder: Path, entry_point: Path, tmp_path: Path) -> None:
    chat = Conversation(speaker_folder)
    prompts, expected = [], []
    for question in QUESTIONS:
        parts = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in question
        ]
        template = chat.processor.apply_chat_template
        messages = [{"role": "user", "content": parts}]
        prompt = template(messages, tokenize=False)  # SGLang begins a text alone by itself
        prompts.append(prompt if len(parts) > 1 else prompt.removeprefix(chat.processor.tokenizer.bos_token))
        inputs = template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        written = chat.model.generate(**inputs, max_new_tokens=12, do_sample=False)
        expected.append(written[0, inputs["input_ids"].shape[1] :].tolist())
    pictures = [[as_data_uri(part) for part in question if not isinstance(part, str)] for question in QUESTIONS]
    assert ask(speaker_folder, entry_point, prompts, pictures, tmp_path / "ask.py") == expected
