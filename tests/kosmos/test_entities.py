"""Entities: ids with features of their own, from a document to an answer, and PETER's losses at their places."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration, KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos.cost import model_cost
from kosmos.encoder_configs import KosmosEntityConfig
from kosmos.entities import EntityEncoder, Targets, context_loss, rating_loss, stack_entities
from kosmos.modalities import ENTITY, stack_inputs
from kosmos.processing_kosmos import load_processor
from kosmos.segments import Entity, Text
from kosmos.tokenization_kosmos import ENTITY_TOKENS

KINDS = {"user": 5, "item": ["tea", "a:b", "7"]}


@pytest.fixture(scope="module")
def processor() -> KosmosProcessor:
    """Whose entities are users by number and items by name."""
    tokenizer = train_tokenizer(["the red tea is a good thing and not dear"] * 5, 120, extra_tokens=ENTITY_TOKENS)
    return KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, num_image_tokens=8, entities=KINDS)


@pytest.fixture(scope="module")
def model(config_factory, processor) -> KosmosForConditionalGeneration:
    """A decoder with rotary positions and entities, without images."""
    torch.manual_seed(0)
    config = config_factory(
        "rope",
        images=False,
        text={"vocab_size": len(processor.tokenizer)},
        entity_config={"kinds": processor.entity_kinds(), "hidden_size": 16, "rating": True},
        entity_token_id=processor.token_id("<entity_slot>"),
    )
    return KosmosForConditionalGeneration(config).eval()


def test_rows(processor) -> None:
    """Each kind has its table and its own unknown, items before users; a name is looked up, a number is a row."""
    rows = [("user", 0), ("user", 4), ("user", 5), ("user", -1), ("user", "4"), ("item", "tea"), ("item", "7")]
    rows += [("item", 2), ("item", "coffee"), ("item", 3)]
    assert [int(processor.entity_row(Entity({kind: name}))) for kind, name in rows] == [4, 8, 9, 9, 9, 0, 2, 2, 3, 3]
    with pytest.raises(ValueError, match=r"no entities of the kind 'usr'; did you mean 'user'\?"):
        processor.encode([Entity({"usr": 1})])
    for wrong in ({}, {"user": 1, "item": 2}, {"user": True}, {"user": 1.5}, {"a:b": 1}, {"": 1}, 7):
        with pytest.raises(TypeError, match="an entity is one kind and its id"):
            Entity(wrong)  # type: ignore[arg-type]


def test_dropout_to_unknown() -> None:
    """In training an id is taken for the unknown of its own kind, at the given rate; never otherwise."""
    encoder = EntityEncoder(KosmosEntityConfig(kinds={"user": 5, "item": 3}, hidden_size=4, unknown_rate=0.25))
    rows = torch.tensor([4, 8, 9, 0, 2, 3]).repeat(2000)
    torch.testing.assert_close(encoder.eval()(rows), encoder.tables(rows))
    torch.manual_seed(0)
    made = encoder.train()(rows).view(2000, 6, 4)
    for column, (row, unknown) in enumerate([(4, 9), (8, 9), (0, 3), (2, 3)]):
        at = column if column < 2 else column + 1
        dropped = (made[:, at] == encoder.tables.weight[unknown]).all(-1)
        assert ((made[:, at] == encoder.tables.weight[row]).all(-1) ^ dropped).all()
        assert abs(dropped.float().mean() - 0.25) < 0.04
    with pytest.raises(ValueError, match="entity_ids hold row 10, but the tables have 10 rows"):
        encoder(torch.tensor([10]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kinds": {"user": 0}}, r"kinds\.user is 0"),
        ({"kinds": {"user": 1 << 40}}, r"kinds\.user is"),
        ({"kinds": {}}, "give each kind its number of ids"),
        ({"kinds": {"user": 3}, "unknown_rate": 1.0}, "unknown_rate is 1.0"),
    ],
)
def test_mistaken_configs(fields, message: str) -> None:
    """Tables of no or of too many rows, and a rate that leaves nothing, are refused."""
    with pytest.raises(ValueError, match=message):
        KosmosEntityConfig(**fields)


def test_querying_connectors_are_refused(config_factory) -> None:
    """An entity has one feature, of which no queries are made."""
    with pytest.raises(ValueError, match="an entity has one feature"):
        config_factory(images=False, entity_config={"kinds": {"a": 1}}, entity_connector_config={"kind": "resampler"})


def test_from_segments_to_an_answer(model, processor, tmp_path: Path) -> None:
    """Features land in their places; another id gives another answer; a saved copy gives the same one."""
    model.take_rules(processor)
    logits = []
    for user in (1, 2):
        encoded = processor.encode([[0], Entity({"user": user}), Entity({"item": "tea"}), Text("the tea")])
        inputs = {"input_ids": torch.tensor([encoded.ids]), **stack_inputs(encoded.placed)}
        assert inputs["entity_ids"].tolist() == [user + 4, 0]
        embeds = model.get_input_embeddings()(inputs["input_ids"]).detach().clone()
        embeds[0, 1:3] = model.model.encode(ENTITY, entity_ids=inputs["entity_ids"])
        logits.append(model(**inputs).logits)
        torch.testing.assert_close(logits[-1], model(inputs_embeds=embeds).logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    answer = model.generate(**inputs, max_new_tokens=5, eos_token_id=None)
    assert not set(answer[0, len(encoded.ids) :].tolist()) & set(processor.placeholder_ids())
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again = KosmosForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert again.generate(**inputs, max_new_tokens=5, eos_token_id=None).tolist() == answer.tolist()
    read = load_processor(tmp_path)
    assert (read.entities, read.entity_kinds()) == (KINDS, {"user": 5, "item": 3})
    assert read.encode([Entity({"item": "a:b"})]).placed == processor.encode([Entity({"item": "a:b"})]).placed
    assert model_cost(model, 30).parameters["entities"] == sum(
        p.numel() for part in (model.model.entity_encoder, model.model.entity_connector) for p in part.parameters()
    )


def test_prompts_and_messages(processor) -> None:
    """A prompt's marks and a message's parts are the ids of the segments; typed marks stay text."""
    wanted = processor.encode([[0], Entity({"user": 3}), Entity({"item": "7"}), Text("the tea")])
    made = processor(text='<entity>user: 3</entity><entity>item: "7"</entity>the tea', return_tensors="pt")
    assert made["input_ids"][0].tolist() == wanted.ids
    assert made["entity_ids"].tolist() == [7, 2]
    parts = [{"type": "entity", "entity": {"user": 3}}, {"type": "entity", "entity": {"item": "tea"}}]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": "is <entity>user: 1</entity> good"}]}
    chat = processor.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt")
    assert chat["entity_ids"].tolist() == [7, 0]
    with pytest.raises(ValueError, match="a kind and an id"):
        processor(text="<entity>three</entity>")
    with pytest.raises(ValueError, match="an entity is one kind and its id"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "entity", "entity": {}}]}])
    plain = KosmosProcessor(KosmosImageProcessor(image_size=32), processor.tokenizer, num_image_tokens=8)
    with pytest.raises(ValueError, match="no entities of the kind 'user'"):
        plain.encode([Entity({"user": 1})])


def test_peters_losses_are_their_formulas(model) -> None:
    """The three sums, written out with loops over words and reviews, and the gradient of their heads."""
    slot = model.config.entity_token_id
    ids = torch.tensor([[0, slot, slot, 5, 6, 7, 8, 9], [0, slot, slot, 5, 9, 10, 11, 12]])
    labels = torch.tensor([[-100, -100, -100, 6, 7, 8, 9, 2], [-100, -100, -100, 9, 10, 11, 2, -100]])
    weights = torch.where(labels >= 0, 0.25, 0.0)
    words = [[7, 8, 9], [10, 11]]
    payloads = [
        Targets(1, 4.0, 0.1),
        Targets(7, words=words[0], word_weight=0.5 / 3),
        Targets(2, 2.5, 0.1),
        Targets(8, words=words[1], word_weight=0.5 / 2),
    ]
    inputs = stack_entities(payloads)
    output = model(input_ids=ids, shift_labels=labels, loss_weight=weights, skip_logits=False, **inputs)
    log = output.logits.log_softmax(-1)
    generation = -sum(
        0.25 * log[row, at, labels[row, at]] for row in range(2) for at in range(8) if labels[row, at] >= 0
    )
    context = -sum(0.5 / len(words[row]) * log[row, 2, word] for row in range(2) for word in words[row])
    hidden = model.model(input_ids=ids, **inputs).last_hidden_state
    head = model.model.entity_encoder.rating_head
    rating = 0
    for row, given in enumerate((4.0, 2.5)):
        inner = 1 / (1 + torch.exp(-(head.dense.weight @ hidden[row, 1] + head.dense.bias)))
        predicted = (head.out.weight @ inner + head.out.bias)[0]
        torch.testing.assert_close(output.ratings[2 * row], predicted)
        rating = rating + 0.1 * (given - predicted) ** 2
    divisor = float(weights.sum())
    torch.testing.assert_close(output.loss, (generation + context + rating) / divisor)
    torch.testing.assert_close(output.entity_losses, torch.stack([context, rating]) / divisor)
    output.loss.backward()
    assert head.dense.weight.grad.any()
    assert model.model.entity_encoder.tables.weight.grad[[1, 2, 7, 8]].any(1).all()
    model.zero_grad()


def test_losses_alone() -> None:
    """A uniform guess costs log V a word; a rating without weight nothing."""
    loss = context_loss(torch.zeros(2, 7), torch.tensor([[1, 2], [3, -100]]), torch.tensor([0.5, 1.0]))
    assert float(loss) == pytest.approx(2 * 0.5 * math.log(7) + math.log(7))
    assert float(rating_loss(torch.tensor([1.0, 9.0]), torch.tensor([[3.0, 0.5], [1.0, 0.0]]))) == 2.0


def test_a_rank_without_entities(model) -> None:
    """Rows without entities still give every parameter of theirs a gradient, of zeros, and lose nothing by it."""
    ids = torch.arange(4, 12)[None]
    model.zero_grad()
    output = model(input_ids=ids, labels=ids, dummy_image=True)
    torch.testing.assert_close(output.loss, model(input_ids=ids, labels=ids).loss)
    output.loss.backward()
    for part in (model.model.entity_encoder, model.model.entity_connector):
        for parameter in part.parameters():
            assert parameter.grad is not None
            assert not parameter.grad.any()
    model.zero_grad()


def test_ratings_without_a_head(config_factory) -> None:
    """Ratings that nothing learns from are an error, not a loss of zero."""
    config: KosmosConfig = config_factory(images=False, entity_config={"kinds": {"user": 3}})
    model = KosmosForConditionalGeneration(config)
    ids = torch.tensor([[0, config.entity_token_id, 5, 6]])
    with pytest.raises(ValueError, match=r"set entity_config\.rating"):
        model(input_ids=ids, labels=ids.clamp(max=90), **stack_entities([Targets(1, 4.0, 1.0)]))
