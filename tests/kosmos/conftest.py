"""Tiny models: an open_clip ViT of 2 layers, 17 tokens an image of 32 pixels; a decoder of 3 layers, vocabulary 97."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kosmos import Conversation, KosmosConfig, KosmosForConditionalGeneration, KosmosProcessor

CLIP = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
}
BERT = {"model_type": "bert", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
SLOT, SPAN_SLOT = 100, 101


def make_config(
    position: str = "xpos",
    connector: str = "xconnector",
    images: bool = True,
    spans: bool = False,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **fields: Any,
) -> KosmosConfig:
    sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128}
    sizes |= {"num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 128}
    if spans:
        fields["span_encoder_config"] = {"model_config": {**BERT, "num_attention_heads": 2}, "train_last_blocks": 2}
        fields["span_token_id"] = SPAN_SLOT
    return KosmosConfig(
        text_config={**sizes, "position_type": position, **(text or {})},
        vision_config={"backend": "open_clip", "model_config": CLIP, **(vision or {})} if images else None,
        connector_config={"kind": connector, "num_queries": 8, "depth": 2},
        image_token_id=SLOT,
        boi_token_id=90,
        eoi_token_id=91,
        num_image_tokens=8 if connector in ("xconnector", "resampler") else 17,
        **fields,
    )


@pytest.fixture
def config() -> Callable[..., KosmosConfig]:
    """The config factory."""
    return make_config


@pytest.fixture(scope="session")
def config_factory() -> Callable[..., KosmosConfig]:
    """The config factory, for what is made once for a file."""
    return make_config


@pytest.fixture
def build() -> Callable[..., KosmosForConditionalGeneration]:
    """Return a model in eval mode whose norms and biases are not at their initial ones and zeros."""

    def build(seed: int = 0, **options: Any) -> KosmosForConditionalGeneration:
        torch.manual_seed(seed)
        model = KosmosForConditionalGeneration(make_config(**options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    return build


@pytest.fixture(scope="session")
def speaker(processor: KosmosProcessor) -> Callable[..., KosmosForConditionalGeneration]:
    """Return models that can be talked to: they fit the shared processor's vocabulary, pictures and marks."""
    begin, slot, *_, end = processor.image_token_ids()

    def make(seed: int = 0, text: dict[str, Any] | None = None, **options: Any) -> KosmosForConditionalGeneration:
        settings = make_config(text={"vocab_size": len(processor.tokenizer), **(text or {})}, **options)
        settings.image_token_id, settings.boi_token_id, settings.eoi_token_id = slot, begin, end
        settings.num_image_tokens = settings.connector_config.num_queries = processor.num_image_tokens
        torch.manual_seed(seed)
        return KosmosForConditionalGeneration(settings).eval()

    return make


@pytest.fixture(scope="session")
def first_speaker(speaker: Callable[..., KosmosForConditionalGeneration]) -> KosmosForConditionalGeneration:
    """The model of all tests that talk to one; ``model`` is a copy."""
    return speaker()


@pytest.fixture
def model(first_speaker: KosmosForConditionalGeneration) -> KosmosForConditionalGeneration:
    """A model to talk to, which a test may change."""
    return copy.deepcopy(first_speaker)


@pytest.fixture(scope="session")
def speaker_folder(
    first_speaker: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Its checkpoint, only to be read."""
    folder = tmp_path_factory.mktemp("speaker") / "checkpoint"
    first_speaker.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def chat(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Conversation:
    """A chat with it in a directory of its own, where nothing is but a folder of the name ``folder``."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    return Conversation(model, processor, max_new_tokens=2)


@pytest.fixture
def ids() -> torch.Tensor:
    """Two rows of 30 ordinary tokens."""
    return torch.randint(4, 90, (2, 30), generator=torch.Generator().manual_seed(1))
