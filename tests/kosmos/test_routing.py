"""Attention routing: a plain reference, packed and cached rows, α by hand, what the classifier learns, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.attention import AttentionPlan, attend, interval_mask
from kosmos.cost import model_cost
from kosmos.decode_step import GrowingCache
from kosmos.routing import HeldRoutes, find_sets
from kosmos_train.config import OptimConfig
from kosmos_train.optim import is_for_muon

SLOT = 96
PERSONA, CONTEXT, WRITTEN = "persona", "context", "written"
TEXT = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip


def make(position: str = "xpos", layers: list[int] | None = None, **text: Any) -> KosmosForConditionalGeneration:
    """A model whose norms and biases are not at their initial ones and zeros; layers 0 and 2 are routed."""
    torch.manual_seed(0)
    routed = {"routing_layers": [0, 2] if layers is None else layers} if layers != [] else {}
    config = KosmosConfig(
        text_config={**TEXT, "position_type": position, **routed, **text},
        vision_config=None,
        image_token_id=None,
        entity_config={"kinds": {"name": 5}, "hidden_size": 8, "unknown_rate": 0.0},
        entity_token_id=SLOT,
    )
    model = KosmosForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        if model.model.decoder.routing is not None:
            model.model.decoder.routing.out.weight.mul_(8)  # so that α differs from row to row
    return model


@pytest.fixture(scope="module")
def model() -> KosmosForConditionalGeneration:
    return make()


def document(seed: int, personas: int = 2, context: int = 5, written: tuple[int, ...] = (4,), gap: int = 3) -> Any:
    """Ids, entities, and which outputs are written, of ``<s>``, a persona, a context, and answers with gaps between."""
    draw = torch.Generator().manual_seed(seed)
    flags = [False] * (personas + context)
    for number, length in enumerate(written):
        flags += [True] * length + [False] * (gap if number < len(written) - 1 else 0)
    ids = torch.randint(4, 90, (1 + personas + len(flags) - personas,), generator=draw)
    ids[0] = 0
    ids[1 : 1 + personas] = SLOT
    entities = torch.randint(0, 5, (personas,), generator=draw)
    writing = torch.tensor(([False] + flags)[: len(ids)])
    labels = torch.where(writing, torch.randint(4, 90, ids.shape, generator=draw), -100)
    return ids, entities, labels


DOCUMENTS = [
    document(1),
    document(2, personas=0),
    document(3, written=(3, 2)),
    document(4, personas=3, context=0, written=(5,)),
    document(5, personas=1, context=7, written=(1,)),
]


def sets_by_hand(ids: Tensor, labels: Tensor) -> list[dict[str, list[int]]]:
    """Of each query of one document the keys of each set, in words of the module's first lines."""
    writing, found = (labels != -100).tolist(), []
    persona = []
    at = 1 if len(ids) > 1 and int(ids[0]) != SLOT else 0
    while at < len(ids) and int(ids[at]) == SLOT:
        persona.append(at)
        at += 1
    skipped = set(range(persona[0])) if persona else set()  # the <s>
    for query in range(len(ids)):
        seen = range(query + 1)
        if query in persona and not writing[query]:
            found.append({PERSONA: [key for key in seen if key in persona], CONTEXT: [], WRITTEN: []})
            continue
        run = query
        while writing[query] and run > 0 and writing[run - 1]:
            run -= 1
        own = [key for key in range(run, query + 1) if writing[query] and key not in persona]
        gone = skipped if persona and query >= persona[0] else set()
        rest = [key for key in seen if key not in own and key not in persona and key not in gone]
        if writing[query]:
            rest = [key for key in rest if key < run]
        found.append({PERSONA: [key for key in persona if key <= query], CONTEXT: rest, WRITTEN: own})
    return found


