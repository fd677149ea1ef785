"""Our loop of greedy search and sampling against transformers', which runs where a dictionary is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, TextIteratorStreamer
from transformers.generation import GenerationMixin

from kosmos import sampling


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


def test_screened_tokens_are_the_same(build, ids, only_ours, monkeypatch) -> None:
    """The screen is for large vocabularies and some processors; here it is forced."""
    model = build(images=False)
    used: list[int] = []

    class Counted(sampling.Screen):
        def choose(self, hidden_BD: torch.Tensor) -> torch.Tensor | None:
            used.append(len(hidden_BD))
            return super().choose(hidden_BD)

    monkeypatch.setattr(sampling, "Screen", Counted)
    monkeypatch.setattr(sampling, "can_screen", lambda head: True)
    ours, theirs = both(model, input_ids=ids, max_new_tokens=25, do_sample=False, eos_token_id=None)
    assert torch.equal(ours, theirs)
    assert used == [2] * (24 - sampling.SCREEN_AFTER // 2)


def test_who_looks_at_every_token_sees_it(build, ids) -> None:
    """Hooks on the model, and a forward of one's own, are called for each token."""
    call = {"input_ids": ids, "max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    expected = build(images=False).generate(**call)
    for part in (lambda model: model, lambda model: model.model, lambda model: model.model.decoder.layers[1].ffn.fc1):
        model, lengths = build(images=False), []
        part(model).register_forward_hook(lambda *_, lengths=lengths: lengths.append(1))
        assert torch.equal(model.generate(**call), expected)
        assert len(lengths) == 4
    model = build(images=False)
    base = type(model)

    class Noisy(base):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits[..., 7] += 1e6
            return out

    model.__class__ = Noisy
    assert (model.generate(**call)[:, 30:] == 7).all()
