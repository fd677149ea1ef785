"""A causal language model of transformers as the decoder: the numbers of the bare model, whatever stands in a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.configuration_kosmos import text_config
from kosmos.masks import document_mask

from .conftest import CLIP, SLOT

SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
WINDOW = 6
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, "tie_word_embeddings": True},
    "qwen3": {**GROUPED, "head_dim": 24},
    "gemma3_text": {**GROUPED, "head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt_neox": {**SIZES, "rotary_pct": 0.5},
    "mistral": {**GROUPED, "sliding_window": WINDOW},
    "gpt2": {"vocab_size": 97, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "bos_token_id": 0,
             "eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}  # fmt: skip
EXACT = {"atol": 1e-5, "rtol": 0}


def describe(family: str, images: bool = True, **fields: Any) -> KosmosConfig:
    return KosmosConfig(
        text_config={"model_type": family, **FAMILIES[family], **fields},
        vision_config={"backend": "open_clip", "model_config": CLIP} if images else None,
        connector_config={"kind": "xconnector", "num_queries": 8, "num_heads": 4},
        image_token_id=SLOT,
        boi_token_id=90,
        eoi_token_id=91,
    )


def build(family: str, seed: int = 0, **fields: Any) -> KosmosForConditionalGeneration:
    torch.manual_seed(seed)
    model = KosmosForConditionalGeneration(describe(family, **fields)).eval()
    for parameter in model.parameters():  # norms and biases that are not ones and zeros
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def bare_of(model: KosmosForConditionalGeneration) -> Any:
    """The same weights in transformers' own class for causal language models, by its own sdpa."""
    ours = model.config.text_config
    config = CONFIG_MAPPING[ours.model_type].from_dict(ours.to_dict())
    bare = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    bare.base_model.load_state_dict(model.model.decoder.model.state_dict())
    bare.get_output_embeddings().weight.data.copy_(model.lm_head.weight.data)
    return bare


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(5, 90, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
def test_text_is_that_of_the_bare_model(family: str) -> None:
    model, ids = build(family), tokens(2, 20)
    torch.testing.assert_close(model(ids).logits, bare_of(model)(ids).logits, **EXACT)


@torch.no_grad()
def test_packed_documents_equal_each_alone(family: str) -> None:
    model, lengths = build(family), (11, 3, 14)
    documents = [tokens(1, 28)[:, sum(lengths[:at]) :][:, :length] for at, length in enumerate(lengths)]
    packed = torch.cat([*documents, torch.ones(1, 4, dtype=torch.long)], dim=1)
    places = torch.tensor([[*(n for n, length in enumerate(lengths) for _ in range(length)), *[-1] * 4]])
    logits = model(packed, document_ids=places).logits
    alone = torch.cat([model(document).logits for document in documents], dim=1)
    torch.testing.assert_close(logits[:, :28], alone, **EXACT)


@torch.no_grad()
def test_blocks_are_bidirectional(family: str) -> None:
    model, ids = build(family), tokens(1, 16)
    blocks = torch.full((1, 16), -1)
    blocks[:, 2:9] = 0
    logits = model(ids, block_ids=blocks).logits
    places = torch.zeros_like(blocks)
    full, sliding = (document_mask(places, blocks, window)[:, None] for window in (None, WINDOW))
    mask = {"gemma3_text": {"full_attention": full, "sliding_attention": sliding}, "mistral": sliding}.get(family, full)
    torch.testing.assert_close(logits, bare_of(model)(ids, attention_mask=mask).logits, **EXACT)
    changed = ids.clone()
    changed[0, 8] = 5 if int(ids[0, 8]) != 5 else 6
    moved = (model(changed, block_ids=blocks).logits - logits).abs().amax(-1)[0]
    assert (moved[:2] == 0).all(), "before the block nothing is seen of it"
    assert (moved[2:8] > 1e-4).all(), "inside it everything is"


@torch.no_grad()
def test_cached_equals_plain(family: str) -> None:
    model, ids = build(family), tokens(2, 20)
    plain = model(ids).logits
    first = model(ids[:, :9], use_cache=True)
    cache, steps = first.past_key_values, [first.logits]
    for at in (9, 10, 11, 15):
        stop = {11: 15, 15: 20}.get(at, at + 1)
        steps.append(model(ids[:, at:stop], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), plain, **EXACT)


@torch.no_grad()
def test_left_padding_changes_nothing(family: str) -> None:
    model, ids = build(family), tokens(2, 12)
    padded = torch.cat([torch.ones(2, 5, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(2, 5, dtype=torch.long), torch.ones_like(ids)], dim=1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 5:], model(ids).logits, **EXACT)


def prompt() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[0, 7, 90, *[SLOT] * 8, 91, 20, 21], [0, 90, *[SLOT] * 8, 91, 30, 31, 32]])
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def test_saved_and_loaded(family: str, tmp_path: Any) -> None:
    model = build(family)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is KosmosForConditionalGeneration
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(again.config.text_config) is type(model.config.text_config)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == again.config.tie_word_embeddings
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**prompt()).logits, model(**prompt()).logits, atol=0, rtol=0)


