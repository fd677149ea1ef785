"""Training with a language model of transformers as the decoder: stages of ZeRO, freezing, resumption, dry run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny
import torch
from forks import launch

from kosmos import settings
from kosmos_train.config import TrainConfig


def publish(folder: Path, texts: list[str]) -> str:
    """A random Llama with a tokenizer of its own, in its published layout."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>", "eos_token": "<|end|>"})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, num_key_value_heads=2, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def docked(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The tiny run with a docked decoder, which stays frozen, instead of a preset and a processor."""
    values["model"] = {
        "decoder": {"pretrained": publish(tmp_path / "lm", [" ".join(tiny.WORDS)] * 4)},
        "overrides": {name: tiny.MODEL[name] for name in ("vision_config", "connector_config")},
        "freeze": ["model.decoder.*"],
        "vision_weights": "random",
    }
    del values["processor"]
    values["data"]["rows_per_step"] = 8
    return values


def test_stages_and_processes_are_equal(docked: dict[str, Any], tmp_path: Path) -> None:
    """A frozen decoder under ZeRO 1, 2 and 3, on one process and on two, of which one has no image."""
    stages = [{"zero_stage": stage} for stage in (1, 2, 3)]
    two = launch(tmp_path / "two", 2, jobs.engine_losses, docked, stages, 3)
    alone = torch.tensor(jobs.engine_losses(docked, stages, 3))
    torch.testing.assert_close(alone, alone[:1].expand_as(alone), rtol=1e-5, atol=1e-5)
    for losses in two.results():
        torch.testing.assert_close(torch.tensor(losses), alone, rtol=1e-5, atol=1e-5)


def test_a_run_is_resumed_with_its_decoder_unchanged(docked: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    docked["steps"] = 8
    docked["optim"]["warmup"] = 2
    whole = jobs.run(docked, str(tmp_path / "whole"))
    assert whole == {"step": 8, "finished": True}
    launches = json.loads((tmp_path / "whole" / "environment.json").read_text())
    assert launches[-1]["decoder"] == docked["model"]["decoder"]["pretrained"]
    last = tmp_path / "whole" / "checkpoints" / "step-000008"
    weights = load_file(last / "model.safetensors")
    published = load_file(Path(docked["model"]["decoder"]["pretrained"]) / "model.safetensors")
    for name, tensor in published.items():
        found = weights[f"model.decoder.{name}"]
        assert torch.equal(found[: len(tensor)], tensor), name
    first = jobs.run({**docked, "checkpoint": {"every": 4, "keep": 9}}, str(tmp_path / "again"))
    assert first["step"] == 8
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-000008")
    (tmp_path / "again" / "checkpoints" / "latest").write_text("step-000004")
    jobs.run({**docked, "checkpoint": {"every": 4, "keep": 9}}, str(tmp_path / "again"), resume=True)
    resumed = load_file(tmp_path / "again" / "checkpoints" / "step-000008" / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in weights.items())

    from kosmos import Conversation, load

    model, processor = load(tmp_path / "whole")
    assert type(model.model.decoder.model).__name__ == "LlamaModel"
    assert isinstance(Conversation(model, processor, max_new_tokens=3).ask("what is it?"), str)


def test_dry_run_counts_it(docked: dict[str, Any]) -> None:
    from kosmos_train.dry_run import plan

    found = plan(settings.from_dict(TrainConfig, docked), 1)
    width, inner, heads = 32, 48, 4
    attention = 2 * width * width + 2 * width * (width // heads) * 2
    block = attention + 3 * width * inner
    norms = 2 * 2 * width + width
    assert found.cost.parameters["decoder"] == 2 * block + norms
    assert found.cost.frozen["decoder"] == found.cost.parameters["decoder"]
    rows = found.cost.parameters["embeddings"] // width
    scores = 6 * 2 * width * docked["data"]["row_tokens"]
    assert math.isclose(found.cost.token_flops, 4 * (2 * block + rows * width) + scores)


def test_objectives_bring_their_tokens(docked: dict[str, Any]) -> None:
    from kosmos_train.build import build_config, build_processor

    docked["data"]["sources"][0]["objective"] = {"name": "span_corruption"}
    config = settings.from_dict(TrainConfig, docked)
    processor = build_processor(config)
    from kosmos_data.objectives import special_tokens

    assert set(special_tokens(["span_corruption"])) <= set(processor.tokenizer.get_added_vocab())
    assert build_config(config.model, processor).text_config.vocab_size == len(processor.tokenizer)
    assert processor.image_processor.image_size == 16
    assert processor.num_image_tokens == 2


def test_settings_that_contradict_are_refused(docked: dict[str, Any]) -> None:
    docked["model"]["checkpoint"] = "runs/some"
    with pytest.raises(ValueError, match=r"exactly one of model\.preset or model\.decoder"):
        settings.from_dict(TrainConfig, docked).check()
