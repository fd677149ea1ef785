"""Conversions against Hugging Face's Kosmos-2 and torchscale's golden logits; there and back to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, Kosmos2Config, Kosmos2ForConditionalGeneration

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.cli import main
from kosmos.convert import from_torchscale
from kosmos.convert_config import hf_kosmos2_fields

FIXTURES = Path(__file__).parents[1] / "fixtures" / "kosmos" / "torchscale"
GOLDEN = FIXTURES / "subln_xpos"
SIZES = {
    "plain": {"embed_dim": 64, "layers": 3, "attention_heads": 4, "ffn_dim": 128, "latent_query_num": 8},
    "odd": {"embed_dim": 30, "layers": 2, "attention_heads": 5, "ffn_dim": 51, "latent_query_num": 3}
    | {"vocab_size": 61, "layer_norm_eps": 1e-3, "activation_function": "relu", "scale_embedding": False}
    | {"pad_token_id": 3, "use_cache": False, "image_size": 21, "patch_size": 7, "hidden_act": "gelu"},
    "untied": {"embed_dim": 48, "layers": 2, "attention_heads": 6, "ffn_dim": 40, "latent_query_num": 5}
    | {"tie_word_embeddings": False},
}


@pytest.fixture(scope="module", params=SIZES)
def kosmos2(request, tmp_path_factory) -> tuple[Kosmos2ForConditionalGeneration, Path]:
    fields = {"vocab_size": 97, "image_size": 28, "patch_size": 14, "hidden_act": "quick_gelu", **SIZES[request.param]}
    torch.manual_seed(fields["layers"])
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {name: fields.pop(name) for name in ("image_size", "patch_size", "hidden_act")}
    config = {"latent_query_num": fields.pop("latent_query_num"), "vision_config": vision}
    config["tie_word_embeddings"] = fields.get("tie_word_embeddings", True)
    config["text_config"] = {**fields, "max_position_embeddings": 128}
    model = Kosmos2ForConditionalGeneration(Kosmos2Config(**config)).eval()
    model.set_attn_implementation("eager")  # by sdpa 5.16 to 5.20 hide later image features from a query
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("kosmos2") / "theirs"
    model.save_pretrained(folder, max_shard_size="100KB")  # several shards
    assert main(["convert", "--from", "kosmos2", str(folder), str(folder.parent / "ours")]) == 0
    return model, folder


def prompt(model: Kosmos2ForConditionalGeneration) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, model.config.text_config.vocab_size, (2, 25), generator=torch.Generator().manual_seed(0))
    places = torch.zeros_like(ids)
    places[:, 3 : 3 + model.config.latent_query_num] = 1
    size = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "image_embeds_position_mask": places, "pixel_values": pixels}


def ours(
    folder: Path, theirs: dict[str, torch.Tensor]
) -> tuple[KosmosForConditionalGeneration, dict[str, torch.Tensor]]:
    model = AutoModelForImageTextToText.from_pretrained(folder.parent / "ours")
    places = theirs["image_embeds_position_mask"].bool()
    ids = theirs["input_ids"].masked_fill(places, model.config.image_token_id)
    return model, {"input_ids": ids, "pixel_values": theirs["pixel_values"]}


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_logits_equal_hugging_face(kosmos2, padded: bool) -> None:
    theirs, folder = kosmos2
    inputs = prompt(theirs)
    model, our_inputs = ours(folder, inputs)
    if padded:
        pad = theirs.config.text_config.pad_token_id
        inputs["input_ids"][1, -6:], our_inputs["input_ids"][1, -6:] = pad, pad
        mask = (inputs["input_ids"] != pad).long()
        inputs["attention_mask"], our_inputs["attention_mask"] = mask, mask
    torch.testing.assert_close(model(**our_inputs).logits, theirs(**inputs).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_generation_equals_hugging_face(kosmos2) -> None:
    theirs, folder = kosmos2
    inputs = prompt(theirs)
    model, our_inputs = ours(folder, inputs)
    expected = theirs.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert torch.equal(model.generate(**our_inputs, max_new_tokens=12, do_sample=False)[:, 25:], expected[:, 25:])


def test_there_and_back_is_equal_to_the_bit(kosmos2) -> None:
    _, folder = kosmos2
    back = folder.parent / "back"
    shutil.rmtree(back, ignore_errors=True)
    assert main(["convert", "--to", "kosmos2", str(folder.parent / "ours"), str(back)]) == 0
    before, after = read(folder), read(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert json.loads((back / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    Kosmos2ForConditionalGeneration.from_pretrained(back)
    cards = [(path / "README.md").read_text() for path in (folder.parent / "ours", back)]
    assert "Made from `theirs`." in cards[0]
    assert "A KOSMOS-1 / MetaLM model of " in cards[0]
    assert "A KOSMOS-2 model of " in cards[1]


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_an_output_matrix_on_disk_stays_there(kosmos2, tmp_path, capsys) -> None:
    """Some checkpoints hold the tied matrix twice; two different ones are no tied model."""
    theirs, folder = kosmos2
    source = tmp_path / "theirs"
    source.mkdir()
    shutil.copy(folder / "config.json", source)
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    save_file(state, source / "model.safetensors")
    assert main(["convert", "--from", "kosmos2", str(source), str(tmp_path / "ours")]) == 0
    assert main(["convert", "--to", "kosmos2", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    back = read(tmp_path / "back")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    loaded = KosmosForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded.lm_head.weight, state["text_model.lm_head.weight"])
    if theirs.config.tie_word_embeddings:
        save_file(
            state | {"text_model.lm_head.weight": state["text_model.lm_head.weight"] + 1}, source / "model.safetensors"
        )
        assert main(["convert", "--from", "kosmos2", str(source), str(tmp_path / "other")]) == 2
        assert "lm_head.weight differs from model.decoder.embed_tokens.weight" in capsys.readouterr().err
        assert not (tmp_path / "other").exists()


@torch.no_grad()
@pytest.mark.parametrize("name", ["subln_xpos", "untied_swish"])
def test_torchscale_golden(tmp_path, name: str) -> None:
    assert main(["convert", "--from", "torchscale", str(FIXTURES / name), str(tmp_path / "ours")]) == 0
    expected = load_file(FIXTURES / name / "expected.safetensors")
    model = KosmosForConditionalGeneration.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(model(input_ids=expected["input_ids"]).logits, expected["logits"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_torchscale_with_its_own_output_matrix(tmp_path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    fields = json.loads((GOLDEN / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(fields | {"share_decoder_input_output_embed": False}))
    state = load_file(GOLDEN / "decoder.safetensors")
    save_file(state | {"output_projection.weight": 2 * state["embed_tokens.weight"]}, source / "decoder.safetensors")
    from_torchscale(source, tmp_path / "ours")
    expected = load_file(GOLDEN / "expected.safetensors")
    model = KosmosForConditionalGeneration.from_pretrained(tmp_path / "ours")
    logits = model(input_ids=expected["input_ids"]).logits
    torch.testing.assert_close(logits, 2 * expected["logits"], atol=2e-5, rtol=0)


def test_bad_sources_are_refused(tmp_path, kosmos2, capsys) -> None:
    _, folder = kosmos2
    source = tmp_path / "source"
    shutil.copytree(GOLDEN, source)
    fields = json.loads((source / "config.json").read_text())

    def complaint(*argv: str) -> str:
        assert main(["convert", *argv, str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "describes model_type None, expected 'kosmos-2'" in complaint("--from", "kosmos2", str(source))
    assert "is not a folder" in complaint("--from", "kosmos2", str(tmp_path / "nowhere"))
    (source / "config.json").write_text(json.dumps(fields | {"decoder_layers": 4}))
    assert "does not fit" in complaint("--from", "torchscale", str(source))
    state = load_file(source / "decoder.safetensors")
    for name in ("deepnorm", "layernorm_embedding", "multiway", "no_output_layer"):
        (source / "config.json").write_text(json.dumps(fields | {name: True}))
        assert f"{name}=True is not supported" in complaint("--from", "torchscale", str(source))
    for name in ("subln", "xpos_rel_pos"):
        (source / "config.json").write_text(json.dumps(fields | {name: False}))
        assert f"'{name}': False" in complaint("--from", "torchscale", str(source))
    (source / "config.json").write_text(json.dumps(fields | {"share_decoder_input_output_embed": False}))
    save_file({n: t for n, t in state.items() if n != "output_projection.weight"}, source / "decoder.safetensors")
    assert "1 tensors missing ['lm_head.weight']" in complaint("--from", "torchscale", str(source))
    (source / "config.json").write_text("{")
    assert "config.json is not JSON" in complaint("--from", "torchscale", str(source))
    (source / "config.json").write_text(json.dumps(fields | {"vocab_size": 98}))
    assert "config.json says 98 tokens of width 64, embed_tokens.weight is (97, 64)" in complaint(
        "--from", "torchscale", str(source)
    )
    assert "not empty" in (
        main(["convert", "--from", "torchscale", str(GOLDEN), str(folder)]) and capsys.readouterr().err
    )


@pytest.mark.parametrize("kosmos2", ["plain"], indirect=True)
def test_kosmos2_files_that_do_not_fit(kosmos2, tmp_path, capsys) -> None:
    _, folder = kosmos2
    whole = read(folder)

    def complaint(state: dict[str, torch.Tensor], file: str = "model.safetensors") -> str:
        source = tmp_path / "source"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        shutil.copy(folder / "config.json", source)
        save_file(state, source / file)
        assert main(["convert", "--from", "kosmos2", str(source), str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    name = "text_model.model.layers.1.ffn.fc1.weight"
    assert "1 tensors missing ['model.decoder.layers.1.ffn.fc1.weight'], 0 left over" in complaint(
        {n: t for n, t in whole.items() if n != name}
    )
    extra = complaint(whole | {"text_model.model.layers.3.ffn.fc1.weight": whole[name].clone()})
    assert "0 tensors missing [], 1 left over ['model.decoder.layers.3.ffn.fc1.weight']" in extra
    assert "tensor 'audio.weight' is none of Kosmos-2's" in complaint(whole | {"audio.weight": torch.ones(1)})
    assert "fc1.weight: (128, 63) against (128, 64)" in complaint(whole | {name: whole[name][:, 1:].contiguous()})
    assert "holds no model.safetensors (pickles are not read" in complaint(whole, "pytorch_model.bin")
    (tmp_path / "source" / "model.safetensors").write_bytes(b"not tensors")
    assert main(["convert", "--from", "kosmos2", str(tmp_path / "source"), str(tmp_path / "out")]) == 2
    assert "is not a readable safetensors file" in capsys.readouterr().err


def test_only_kosmos2_architectures_become_kosmos2(build, tmp_path, capsys) -> None:
    build().save_pretrained(tmp_path / "ours")
    assert main(["convert", "--to", "kosmos2", str(tmp_path / "ours"), str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "position_type is 'xpos', Kosmos-2 has 'sinusoidal'" in message
    assert "vision backend is 'open_clip', Kosmos-2 has 'clip'" in message


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("span", {"span_encoder_config": {"model_config": {"model_type": "bert"}}, "span_token_id": 65}),
        ("entity", {"entity_config": {"kinds": {"user": 3}}, "entity_token_id": 66}),
        ("video", {"video_connector_config": {}, "video_token_id": 67}),
    ],
)
def test_no_encoder_is_left_out_in_silence(name: str, fields: dict) -> None:
    """Kosmos-2 reads images: a model that reads more is not written as one."""
    config = KosmosConfig.preset("kosmos-2", **fields)
    with pytest.raises(ValueError, match=f"{name} encoder is True, Kosmos-2 has False"):
        hf_kosmos2_fields(config)
