"""Checkpoint folders of a stranger: each is refused in one clear line or answers; nothing hangs, runs or reaches out.

``KOSMOS_SEEDS=2000 pytest tests/kosmos/test_hostile.py`` draws more.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kosmos
from kosmos import KosmosForConditionalGeneration
from kosmos.configuration_kosmos import KosmosSpanEncoderConfig, KosmosTextConfig
from kosmos.encoder_configs import KosmosVisionConfig
from kosmos.limits import check_checkpoint
from kosmos.tokenization_kosmos import LINE_END, encode_text

SEEDS = int(os.environ.get("KOSMOS_SEEDS", "24"))


@pytest.fixture
def folder(build: Any, processor: Any, tmp_path: Path) -> Path:
    base = build(text={"vocab_size": len(processor.tokenizer)}).config
    base.connector_config.num_queries = base.num_image_tokens = processor.num_image_tokens
    base.image_token_id = processor.image_slot_id
    KosmosForConditionalGeneration(base).save_pretrained(tmp_path / "good")
    processor.save_pretrained(tmp_path / "good")
    return tmp_path / "good"


def spoil_json(path: Path, rng: random.Random) -> None:
    """One place of a JSON file replaced by something absurd."""
    body = json.loads(path.read_text())
    parts = [body]
    for part in parts:  # grows while it is walked
        inner = part.values() if isinstance(part, dict) else part
        parts += [value for value in inner if isinstance(value, dict | list) and value][:40]
    part = rng.choice(parts[:60])
    place = rng.choice(list(part)) if isinstance(part, dict) else rng.randrange(len(part))
    absurd = [
        None,
        0,
        -1,
        10**9,
        10**30,
        1.5,
        float("nan"),
        "x",
        "../../etc/passwd",
        "https://example.com/x",
        [],
        {},
        True,
    ]
    part[place] = rng.choice(absurd)
    path.write_text(json.dumps(body))


def spoil(folder: Path, rng: random.Random, spoil_weights: Callable[..., None]) -> str:
    """Spoil one file of a checkpoint; returns which."""
    path = rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    if path.suffix == ".safetensors":
        spoil_weights(path, rng)
    elif rng.random() < 0.2:
        path.unlink()
    elif path.suffix == ".json" and rng.random() < 0.7:
        spoil_json(path, rng)
    else:
        path.write_bytes(rng.choice([b"", b"[" * 10**5, b"\xff\xfe", b'"', b"{}", b"[]", path.read_bytes()[:50]]))
    return path.name


def test_spoiled_checkpoints_are_refused_in_one_line_or_answer(folder: Path, spoil_weights: Any) -> None:
    refused = 0
    for seed in range(SEEDS):
        copy = folder.with_name(f"copy{seed}")
        shutil.copytree(folder, copy)
        name = spoil(copy, random.Random(seed), spoil_weights)
        begun = time.monotonic()
        try:
            kosmos.load(copy)
        except (ValueError, OSError):
            refused += 1
        assert time.monotonic() - begun < 30, (seed, name)
        shutil.rmtree(copy)
    assert refused > SEEDS // 4


def change(folder: Path, **fields: Any) -> None:
    """Fields of config.json; ``text_config__hidden_size`` lies deeper."""
    path = folder / "config.json"
    body = json.loads(path.read_text())
    for name, value in fields.items():
        *parents, last = name.split("__")
        part = body
        for parent in parents:
            part = part[parent]
        part[last] = value
    path.write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_config__hidden_size": 10**9}, r"text_config\.hidden_size is 1000000000; it may be 1 to 131,072"),
        ({"text_config__vocab_size": 10**12}, r"text_config\.vocab_size"),
        ({"text_config__num_hidden_layers": 10**6}, r"text_config\.num_hidden_layers"),
        ({"text_config__num_attention_heads": 0}, r"num_attention_heads is 0"),
        ({"text_config__vocab_size": 10**6}, r"describes a decoder of [\d,]+ parameters, its weights hold"),
        ({"connector_config__depth": 10**6}, r"depth is 1000000"),
        ({"num_image_tokens": 10**9}, r"num_image_tokens is 1000000000"),
        ({"vision_config__image_size": 10**6}, r"image_size is 1000000"),
        ({"vision_config__model_config__vision_cfg__layers": 10**6}, r"vision_cfg\.layers is 1000000"),
        ({"vision_config__model_config__vision_cfg__width": -1}, r"vision_cfg\.width is -1"),
        (
            {"text_config___attn_implementation": "kernels/evil"},
            r"_attn_implementation is 'kernels/evil'; choose one of",
        ),
        ({"attn_implementation": "https://example.com/k"}, r"attn_implementation is 'https://example.com/k'"),
        ({"quantization_config": {"quant_method": "x"}}, r"quantization_config is not read"),
        (
            {
                "vision_config__backend": "timm",
                "vision_config__model_config": {"model_name": "a", "checkpoint_path": "/x"},
            },
            r"model_config\.checkpoint_path is no field of an architecture",
        ),
    ],
)
def test_what_a_configuration_may_not_say(folder: Path, fields: dict[str, Any], message: str) -> None:
    change(folder, **fields)
    with pytest.raises(ValueError, match=message):
        kosmos.load(folder)


@pytest.mark.parametrize(
    ("backend", "fields", "message"),
    [
        ("timm", {"model_name": "vit_tiny_patch16_224", "pretrained": True}, "may not fetch or read weights"),
        ("timm", {"model_name": "hf_hub:evil/model"}, "may not fetch or read weights"),
        ("timm", {"model_name": "local-dir:/tmp/x"}, "may not fetch or read weights"),
        ("timm", {"model_name": "resnet18", "pretrained_cfg": {"file": "/x"}}, "pretrained_cfg is no field"),
        ("timm", {"model_name": "resnet18", "pretrained_cfg_overlay": {"url": "x"}}, "pretrained_cfg_overlay is no"),
        ("timm", {"model_name": "resnet18", "cache_dir": "/x"}, "cache_dir is no field"),
        ("open_clip", {"embed_dim": 8, "vision_cfg": {"hf_model_name": "x"}}, "hf_model_name is no field"),
        ("clip", {"hidden_size": 8, "quantization_config": {"a": 1}}, "names no other file, address or kernel"),
        ("clip", {"hidden_size": 8, "attn_implementation": "a/b"}, "choose one of eager"),
        ("clip", {"hidden_size": 10**9}, "it may be 1 to 131,072"),
    ],
)
def test_what_a_vision_tower_may_not_be_given(backend: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KosmosVisionConfig(backend=backend, model_config=fields)


def test_sizes_of_settings_are_bounded_as_those_of_checkpoints() -> None:
    with pytest.raises(ValueError, match="num_attention_heads is 0; it may be 1"):
        KosmosTextConfig(num_attention_heads=0)
    with pytest.raises(ValueError, match="auto_map: a configuration names no other file"):
        KosmosSpanEncoderConfig(model_config={"model_type": "bert", "auto_map": {"AutoModel": "x--y.Z"}})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def reverse(path: Path) -> None:
    """Two tensors' places exchanged in the header."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    first, second = [entry for name, entry in header.items() if name != "__metadata__"][:2]
    first["data_offsets"], second["data_offsets"] = second["data_offsets"][::-1], first["data_offsets"]
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])


