"""Images with texts, read together: torchscale's BEiT-3, three models of transformers, prompts, chats, checkpoints."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures
from safetensors.torch import load_file

from kosmos import (
    Conversation,
    KosmosConfig,
    KosmosForConditionalGeneration,
    KosmosImageProcessor,
    KosmosProcessor,
    load,
    train_tokenizer,
)
from kosmos.chat import main
from kosmos.cost import model_cost
from kosmos.encoder_configs import KosmosFusedConfig
from kosmos.encoder_weights import load_encoder_weights
from kosmos.fused import FusedEncoder, FusedReader
from kosmos.modalities import MODALITIES
from kosmos.segments import BrokenPicture, Fused, Image, TooLong
from kosmos.terminal import Terminal

GOLDEN = Path(__file__).parents[1] / "fixtures" / "kosmos" / "torchscale" / "beit3"
BEIT3 = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BEIT3 |= {"image_size": 8, "patch_size": 4, "max_source_positions": 12}
PLACES = 4
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {**SIZES, "vocab_size": 120, "max_position_embeddings": 24}
SEEN = {**SIZES, "image_size": 32, "patch_size": 8}
STREAMS: dict[str, dict[str, Any]] = {
    "vilt": {**TEXT, **SEEN},
    "flava": {"text_config": TEXT, "image_config": SEEN, "multimodal_config": SIZES, "hidden_size": 32},
    "bridgetower": {**SIZES, "text_config": TEXT, "vision_config": {**SEEN, "hidden_size": 64}, "hidden_size": 64},
}
STREAMS["bridgetower"]["text_config"] = {**TEXT, "hidden_size": 64}
STREAMS = {kind: {"model_type": kind, **fields} for kind, fields in STREAMS.items()}


def picture(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pictures.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("form", ["safetensors", "published"])
def test_torchscale_golden(form: str, tmp_path: Path) -> None:
    """torchscale's BEiT3 with the same weights, whole and padded texts; also from the file as BEiT-3 is published."""
    file = GOLDEN / "model.safetensors"
    if form == "published":
        state = load_file(file)
        file = tmp_path / "beit3_tiny.pth"
        torch.save({"model": {**state, "mim_head.weight": torch.zeros(3)}}, file)
    encoder, golden = FusedEncoder(KosmosFusedConfig(**BEIT3)), load_file(GOLDEN / "expected.safetensors")
    load_encoder_weights(encoder, file)
    with torch.no_grad():
        whole, everything = encoder(golden["pixel_values"], golden["input_ids"])
        padded, valid_SN = encoder(golden["pixel_values"], golden["input_ids"], golden["valid"].bool())
    assert everything is None
    assert valid_SN.sum(1).tolist() == (5 + golden["valid"].sum(1)).tolist()
    torch.testing.assert_close(whole, golden["whole"], atol=1e-5, rtol=0)
    torch.testing.assert_close(padded[valid_SN], golden["padded"][valid_SN], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="holds more blocks than the encoder, which has 1"):
        load_encoder_weights(FusedEncoder(KosmosFusedConfig(**BEIT3 | {"num_hidden_layers": 1})), file)


def theirs(kind: str) -> Any:
    """A random model of transformers."""
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(1)
    return AutoModel.from_config(CONFIG_MAPPING[kind](**STREAMS[kind])).eval()


@pytest.mark.parametrize("kind", STREAMS)
def test_states_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """Saved as it is published, described by its own config, and read: the same states, of which padding has no say."""
    bare = theirs(kind)
    bare.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    encoder = FusedEncoder(KosmosFusedConfig(model_config=described))
    load_encoder_weights(encoder, tmp_path)
    ids, valid = torch.randint(3, 120, (2, 6)), torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        made = bare(input_ids=ids, attention_mask=valid, pixel_values=pixels)
        states, valid_SN = encoder(pixels, ids, valid.bool())
    assert encoder.width == states.shape[-1]
    assert valid_SN.sum(1).tolist() == [states.shape[1], states.shape[1] - 3]
    if kind == "flava":
        expected = made.multimodal_embeddings
        assert valid_SN[1, -3:].any().item() is False
    else:
        assert valid_SN[1, 3:6].any().item() is False
        expected = made[0] if kind == "vilt" else torch.cat([made.text_features, made.image_features], dim=1)
    if kind == "vilt":  # it draws an order of the patches, which stand behind the text and the class
        torch.testing.assert_close(states[:, :7], expected[:, :7], atol=1e-5, rtol=0)
        distance_SPP = torch.cdist(states[:, 7:].double(), expected[:, 7:].double())
        assert distance_SPP.amin(1).max() < 1e-5
        assert all(sorted(row) == list(range(16)) for row in distance_SPP.argmin(1).tolist())
    else:
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["what animal is it a dog or a cat on the mat"] * 5, 120, MODALITIES["fused"].marks)