@pytest.mark.parametrize("sampled", [False, True])
def test_our_loop_writes_what_transformers_writes(family: str, sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rules = build(family), {"max_new_tokens": 12, "do_sample": sampled, "pad_token_id": 1}
    looped = []
    from kosmos import generation

    original = generation.sample
    monkeypatch.setattr(generation, "sample", lambda *given: looped.append(1) or original(*given))
    torch.manual_seed(0)
    ours = model.generate(**prompt(), **rules)
    assert looped, "our loop was not asked"
    monkeypatch.setattr(KosmosForConditionalGeneration, "_loops", lambda *_: False)
    torch.manual_seed(0)
    theirs = model.generate(**prompt(), **rules)
    assert torch.equal(ours, theirs)


def test_text_is_written_as_the_bare_model_does(family: str) -> None:
    model, ids = build(family), tokens(1, 9)
    rules = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 1, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **rules), bare_of(model).generate(ids, **rules))


def test_beams_and_static_cache(family: str) -> None:
    model, rules = build(family), {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    plain = model.generate(**prompt(), **rules)
    static = model.generate(**prompt(), **rules, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, plain)
    assert model.generate(**prompt(), **rules, num_beams=3).shape[0] == 2


def loss_of(model: Any, **more: Any) -> torch.Tensor:
    inputs = prompt()
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == SLOT, -100)
    return model(**inputs, labels=labels, **more).loss


def test_loss_and_gradients_are_those_of_the_bare_model(family: str) -> None:
    model, ids = build(family, images=False), tokens(2, 20)
    bare = bare_of(model)
    model(ids, labels=ids).loss.backward()
    expected = bare(ids, labels=ids)
    expected.loss.backward()
    embedding, theirs = model.get_input_embeddings().weight, bare.get_input_embeddings().weight
    torch.testing.assert_close(embedding.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_checkpointed_packed_gradients(family: str) -> None:
    """A plan reaches the layers as an argument, so that it is there again when activations are computed anew."""
    model, ids = build(family, images=False).train(), tokens(1, 24)
    documents = torch.tensor([[0] * 10 + [1] * 14])
    model(ids, labels=ids, document_ids=documents).loss.backward()
    plain = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(ids, labels=ids, document_ids=documents).loss.backward()
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, plain, atol=1e-6, rtol=0)


def test_lora(family: str) -> None:
    peft = pytest.importorskip("peft")
    model = build(family)
    names = {"gpt_neox": ["query_key_value"], "gpt2": ["c_attn"]}.get(family, ["q_proj", "v_proj"])
    targets = [name for name, _ in model.named_modules() if "decoder" in name and name.split(".")[-1] in names]
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, modules_to_save=["connector"]))
    optimiser = torch.optim.AdamW([p for p in tuned.train().parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = loss_of(tuned)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    tuned.eval()
    written = tuned.generate(**prompt(), max_new_tokens=4, do_sample=False, pad_token_id=1)
    merged = tuned.merge_and_unload()
    assert torch.equal(merged.generate(**prompt(), max_new_tokens=4, do_sample=False, pad_token_id=1), written)


def test_resized_embeddings(family: str) -> None:
    model = build(family, images=False)
    ids = tokens(1, 8)
    before = model(ids).logits
    model.resize_token_embeddings(101)
    assert model.config.text_config.vocab_size == model.model.decoder.config.vocab_size == 101
    torch.testing.assert_close(model(ids).logits[..., :97], before, atol=1e-6, rtol=0)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == model.config.tie_word_embeddings


def test_a_growing_cache_takes_values_of_another_width() -> None:
    """DeepSeek's keys are wider than its values."""
    from kosmos.decode_step import GrowingLayer

    layer, keys, values = GrowingLayer(), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 4)
    for start, stop in ((0, 3), (3, 4), (4, 5)):
        found = layer.update(keys[:, :, start:stop], values[:, :, start:stop])
        assert torch.equal(found[0], keys[:, :, :stop])
        assert torch.equal(found[1], values[:, :, :stop])


def test_what_is_no_decoder_is_refused() -> None:
    bert = {"model_type": "bert", "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ValueError, match="bert is no causal decoder"):
        KosmosForConditionalGeneration(KosmosConfig(text_config=bert))
    with pytest.raises(ValueError, match="no model_type 'lama'"):
        text_config({"model_type": "lama"})
    bloom = {"model_type": "bloom", "vocab_size": 97, "hidden_size": 32, "n_layer": 1, "n_head": 2}
    with pytest.raises(ValueError, match="bloom does not attend through"):
        KosmosForConditionalGeneration(KosmosConfig(text_config=bloom))
    mamba = {"model_type": "mamba", "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1}
    with pytest.raises(ValueError, match="mamba does not attend through"):
        KosmosForConditionalGeneration(KosmosConfig(text_config=mamba))


def test_inputs_that_do_not_fit_are_refused() -> None:
    model, ids = build("gpt2", images=False), tokens(1, 8)
    with pytest.raises(ValueError, match="one position a token"):
        model(ids, position_in_span=torch.zeros_like(ids))
    with pytest.raises(ValueError, match="learned table ends at 127"):
        model(ids, position_ids=torch.arange(125, 133)[None])
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot be used with past_key_values"):
        model(ids, past_key_values=cache, document_ids=torch.zeros_like(ids))
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
        model(ids, document_ids=torch.zeros_like(ids))


def test_layers_that_would_leak_are_refused() -> None:
    """A recurrent layer carries the state of one packed document into the next."""
    from transformers import LlamaConfig

    fields = {**FAMILIES["llama"], "layer_types": ["full_attention"] * 3}
    model = KosmosForConditionalGeneration(KosmosConfig(text_config=LlamaConfig(**fields)))
    model.model.decoder.every_layer_attends = False
    ids = tokens(1, 8)
    with pytest.raises(ValueError, match="packed documents would see each other"):
        model(ids, document_ids=torch.zeros_like(ids))
