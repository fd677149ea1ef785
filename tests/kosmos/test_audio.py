"""Sounds: decoding and its limits, three audio encoders of transformers, prompts, chats, checkpoints."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kosmos import (
    Conversation,
    KosmosConfig,
    KosmosForConditionalGeneration,
    KosmosImageProcessor,
    KosmosProcessor,
    load,
    train_tokenizer,
)
from kosmos.audio import AudioReader
from kosmos.chat import main
from kosmos.media import describe, file_bytes, read_sound
from kosmos.segments import Audio, Image, Text, Unreadable

pytest.importorskip("av")

PLACES = 4
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
WHISPER = {"model_type": "whisper", "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "max_source_positions": 50}
WHISPER |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
WHISPER |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 0}
WHISPER |= {"eos_token_id": 1, "decoder_start_token_id": 1}
WAV2VEC = {"model_type": "wav2vec2", **SIZES, "conv_dim": [16, 16], "conv_kernel": [10, 8], "conv_stride": [10, 8]}
WAV2VEC |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
AST = {"model_type": "audio-spectrogram-transformer", **SIZES, "max_length": 100, "num_mel_bins": 32}
ENCODERS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {  # config, extractor, reader
    "whisper": (
        {"model_config": WHISPER},
        {"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 1, "feature_size": 80},
        {},
    ),
    "ast": (
        {"model_config": AST},
        {"feature_extractor_type": "ASTFeatureExtractor", "max_length": 100, "num_mel_bins": 32},
        {},
    ),
    "wav2vec2": (
        {"model_config": WAV2VEC, "input_shape": [16000]},
        {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": False},
        {"seconds": 1.0},
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["what animal is it a dog or a cat"] * 5, 120, ["<audio>", "<audio_slot>", "</audio>"])


def make(tokenizer: Any, config: Any, kind: str = "whisper") -> tuple[KosmosForConditionalGeneration, KosmosProcessor]:
    """A model that hears, of three layers, and its processor."""
    encoder, extractor, reader = ENCODERS[kind]
    readers = {"audio": AudioReader(num_tokens=PLACES, extractor=extractor, **reader)}
    made = KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, 8, readers=readers)
    torch.manual_seed(0)
    settings = config(
        text={"vocab_size": len(tokenizer)},
        audio_config={**encoder, "train_last_blocks": 1},
        audio_connector_config={"num_queries": PLACES},
        audio_token_id=made.token_id("<audio_slot>"),
    )
    settings.boi_token_id, settings.image_token_id, *_, settings.eoi_token_id = made.image_token_ids()
    return KosmosForConditionalGeneration(settings).eval(), made


@pytest.fixture(scope="module")
def pair(tokenizer: Any, config_factory: Any) -> tuple[KosmosForConditionalGeneration, KosmosProcessor]:
    return make(tokenizer, config_factory)


def encode(processor: KosmosProcessor, *sounds: bytes) -> dict[str, torch.Tensor]:
    """One row for each sound, with a question behind it."""
    text = ["<audio> what animal is it?"] * len(sounds)
    return dict(processor(text=text, audio=list(sounds), return_tensors="pt", padding=True))


@pytest.mark.parametrize("kind", ENCODERS)
def test_features_are_those_of_the_encoder_alone(kind: str, tokenizer: Any, config, wav) -> None:
    """transformers' own feature extractor and encoder, then our connector, in the places of the sound."""
    import transformers
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model, processor = make(tokenizer, config, kind)
    encoder, extractor, _ = ENCODERS[kind]
    sound = wav(0.6, 300.0, 16000)
    samples = np.frombuffer(sound[44:], "<i2").astype("f4") / 2**15
    np.testing.assert_allclose(read_sound(sound, 16000, 1.0), samples, atol=1e-6)
    theirs = getattr(transformers, extractor["feature_extractor_type"])(
        **{name: value for name, value in extractor.items() if name != "feature_extractor_type"}
    )
    if kind == "wav2vec2":
        samples = np.pad(samples, (0, 16000 - len(samples)))  # its window is whatever it is given
    read = torch.from_numpy(theirs(samples, sampling_rate=16000, return_tensors="np")[theirs.model_input_names[0]])
    inputs = encode(processor, sound)
    torch.testing.assert_close(inputs["audio_features"], read, atol=2e-4, rtol=1e-4)  # WAV's 16 bits

    fields = {name: value for name, value in encoder["model_config"].items() if name != "model_type"}
    bare = AutoModel.from_config(CONFIG_MAPPING[encoder["model_config"]["model_type"]](**fields)).eval()
    bare = bare.get_encoder() if kind == "whisper" else bare
    bare.load_state_dict(model.model.audio_encoder.encoder.state_dict())
    with torch.no_grad():
        features = model.model.audio_connector(bare(inputs["audio_features"]).last_hidden_state)
        embeds = model.get_input_embeddings()(inputs["input_ids"]).clone()
        embeds[inputs["input_ids"] == model.config.audio_token_id] = features[0]
        expected = model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits
        torch.testing.assert_close(model(**inputs).logits, expected)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_batch_answers_as_its_rows(pair: Any, wav, beams: int) -> None:
    model, processor = pair
    sounds = [wav(0.3), wav(0.9, 700.0)]
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    both = model.generate(**encode(processor, *sounds), **options)
    for row, sound in zip(both, sounds, strict=True):
        assert row.tolist() == model.generate(**encode(processor, sound), **options)[0].tolist()