def make(tokenizer: Any, config: Any, **described: Any) -> tuple[KosmosForConditionalGeneration, KosmosProcessor]:
    """A model that reads images with texts, of three layers, and its processor."""
    size = 32 if "model_config" in described else 8
    readers = {"fused": FusedReader(num_tokens=PLACES, image_size=size, max_length=10)}
    made = KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, 8, readers=readers)
    torch.manual_seed(0)
    settings = config(
        text={"vocab_size": len(tokenizer)},
        fused_config={"train_last_blocks": 1, **described},
        fused_connector_config={"num_queries": PLACES},
        fused_token_id=made.token_id("<fused_slot>"),
    )
    settings.boi_token_id, settings.image_token_id, *_, settings.eoi_token_id = made.image_token_ids()
    return KosmosForConditionalGeneration(settings).eval(), made


@pytest.fixture(scope="module")
def pair(tokenizer: Any, config_factory: Any) -> tuple[KosmosForConditionalGeneration, KosmosProcessor]:
    return make(tokenizer, config_factory, **BEIT3 | {"vocab_size": len(tokenizer)})


@pytest.fixture(scope="module", params=["beit3", "vilt"])
def either(request: pytest.FixtureRequest, tokenizer: Any, config_factory: Any, pair: Any) -> Any:
    return pair if request.param == "beit3" else make(tokenizer, config_factory, model_config=STREAMS["vilt"])


def encode(processor: KosmosProcessor, *given: Fused) -> dict[str, torch.Tensor]:
    text = ["<fused> what animal is it?"] * len(given)
    return dict(processor(text=text, fused=list(given), return_tensors="pt", padding=True))


def test_the_text_counts_and_so_does_the_picture(either: Any) -> None:
    model, processor = either
    base, other_text, other_picture = (
        encode(processor, Fused(picture(seed), words)) for seed, words in ((0, "a dog"), (0, "the mat"), (1, "a dog"))
    )
    with torch.no_grad():
        logits = [model(**inputs).logits[0, -1] for inputs in (base, other_text, other_picture)]
    assert all((logits[0] - other).abs().max() > 1e-4 for other in logits[1:])


@pytest.mark.parametrize("beams", [1, 2])
def test_a_batch_answers_as_its_rows(either: Any, beams: int) -> None:
    """Texts of different lengths, padded, beside each other."""
    model, processor = either
    given = [Fused(picture(0), "a dog"), Fused(picture(1), "a cat on the mat"), Fused(picture(2), "")]
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    inputs = encode(processor, *given)
    assert len(set(inputs["fused_attention_mask"].sum(1).tolist())) == 3
    both = model.generate(**inputs, **options)
    for row, one in zip(both, given, strict=True):
        assert row.tolist() == model.generate(**encode(processor, one), **options)[0].tolist()


def test_what_learns(either: Any) -> None:
    """Of the encoder the last block, and the connector; a row without an image and text reaches both all the same."""
    model, processor = either
    inputs = encode(processor, Fused(picture(0), "a dog"))
    silent = {"input_ids": torch.randint(4, 60, (1, 8)), "dummy_image": True}
    for given, read in ((inputs, True), (silent, False)):
        model.zero_grad()
        model(**given, labels=given["input_ids"].masked_fill(given["input_ids"] > 90, -100)).loss.backward()
        names = {name: p.grad for name, p in model.named_parameters() if "fused" in name and p.requires_grad}
        assert {name.split(".")[1] for name in names} == {"fused_encoder", "fused_connector"}
        assert all(".1." in name for name in names if "fused_encoder" in name)
        assert all(gradient is not None for gradient in names.values())
        assert any(bool(gradient.any()) for gradient in names.values()) == read


def test_checkpoint_and_cost(either: Any, tmp_path: Path) -> None:
    model, processor = either
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again, reader = load(tmp_path)
    inputs = encode(reader, Fused(picture(0), "a dog"))
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert reader.readers == processor.readers
    cost = model_cost(model, 30)
    assert cost.unit_flops["fused"] > 0
    assert cost.parameters["fused"] == sum(p.numel() for p in model.model.fused_encoder.parameters())
    assert 0 < cost.frozen["fused"] < cost.parameters["fused"]
    assert MODALITIES["fused"].count(inputs) == 1
    bare = {name: tensor for name, tensor in model.state_dict().items() if "fused_encoder" not in name}
    if (
        model.config.fused_config.model_config is None
    ):  # a checkpoint without the encoder: that keeps its initial weights
        new = KosmosForConditionalGeneration.from_pretrained(None, config=model.config, state_dict=bare, strict=False)
        assert all(p.isfinite().all() for p in new.model.fused_encoder.parameters())
        assert new.model.fused_encoder.encoder.encoder.layers[0].ffn.A.fc1.weight.std() > 0


