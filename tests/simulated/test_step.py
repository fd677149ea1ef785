"""A training step on a GPU, without one: nothing waits for the device, whatever the way of attending."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda import Syncs, build, fake_cuda, rows

from kosmos import KosmosConfig, KosmosImageProcessor
from kosmos.attention import plan_documents
from kosmos_train.engine import Engine

BERT = {"model_type": "bert", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
DOCUMENTS = {"causal": 1, "lengths": 5, "flex": 5}


def config_of(way: str, **fields: Any) -> KosmosConfig:
    config = KosmosConfig(**{**KosmosConfig.preset("tiny").to_dict(), **fields})
    config.text_config.position_type = "rope" if way == "flex" else "xpos"
    return config


def batch_of(config: KosmosConfig, way: str) -> dict[str, Any]:
    """Two rows as the loader makes them, with a picture each; for flex with blocks that see both ways."""
    batch = rows(config, 2, 256, images=1, documents=DOCUMENTS[way])
    batch["source_ids"] = torch.zeros_like(batch["input_ids"])
    batch["pixel_values"] = batch["pixel_values"].to(torch.uint8)
    if way == "flex":
        batch["block_ids"] = torch.where(torch.arange(256) < 20, 0, -1).repeat(2, 1)
    return batch


def engine_of(model: Any) -> Any:
    """What of an engine moves a batch to the device."""
    size = model.config.vision_config.image_size
    return SimpleNamespace(
        model=model,
        world=SimpleNamespace(device=torch.device("cuda")),
        image_processor=KosmosImageProcessor(size),
        dtype=torch.bfloat16,
    )


def syncs_of(config: KosmosConfig, batch: dict[str, Any], way: str) -> list[str]:
    """Where one micro-batch, moved by the engine, waits for the device in its forward and backward pass."""
    with fake_cuda() as mode:
        with mode:
            model = build(config)
        batch["layout"] = model.model.describe_rows(**batch)  # as the thread does that makes batches ready
        with mode:
            for repetition in range(2):  # the first one copies rates of positions and means of pixels to the device
                with Syncs() as counted:
                    inputs, _ = Engine._moved(engine_of(model), batch)
                    model(**inputs, num_items_in_batch=400.0).loss.backward()
                assert counted.found or repetition
            packing, ids = inputs["layout"].packing, (inputs["document_ids"], inputs.get("block_ids"))
            assert plan_documents(*ids, True, True, packing).way == way
        assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
    return counted.found


@pytest.mark.parametrize("way", list(DOCUMENTS))
def test_a_micro_batch_waits_for_nothing(way: str) -> None:
    """Images and text through each way of attending: no host synchronisation."""
    config = config_of(way)
    assert syncs_of(config, batch_of(config, way), way) == []


def test_routed_layers_wait_for_nothing() -> None:
    """Attention routing over packed rows: persona, context and what is written by three masks of flex_attention."""
    spans = {"span_encoder_config": {"model_config": BERT | {"num_attention_heads": 2}, "train_last_blocks": 1}}
    config = config_of("lengths", **spans, span_token_id=250, span_connector_config={"kind": "linear"})
    config.text_config.routing_layers = [0, 2]
    batch = batch_of(config, "lengths")
    batch["span_input_ids"] = torch.full((2, 3), 5)
    batch["span_attention_mask"] = torch.ones(2, 3, dtype=torch.long)
    batch["input_ids"][:, 200:202] = 250  # one place less than tokens, for the BOS has none
    batch["persona_related"] = torch.where(batch["shift_labels"] == -100, -1, 1)
    assert syncs_of(config, batch, "lengths") == []


@pytest.mark.parametrize("queries", [None, 4])
def test_spans_wait_for_nothing(queries: int | None) -> None:
    """A text encoder of one feature a token, or of four a span, one span shorter than the other."""
    spans = {"span_encoder_config": {"model_config": BERT | {"num_attention_heads": 2}, "train_last_blocks": 1}}
    kind = {"kind": "linear"} if queries is None else {"kind": "xconnector", "num_queries": queries}
    config = config_of("causal", **spans, span_token_id=250, span_connector_config=kind, num_span_tokens=queries)
    batch = batch_of(config, "causal")
    batch["span_input_ids"] = torch.full((2, 5), 5)
    batch["span_attention_mask"] = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    for row, count in enumerate((queries or 4, queries or 2)):
        batch["input_ids"][row, 100 : 100 + count] = 250
    assert syncs_of(config, batch, "causal") == []


def test_a_question_to_the_device_is_noticed() -> None:
    """The counter itself: ids that are checked on the device make the host wait twice."""
    with fake_cuda() as mode, mode:
        model = build(config_of("causal"))
        with Syncs() as counted:
            model.model._check_ids(torch.zeros(2, 8, dtype=torch.long, device="cuda"))
    assert len(counted.found) == 2
