"""A checkpoint written before modalities were a table (7cdc18d): it loads, reads and answers as it did then."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from kosmos.loading import load

FOLDER = Path(__file__).parents[1] / "fixtures" / "kosmos" / "before_modalities"
PROMPTS = ["<image>Question: <span>what is red</span> thing? Answer:", "<span>is blue?</span> <image>An image of"]


@torch.no_grad()
def test_it_reads_and_answers_as_it_did() -> None:
    golden = load_file(FOLDER / "golden.safetensors")
    model, processor = load(FOLDER, device="cpu")
    picture = Image.new("RGB", (24, 20), "red")
    picture.paste("blue", (0, 0, 12, 20))
    pictures = [[picture], [picture.rotate(90, expand=True)]]
    inputs = processor(images=pictures, text=PROMPTS, return_tensors="pt", padding=True)
    assert {f"inputs.{name}" for name in inputs} == {name for name in golden if name.startswith("inputs.")}
    for name, tensor in inputs.items():
        torch.testing.assert_close(tensor, golden[f"inputs.{name}"])
    torch.testing.assert_close(model(**inputs).logits, golden["logits"])
    assert model.generate(**inputs, max_new_tokens=12, do_sample=False).tolist() == golden["tokens"].tolist()