def test_shared_attention(tokenizer: Any, config: Any) -> None:
    """VLMo's attention has one set of projections for both kinds; it is smaller by the other."""
    sizes = BEIT3 | {"vocab_size": len(tokenizer)}
    shared = FusedEncoder(KosmosFusedConfig(**sizes, share_attention=True))
    apart = FusedEncoder(KosmosFusedConfig(**sizes))
    width = BEIT3["hidden_size"]
    saved = BEIT3["num_hidden_layers"] * (4 * (width * width + width) + 2 * width)
    count = [sum(p.numel() for p in encoder.parameters()) for encoder in (apart, shared)]
    assert count[0] - count[1] == saved
    model, processor = make(tokenizer, config, **sizes, share_attention=True)
    assert model(**encode(processor, Fused(picture(0), "a dog"))).logits.isfinite().all()


def test_chat(pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In messages, in a Conversation, in its page and JSON, in the terminal, and in ``kosmos chat``."""
    model, processor = pair
    file = tmp_path / "a dog.png"
    file.write_bytes(picture(0))
    shown = {"type": "fused", "fused": str(file), "words": "a dog"}
    message = {"role": "user", "content": [shown, {"type": "text", "text": "<fused>?"}]}
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template([message], **options)
    assert inputs["fused_pixels"].shape == (1, 3, 8, 8)
    assert (inputs["input_ids"] == processor.token_id("<fused>")).sum() == 1  # what a person typed is text
    for wrong, said in (
        ({"type": "fused", "fused": str(file)}, "a part of the type 'fused' has no 'words'"),
        ({**shown, "words": 3}, "a part of the type 'fused': the words beside an image are text, got 3"),
    ):
        with pytest.raises(ValueError, match=said):
            processor.apply_chat_template([{"role": "user", "content": [wrong]}], **options)

    chat = Conversation(model, processor, max_new_tokens=3)
    answer = chat.ask([Fused(file, "a <dog>"), "what animal is it?"])
    assert "a &lt;dog&gt;" in chat._repr_html_()
    assert "<img" in chat._repr_html_()
    assert json.loads(json.dumps(chat.export()))["messages"][0]["content"][0]["fused"]["words"] == "a <dog>"
    with pytest.raises(FileNotFoundError, match=r"no\.png: no such picture"):
        chat.ask([Fused("no.png", "a dog"), "what?"])

    typed = Terminal(chat.fork())
    typed.take(f"/fused '{file}' a <dog>")
    capsys.readouterr()
    typed.take("what animal is it?")
    assert capsys.readouterr().out.strip() == answer
    with pytest.raises(ValueError, match=r"/fused FILE TEXT: name the picture, then the text"):
        typed.take(f"/fused '{file}'")

    processor.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    asked = ["--ask", "what animal is it?", "--max-new-tokens", "3"]
    assert main([str(tmp_path / "model"), "--fused", str(file), "a <dog>", *asked]) == 0
    assert capsys.readouterr().out.strip() == answer


def test_an_evaluation_tells_them_apart(pair: Any) -> None:
    """The evaluator keeps features by content: the text is part of it."""
    from kosmos_eval.prompts import Prompt
    from kosmos_eval.runner import Runner

    model, processor = pair
    runner = Runner(model, processor)
    keys = {
        runner.stages(Prompt((Fused(picture(seed), words), "what?"), ()))[0].key
        for seed, words in ((0, "a dog"), (0, "a cat"), (1, "a dog"), (0, "a dog"))
    }
    assert len(keys) == 3


def test_wrong_inputs_are_one_line(pair: Any) -> None:
    model, processor = pair
    inputs = encode(processor, Fused(picture(0), "a dog"))
    for changed, message in (
        ({"fused_pixels": torch.zeros(1, 3, 9, 9)}, r"\(1, 3, 9, 9\); the vision tower takes \(images, 3, 8, 8\)"),
        ({"fused_pixels": torch.zeros(2, 3, 8, 8)}, "fused_pixels hold 2 images, fused_input_ids 1 texts"),
        ({"fused_input_ids": torch.full((1, 4), 999)}, "hold id 999, but the fused encoder's vocabulary is"),
        ({"fused_input_ids": torch.zeros(1, 40).long()}, "are 40 long, but the fused encoder reads 10"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs | {"fused_attention_mask": None} | changed)
    with pytest.raises(TooLong, match=r"the text 'a dog a dog.*' has \d+ tokens, its encoder reads 10; shorten it"):
        processor.encode([Fused(picture(0), "a dog " * 9)])
    for data in (b"", b"no picture", picture(0)[:90]):
        with pytest.raises(BrokenPicture, match="the picture of a fused segment cannot be read") as caught:
            processor.encode([Fused(data, "a dog")])
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"a fused is given as Fused\(data, words\)"):
        processor(text="<fused> what?", fused=[picture(0)])
    with pytest.raises(ValueError, match="the text holds 1 <fused> and no fused were given"):
        processor(text="<fused> what?")


def test_configs_that_cannot_be(config: Any) -> None:
    whole = {"fused_config": BEIT3, "fused_token_id": 95}
    assert KosmosConfig(**json.loads(config(**whole).to_json_string())).fused_config.max_text_length == 10
    streams = config(fused_config={"model_config": STREAMS["flava"]}, fused_token_id=95)
    read = KosmosConfig(**json.loads(streams.to_json_string())).fused_config
    assert (read.image_size, read.vocab_size, read.max_text_length) == (32, 120, 24)
    with pytest.raises(ValueError, match="a model that reads fused needs fused_token_id"):
        config(fused_config=BEIT3)
    with pytest.raises(ValueError, match="hidden_size 16 is not a multiple of num_attention_heads 3"):
        config(**whole | {"fused_config": BEIT3 | {"num_attention_heads": 3}})
    with pytest.raises(ValueError, match="image_size 2 holds no patch of 4"):
        config(**whole | {"fused_config": BEIT3 | {"image_size": 2}})
    with pytest.raises(ValueError, match=r"fused_config\.image_size is 99, but its vilt reads 32 pixels a side"):
        config(**whole | {"fused_config": {"model_config": STREAMS["vilt"], "image_size": 99}})
    for described, message in (
        ({"model_type": "whisker"}, "transformers knows no model_type 'whisker'; try 'vilt'"),
        ({"model_type": "bert"}, "a bert does not read an image with a text; try 'vilt'"),
        ({"model_type": "vilt", "quantization_config": {"a": 1}}, "names no other file, address or kernel"),
        ({**STREAMS["flava"], "text_config": {"vocab_size": 1 << 30}}, r"text_config.*vocab_size is 1073741824"),
    ):
        with pytest.raises(ValueError, match=message):
            config(fused_config={"model_config": described}, fused_token_id=95)
    clip = {"model_type": "clip", "text_config": {**TEXT, "bos_token_id": 1, "eos_token_id": 2}, "vision_config": SEEN}
    with pytest.raises(ValueError, match="a clip keeps image and text apart"):
        FusedEncoder(KosmosFusedConfig(model_config=clip))


def test_reader_of_a_published_folder(tmp_path: Path, tokenizer: Any) -> None:
    """Sizes come of config.json, the normalisation of preprocessor_config.json; what is given goes before them."""
    from transformers import BertTokenizer, ViltImageProcessor

    theirs("vilt").save_pretrained(tmp_path)
    ViltImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]).save_pretrained(tmp_path)
    reader = FusedReader.of(tmp_path, num_tokens=3)
    assert (reader.image_size, reader.max_length, reader.num_tokens) == (32, 24, 3)
    assert (reader.image_mean, reader.image_std) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    assert FusedReader.of(tmp_path, max_length=9).max_length == 9
    with pytest.raises(ValueError, match=r"readers\.fused\.max_length is 64, but the fused encoder reads 24 tokens"):
        FusedReader().check(KosmosFusedConfig(model_config=STREAMS["vilt"]))

    words = tmp_path / "vocab.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "[", "sep", "]"]))
    own = BertTokenizer(str(words))
    processor = KosmosProcessor(KosmosImageProcessor(), tokenizer, readers={"fused": reader}, span_tokenizer=own)
    (placed,) = processor.encode([Fused(picture(0), "a dog [SEP]")]).placed
    assert placed.payload.ids.tolist() == [2, 5, 6, 7, 8, 9, 3]  # spelled marks are text
    pixels = reader.image_processor(Pictures.open(io.BytesIO(picture(0))))["pixel_values"][0]
    np.testing.assert_array_equal(placed.payload.pixels, pixels)


def test_images_beside_them(pair: Any) -> None:
    """Segments in any order are written one after the other, each with its own placeholders."""
    model, processor = pair
    pixels = np.zeros((3, 32, 32), dtype=np.uint8)
    encoded = processor.encode([Image(pixels), Fused(picture(0), "a dog"), [50], Image(pixels)])
    assert [one.modality for one in encoded.placed] == ["image", "fused", "image"]
    assert encoded.ids.count(model.config.fused_token_id) == PLACES
