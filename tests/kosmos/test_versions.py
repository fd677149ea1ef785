"""What differs between transformers' versions; ``make test-versions`` runs this and the rest with both ends of them."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicCache

from kosmos.versions import CACHE, cache_of

NAMES = ("past_key_values", "cache")


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_cache_goes_by_either_name(build, ids, name: str) -> None:
    model = build(images=False)
    whole, cache = model(input_ids=ids).logits, DynamicCache(config=model.config.text_config)
    first = model(input_ids=ids[:, :20], use_cache=True, **{name: cache})
    assert cache_of(first) is cache
    assert CACHE in first
    last = model.model(input_ids=ids[:, 20:], use_cache=True, **{name: cache})
    assert cache.get_seq_length() == ids.shape[1]
    torch.testing.assert_close(model.lm_head(last.last_hidden_state), whole[:, 20:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_generate_goes_on_behind_a_cache_of_either_name(build, ids, name: str) -> None:
    model = build(images=False)
    call = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    expected, cache = model.generate(ids, **call), DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(input_ids=ids[:, :20], use_cache=True, **{name: cache})
    assert torch.equal(model.generate(ids, **call, **{name: cache}), expected)


def test_a_cache_that_nobody_would_read_is_refused(build, ids) -> None:
    """By an unknown name it went among the layers' keywords, and each decoded token saw itself alone."""
    model = build(images=False)
    with pytest.raises(ValueError, match="state is a DynamicCache, but Kosmos takes a cache as past_key_values"):
        model(input_ids=ids, state=DynamicCache(config=model.config.text_config))
    caches = [DynamicCache(config=model.config.text_config) for _ in NAMES]
    with pytest.raises(ValueError, match="two names of the same input"):
        model(input_ids=ids, **dict(zip(NAMES, caches, strict=True)))


def test_checkpointed_layers_do_not_write_to_a_cache_twice(build, ids) -> None:
    """transformers drops the cache from a layer that its backward pass runs again, by the name that it knows."""
    model = build(images=False).train()
    model.gradient_checkpointing_enable()
    out = model(input_ids=ids, labels=ids, use_cache=True)
    out.loss.backward()
    assert cache_of(out).get_seq_length() == 0


@pytest.mark.parametrize("rule", [{"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}])
def test_rules_about_repetition_leave_placeholders_out(build, ids, rule: dict[str, float]) -> None:
    """A placeholder may be a number beyond the vocabulary; no score is its."""
    model = build(connector="linear")
    model.config.image_token_id = 100
    rows = torch.cat([ids[:1, :4], torch.full((1, 17), 100), ids[:1, 4:9]], dim=1)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    out = model.generate(rows, pixel_values=pixels, max_new_tokens=8, do_sample=False, eos_token_id=None, **rule)
    assert out.shape[1] == rows.shape[1] + 8
    assert int(out[:, rows.shape[1] :].max()) < 97