def test_what_learns(pair: Any, wav) -> None:
    """Of the encoder the last block, and the connector; a row without a sound reaches both all the same."""
    model, processor = pair
    inputs = encode(processor, wav(0.5))
    silent = {"input_ids": torch.randint(4, 60, (1, 8)), "dummy_image": True}
    for given, heard in ((inputs, True), (silent, False)):
        model.zero_grad()
        model(**given, labels=given["input_ids"].masked_fill(given["input_ids"] > 90, -100)).loss.backward()
        names = {name: p.grad for name, p in model.named_parameters() if "audio" in name and p.requires_grad}
        assert {name.split(".")[1] for name in names} == {"audio_encoder", "audio_connector"}
        assert all("layers.1." in name for name in names if "audio_encoder" in name)
        assert all(gradient is not None and bool(gradient.any()) == heard for gradient in names.values())


def test_checkpoint(pair: Any, wav, tmp_path: Path) -> None:
    """Saved and loaded, model and processor give the same; the encoder's own folder gives weights and extractor."""
    model, processor = pair
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again, reader = load(tmp_path)
    inputs = encode(reader, wav(0.5))
    assert torch.equal(inputs["audio_features"], encode(processor, wav(0.5))["audio_features"])
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert reader.readers == processor.readers

    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    fields = {name: value for name, value in WHISPER.items() if name != "model_type"}
    published = WhisperForConditionalGeneration(WhisperConfig(**fields))
    published.save_pretrained(tmp_path / "whisper")
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(tmp_path / "whisper")
    again.load_weights("audio", tmp_path / "whisper")
    ours, theirs = again.model.audio_encoder.encoder.state_dict(), published.model.encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    own = AudioReader.of(tmp_path / "whisper", num_tokens=PLACES)
    assert np.array_equal(own.features(wav(0.5)), inputs["audio_features"][0].numpy())


def test_chat(pair: Any, wav, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sounds in messages, in a Conversation, in its page and JSON, and in ``kosmos chat``."""
    model, processor = pair
    file = tmp_path / "a dog.wav"
    file.write_bytes(wav(0.5))
    message = {"role": "user", "content": [{"type": "audio", "audio": str(file)}, {"type": "text", "text": "<audio>?"}]}
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template([message], **options)
    assert inputs["audio_features"].shape == (1, 80, 100)
    assert (inputs["input_ids"] == processor.token_id("<audio>")).sum() == 1  # what a person typed is text
    both = processor.apply_chat_template([[message], [message]], **options, processor_kwargs={"padding": True})
    assert both["audio_features"].shape == (2, 80, 100)

    chat = Conversation(model, processor, max_new_tokens=3)
    answer = chat.ask([Audio(file), "what animal is it?"])
    assert answer == chat.fork().ask("what animal is it?", images=[Audio(wav(0.5))])
    chat.save(tmp_path / "chat.html")
    assert "<audio controls src=" in (tmp_path / "chat.html").read_text()
    assert json.loads(json.dumps(chat.export()))["messages"][0]["content"][0]["type"] == "audio"
    with pytest.raises(FileNotFoundError, match=r"no\.ogg: no such audio"):
        chat.ask([Audio("no.ogg"), "what?"])

    processor.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    asked = ["--ask", "what animal is it?", "--max-new-tokens", "3"]
    assert main([str(tmp_path / "model"), "--audio", str(file), *asked]) == 0
    assert capsys.readouterr().out.strip() == answer


def test_deaf_models_say_so(build, processor) -> None:
    with pytest.raises(ValueError, match="audio was given, but this model has no encoder of it"):
        Conversation(build(), processor).ask([Audio(b"RIFF"), "what?"])
    with pytest.raises(ValueError, match="this processor reads no audio"):
        processor.encode([Audio(b"RIFF")])
    assert processor(text="what is <audio>?")["input_ids"]  # no mark of this tokenizer
    with pytest.raises(ValueError, match=r"readers\.video2: there are readers of audio, video"):
        KosmosProcessor(KosmosImageProcessor(), processor.tokenizer, readers={"video2": {}})
    with pytest.raises(ValueError, match=r"readers\.audio has the fields encoder, num_tokens, extractor, seconds; got"):
        KosmosProcessor(KosmosImageProcessor(), processor.tokenizer, readers={"audio": {"nu": 1}})


def test_wrong_numbers(pair: Any, wav) -> None:
    model, processor = pair
    with pytest.raises(ValueError, match="the text holds 1 <audio> and no audio were given"):
        processor(text="<audio> what?")
    with pytest.raises(ValueError, match="the text holds 0 <audio> and 1 audio were given"):
        processor(text="what?", audio=wav(0.1))
    inputs = encode(processor, wav(0.1))
    with pytest.raises(ValueError, match=r"audio_features have shape \(1, 80, 99\); the audio encoder takes \(sounds"):
        model(inputs["input_ids"], audio_features=inputs["audio_features"][..., :99])
    with pytest.raises(ValueError, match="but no audio_features were given to fill them"):
        model(inputs["input_ids"])


def hours(count: float) -> bytes:
    """A WAV of so many hours of silence, 1,000 samples of 8 bits a second."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 1, 1000, 0, "NONE", ""))
        writer.writeframes(b"\x80" * round(count * 3_600_000))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the sound cannot be decoded: Invalid data found"),
        (b"no sound at all " * 100, "the sound cannot be decoded: Invalid data found"),
        (b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\n/etc/hostname\n", "the sound cannot be decoded"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "the sound cannot be decoded: Invalid argument"),
        (hours(0), "the sound has no sample"),
        (hours(10), "the sound is longer than the 30 s that the encoder reads; cut it"),
    ],
    ids=["empty", "text", "playlist", "script", "no sample", "ten hours"],
)
def test_unreadable_sounds_are_one_line(data: bytes, message: str) -> None:
    with pytest.raises(Unreadable, match=message) as caught:
        read_sound(data, 16000, 30.0)
    assert "\n" not in str(caught.value)


