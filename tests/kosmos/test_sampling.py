"""Our loop of greedy search and sampling against transformers', which runs where a dictionary is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, LogitsProcessorList, TextIteratorStreamer
from transformers.generation import GenerationMixin

from kosmos import sampling, screening
from kosmos.decode_step import DecodeStep, GrowingCache, can_step


@pytest.fixture
def only_ours(monkeypatch) -> None:
    """transformers' loop runs for dictionaries, and fails otherwise."""
    theirs = GenerationMixin._sample

    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert args[3].return_dict_in_generate
        return theirs(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "_sample", guarded)


def both(model: Any, **call: Any) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    ours = model.generate(**call)
    torch.manual_seed(5)
    return ours, model.generate(**call, return_dict_in_generate=True).sequences


CALLS = {
    "greedy": {"do_sample": False},
    "penalised": {"do_sample": False, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_k": 20, "num_return_sequences": 2},
    "short": {"do_sample": False, "max_new_tokens": 1},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("position", ["xpos", "sinusoidal"])
def test_loops_agree(build, ids, only_ours, name: str, position: str) -> None:
    """Left-padded rows that end at different tokens."""
    model = build(position=position, images=False)
    mask = torch.ones_like(ids)
    mask[1, :7], ids[1, :7] = 0, 1
    call = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 20, **CALLS[name]}
    free, _ = both(model, **call, eos_token_id=None)
    ours, theirs = both(model, **call, eos_token_id=free[:, -3].tolist(), pad_token_id=1)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("forbidden", [None, [11, 12, 13]])
def test_rows_that_ended_are_left_out(build, only_ours, monkeypatch, forbidden: list[int] | None) -> None:
    """Eight left-padded rows, some with an image, some with a text span, that end one after the other."""
    model, sizes = build(spans=True), []
    step = DecodeStep.__call__

    def counted(self: DecodeStep, embeds_BD: torch.Tensor, *place: Any) -> torch.Tensor:
        sizes.append(len(embeds_BD))
        return step(self, embeds_BD, *place)

    monkeypatch.setattr(DecodeStep, "__call__", counted)
    generator = torch.Generator().manual_seed(4)
    rows = torch.randint(4, 90, (8, 20), generator=generator)
    mask = (torch.arange(20)[None] >= torch.arange(8)[:, None]).long()
    rows[mask == 0] = 1
    rows[1, 10:18] = rows[6, 9:17] = 100
    rows[2, 12:14] = rows[5, 10:13] = 101
    call = {"input_ids": rows, "attention_mask": mask, "max_new_tokens": 16, "suppress_tokens": forbidden}
    call |= {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator), "do_sample": False}
    call |= {"span_input_ids": torch.randint(5, 50, (2, 4), generator=generator)}
    call |= {"span_attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])}
    free, _ = both(model, **call, eos_token_id=None)
    ends = {int(free[row, 20 + row]) for row in (0, 3, 5, 7)}
    sizes.clear()
    ours, theirs = both(model, **call, eos_token_id=sorted(ends), pad_token_id=1)
    assert torch.equal(ours, theirs)
    assert min(sizes) <= 4
    assert sizes[-1] == 8  # their loop goes on with all rows
    assert not forbidden or not set(ours[:, 20:].flatten().tolist()) & set(forbidden)


def test_loops_agree_on_embeddings_and_custom_parts(build, ids, only_ours) -> None:
    model = build(images=False)
    seen: list[int] = []

    def forbid(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(tokens.shape[1])
        return scores.index_fill(1, torch.arange(50), -torch.inf)

    embeds = model.get_input_embeddings()(ids)
    call = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    ours, theirs = both(model, inputs_embeds=embeds, logits_processor=LogitsProcessorList([forbid]), **call)
    assert torch.equal(ours, theirs)
    assert ours.min() >= 50
    assert seen == [*range(5), *range(5)]


def test_streams_every_token(processor, build, only_ours) -> None:
    model = build(images=False, text={"vocab_size": len(processor.tokenizer)})
    inputs = processor(text="Question: what is red?", return_tensors="pt")
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None, streamer=streamer)
    assert "".join(streamer) == processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])


