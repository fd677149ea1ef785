"""Every YAML under train/configs loads, says what it is, and dry-runs; a dry run tells the truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from kosmos import KosmosConfig, KosmosForConditionalGeneration, settings
from kosmos.cost import model_cost
from kosmos.modalities import MODALITIES
from kosmos.processing_kosmos import load_processor
from kosmos_data import build_loader, recipes
from kosmos_train import TrainConfig, train
from kosmos_train.build import build_model, build_processor
from kosmos_train.dry_run import dry_run, plan
from kosmos_train.engine import deepspeed_config
from kosmos_train.parts.tokenizer import TokenizerConfig, make_processor

CONFIGS = Path(__file__).parents[2] / "train" / "configs"
BERT = {"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
BERT |= {"num_attention_heads": 2, "max_position_embeddings": 600}
ENCODER = {"model_type": "bert", "vocab_size": 1, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3,
           "num_attention_heads": 2, "max_position_embeddings": 64}  # fmt: skip
RUNS = sorted(path for path in CONFIGS.rglob("*.yaml") if "\ndata:" in path.read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, _world: dict[str, Any]) -> str:
    """A checkpoint to start from."""
    config = settings.from_dict(TrainConfig, {**_world, "steps": 1, "optim": {"warmup": 0}})
    return str(train(config, tmp_path_factory.mktemp("run") / "run").checkpoint)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus and the processor of the configs whose documents have ids, made as these say."""
    root = tmp_path_factory.mktemp("reviews")
    recipes.make("reviews", root / "corpus", ["users=12", "items=10"])
    config = settings.load(TokenizerConfig, CONFIGS / "reviews" / "tokenizer.yaml")
    config.shards = [str(root / "corpus" / "train")]
    make_processor(config, root / "processor")
    return root


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory, stamps_cache: Path) -> Path:
    """The same of the configs whose documents have sounds."""
    root = tmp_path_factory.mktemp("sounds")
    recipes.make("sounds", root / "corpus", [f"cache={stamps_cache}", "held_out_every=1000000"])
    config = settings.load(TokenizerConfig, CONFIGS / "sounds" / "tokenizer.yaml", ["vocab_size=120"])
    config.shards = [str(root / "corpus" / name) for name in ("names", "languages", "sounds")]
    make_processor(config, root / "processor")
    return root


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_dry_runs(
    path: Path,
    values: dict[str, Any],
    trained: str,
    reviews: Path,
    sounds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the tiny corpus in place of the real ones, everything else as it stands in the file."""
    assert path.read_text().startswith("# "), "a config begins with command, hardware, time, expected number"
    assert "kosmos t" in path.read_text().split("\n\n")[0]
    config = settings.load(TrainConfig, path)
    model = KosmosConfig.preset(config.model.preset or "tiny").to_dict() | config.model.overrides
    sees = model["vision_config"] is not None
    for data in [config.data, *([config.eval.data] if config.eval.data else [])]:
        for source in data.sources:
            source.shards = values["data"]["sources"][2 if sees else 0]["shards"]
            if config.model.overrides.get("entity_config"):
                source.shards, values["processor"] = str(reviews / "corpus" / "train"), str(reviews / "processor")
            if config.model.overrides.get("audio_config"):
                source.shards, values["processor"] = str(sounds / "corpus" / "names"), str(sounds / "processor")
        data.workers = 0
        data.rows_per_step = 2 * data.rows_per_micro_batch
        data.lanes = 2
    picture = tmp_path / "red.png"
    picture.write_bytes(tiny.picture("red"))
    for prompt in config.samples.prompts:
        prompt.images = [str(picture)]
    if config.model.checkpoint is None:
        if config.model.decoder is None:  # a language model brings its tokenizer
            config.processor = values["processor"]
        config.model.vision_weights = "random"
        if not str(config.model.span_weights).startswith("package:"):  # an installed package's encoder is there
            config.model.span_weights = None
        if "ffn3" in path.read_text():  # this connector keeps every feature, so an image takes 197 places
            config.processor = str(tmp_path)
            processor = load_processor(values["processor"])
            processor.num_image_tokens = 197
            processor.save_pretrained(tmp_path)
        if config.model.overrides.get("coupling") == "cross_attention":  # an image takes one place
            config.processor = str(tmp_path)
            processor = load_processor(values["processor"])
            processor.num_image_tokens = 1
            processor.save_pretrained(tmp_path)
    else:
        config.model.checkpoint = trained
        if "semi_causal" in path.read_text():
            slot = load_processor(values["processor"]).span_slot_id
            config.model.overrides = {"span_token_id": slot, "span_encoder_config": {"model_config": BERT}}
    dry_run(config, 2)
    shown = capsys.readouterr().out
    assert "trainable" in shown
    shown = " ".join(shown.replace("│", " ").split())
    assert re.search(r" memory \d+(\.\d+)? [GM]iB a GPU ", shown)
    assert re.search(r" to go [\d,]+ steps, [\d.,]+ [MB]? ?tokens, [\d.]+ (days|hours|minutes|s|ms) at ", shown)
    assert "passes" in shown


def test_kosmos1_is_the_papers() -> None:
    """The numbers of §3.2 and table 18."""
    config = settings.load(TrainConfig, CONFIGS / "kosmos1.yaml")
    assert config.data.rows_per_step * config.data.row_tokens == pytest.approx(1.2e6, rel=0.02)
    assert [source.weight for source in config.data.sources] == [0.5, 0.5, 0.2]
    optim = config.optim
    assert (optim.betas, optim.weight_decay, optim.lr, optim.warmup) == ((0.9, 0.98), 0.01, 2e-4, 375)
    assert (optim.schedule, optim.final_ratio, config.steps) == ("linear", 0.0, 300_000)
    text = KosmosConfig.preset(str(config.model.preset)).text_config
    assert (text.num_hidden_layers, text.hidden_size, text.dropout) == (24, 2048, 0.1)


def test_the_settings_of_the_readme_are_accepted() -> None:
    text = (CONFIGS.parent / "README.md").read_text(encoding="utf-8")
    path, changes = re.findall(r'settings\.load\(TrainConfig, "train/configs/(.*?)", \[(.*?)\]\)', text)[0]
    settings.load(TrainConfig, CONFIGS / path, re.findall(r'"(.*?)"', changes)).check(1)


def test_small_is_as_large_as_the_pages_say() -> None:
    with torch.device("meta"):
        model = KosmosForConditionalGeneration(KosmosConfig.preset("small"))
    size = f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.0f} M parameters"
    for page in ("train/configs/small.yaml", "train/README.md", "docs/faq.md"):
        lines = (CONFIGS.parents[1] / page).read_text(encoding="utf-8").splitlines()
        assert any(size in line for line in lines if page.endswith(".yaml") or "small.yaml" in line), page


def test_training_costs_what_is_computed(values: dict[str, Any]) -> None:
    """Against torch's own counter, over rows with text spans and rows with images, packed by the loader.

    Ours are a little more: of encoders whole inputs are counted.
    """
    text = {"position_type": "sinusoidal", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3}
    spans = {"model_config": ENCODER, "train_last_blocks": 1}
    values["model"] |= {"overrides": {"span_encoder_config": spans, "text_config": text}}
    del values["data"]["sources"][2]
    values["data"]["sources"][0]["objective"] = {"name": "semi_causal", "min_length": 8, "max_length": 16}
    config = settings.from_dict(TrainConfig, values)
    processor = load_processor(values["processor"])
    model = build_model(config, processor).train()
    cost = model_cost(model, config.data.row_tokens)
    seen = set()
    for micro in next(build_loader(config.data, processor)).micro_batches:
        inputs = {name: tensor for name, tensor in micro.items() if name != "source_ids"}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = processor.image_processor.normalize(inputs["pixel_values"])
        with FlopCounterMode(display=False) as counter:
            model(**inputs).loss.backward()
        units = {name: modality.count(inputs) for name, modality in MODALITIES.items()}
        supervised = int((inputs["shift_labels"] >= 0).sum())
        counted = cost.flops(inputs["input_ids"].numel(), units, supervised)
        assert 0.83 < counter.get_total_flops() / counted < 1.0
        seen |= inputs.keys()
    assert {"pixel_values", "span_input_ids"} <= seen


def test_plan_counts_the_whole_step(values: dict[str, Any]) -> None:
    """More processes share a step: fewer micro-batches each, less state under ZeRO, the same tokens."""
    values["engine"] = {"zero_stage": 1, "precision": "bf16"}
    config = settings.from_dict(TrainConfig, values)
    one, four = plan(config, 1), plan(config, 4)
    assert (one.micro_batches, four.micro_batches) == (4, 1)
    assert one.tokens_per_step == four.tokens_per_step
    assert four.memory["optimiser, fp32"] == pytest.approx(one.memory["optimiser, fp32"] / 4)
    assert 0.9 < one.packed <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"lanes": 800, "rows_per_step": 8}}, "data.lanes=800 streams cannot share"),
        ({"data": {"rows_per_step": 10}}, "rows_per_step=10"),
        ({"engine": {"zero_stage": 0, "precision": "bf16"}}, "keeps no fp32 master weights"),
        ({"engine": {"zero_stage": 3}, "model": {"compile": True}}, "break the graphs"),
        ({"engine": {"zero_stage": 0, "offload_optimizer": True}}, "needs engine.zero_stage >= 1"),
        ({"model": {"vision_weights": "/nowhere/ViT"}}, "/nowhere/ViT"),
        ({"model": {"freeze": ["*"]}}, "leaves no parameter to train"),
        ({"optim": {"part_lr": {"visoin": 0.1}}}, "parts are decoder, embeddings, vision"),
        ({"samples": {"every": 5, "prompts": [{"images": ["/nowhere/cat.jpg"]}]}}, "/nowhere/cat.jpg"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any], change: dict[str, Any], message: str) -> None:
    for section, fields in change.items():
        values[section] = values.get(section, {}) | fields
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        plan(settings.from_dict(TrainConfig, values), 4)


def test_deepspeed_json_is_generated_and_open(values: dict[str, Any]) -> None:
    """Our fields become DeepSpeed's; the passthrough is merged in last, deeply."""
    values["engine"] = {
        "zero_stage": 2,
        "precision": "bf16",
        "offload_optimizer": True,
        "deepspeed": {"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": True},
    }
    values["optim"] = {"clip": 0.5}
    made = deepspeed_config(settings.from_dict(TrainConfig, values), 2)
    assert made["zero_optimization"]["stage"] == 2
    assert made["zero_optimization"]["reduce_bucket_size"] == 1000
    assert made["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert made["gradient_accumulation_steps"] == 2
    assert made["gradient_clipping"] == 0.5
    assert made["bf16"] == {"enabled": True}
    assert made["wall_clock_breakdown"] is True


def test_questions_of_the_samples_are_kept_for_the_chat(tmp_path: Path) -> None:
    values = tiny.make_world(tmp_path / "world")
    asked = ["Question: what is it? Answer:", "Question: what is it? Answer:", "An image of", "Question:  Answer:"]
    values["samples"] = {"every": 1, "prompts": [{"text": text} for text in asked]}
    processor = build_processor(settings.from_dict(TrainConfig, values))
    assert processor.example_questions == ["what is it?"]
    processor.save_pretrained(tmp_path / "saved")
    again = values | {"processor": str(tmp_path / "saved"), "samples": {}}
    assert build_processor(settings.from_dict(TrainConfig, again)).example_questions == ["what is it?"]
