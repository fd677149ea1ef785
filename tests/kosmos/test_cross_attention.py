"""Gated cross-attention: open_flamingo's layer, whom a token sees, decoding, what a gate of 0 does, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.cost import model_cost, part_of
from kosmos.cross_attention import GatedCrossAttention, see_images

from .conftest import CLIP

GOLDEN = Path(__file__).parents[1] / "fixtures" / "kosmos" / "flamingo" / "gated_cross_attention.safetensors"
NAMES = {
    "norm": "attn.norm", "q_proj": "attn.to_q", "kv_proj": "attn.to_kv", "out_proj": "attn.to_out",
    "attn_gate": "attn_gate", "ffn_norm": "ff.0", "fc1": "ff.1", "fc2": "ff.3", "ffn_gate": "ff_gate",
}  # fmt: skip
SLOT = 92
OURS = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA = {**OURS, "model_type": "llama", "max_position_embeddings": 128}


def test_a_layer_is_open_flamingos() -> None:
    golden = load_file(GOLDEN)
    layer = GatedCrossAttention(16, 2, 8, 0)
    weights = {}
    for name in layer.state_dict():
        stem, _, kind = name.partition(".")
        weights[name] = golden[f"block.{NAMES[stem]}{'.' + kind if kind else ''}"]
    layer.load_state_dict(weights)
    places, media = golden["locations"].bool(), golden["media"]
    features = torch.cat([media[0], media[1, :2]])  # ours have no padding
    seen, _ = see_images(features, places, None, None, keep=False)
    torch.testing.assert_close(layer(golden["hidden"], seen), golden["output"], atol=1e-5, rtol=0)


def make(text: dict[str, Any] | None = None, opened: bool = True, **fields: Any) -> KosmosForConditionalGeneration:
    torch.manual_seed(0)
    config = KosmosConfig(
        text_config=dict(text or OURS),
        vision_config={"backend": "open_clip", "model_config": CLIP},
        connector_config={"kind": "resampler", "num_queries": 5, "depth": 1, "num_heads": 2, "head_dim": 8},
        image_token_id=SLOT, boi_token_id=90, eoi_token_id=91,
        **{"coupling": "cross_attention", "cross_attention_every": 2, "cross_attention_heads": 2,
           "cross_attention_head_dim": 8, **fields},
    )  # fmt: skip
    model = KosmosForConditionalGeneration(config).eval()
    if opened and model.config.coupling == "cross_attention":
        with torch.no_grad():
            for layer in model.model.cross_attention.values():
                layer.attn_gate.fill_(0.9)
                layer.ffn_gate.fill_(0.5)
    return model


@pytest.fixture(scope="module", params=["ours", "llama"])
def model(request: pytest.FixtureRequest) -> KosmosForConditionalGeneration:
    """Layers before the second and the fourth of the decoder, gates open."""
    return make(LLAMA if request.param == "llama" else None)


def row(seed: int, images: tuple[int, ...], length: int = 12) -> Tensor:
    """Text with an image at these places."""
    ids = torch.randint(4, 89, (1, length), generator=torch.Generator().manual_seed(seed))
    ids[0, list(images)] = SLOT
    return ids


def pixels(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_token_sees_the_last_image_before_it(model: KosmosForConditionalGeneration) -> None:
    ids, images = row(1, (2, 6)), pixels(2)
    logits = model(ids, pixel_values=images).logits
    first, second = images.clone(), images.clone()
    first[0] += 1.0
    second[1] += 1.0
    moved = [(model(ids, pixel_values=changed).logits - logits).abs().amax(-1)[0] for changed in (first, second)]
    assert (moved[0][:2] == 0).all()
    assert (moved[0][2:6] > 1e-4).all()
    assert (moved[1][:6] == 0).all()
    assert (moved[1][6:] > 1e-4).all()


@torch.no_grad()
def test_closed_gates_change_nothing(model: KosmosForConditionalGeneration) -> None:
    text = model.config.text_config.to_dict()
    closed = make(text, opened=False)
    bare = KosmosForConditionalGeneration(
        KosmosConfig(text_config=text, vision_config=None, image_token_id=SLOT)
    ).eval()
    bare.load_state_dict({name: tensor for name, tensor in closed.state_dict().items() if name in bare.state_dict()})
    ids = row(1, (2, 6))
    plain = bare.model.decoder(bare.get_input_embeddings()(ids)).last_hidden_state
    assert torch.equal(closed.model(ids, pixel_values=pixels(2)).last_hidden_state, plain)


@torch.no_grad()
def test_packed_documents_see_their_own_images_only(model: KosmosForConditionalGeneration) -> None:
    """Two rows of three documents; the second document has no image, and its neighbours do."""
    parts = [row(1, (2, 6)), row(2, (), 9), row(3, (0,), 11)]
    ids = torch.cat([torch.cat(parts, dim=1), torch.cat(parts[::-1], dim=1)])
    owner = [torch.full((len(part[0]),), number) for number, part in enumerate(parts)]
    documents = torch.stack([torch.cat(owner), torch.cat(owner[::-1])])
    pictures = pixels(3)
    packed = model(ids, pixel_values=pictures[[0, 1, 2, 2, 0, 1]], document_ids=documents).logits
    alone = [model(parts[0], pixel_values=pictures[:2]), model(parts[1]), model(parts[2], pixel_values=pictures[2:])]
    expected = torch.cat([one.logits[0] for one in alone])
    torch.testing.assert_close(packed[0], expected, atol=1e-5, rtol=0)
    turned = torch.cat([one.logits[0] for one in alone[::-1]])
    torch.testing.assert_close(packed[1], turned, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 4, 7, 11])
def test_cached_is_plain(model: KosmosForConditionalGeneration, cut: int) -> None:
    """In two passes, whichever of them the images are in, and then token by token."""
    ids = torch.cat([row(1, (2, 6)), row(2, (5, 8))])
    pictures = pixels(4)
    plain = model(ids, pixel_values=pictures).logits
    is_first = [torch.tensor([True] * int((part == SLOT).sum())) for part in (ids[:, :cut], ids[:, cut:])]
    owner = [int((ids[0, :cut] == SLOT).sum()), int((ids[1, :cut] == SLOT).sum())]
    early = [*range(owner[0]), *range(2, 2 + owner[1])]
    late = [number for number in range(4) if number not in early]
    assert [len(part) for part in is_first] == [len(early), len(late)]
    given = [{"pixel_values": pictures[part]} if part else {} for part in (early, late)]
    begun = model(ids[:, :cut], use_cache=True, **given[0])
    rest = model(ids[:, cut:], past_key_values=begun.past_key_values, use_cache=True, **given[1])
    torch.testing.assert_close(torch.cat([begun.logits, rest.logits], 1), plain, atol=1e-5, rtol=0)
    more = row(5, (), 3).expand(2, -1)
    longer = model(torch.cat([ids, more], dim=1), pixel_values=pictures).logits
    for at in range(3):
        step = model(more[:, at : at + 1], past_key_values=rest.past_key_values, use_cache=True)
        torch.testing.assert_close(step.logits[:, 0], longer[:, len(ids[0]) + at], atol=1e-5, rtol=0)


@torch.no_grad()
def test_answers_are_those_of_the_plain_pass(model: KosmosForConditionalGeneration) -> None:
    """Greedy with left padding, and beams of two rows with other numbers of images, against passes without a cache."""
    ids = torch.cat([row(1, (2, 6)), row(2, (7,))])
    ids[1, :3] = 1
    mask = (torch.arange(12)[None] >= torch.tensor([[0], [3]])).long()
    options: dict[str, Any] = {"max_new_tokens": 5, "eos_token_id": 96, "pad_token_id": 1, "attention_mask": mask}
    for more in ({}, {"num_beams": 3}):
        made = model.generate(ids, pixel_values=pixels(3), **options, **more)
        slow = model.generate(ids, pixel_values=pixels(3), use_cache=False, **options, **more)
        assert torch.equal(made, slow)
    with pytest.raises(ValueError, match="StaticCache cannot hold the images"):
        model.generate(ids, pixel_values=pixels(3), cache_implementation="static", **options)


def test_it_learns_and_is_saved(model: KosmosForConditionalGeneration, tmp_path: Path) -> None:
    """A rank without images has the same gradients as one with them, all of zeros where only an image makes them."""
    ids = row(1, (2, 6))
    twin = make(model.config.text_config.to_dict()).train()
    twin(ids, pixel_values=pixels(2), labels=ids, dummy_image=True).loss.backward()
    learnt = {name for name, weight in twin.named_parameters() if weight.grad is not None}
    assert all(weight.grad.abs().max() > 0 for name, weight in twin.named_parameters() if "cross_attention" in name)
    twin.zero_grad(set_to_none=True)
    text = row(2, ())
    twin(text, labels=text, dummy_image=True).loss.backward()
    assert {name for name, weight in twin.named_parameters() if weight.grad is not None} == learnt
    assert all(part_of(name) == "cross_attention" for name in learnt if name.startswith("model.cross_attention."))
    twin.eval().save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids, pixel_values=pixels(2)).logits, twin(ids, pixel_values=pixels(2)).logits)


def test_our_layers_may_be_computed_twice_others_not() -> None:
    ids = row(1, (2, 6))
    losses = []
    for checkpointing in (False, True):
        ours = make().train()
        if checkpointing:
            ours.gradient_checkpointing_enable({"use_reentrant": False})
        loss = ours(ids, pixel_values=pixels(2), labels=ids).loss
        loss.backward()
        losses.append((loss.detach(), ours.model.cross_attention["1"].kv_proj.weight.grad))
    torch.testing.assert_close(*losses)
    llama = make(LLAMA).train()
    llama.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ValueError, match="does not go with activation_checkpointing"):
        llama(ids, pixel_values=pixels(2), labels=ids)


def test_its_cost_is_counted() -> None:
    """By hand: matrices that tokens meet, attention to five features, keys and values of an image."""
    with torch.device("meta"):
        crossed, plain = make(opened=False), make(opened=False, coupling="input")
    more, base = model_cost(crossed, 64), model_cost(plain, 64)
    layers, width, inner = 2, 64, 16
    tokens = layers * (6 * (2 * width * inner + 8 * width * width) + 12 * inner * 5)
    assert more.token_flops - base.token_flops == tokens
    assert more.unit_flops["image"] - base.unit_flops["image"] == layers * 6 * 2 * width * inner * 5
    norms = layers * (4 * width + 2)
    assert more.parameters["cross_attention"] == layers * (4 * width * inner + 8 * width * width) + norms


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_image_tokens": 5}, "takes one position an image, num_image_tokens is 5"),
        ({"cross_attention_every": 5}, "cross_attention_every is 5, more than the decoder's layers"),
        ({"coupling": "perceiver"}, "coupling"),
        ({"cross_attention_heads": 0}, "it may be 1 to"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_placeholders_and_images_are_counted() -> None:
    model = make()
    with pytest.raises(ValueError, match="bring 1 images, but input_ids hold 2 placeholders"):
        model(row(1, (2, 6)), pixel_values=pixels(1))
    with pytest.raises(ValueError, match="2 placeholders"):
        model(row(1, (2, 6)))