@pytest.mark.skipif(not screening.kernel_is_exact(), reason="torch multiplies no 8-bit integers on this CPU")
@pytest.mark.parametrize("rules", [{"eos_token_id": None}, {"eos_token_id": [95, 96], "suppress_tokens": [5, 9, 40]}])
def test_screened_tokens_are_the_same(build, ids, only_ours, monkeypatch, rules: dict[str, Any]) -> None:
    """The screen is for large vocabularies and rules that only forbid; here it is forced."""
    model = build(images=False)
    used: list[int] = []

    class Counted(sampling.Screen):
        def choose(self, weight_VD: torch.Tensor, hidden_BD: torch.Tensor, *never: Any) -> torch.Tensor | None:
            used.append(len(hidden_BD))
            return super().choose(weight_VD, hidden_BD, *never)

    monkeypatch.setattr(screening, "Screen", Counted)
    monkeypatch.setattr(sampling, "can_screen", lambda head: True)
    ours, theirs = both(model, input_ids=ids, max_new_tokens=25, do_sample=False, **rules)
    assert torch.equal(ours, theirs)
    assert used == [2] * (24 - sampling.MAKE_AFTER // 2)
    model.lm_head.weight.data.mul_(torch.randn(len(model.lm_head.weight), 1))  # behind autograd's back
    ours, theirs = both(model, input_ids=ids, max_new_tokens=25, do_sample=False, **rules)
    assert torch.equal(ours, theirs)
    assert len(used) == 16 + 24
    monkeypatch.setattr(screening, "MOST_CANDIDATES", 0)  # it tells none apart, and is asked less and less
    ours, theirs = both(model, input_ids=ids, max_new_tokens=25, do_sample=False, **rules)
    assert torch.equal(ours, theirs)
    assert len(used) == 16 + 24 + len(["2 tokens", "6", "14", "30"])


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_the_step_equals_the_modules_where_the_inner_norm_feels_its_eps(build, ids, activation: str) -> None:
    """Activations of a variance near eps: a factor that the norm does not take out exactly would show."""
    model = build(images=False)
    text = model.config.text_config
    text.hidden_act = activation
    model = type(model)(model.config).eval()
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.ffn.fc1.weight.mul_(text.layer_norm_eps**0.5)
            layer.ffn.fc1.bias.normal_(std=text.layer_norm_eps**0.5)
        expected = model.model(input_ids=ids).last_hidden_state[:, -1]
        cache = GrowingCache(text)
        model.model(input_ids=ids[:, :-1], past_key_values=cache)
        embeds_BD = model.model.decoder.embed_tokens(ids[:, -1])
        place = torch.full((len(ids), 1), ids.shape[1] - 1)
        found = DecodeStep(model.model.decoder)(embeds_BD, place, None, cache)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


WATCHED = ("", "model", "model.decoder", "model.decoder.embed_tokens", "model.decoder.layers.1.ffn.fc1")
WATCHED += ("model.decoder.layers.0.ffn.activation", "lm_head")
CALL = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}


@pytest.mark.parametrize("way", ["hook", "forward"])
@pytest.mark.parametrize("name", WATCHED)
def test_who_looks_at_every_token_sees_it(build, ids, name: str, way: str) -> None:
    """Hooks on a module, and a forward of one's own, are called for each token."""
    expected = build(images=False).generate(ids, **CALL)
    model, shapes = build(images=False), []
    part = model.get_submodule(name)
    if way == "hook":
        part.register_forward_hook(lambda module, inputs, out: shapes.append(len(inputs)))
    else:
        forward = part.forward
        part.forward = lambda *args, **kwargs: shapes.append(len(args)) or forward(*args, **kwargs)
    assert torch.equal(model.generate(ids, **CALL), expected)
    assert len(shapes) == 4


def test_what_was_changed_keeps_the_module_tree(build, ids) -> None:
    model = build(images=False)
    decoder = model.model.decoder
    assert can_step(decoder)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not can_step(decoder)
    handle.remove()
    decoder.layers[0].ffn.fc1.half()
    assert not can_step(decoder)
    decoder.layers[0].ffn.fc1.float()
    torch.nn.utils.parametrize.register_parametrization(decoder.layers[1].ffn.fc2, "weight", torch.nn.Identity())
    assert not can_step(decoder)
    torch.nn.utils.parametrize.remove_parametrizations(decoder.layers[1].ffn.fc2, "weight")
    assert can_step(decoder)
    decoder.layers[2] = torch.nn.ModuleDict({"block": decoder.layers[2]})
    assert not can_step(decoder)


def test_placeholders_are_never_written(build, ids) -> None:
    """Nobody has to say so: their scores are the highest here, and the model forbids them."""
    model = build(text={"vocab_size": 104}, spans=True)
    with torch.no_grad():
        model.lm_head.weight[100:102] = 5 * model.lm_head.weight[torch.randint(4, 90, (2,))]
    for options in ({}, {"num_beams": 2}, {"do_sample": True}, {"return_dict_in_generate": True}):
        written = model.generate(ids, **{**CALL, **options})
        tokens = written if isinstance(written, torch.Tensor) else written.sequences
        assert not set(tokens[:, 30:].flatten().tolist()) & {100, 101}


def test_a_forward_of_a_subclass_is_called(build, ids) -> None:
    call = {"input_ids": ids, **CALL}
    model = build(images=False)
    base = type(model)

    class Noisy(base):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits[..., 7] += 1e6
            return out

    model.__class__ = Noisy
    assert (model.generate(**call)[:, 30:] == 7).all()


def test_the_growing_cache_keeps_what_others_put_into_it(build) -> None:
    """Reordering, dropping, repeating, choosing rows or tokens, as beams and assistants do, against a plain cache."""
    config = build(images=False).config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    ours, theirs = GrowingCache(config), DynamicCache(config=config)
    changes = [
        lambda cache: None,
        lambda cache: cache.reorder_cache(torch.tensor([1, 1])),
        lambda cache: cache.crop(-3),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([0, 3])),
        lambda cache: [setattr(part, n, getattr(part, n)[:1]) for part in cache.layers for n in ("keys", "values")],
    ]
    for change in changes:
        change(ours)
        change(theirs)
        rows = theirs.layers[0].keys.shape[0] if theirs.get_seq_length() else 2
        for length in (5, 1, 1):
            key, value = torch.randn(2, rows, 4, length, 16, generator=generator)
            for layer in range(3):
                for a, b in zip(ours.update(key, value, layer), theirs.update(key, value, layer), strict=True):
                    assert torch.equal(a, b)
    assert len(ours.layers[0].buffer) == 1
