"""What a user gets wrong is answered by a ValueError that names both sides."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kosmos import KosmosConfig, KosmosForConditionalGeneration


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (
            torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
            r"pixel_values are torch.uint8; the model takes normalised floats",
        ),
        (torch.zeros(2, 3, 64, 64), r"shape \(2, 3, 64, 64\); the vision tower takes \(images, 3, 32, 32\)"),
        (torch.zeros(2, 1, 32, 32), r"shape \(2, 1, 32, 32\)"),
        (torch.zeros(3, 32, 32), r"shape \(3, 32, 32\)"),
        (torch.zeros(3, 3, 32, 32), r"3 images of 8 features, that is 24 features, but input_ids hold 16 placeholders"),
    ],
)
def test_pixels(build, ids, pixels: torch.Tensor, message: str) -> None:
    ids[:, 2:10] = 100
    with pytest.raises(ValueError, match=message):
        build()(input_ids=ids, pixel_values=pixels)


def test_placeholders_without_images(build, ids) -> None:
    ids[:, 2:10] = 100
    with pytest.raises(ValueError, match=r"16 placeholders \(id 100\), but no pixel_values were given"):
        build()(input_ids=ids)
    ids[:, 2:10] = 101
    with pytest.raises(ValueError, match=r"16 placeholders \(id 101\), but no span_input_ids were given"):
        build(spans=True)(input_ids=ids)


@pytest.mark.parametrize("name", ["labels", "shift_labels", "document_ids", "block_ids"])
def test_shapes_that_differ(build, ids, name: str) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 29\), the inputs \(2, 30\)"):
        build(images=False, position="rope")(input_ids=ids, **{name: ids[:, :29]})


def test_inputs_for_missing_encoders(build, ids) -> None:
    with pytest.raises(ValueError, match="the model has no vision_config"):
        build(images=False)(input_ids=ids, pixel_values=torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="the model has no span_encoder_config"):
        build()(input_ids=ids, span_input_ids=torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        build()()


@pytest.mark.parametrize("wrong", [97, 99, -1])
def test_ids_outside_the_vocabulary(build, ids, wrong: int) -> None:
    ids[1, 3] = wrong
    with pytest.raises(ValueError, match=rf"input_ids hold {wrong}, but the vocabulary is 97"):
        build()(input_ids=ids)


def test_spans_too_long_or_outside_the_vocabulary(build, ids) -> None:
    model = build(spans=True)
    ids[0, :3] = 101
    with pytest.raises(ValueError, match="id 50, but the span encoder's vocabulary is 50"):
        model(input_ids=ids, span_input_ids=torch.full((1, 4), 50))
    with pytest.raises(ValueError, match="600 long, but the span encoder reads 512"):
        model(input_ids=ids, span_input_ids=torch.zeros(1, 600, dtype=torch.long))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"text_config": {"hidden_size": 66, "num_attention_heads": 4}},
            "66 is not a multiple of num_attention_heads 4",
        ),
        ({"text_config": {"hidden_size": 12, "num_attention_heads": 4}}, "head width 3 must be even"),
        ({"text_config": {"position_type": "alibi"}}, "expected one of .*'learned_2d'.*, got alibi"),
        ({"text_config": {"vocab_size": "many"}}, "expected int, got str"),
        ({"text_config": {"blockwise_causal_length": 7}}, "7 must be even"),
        ({"vision_config": {"backend": "timm"}}, "backend 'timm' needs a model_config"),
        (
            {"vision_config": {"model_config": {"embed_dim": 8, "vision_cfg": {"image_size": 32}}, "image_size": 64}},
            "image_size is 64, but its model_config says 32",
        ),
        ({"vision_config": {}, "image_token_id": None}, "needs image_token_id"),
        ({"image_token_id": 5, "span_token_id": 5}, "are both 5"),
    ],
)
def test_configs(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KosmosConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"text_config": {"hidden_sise": 64}},
            "KosmosTextConfig has no field 'hidden_sise'; did you mean 'hidden_size'",
        ),
        (
            {"connector_config": {"queries": 8}},
            "KosmosConnectorConfig has no field 'queries'; did you mean 'num_queries'",
        ),
        ({"visions": None}, "KosmosConfig has no field 'visions'; did you mean 'vision_config'"),
        (
            {"layers": 3},
            "KosmosConfig has no field 'layers'; there are: audio_config, audio_connector_config, audio_token_id, "
            "boi_token_id, connector_config",
        ),
    ],
)
def test_mistyped_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KosmosConfig(**fields)


def test_fields_of_transformers_and_of_later_versions_pass(config, tmp_path, caplog) -> None:
    extra = {"torch_dtype": "float32", "auto_map": {"AutoConfig": "a.B"}, "quantization_config": None, "top_k": 5}
    assert KosmosConfig(**extra, _name_or_path="x").dtype == torch.float32
    made = config()
    made.save_pretrained(tmp_path)
    assert KosmosConfig.from_pretrained(tmp_path).to_dict() == made.to_dict()
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["text_config"]["sliding_window"] = 7
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with caplog.at_level("WARNING", "kosmos"):
        assert KosmosConfig.from_pretrained(tmp_path).text_config.hidden_size == 64
    assert "unknown to this version, not used: ['sliding_window']" in caplog.text


def test_towers(config) -> None:
    with pytest.raises(ValueError, match="train_last_blocks is 3, but the encoder has 2 blocks"):
        KosmosForConditionalGeneration(config(vision={"train_last_blocks": 3}))
    with pytest.raises(ValueError, match="lacks 'vision_cfg'"):
        KosmosForConditionalGeneration(config(vision={"model_config": {"embed_dim": 3}, "image_size": 32}))


def test_checkpoints_that_do_not_fit(build, tmp_path) -> None:
    build(images=False).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    moved = {("other.weight" if name == "model.decoder.layer_norm.weight" else name): t for name, t in state.items()}
    save_file(moved, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"misses 1 tensors \['model.decoder.layer_norm.weight'\].*\['other.weight'\]"):
        KosmosForConditionalGeneration.from_pretrained(tmp_path)
    KosmosForConditionalGeneration.from_pretrained(tmp_path, strict=False)
    state["model.decoder.layer_norm.weight"] = torch.ones(65)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"layer_norm.weight.*65.*64"):
        KosmosForConditionalGeneration.from_pretrained(tmp_path)