@torch.no_grad()
def reference(model: Any, ids: Tensor, entities: Tensor, labels: Tensor, alpha: float | None = None) -> Any:
    """Hidden states (T, D) and α (T,) of one document, query by query, from the weights alone; layers read one by one."""
    decoder, config = model.model.decoder, model.config.text_config
    hidden = decoder.embed_tokens.weight[ids.masked_fill(ids == SLOT, 0)].clone()
    if len(entities):
        encoder, connector = model.model.entity_encoder, model.model.entity_connector
        hidden[ids == SLOT] = connector(encoder.tables.weight[entities][None])[0]
    hidden = hidden * math.sqrt(config.hidden_size)
    positions = decoder.positions
    place = torch.arange(len(ids))[None]
    hidden = positions.add_to(hidden[None], place, None)[0]
    rotation = positions.rotation(place)
    sets, writing = sets_by_hand(ids, labels), labels != -100
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    alphas = torch.zeros(len(ids))
    for index, layer in enumerate(decoder.layers):
        if index == min(config.routing_layers):
            said = decoder.routing.norm(hidden)
            votes = F.gelu(said @ decoder.routing.dense.weight.T + decoder.routing.dense.bias)
            votes = votes @ decoder.routing.out.weight[0]
            for query, keys in enumerate(sets):
                mean = votes[keys[CONTEXT]].mean() if keys[CONTEXT] else torch.tensor(0.0)
                alphas[query] = torch.sigmoid(decoder.routing.out.bias + mean)[0]
            if alpha is not None:
                alphas[:] = alpha
        normed = layer.self_attn_layer_norm(hidden)
        attention = layer.self_attn
        query_THK, key_THK, value_THK = (
            projection(normed).unflatten(-1, (heads, width))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if rotation is not None:
            from kosmos.positions import rotate

            query_THK, key_THK = (one[0] for one in rotate(query_THK[None], key_THK[None], rotation))
        attended = torch.zeros_like(query_THK)
        for query in range(len(ids)):

            def over(keys: list[int], query: int = query, q: Tensor = query_THK, k: Tensor = key_THK,
                     v: Tensor = value_THK) -> Tensor:  # fmt: skip
                if not keys:
                    return torch.zeros(heads, width)
                scores = torch.einsum("hk,thk->ht", q[query], k[keys]) / math.sqrt(width)
                return torch.einsum("ht,thk->hk", scores.softmax(-1), v[keys])

            if index not in config.routing_layers:
                attended[query] = over(list(range(query + 1)))
                continue
            a, keys = alphas[query], sets[query]
            if writing[query]:
                parts = a * over(keys[PERSONA]) + (1 - a) * over(keys[CONTEXT]) + over(keys[CONTEXT])
                attended[query] = parts + over(keys[WRITTEN])
            else:
                attended[query] = over(keys[PERSONA] if not keys[CONTEXT] else keys[CONTEXT])
        hidden = hidden + attention.out_proj(attention.inner_attn_ln(attended.flatten(1)))
        hidden = hidden + layer.ffn(layer.final_layer_norm(hidden))
    return decoder.layer_norm(hidden), alphas


def packed(rows: list[list[int]], length: int = 40) -> dict[str, Tensor]:
    """Rows of the documents with these numbers, padded on the right."""
    ids = torch.full((len(rows), length), 1)
    labels, owners, entities = torch.full_like(ids, -100), torch.full_like(ids, -1), []
    for row, numbers in enumerate(rows):
        at = 0
        for number in numbers:
            part, rows_of, wanted = DOCUMENTS[number]
            here = slice(at, at + len(part))
            ids[row, here], labels[row, here], owners[row, here] = part, wanted, number
            entities.append(rows_of)
            at += len(part)
    return {
        "input_ids": ids, "shift_labels": labels, "document_ids": owners, "entity_ids": torch.cat(entities),
        "position_ids": torch.cat([_positions(row)[None] for row in owners]),
    }  # fmt: skip


def _positions(owners: Tensor) -> Tensor:
    positions = torch.zeros_like(owners)
    for at in range(1, len(owners)):
        positions[at] = positions[at - 1] + 1 if owners[at] == owners[at - 1] else 0
    return positions


@torch.no_grad()
@pytest.mark.parametrize("position", ["xpos", "sinusoidal"])
@pytest.mark.parametrize("alpha", [None, 0.0, 1.0])
def test_packed_rows_are_the_reference(position: str, alpha: float | None) -> None:
    """Five documents in two rows: with and without persona, context, several answers; hidden states and α to 1e-5."""
    model = make(position)
    batch = packed([[0, 2, 1], [3, 4]])
    by_hand = {} if alpha is None else {"alpha": alpha}
    output = model(**batch, **by_hand, output_hidden_states=True, skip_logits=False)
    owners = batch["document_ids"]
    for number, (ids, entities, labels) in enumerate(DOCUMENTS):
        hidden, alphas = reference(model, ids, entities, labels, alpha)
        here = owners == number
        found = model.model(**_inputs(batch), **by_hand, writing=batch["shift_labels"] != -100).last_hidden_state[here]
        torch.testing.assert_close(found, hidden, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.logits[here], model.lm_head(hidden), atol=2e-5, rtol=0)
        writes = labels != -100
        torch.testing.assert_close(output.alpha[here][writes], alphas[writes], atol=1e-5, rtol=0)
    if alpha is None:
        assert output.alpha[batch["shift_labels"] != -100].std() > 0.01


def _inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "shift_labels"}
