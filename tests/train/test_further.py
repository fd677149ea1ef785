"""Modalities beside images and spans: tokenizer, loader, dry run, ranks without any, a run."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jobs
import pytest
import tiny
import torch
import yaml
from forks import launch
from PIL import Image as Pictures
from test_gradients import largest_error, plain_gradients

from kosmos import settings
from kosmos.cli import main
from kosmos.modalities import MODALITIES
from kosmos.processing_kosmos import load_processor
from kosmos_data import Audio, DataConfig, Document, Fused, SourceConfig, Text, Video, build_loader, write_shards
from kosmos_data.check import check_corpus
from kosmos_data.replay import order
from kosmos_train.config import TrainConfig
from kosmos_train.fragments import create_state

pytest.importorskip("av")

WHISPER = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "max_source_positions": 50, "vocab_size": 60}
WHISPER |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
WHISPER |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
PLACES = {"audio": 3, "video": 2, "fused": 2}
BEIT3 = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}


def publish(folder: Path) -> str:
    """A random Whisper with its feature extractor, in its published layout."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    torch.manual_seed(0)
    WhisperForConditionalGeneration(WhisperConfig(**WHISPER, decoder_start_token_id=1)).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)
    return str(folder)


def moving(seed: int) -> Video:
    """A GIF of two to four frames, one colour each."""
    frames = [Pictures.new("RGB", (20, 16), (10 * number, seed, 99)) for number in range(2 + seed % 3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    return Video(file.getvalue())


def fused(seed: int, broken: bool = False) -> Fused:
    """A picture of one colour, with a text."""
    file = io.BytesIO()
    Pictures.new("RGB", (20, 16), (seed, 99, 10)).save(file, "PNG")
    return Fused(file.getvalue()[: 50 if broken else None], " ".join(tiny.WORDS[:3]))


def documents(wav: Any) -> list[Document]:
    """Of ten documents one with a sound, one with a broken one, one with a video, two with a picture beside a text.

    Of those the picture of every second is broken; the others are text.
    """
    draw = random.Random(0)

    def words() -> Text:
        return Text(" ".join(draw.choices(tiny.WORDS, k=draw.randint(4, 12))))

    found = []
    for index in range(80):
        kinds = {0: [Audio(wav(0.4, 200 + 10 * index)), words()], 5: [Audio(b"no sound")], 7: [moving(index), words()]}
        kinds |= {3: [fused(index), words()], 8: [fused(index, broken=True)]}
        found.append(Document(f"{index:03d}", [*kinds.get(index % 10, []), words()]))
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, wav: Any) -> dict[str, Any]:
    """Settings of a run that hears, over its shards, encoder and processor."""
    root = tmp_path_factory.mktemp("further")
    write_shards(root / "all", documents(wav), max_documents=20)
    whisper = publish(root / "whisper")
    sizes = {"vocab_size": 120, "image_size": 16, "num_image_tokens": 2}
    readers = {"audio": {"encoder": whisper, "num_tokens": PLACES["audio"]}}
    readers["video"] = {"num_tokens": PLACES["video"], "num_frames": 3}
    readers["fused"] = {"num_tokens": PLACES["fused"], "image_size": 16, "max_length": 20}
    (root / "tokenizer.yaml").write_text(yaml.safe_dump({"shards": [str(root / "all")], **sizes, "readers": readers}))
    assert main(["tokenizer", str(root / "tokenizer.yaml"), f"run={root / 'processor'}"]) == 0
    settings_of = {name: tiny.MODEL[name] for name in ("vision_config", "connector_config")}
    (root / "model.json").write_text(json.dumps(tiny.MODEL))
    settings_of["vision_config"] = {**tiny.MODEL["vision_config"], "train_last_blocks": 1}
    overrides = {"text_config": {"dropout": 0.0}, "audio_config": {"train_last_blocks": 1}, **settings_of}
    overrides["video_connector_config"] = {"kind": "xconnector", "num_heads": 2}
    overrides["fused_config"] = {**BEIT3, "max_source_positions": 30, "train_last_blocks": 1}
    return {
        "model": {
            "preset": str(root / "model.json"),
            "vision_weights": "random",
            "encoder_weights": {"audio": whisper, "fused": "random"},
            "overrides": overrides,
        },
        "processor": str(root / "processor"),
        "steps": 2,
        "data": {
            "sources": [{"name": "all", "shards": str(root / "all")}],
            "row_tokens": 64,
            "rows_per_step": 4,
            "rows_per_micro_batch": 2,
        },
        "optim": {"lr": 1e-3, "warmup": 1, "clip": 0.0},
        "guard": {"spike": 0.0},
        "log": {"every": 1},
    }


def loader_settings(world: dict[str, Any]) -> DataConfig:
    return settings.from_dict(DataConfig, world["data"])


def test_loader(world: dict[str, Any], wav: Any, tmp_path: Path) -> None:
    """Sounds come whole and in order, the broken are counted, and the order's hash is of what is heard."""
    processor, config = load_processor(world["processor"]), loader_settings(world)
    batch = next(build_loader(config, processor))
    for micro in batch.micro_batches:
        for name, places in PLACES.items():
            slots = int((micro["input_ids"] == processor.token_id(f"<{name}_slot>")).sum())
            assert slots == places * len(micro.get(MODALITIES[name].inputs[0], ()))
    assert batch.stats["skipped"]["sound or video unreadable"] > 0
    assert batch.stats["skipped"]["image broken"] > 0
    for name in PLACES:
        assert any(MODALITIES[name].count(micro) for micro in batch.micro_batches)
    same = [digest for _, digest in order(config, processor, 2, 1, 1)]
    assert same == [digest for _, digest in order(config, processor, 1, 1, 1)]
    changed = [replace(one, segments=[Audio(wav(0.2)) if isinstance(s, Audio) and s.data[:4] == b"RIFF" else s
                                      for s in one.segments]) for one in documents(wav)]  # fmt: skip
    write_shards(tmp_path / "changed", changed, max_documents=20)
    other = replace(config, sources=[SourceConfig("all", str(tmp_path / "changed"))])
    assert same != [digest for _, digest in order(other, processor, 1, 1, 1)]


def test_looking_at_a_corpus(world: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """``inspect`` says what a sound is, and how it is written; ``check`` decodes it."""
    shards = world["data"]["sources"][0]["shards"]
    assert main(["data", "inspect", shards, "--objective", "causal", "--processor", world["processor"]]) == 0
    printed = capsys.readouterr().out
    for part in (
        "with video: 007",
        "▣ video GIF, 3 frames",
        "with audio: 000",
        "▣ audio pcm_s16le, 0.4 s, 6444 bytes",
        "with fused: 003",
        "▣ fused PNG 20×16, ",
        " ".join(tiny.WORDS[:3]),
        "<audio_slot>",
        "text: 001",
    ):
        assert part in printed
    bad = [report.bad for report in check_corpus(shards)]
    assert sum(tally["sound or video unreadable"] for tally in bad) == sum(tally["image broken"] for tally in bad) == 8
    assert sum(tally.total() for tally in bad) == 16


def test_dry_run(world: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The encoder's parameters and the FLOPs of a sound are counted; weights that are not named are asked for."""
    from kosmos_train.build import build_model
    from kosmos_train.dry_run import plan

    found = plan(settings.from_dict(TrainConfig, world), 1)
    assert found.cost.unit_flops["audio"] > 0
    assert found.cost.unit_flops["video"] > 0
    assert found.cost.unit_flops["fused"] > 0
    assert 0 < found.cost.frozen["audio"] < found.cost.parameters["audio"]
    per_step = found.flops_per_step - found.tokens_per_step * found.cost.token_flops
    assert per_step >= found.cost.unit_flops["audio"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(world))
    assert main(["train", str(tmp_path / "run.yaml"), "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "a sound" in printed
    assert "image with text" in printed
    world = {**world, "model": {**world["model"], "encoder_weights": {"fused": "random"}}}
    described = {"audio_config": {"model_config": {"model_type": "whisper", **WHISPER}}}
    world["model"]["overrides"] = world["model"]["overrides"] | described
    config = settings.from_dict(TrainConfig, world)
    with pytest.raises(ValueError, match=r"model\.encoder_weights\.audio is not set"):
        build_model(config, load_processor(world["processor"]))


def test_a_published_two_stream_model(world: dict[str, Any], tmp_path: Path, wav: Any) -> None:
    """ViLT by its folder: sizes, normalisation, tokenizer and weights, with our decoder and a docked one that hears."""
    from test_docked import publish as publish_llama
    from transformers import BertTokenizerFast, ViltConfig, ViltImageProcessor, ViltModel

    from kosmos_train.build import build_model, build_processor

    folder = tmp_path / "vilt"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tiny.WORDS]
    BertTokenizerFast(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder)
    ViltImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    sizes = {name: BEIT3[name] for name in BEIT3 if name != "patch_size"}
    torch.manual_seed(0)
    vilt = ViltModel(ViltConfig(**sizes, image_size=32, patch_size=8, vocab_size=40, max_position_embeddings=9))
    vilt.save_pretrained(folder)
    readers = {"fused": {"encoder": str(folder), "num_tokens": 2}}
    shards = world["data"]["sources"][0]["shards"]
    given = {"shards": [shards], "vocab_size": 120, "image_size": 16, "num_image_tokens": 2, "readers": readers}
    for name, more in (("own", {"span_tokenizer": str(folder)}), ("shared", {})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(given | more))
        assert main(["tokenizer", str(tmp_path / f"{name}.yaml"), f"run={tmp_path / name}"]) == 0
    overrides = {name: world["model"]["overrides"][name] for name in ("vision_config", "text_config")}
    overrides["fused_connector_config"] = {"num_queries": 2, "num_heads": 2}
    model = {**world["model"], "encoder_weights": {"fused": str(folder)}, "overrides": overrides}
    docked = {"decoder": {"pretrained": publish_llama(tmp_path / "lm", [" ".join(tiny.WORDS)] * 4)}, "preset": None}
    docked["overrides"] = {name: tiny.MODEL[name] for name in ("vision_config", "connector_config")}
    docked["overrides"] |= {
        f"{name}_connector_config": {"num_queries": 2, "num_heads": 2} for name in ("fused", "audio")
    }
    docked["encoder_weights"] = {"fused": str(folder), "audio": world["model"]["encoder_weights"]["audio"]}
    for change in ({"processor": str(tmp_path / "own")}, {"processor": None, "model": {**model, **docked}}):
        config = settings.from_dict(TrainConfig, {**world, "model": model, **change})
        processor = build_processor(config)
        built = build_model(config, processor)
        loaded, published = built.model.fused_encoder.encoder.state_dict(), vilt.state_dict()
        assert all(torch.equal(tensor, published[name]) for name, tensor in loaded.items())
        reader = processor.reader("fused")
        assert (reader.image_size, reader.max_length, reader.image_mean) == (32, 9, [0.1, 0.2, 0.3])
        (placed,) = processor.encode([fused(3)]).placed
        assert placed.payload.ids.tolist() == [2, 5, 6, 7, 3]
        assert built.config.fused_connector_config.num_queries == placed.length == 2
    assert processor.encode([Audio(wav(0.2))]).ids.count(built.config.audio_token_id) == 2
    config = settings.from_dict(TrainConfig, {**world, "model": model, "processor": str(tmp_path / "shared")})
    with pytest.raises(ValueError, match=r"text_embeddings\.word_embeddings\.weight has shape \(40, 16\), the encoder"):
        build_model(config, load_processor(tmp_path / "shared"))


def micro_batch(seed: int, processor: Any, modality: str | None) -> dict[str, torch.Tensor]:
    """Random rows; with a modality each has one input of it."""
    micro = jobs.micro_batch(seed, processor, image=modality == "image")
    if modality in (None, "image"):
        return micro
    draw = torch.Generator().manual_seed(seed)
    inputs = INPUTS[modality](draw)
    begin, slot, end = (processor.token_id(mark) for mark in MODALITIES[modality].marks)
    ids = torch.tensor([begin, *[slot] * PLACES[modality], end])
    micro["input_ids"][:, 1 : 1 + len(ids)] = ids
    micro["loss_weight"][:, : len(ids)], micro["shift_labels"][:, : len(ids)] = 0, -100
    return micro | inputs


def videos(draw: torch.Generator) -> dict[str, torch.Tensor]:
    """A video of three frames and one of two."""
    pixels = torch.randint(0, 256, (2, 3, 3, 16, 16), generator=draw, dtype=torch.uint8)
    return {"video_pixel_values": pixels, "video_frame_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}


def pictures_with_texts(draw: torch.Generator) -> dict[str, torch.Tensor]:
    """A text of five tokens and one of three, each with a picture."""
    ids, valid = torch.randint(4, 60, (2, 5), generator=draw), torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    pixels = torch.randn(2, 3, 16, 16, generator=draw)
    return {"fused_input_ids": ids * valid, "fused_attention_mask": valid, "fused_pixels": pixels}


INPUTS = {
    "audio": lambda draw: {"audio_features": torch.randn(2, 80, 100, generator=draw)},
    "video": videos,
    "fused": pictures_with_texts,
}


# What the first rank has, and the others: text beside each modality, and pictures beside videos, whose tower is one.
SHARES = [*((None, modality) for modality in INPUTS), ("image", "video")]


def gradient_errors(values: dict[str, Any]) -> dict[str, float]:
    """The largest error of a gradient by stage and by what the ranks have, as a share of its norm."""
    from kosmos_train.build import build_model

    errors = {}
    for stage in (0, 2, 3):
        engine = jobs.make_engine(values | {"engine": {"zero_stage": stage}})
        rank, size, processor = engine.world.rank, engine.world.size, jobs.build_processor_of(engine)
        model = build_model(engine.config, processor)
        for held in SHARES:
            shares = [[micro_batch(other, processor, held[min(other, 1)])] for other in range(size)]
            expected = plain_gradients(model, processor, [micro for share in shares for micro in share])
            assert any("connector" in name for name, gradient in expected.items() if gradient.any())
            create_state(engine.deepspeed)
            # at rate 0 the weights stay, so that each case meets the same model
            result = engine.step(SimpleNamespace(micro_batches=shares[rank]), 1, 0.0, {})
            assert result.skipped is None, result.skipped
            errors[f"ZeRO-{stage}, {held}"] = largest_error(engine, expected)
        engine.close()
    return errors


def test_gradients_equal_plain_torch(world: dict[str, Any], tmp_path: Path) -> None:
    """Two ranks that have different things, ZeRO 0, 2 and 3: every gradient to 1e-5."""
    for errors in launch(tmp_path / "j", 2, gradient_errors, world).results():
        assert len(errors) == 3 * len(SHARES)
        assert {case: error for case, error in errors.items() if not error < 1e-5} == {}


def test_a_run_answers_what_it_hears(world: dict[str, Any], tmp_path: Path, wav: Any) -> None:
    """Two steps; its checkpoint is a model that is asked about a sound."""
    from kosmos import Conversation

    assert jobs.run(world, str(tmp_path / "run")) == {"step": 2, "finished": True}
    chat = Conversation(tmp_path / "run", max_new_tokens=3)
    assert isinstance(chat.ask([fused(7), "what is it?"]), str)
    assert isinstance(chat.ask([Audio(wav(0.3)), "what is it?"]), str)
    assert chat.model.config.places_of("audio") == chat.processor.places_of("audio") == PLACES["audio"]
