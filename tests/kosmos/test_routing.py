"""Attention routing: a plain reference, packed and cached rows, α by hand, its own loss, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.decode_step import GrowingCache
from kosmos.masks import interval_mask
from kosmos.route_sets import HeldRoutes, find_marks, find_sets

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
    writing = torch.tensor([False, *flags][: len(ids)])
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
    """Hidden states (T, D) and α (T,) of one document, query by query, from the weights alone."""
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


@torch.no_grad()
def test_intervals_are_the_sets_by_hand() -> None:
    """What flex_attention's mask lets through, and what the dense one, are the sets; an empty set is the query."""
    batch = packed([[0, 2, 1], [3, 4]])
    owners, labels = batch["document_ids"], batch["shift_labels"]
    nothing = HeldRoutes.nothing(2, owners.device)
    marks = find_marks(batch["input_ids"] == SLOT, labels != -100, owners, nothing, 0)
    rows = torch.arange(2)[:, None, None]
    place = torch.arange(owners.shape[1])
    for name, one in zip((PERSONA, CONTEXT, WRITTEN), find_sets(marks, 0), strict=True):
        flex = interval_mask(one.first_BT, one.last_BT).mask_mod(rows, rows, place[None, :, None], place[None, None, :])
        for number, (ids, _, wanted) in enumerate(DOCUMENTS):
            row, first = (owners == number).nonzero()[0].tolist()
            for query, keys in enumerate(sets_by_hand(ids, wanted)):
                found = (flex[row, first + query].nonzero()[:, 0] - first).tolist()
                assert bool(one.there_BT[row, first + query]) == bool(keys[name])
                assert found == (keys[name] or [query])


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 2, 4, 9, 12])
def test_cached_is_plain(model: KosmosForConditionalGeneration, cut: int) -> None:
    """In two passes, wherever they are cut, and token by token; also with rows taken from the cache, padded."""
    ids, entities, labels = DOCUMENTS[2]
    writing = (labels != -100)[None]
    plain = model(ids[None], entity_ids=entities, writing=writing, output_hidden_states=True)
    first, rest = (ids[None, :cut], ids[None, cut:])
    slots = [int((part == SLOT).sum()) for part in (first, rest)]
    given = [{"entity_ids": part} if len(part) else {} for part in entities.split(slots)]
    begun = model(first, use_cache=True, writing=writing[:, :cut], **given[0])
    ended = model(rest, past_key_values=begun.past_key_values, use_cache=True, writing=writing[:, cut:], **given[1])
    torch.testing.assert_close(torch.cat([begun.logits, ended.logits], 1), plain.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([begun.alpha, ended.alpha], 1)[writing], plain.alpha[writing])
    cache, logits = GrowingCache(model.config.text_config), []
    padding = torch.full((2, 2), 1)
    mask = torch.cat([torch.zeros(2, 2), torch.ones(2, len(ids))], dim=1).long()
    both = torch.cat([padding, ids.expand(2, -1)], dim=1)
    for at, (start, stop) in enumerate([(0, 5), *((one, one + 1) for one in range(5, both.shape[1]))]):
        part = torch.tensor([entities.tolist()] * len(both)).flatten() if at == 0 else None
        told = torch.cat([padding < 0, writing.expand(2, -1)], dim=1)[: len(both), start:stop]
        step = model(
            both[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True,
            position_ids=(torch.arange(start, stop) - 2).clamp(min=0)[None], writing=told, entity_ids=part,
        )  # fmt: skip
        logits.append(step.logits)
        if stop == 9:
            cache.batch_select_indices(torch.tensor([1]))
            both, mask, logits = both[1:], mask[1:], [one[1:] for one in logits]
    torch.testing.assert_close(torch.cat(logits, 1)[:, 2:], plain.logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_answers_are_those_of_the_plain_pass(model: KosmosForConditionalGeneration) -> None:
    """Greedy with left padding, and beams, with a cache and without; α by hand or not; the reference's tokens."""
    parts = [document(6, context=6, written=(0,)), document(7, personas=1, context=3, written=(0,))]
    ids = torch.full((2, 9), 1)
    for row, (part, _, _) in enumerate(parts):
        ids[row, 9 - len(part) :] = part
    mask = (ids != 1).long()
    inputs = {"attention_mask": mask, "entity_ids": torch.cat([entities for _, entities, _ in parts])}
    options = {"max_new_tokens": 5, "eos_token_id": 95, "pad_token_id": 1}
    answers = {}
    for alpha in (None, torch.tensor([0.0, 1.0])):
        for more in ({}, {"num_beams": 3}):
            given = {**inputs, **options, **more} | ({} if alpha is None else {"alpha": alpha})
            made = model.generate(ids, **given)
            assert torch.equal(made, model.generate(ids, use_cache=False, **given))
            answers[str(alpha), len(more)] = made
    part, entities, _ = parts[0]
    written = answers["None", 0][0, ids.shape[1] :]
    whole = torch.cat([part, written[:-1]])
    labels = torch.full_like(whole, -100)
    labels[len(part) - 1 :] = written
    hidden, _ = reference(model, whole, entities, labels)
    assert model.lm_head(hidden[len(part) - 1 :]).argmax(-1).tolist() == written.tolist()
    with pytest.raises(ValueError, match="StaticCache cannot hold what attention routing keeps"):
        model.generate(ids, cache_implementation="static", **inputs, **options)


@torch.no_grad()
def test_alpha_decides_whether_a_persona_is_heard() -> None:
    """With every layer routed α = 0 makes the persona mean nothing to what is written; α = 1 does not."""
    model = make(layers=[0, 1, 2])
    ids, entities, labels = DOCUMENTS[0]
    writes = labels != -100
    for alpha, heard in ((0.0, False), (1.0, True), (None, True)):
        given = {"alpha": alpha, "shift_labels": labels[None], "skip_logits": False}
        logits = [model(ids[None], entity_ids=who, **given).logits[0] for who in (entities, (entities + 1) % 5)]
        apart = (logits[0] - logits[1]).abs().amax(-1)
        assert bool((apart[writes] > 1e-4).all()) == heard
        assert float(apart[~writes][3:].max()) < 1e-6  # the context is read without the persona


@torch.no_grad()
def test_the_last_output_of_a_prompt_is_written(model: KosmosForConditionalGeneration) -> None:
    """On whichever side a row is padded; without a cache a longer text says itself what is written."""
    ids, entities, labels = document(8, written=(1,))
    plain = model(ids[None], entity_ids=entities, writing=(labels != -100)[None]).logits[0]
    for left, right in ((0, 0), (3, 0), (0, 3)):
        padded = F.pad(ids, (left, right), value=1)[None]
        here = slice(left, left + len(ids))
        mask = F.pad(torch.ones_like(ids), (left, right))[None]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        found = model(padded, entity_ids=entities, attention_mask=mask, position_ids=positions).logits[0, here]
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_persona_may_be_a_text_span(config_factory: Any) -> None:
    """In front it is the persona; a span elsewhere is context, which α = 0 does not mute."""
    torch.manual_seed(0)
    config = config_factory(images=False, spans=True, text={"routing_layers": [0, 1, 2]})
    model = KosmosForConditionalGeneration(config).eval()
    ids = torch.randint(4, 90, (1, 14), generator=torch.Generator().manual_seed(0))
    ids[0, 1:4] = ids[0, 6:9] = config.span_token_id
    spans = torch.tensor([[2, 5, 6, 7], [2, 8, 9, 10]])
    labels = torch.where(torch.arange(14) >= 10, ids, -100)
    given = {"alpha": 0.0, "shift_labels": labels, "skip_logits": False}
    logits = [
        model(ids, span_input_ids=torch.stack([spans[0] + own, spans[1] + other]), **given).logits[0, 10:]
        for own, other in ((0, 0), (20, 0), (0, 20))
    ]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=0)
    assert (logits[2] - logits[0]).abs().max() > 1e-4


def test_the_classifier_learns_by_its_own_loss() -> None:
    """Cross-entropy by hand, unknown answers left out; a weight of 0 is no loss, and micro-batches add up."""
    model, batch = make(), packed([[0, 2, 1], [3, 4]])
    labels = batch["shift_labels"]
    related = torch.full_like(labels, -1)
    related[batch["document_ids"] == 0] = 1
    related[batch["document_ids"] == 4] = 0
    weight = (torch.arange(labels.numel()).view_as(labels) % 3 + 1).float()
    plain = model(**batch, loss_weight=weight)
    output = model(**batch, loss_weight=weight, persona_related=related)
    wanted, total = 0.0, 0.0
    for at in (labels != -100).nonzero().tolist():
        row, place = at
        alpha, target = float(output.alpha[row, place].detach()), int(related[row, place])
        wanted -= float(weight[row, place]) * {1: math.log(alpha), 0: math.log(1 - alpha), -1: 0.0}[target]
        total += float(weight[row, place])
    assert float(output.routing_loss) == pytest.approx(wanted / total, rel=1e-5)
    assert float((output.loss - plain.loss).detach()) == pytest.approx(wanted / total, rel=1e-4)
    output.loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if "routing" in name}
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    model.zero_grad()
    for row in range(2):
        one = packed([[0, 2, 1], [3, 4]][row : row + 1])
        given = {"loss_weight": weight[row : row + 1], "persona_related": related[row : row + 1]}
        model(**one, **given, num_items_in_batch=total).loss.backward()
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4)
    model.config.text_config.routing_loss = 0.0
    torch.testing.assert_close(model(**batch, loss_weight=weight, persona_related=related).loss, plain.loss)
