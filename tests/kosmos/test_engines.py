"""What engines such as vLLM ask of a model of transformers: their attention in place of ours, rows laid end to end,
pictures counted and found. ``test_vllm.py`` and ``test_sglang.py`` ask two of them, where they are installed."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kosmos import KosmosConfig, KosmosForConditionalGeneration, KosmosProcessor
from kosmos.vllm_plugin import refuse_unserved

from .conftest import SLOT
from .test_transformers_decoder import build as docked

LENGTHS = [7, 12, 3]


@pytest.fixture
def engine() -> Iterator[str]:
    """An attention function as vLLM's: rows end to end in, (T, D) out, no mask; each query loops over its own row."""

    def attend(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
    ) -> tuple[torch.Tensor, None]:
        assert mask is None
        assert options["caches"][module.layer_idx] == f"of layer {module.layer_idx}", "as SGLang finds a layer's cache"
        (query, key, value), rows = (heads[0] for heads in (query, key, value)), []  # (H, T, K)
        key, value = (heads.repeat_interleave(len(query) // len(heads), 0) for heads in (key, value))
        for start, length in zip((0, 7, 19), LENGTHS, strict=True):
            for at in range(start, start + length):
                scores = torch.einsum("hk,htk->ht", query[:, at], key[:, start : at + 1]) * options["scaling"]
                rows.append(torch.einsum("ht,htk->hk", scores.softmax(-1), value[:, start : at + 1]).flatten())
        return torch.stack(rows), None

    name = "engine_of_a_test"
    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    yield name
    ALL_ATTENTION_FUNCTIONS._local_mapping.pop(name, None)
    ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name, None)


def make(family: str, build: Any) -> KosmosForConditionalGeneration:
    return build(position=family) if family in ("xpos", "rope", "sinusoidal") else docked(family)


@torch.no_grad()
@pytest.mark.parametrize("family", ["xpos", "rope", "sinusoidal", "llama"])
def test_an_engine_attends_in_place_of_ours(build, engine: str, pixels_of_two: torch.Tensor, family: str) -> None:
    """Three rows of the engine in one pass, the second with a picture, are the three rows by themselves."""
    model = make(family, build)
    rows = [torch.randint(4, 90, (1, length), generator=torch.Generator().manual_seed(length)) for length in LENGTHS]
    rows[1][0, 2:10] = SLOT
    picture = pixels_of_two[:1]
    alone = [
        model.model(row, pixel_values=picture if index == 1 else None).last_hidden_state
        for index, row in enumerate(rows)
    ]
    features = model.model.get_image_features(picture, return_dict=True).pooler_output
    packed = torch.cat(rows, dim=1)
    embeds = model.get_input_embeddings()(packed.masked_fill(packed == SLOT, 0))
    embeds[packed == SLOT] = features[0]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    model.config.text_config._attn_implementation = engine
    caches = [f"of layer {index}" for index in range(3)]
    outputs = model.model(
        inputs_embeds=embeds, position_ids=positions, use_cache=False, return_dict=False, caches=caches
    )
    torch.testing.assert_close(outputs[0], torch.cat(alone, dim=1), atol=1e-5, rtol=0)


@pytest.fixture
def pixels_of_two() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("family", ["xpos", "llama"])
def test_engines_find_the_language_model(build, ids: torch.Tensor, family: str) -> None:
    """They compile its class, whose ``forward`` must take these three, and ask it for its embeddings."""
    model = make(family, build)
    decoder = model.model.get_decoder()
    assert decoder is model.model.language_model
    assert {"input_ids", "inputs_embeds", "position_ids"} <= set(inspect.signature(type(decoder).forward).parameters)
    assert decoder.get_input_embeddings() is model.get_input_embeddings()
    torch.testing.assert_close(decoder(input_ids=ids)[0], model.model(ids)[0])
    with pytest.raises(ValueError, match=r"inputs_embeds|input_ids"):
        decoder()


@torch.no_grad()
@pytest.mark.parametrize("connector", ["linear", "xconnector", "resampler"])
def test_pictures_become_features_as_in_transformers(build, pixels_of_two: torch.Tensor, connector: str) -> None:
    model = build(connector=connector)
    features = model.get_image_features(pixels_of_two)
    assert features.last_hidden_state.shape == (2, 17, 64)
    assert features.pooler_output.shape == (2, model.config.num_image_tokens, 64)
    assert torch.equal(model.get_image_features(pixels_of_two, return_dict=False)[1], features.pooler_output)
    with pytest.raises(ValueError, match="the model has no vision_config"):
        build(images=False).get_image_features(pixels_of_two)


@torch.no_grad()
def test_layers_may_be_replaced_by_those_of_an_engine(build, pixels_of_two: torch.Tensor) -> None:
    """vLLM's linear layers have a weight and a bias, but not the fields of torch's."""

    class Replicated(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.weight, self.bias = linear.weight, linear.bias

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(states, self.weight, self.bias)

    def replace(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Replicated(child))
            else:
                replace(child)

    model = build(connector="resampler")
    expected = model.get_image_features(pixels_of_two).pooler_output
    replace(model)
    torch.testing.assert_close(model.get_image_features(pixels_of_two).pooler_output, expected)


def test_pictures_are_counted_and_found_in_the_prompt(processor: KosmosProcessor) -> None:
    pictures = [Image.new("RGB", size, "red") for size in ((40, 30), (30, 90))]
    counts = processor._get_num_multimodal_tokens(image_sizes=[(30, 40), (90, 30)])
    found = processor(
        images=pictures, text="<image><image>", return_tensors="pt", return_text_replacement_offsets=True
    )["text_replacement_offsets"][0]
    spelled = [entry["replacement"] for entry in found]
    written = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in spelled]
    assert [entry["type"] for entry in found] == ["image", "image"]
    assert [len(ids) for ids in written] == counts["num_image_tokens"]
    assert all(ids.count(processor.image_slot_id) == processor.num_image_tokens for ids in written)
    assert counts["num_image_patches"] == [1, 1]


def test_a_mask_is_not_dropped_silently(build, engine: str, ids: torch.Tensor) -> None:
    """Blockwise causal attention is a mask, which these kernels do not read."""
    model = build(images=False, text={"blockwise_causal_length": 16})
    for kernel in (engine, "flash_attention_2"):
        model.config.text_config._attn_implementation = kernel
        with pytest.raises(ValueError, match=f"blockwise_causal_length is 16 .*'{kernel}' reads no such mask"):
            model(ids)


@pytest.mark.parametrize(
    ("changes", "text", "call", "message"),
    [
        ({"coupling": "cross_attention"}, {}, {}, "coupling: cross_attention is not served by vLLM"),
        ({}, {"position_type": "learned_2d"}, {}, "position_type: learned_2d is not served by vLLM"),
        ({}, {"blockwise_causal_length": 64}, {"longest": 65}, "give --max-model-len 64 or less"),
        (
            {},
            {"blockwise_causal_length": 64},
            {"longest": 65, "engine": "SGLang", "option": "--context-length"},
            "which SGLang has not: give --context-length 64 or less",
        ),
        ({}, {}, {"devices": 2}, "divided over 2 devices"),
    ],
)
def test_vllm_is_refused_what_it_would_compute_wrongly(
    config, changes: dict, text: dict, call: dict[str, Any], message: str
) -> None:
    settings: KosmosConfig = config(text=text)
    for name, value in changes.items():
        setattr(settings, name, value)
    with pytest.raises(ValueError, match=message):
        refuse_unserved(settings, **{"longest": 64, **call})
    refuse_unserved(config(text={"blockwise_causal_length": 64}), longest=64)


@pytest.mark.parametrize("group", ["vllm.general_plugins", "sglang.srt.plugins"])
def test_the_plugin_is_an_entry_point(repository: Path, group: str) -> None:
    groups = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["entry-points"]
    module, _, function = groups[group]["kosmos"].partition(":")
    assert callable(getattr(import_module(module), function))
