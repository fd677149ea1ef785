"""Conversions against Hugging Face's Kosmos-2 and torchscale's golden logits; there and back to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, Kosmos2Config, Kosmos2ForConditionalGeneration

from kosmos import KosmosForConditionalGeneration
from kosmos.cli import main
from kosmos.convert import from_torchscale

GOLDEN = Path(__file__).parents[1] / "fixtures" / "kosmos" / "torchscale" / "subln_xpos"


@pytest.fixture(scope="module", params=[(64, 3, 4, 8), (48, 2, 6, 5)])
def kosmos2(request, tmp_path_factory) -> tuple[Kosmos2ForConditionalGeneration, Path]:
    width, layers, heads, queries = request.param
    torch.manual_seed(layers)
    text = {"vocab_size": 97, "embed_dim": width, "layers": layers, "ffn_dim": 2 * width, "attention_heads": heads}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Kosmos2ForConditionalGeneration(
        Kosmos2Config(
            text_config={**text, "max_position_embeddings": 128},
            vision_config={**vision, "image_size": 28, "patch_size": 14},
            latent_query_num=queries,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("kosmos2") / "theirs"
    model.save_pretrained(folder, max_shard_size="100KB")  # several shards
    assert main(["convert", "--from", "kosmos2", str(folder), str(folder.parent / "ours")]) == 0
    return model, folder


def prompt(model: Kosmos2ForConditionalGeneration) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 97, (2, 25), generator=torch.Generator().manual_seed(0))
    places = torch.zeros_like(ids)
    places[:, 3 : 3 + model.config.latent_query_num] = 1
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
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
        inputs["input_ids"][1, -6:], our_inputs["input_ids"][1, -6:] = 1, 1
        mask = (inputs["input_ids"] != 1).long()
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


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@torch.no_grad()
def test_torchscale_golden(tmp_path) -> None:
    assert main(["convert", "--from", "torchscale", str(GOLDEN), str(tmp_path / "ours")]) == 0
    expected = load_file(GOLDEN / "expected.safetensors")
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
        assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True
        return capsys.readouterr().err

    assert "describes model_type None, expected 'kosmos-2'" in complaint("--from", "kosmos2", str(source))
    assert "is not a folder" in complaint("--from", "kosmos2", str(tmp_path / "nowhere"))
    (source / "config.json").write_text(json.dumps(fields | {"decoder_layers": 4}))
    assert "does not fit" in complaint("--from", "torchscale", str(source))
    (source / "config.json").write_text(json.dumps(fields | {"deepnorm": True}))
    assert "deepnorm=True is not supported" in complaint("--from", "torchscale", str(source))
    (source / "config.json").write_text(json.dumps(fields | {"vocab_size": 98}))
    assert "config.json says 98 tokens of width 64, embed_tokens.weight is (97, 64)" in complaint(
        "--from", "torchscale", str(source)
    )
    assert "not empty" in (
        main(["convert", "--from", "torchscale", str(GOLDEN), str(folder)]) and capsys.readouterr().err
    )


def test_only_kosmos2_architectures_become_kosmos2(build, tmp_path, capsys) -> None:
    build().save_pretrained(tmp_path / "ours")
    assert main(["convert", "--to", "kosmos2", str(tmp_path / "ours"), str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "position_type is 'xpos', Kosmos-2 has 'sinusoidal'" in message
    assert "vision backend is 'open_clip', Kosmos-2 has 'clip'" in message