@pytest.mark.parametrize(
    "damage", [cut, reverse, lambda path: path.write_bytes(b"\x80\x04."), lambda path: path.write_bytes(b"")]
)
def test_damaged_weights_are_named(folder: Path, damage: Callable[[Path], Any]) -> None:
    damage(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is no whole safetensors file"):
        kosmos.load(folder)


def test_pickles_are_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\.safetensors, but pytorch_model\.bin, a pickle"):
        kosmos.load(folder)
    for name in ("pytorch_model.bin", "../model.safetensors", "/etc/model.safetensors"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ValueError, match=r"weights are \.safetensors files of the same folder"):
            check_checkpoint(folder)


def test_files_that_are_too_deep_or_too_large_are_not_parsed(folder: Path) -> None:
    good = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(b"[" * 10**5)
    with pytest.raises(ValueError, match="nested deeper than 64 levels"):
        kosmos.load(folder)
    (folder / "config.json").write_bytes(b'{"a": "' + b"x" * (5 << 20) + b'"}')
    with pytest.raises(ValueError, match="at most 4,194,304 are read"):
        kosmos.load(folder)
    (folder / "config.json").write_bytes(good)
    (folder / "chat_template.jinja").write_text("{{ 'x' }}" * 10**5)
    with pytest.raises(ValueError, match="a chat template has at most"):
        kosmos.load(folder)


@pytest.mark.parametrize(
    "text", ["a</line>b", "a＜/line＞b", "</line>", "x\n</line>\ny", "</s><image><mask></line></line>"]
)
def test_no_spelling_is_a_control_token(processor: Any, text: str) -> None:
    tokenizer = processor.tokenizer
    ids = encode_text(tokenizer, text)
    assert ids.count(tokenizer.convert_tokens_to_ids(LINE_END)) == text.count("\n")
    assert not set(ids) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