def test_sounds_of_other_makes(wav) -> None:
    """Two channels, 24 bits and another rate become one channel of the rate asked for; broken ends are told."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((2, 3, 44100, 0, "NONE", ""))
        writer.writeframes(b"\x00\x00\x40\x00\x00\x40" * 44100)  # half of the range in both
    sound = read_sound(file.getvalue(), 16000, 2.0)
    assert abs(len(sound) - 16000) < 32
    assert abs(float(sound[4000:8000].mean()) - 0.5) < 1e-3
    assert describe(wav(1.5)) == "pcm_s16le, 1.5 s"
    assert describe(b"?").startswith("the file cannot be decoded")
    with pytest.raises(FileNotFoundError, match="/dev/zero: no such sound"):
        file_bytes("/dev/zero", "sound")


def test_configs_that_cannot_be(config) -> None:
    whole = {"audio_config": {"model_config": WHISPER}, "audio_token_id": 95}
    assert KosmosConfig(**json.loads(config(**whole).to_json_string())).audio_config.input_shape == [80, 100]
    with pytest.raises(ValueError, match="a model that reads audio needs audio_token_id"):
        config(audio_config={"model_config": WHISPER})
    with pytest.raises(ValueError, match="image_token_id and audio_token_id are both 100"):
        config(**{**whole, "audio_token_id": 100})
    with pytest.raises(ValueError, match=r"audio_connector_config\.kind is 'linear'.* choose xconnector or resampler"):
        config(**whole, audio_connector_config={"kind": "linear"})
    with pytest.raises(ValueError, match=r"audio_config\.input_shape is needed for a wav2vec2"):
        config(audio_config={"model_config": WAV2VEC}, audio_token_id=95)
    unknown = config(audio_config={"model_config": {"model_type": "whisker"}, "input_shape": [9]}, audio_token_id=95)
    with pytest.raises(ValueError, match="transformers knows no model_type 'whisker'; try 'whisper'"):
        KosmosForConditionalGeneration(unknown)
    with pytest.raises(ValueError, match=r"no feature extractor of sounds 'os\.system'"):
        AudioReader(extractor={"feature_extractor_type": "os.system"}).features(hours(0.001))


def test_images_and_sounds_together(pair: Any, wav) -> None:
    """Segments in any order are written one after the other, each with its own placeholders."""
    model, processor = pair
    pixels = np.zeros((3, 32, 32), dtype=np.uint8)
    encoded = processor.encode([Audio(wav(0.1)), Text("or"), Image(pixels), Audio(wav(0.2))])
    assert [one.modality for one in encoded.placed] == ["audio", "image", "audio"]
    assert encoded.ids.count(model.config.audio_token_id) == 2 * PLACES
