"""Class 1 of hostile inputs: checkpoints of every modality, adapters, conversions, runs and trainer state.

``KOSMOS_SEEDS=2000 pytest tests/hostile`` draws as many inputs over the eight classes of this folder together.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

import kosmos
from kosmos import KosmosConfig, KosmosForConditionalGeneration, KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos.audio import AudioReader
from kosmos.cli import call
from kosmos.fused import FusedReader
from kosmos.modalities import MODALITIES
from kosmos.tuning import Tuning, attach, load_adapter, save_adapter
from kosmos.tuning.checks import check_described, check_fit
from kosmos.tuning.methods import attachments
from kosmos.video import VideoReader

SEEDS = int(os.environ.get("KOSMOS_SEEDS", "96")) // 8
KINDS = ("audio", "video", "fused", "entity")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CLIP = {"vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}, "embed_dim": 16}
WHISPER = {"model_type": "whisper", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_source_positions": 50}
WHISPER |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2) | {"vocab_size": 60}
WHISPER |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
EXTRACTOR = {"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 1, "feature_size": 80}
BEIT3 = {**SIZES, "vocab_size": 140, "image_size": 8, "patch_size": 4, "max_source_positions": 40}
ABSURD: list[Any] = [None, 0, -1, 10**9, 10**30, 1.5, float("nan"), "x", "../../secret.png", "https://example.com/x"]
ABSURD += [[], {}, True, [[]], "x" * 5000, "\x1b[2J", "(a+)+$", "os", {"a": 1}, [10**9] * 3]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of every modality with its processor, adapters of it, a Kosmos-2 and a run with trainer state."""
    folder = tmp_path_factory.mktemp("good")
    marks = [mark for kind in KINDS for mark in MODALITIES[kind].marks if mark]
    tokenizer = train_tokenizer(["what is it a dog or a cat"] * 5, 120, extra_tokens=marks)
    readers = {"audio": AudioReader(num_tokens=4, extractor=EXTRACTOR), "video": VideoReader(num_tokens=4)}
    readers["fused"] = FusedReader(num_tokens=4, image_size=8, max_length=20)
    processor = KosmosProcessor(KosmosImageProcessor(32), tokenizer, 4, 128, readers=readers, entities={"user": 5})
    tokens = {
        f"{name}_token_id": processor.token_id(f"<{name}_slot>") for name in ("audio", "video", "fused", "entity")
    }
    torch.manual_seed(0)
    config = KosmosConfig(
        text_config={**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 128, "position_type": "rope"},
        vision_config={"backend": "open_clip", "model_config": CLIP},
        connector_config={"kind": "xconnector", "num_queries": 4, "depth": 1},
        num_image_tokens=4,
        audio_config={"model_config": WHISPER},
        audio_connector_config={"num_queries": 4},
        video_connector_config={"num_queries": 4, "num_frames": 8},
        fused_config=BEIT3,
        fused_connector_config={"num_queries": 4},
        entity_config={"kinds": processor.entity_kinds(), "hidden_size": 16},
        image_token_id=processor.image_slot_id,
        **tokens,
    )
    model = KosmosForConditionalGeneration(config).eval()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    made = {"model": folder / "model"}
    for method in ("lora", "ia3", "prefix", "p_tuning", "adapter"):
        tuned = kosmos.load(folder / "model", "cpu")[0]
        options = {"lora": {"rank": 4}, "prefix": {"tokens": 3}, "p_tuning": {"tokens": 3}}.get(method, {})
        attach(tuned, Tuning(method, **options), str(folder / "model"))
        save_adapter(tuned, folder / method, name=next(iter(attachments(tuned))))
        made[method] = folder / method
    made["kosmos2"] = kosmos2(folder / "kosmos2")
    run = folder / "run"
    shutil.copytree(folder / "model", run / "checkpoints" / "step-000010")
    (run / "checkpoints" / "latest").write_text("step-000010\n")
    state = run / "checkpoints" / "step-000010" / "trainer"
    state.mkdir()
    (state / "state.json").write_text(json.dumps({"format": 1, "step": 10, "adam_step": 10, "world_size": 1}))
    (state / "manifest.json").write_text(json.dumps({"trainer/state.json": (state / "state.json").stat().st_size}))
    (run / "config.yaml").write_text("steps: 10\ndata: {sources: [{name: a, path: b}]}\nmodel: {checkpoint: null}\n")
    (run / "environment.json").write_text(json.dumps([{"commit": "x", "packages": {"torch": "2"}, "data": {}}]))
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    return {**made, "run": run}


def kosmos2(folder: Path) -> Path:
    from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

    vision = {**SIZES, "image_size": 28, "patch_size": 14}
    text = {"vocab_size": 97, "embed_dim": 32, "layers": 2, "attention_heads": 2, "ffn_dim": 64}
    config = Kosmos2Config(
        text_config={**text, "max_position_embeddings": 64}, vision_config=vision, latent_query_num=4
    )
    Kosmos2ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def spoil_json(path: Path, rng: random.Random) -> None:
    """One to three places of a JSON file replaced by something absurd, or a new field of a name that libraries read."""
    body = json.loads(path.read_text())
    for _ in range(rng.randint(1, 3)):
        parts = [body]
        for part in parts:  # grows while it is walked
            inner = part.values() if isinstance(part, dict) else part
            parts += [value for value in inner if isinstance(value, dict | list) and value][:40]
        part = rng.choice(parts[:60])
        if isinstance(part, dict) and rng.random() < 0.2:
            part[rng.choice(LIBRARY_FIELDS)] = deepcopy(rng.choice(ABSURD))  # it may be spoilt in its turn
        elif part:
            place = rng.choice(list(part)) if isinstance(part, dict) else rng.randrange(len(part))
            part[place] = deepcopy(rng.choice(ABSURD))
    path.write_text(json.dumps(body))


