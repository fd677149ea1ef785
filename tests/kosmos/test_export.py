"""The forward pass as one graph, for engines that run graphs: torch.export, and ONNX where its packages are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kosmos import KosmosForConditionalGeneration

PICTURES = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]


class Logits(nn.Module):
    """Ids (1, T) and pixels (I, 3, S, S) to logits (1, T, V)."""

    def __init__(self, model: KosmosForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, pixel_values=pixel_values, use_cache=False).logits


@pytest.fixture(params=["xpos", "rope", "sinusoidal"])
def model(request, speaker) -> KosmosForConditionalGeneration:
    return speaker(position=request.param)


def inputs(processor, question: str) -> tuple[Tensor, Tensor]:
    prompt = f"<image>or<image>Question: {question} Answer:"
    features = processor(images=PICTURES, text=prompt, return_tensors="pt")
    return features["input_ids"], features["pixel_values"]


def exported(model: KosmosForConditionalGeneration, example: tuple[Tensor, Tensor]) -> torch.export.ExportedProgram:
    shapes: dict[str, Any] = {"input_ids": {1: torch.export.Dim("tokens", min=8, max=120)}, "pixel_values": {}}
    with torch.no_grad():
        return torch.export.export(Logits(model), example, dynamic_shapes=shapes, strict=False)


@torch.no_grad()
def test_an_exported_graph_is_the_model(model, processor) -> None:
    graph = exported(model, inputs(processor, "what is it?")).module()
    for question in ("what is it?", "what is the red thing and what the blue one?"):
        given = inputs(processor, question)
        torch.testing.assert_close(graph(*given), Logits(model)(*given), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["xpos"], indirect=True)  # half a minute each
@torch.no_grad()
def test_onnx_is_the_model(model, processor, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program = exported(model, inputs(processor, "what is it?"))
    torch.onnx.export(program, f=str(tmp_path / "model.onnx"), dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    names = [given.name for given in session.get_inputs()]
    for question in ("what is it?", "what is the red thing and what the blue one?"):
        given = inputs(processor, question)
        (logits,) = session.run(None, dict(zip(names, (value.numpy() for value in given), strict=True)))
        torch.testing.assert_close(torch.tensor(logits), Logits(model)(*given), atol=1e-4, rtol=0)