LIBRARY_FIELDS = [
    *("auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "checkpoint_path"),
    *("pretrained", "megatron_config", "megatron_core", "loftq_config", "eva_config", "init_lora_weights"),
    *("tokenizer_class", "processor_class", "image_processor_type", "feature_extractor_type", "chat_template"),
    *("modules_to_save", "layers_to_transform", "layer_replication", "rank_pattern", "target_parameters"),
    *("trainable_token_indices", "base_model_name_or_path", "exclude_modules", "bias", "use_qalora"),
]


def spoil(folder: Path, rng: random.Random, spoil_weights: Callable[..., None]) -> str:
    """Spoil one file of a folder; returns which and how."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path, kind = rng.choice(paths), rng.random()
    if kind < 0.1:
        path.unlink()
    elif kind < 0.2:
        path.unlink()
        path.symlink_to(rng.choice([path, "/dev/zero", "/proc/self/environ", "nowhere", ".."]))
    elif path.suffix == ".safetensors":
        spoil_weights(path, rng)
    elif path.name == "latest":
        path.write_bytes(rng.choice([b"", b"../../..", b"/etc", b"\0", b"step-9", b"\xff", b"x" * 10**5]))
    elif path.suffix == ".json" and rng.random() < 0.8:
        spoil_json(path, rng)
    else:
        whole = path.read_bytes()
        bombs = [b"", b"[" * 10**5, b"\xff\xfe", b'"', b"{}", b"[]", b"null", b"1", whole[: len(whole) // 2]]
        bombs += [b"a: &a [" + b"x," * 9 + b"]\n" + b"".join(b"%c: &%c [*%c,*%c,*%c,*%c]\n" % (c, c, *[c - 1] * 4)
                  for c in range(ord("b"), ord("p")))]  # fmt: skip
        bombs += [b"!!python/object/apply:os.system ['touch x']"]
        path.write_bytes(rng.choice(bombs))
    return f"{path.name} {kind:.2f}"


def cli(verb: str, *arguments: object) -> None:
    """A verb of ``kosmos`` as a person types it, its mistakes as exceptions."""
    from kosmos.cli import VERBS

    call(VERBS[verb][0], [str(argument) for argument in arguments], debug=True)


def talk(folder: Path) -> None:
    kosmos.Conversation(folder, max_new_tokens=2, device="cpu").ask("what is it?")


def doors(copy: Path, kind: str, good: dict[str, Path]) -> list[Callable[[], Any]]:
    """What reads a folder of a kind."""
    out = copy.with_name("out")
    if kind == "model":
        return [
            lambda: talk(copy),
            lambda: talk(copy),
            lambda: cli("share", copy, out),
        ]
    if kind == "kosmos2":
        return [lambda: cli("convert", "--from", "kosmos2", copy, out)]
    if kind == "run":
        from kosmos_train.checkpoint import find_latest, read_state

        return [
            lambda: kosmos.load(copy),
            lambda: read_state(find_latest(copy / "checkpoints") or copy),
            lambda: cli("runs", "list", copy),
            lambda: cli("runs", "scores", copy),
            lambda: cli("share", copy, out),
        ]
    model = kosmos.load(good["model"], "cpu")[0]
    return [lambda: load_adapter(model, copy), lambda: cli("merge", copy, "--base", good["model"], "--out", out)]


def test_what_we_write_is_read(good: dict[str, Path]) -> None:
    model = kosmos.load(good["model"], "cpu")[0]
    for method in ("lora", "prefix", "p_tuning", "adapter"):
        assert load_adapter(model, good[method]) == method


@pytest.mark.parametrize("kind", ["model", "run", "kosmos2", "adapters"])
def test_folders(
    kind: str, good: dict[str, Path], tmp_path: Path, use: Callable[..., str], secret: Path, spoil_weights: Any
) -> None:
    refused = 0
    for seed in range(max(1, SEEDS // 4)):
        rng = random.Random(f"{kind} {seed}")
        source = rng.choice(["lora", "ia3", "prefix", "p_tuning", "adapter"]) if kind == "adapters" else kind
        copy = tmp_path / str(seed) / "in"
        shutil.copytree(good[source], copy)
        what = (seed, source, spoil(copy, rng, spoil_weights))
        refused += use(what, rng.choice(doors(copy, source, good))) != "used"
        shutil.rmtree(copy.parent)
    assert refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "megatron_config is set"),
        ({"corda_config": {"covariance_file": "/x"}}, "corda_config is set"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights"),
        ({"target_modules": "(a+)+$"}, "could be matched for ever"),
        ({"rank_pattern": {"(a|b*)*": 4}}, "could be matched for ever"),
        ({"target_modules": [{}]}, "not the names of modules"),
        ({"r": 10**9}, r"r is 1000000000; it may be 1 to 16,384"),
        ({"rank_pattern": {"q": 10**9}}, r"r is 1000000000"),
    ],
)
def test_what_an_adapter_may_not_say(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        check_described(tmp_path, {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], **fields})
    usual = {"peft_type": "LORA", "r": 8, "target_modules": r".*decoder.*\.(q_proj|v_proj)", "init_lora_weights": True}
    check_described(tmp_path, usual)


def test_a_rank_that_the_weights_do_not_have(tmp_path: Path) -> None:
    check_fit(tmp_path, Tuning(rank=4), {4, 32})
    with pytest.raises(ValueError, match="rank is 4096, but its weights have no such side"):
        check_fit(tmp_path, Tuning(rank=4096), {4, 32})
