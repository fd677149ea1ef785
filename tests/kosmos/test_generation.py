"""generate() in its variants against greedy decoding without a cache, and against rows decoded one by one."""

from __future__ import annotations

import pytest
import torch
from transformers import TextIteratorStreamer

SLOT = 100
VARIED = {"no_repeat_ngram_size": 1}  # a random model repeats one token, which would test nothing


def with_images(ids: torch.Tensor, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Put ``images`` images of 8 tokens into every row, and make different pixels for each."""
    for image in range(images):
        ids[:, 2 + 10 * image : 10 + 10 * image] = SLOT
    return ids, torch.randn(len(ids) * images, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("position", ["xpos", "sinusoidal", "learned_2d"])
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"cache_implementation": "dynamic"}])
def test_caches_equal_no_cache(build, ids, position: str, options: dict) -> None:
    model = build(position=position)
    rows, pixels = with_images(ids, 2)
    call = {
        "input_ids": rows,
        "pixel_values": pixels,
        "max_new_tokens": 12,
        "do_sample": False,
        "eos_token_id": None,
        **VARIED,
    }
    expected = model.generate(**call, use_cache=False)
    assert expected.shape == (2, 42)
    assert torch.equal(model.generate(**call, **options), expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_with_several_images_equal_rows_alone(build, ids, beams: int) -> None:
    """Beams repeat a row's images together: the i-th image must stay with the i-th placeholder."""
    model = build()
    rows, pixels = with_images(ids, 2)
    rows = torch.cat([torch.ones(2, 3, dtype=torch.long), rows], dim=1)
    mask = (rows != 1).long()
    mask[0, :3], rows[0, :3] = 1, 7  # the first row is longer
    call = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False, "eos_token_id": None, **VARIED}
    both = model.generate(input_ids=rows, attention_mask=mask, pixel_values=pixels, **call)
    first = model.generate(input_ids=rows[:1], pixel_values=pixels[:2], **call)
    second = model.generate(input_ids=rows[1:, 3:], pixel_values=pixels[2:], **call)
    assert both[0].tolist() == first[0].tolist()
    assert both[1, 3:].tolist() == second[0].tolist()


def test_beams_with_text_spans(build, ids) -> None:
    model = build(spans=True, images=False)
    ids[0, 3:7], ids[0, 20:22], ids[1, 8:13] = 101, 101, 101
    spans = torch.randint(0, 50, (3, 6), generator=torch.Generator().manual_seed(4))
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1] * 6])
    call = {"max_new_tokens": 6, "num_beams": 2, "do_sample": False, "eos_token_id": None, **VARIED}
    both = model.generate(input_ids=ids, span_input_ids=spans, span_attention_mask=mask, **call)
    alone = model.generate(input_ids=ids[1:], span_input_ids=spans[2:], span_attention_mask=mask[2:], **call)
    assert both[1].tolist() == alone[0].tolist()


def test_sampling_follows_the_model(build, ids) -> None:
    """Sampled with a seed twice: the same; frequencies of the first token follow the softmax."""
    model = build(images=False)
    prompt = ids[:1, :6]
    call = {"input_ids": prompt, "max_new_tokens": 5, "do_sample": True, "top_k": 0}
    torch.manual_seed(3)
    first = model.generate(**call)
    torch.manual_seed(3)
    assert torch.equal(model.generate(**call), first)
    drawn = model.generate(input_ids=prompt.repeat(4000, 1), max_new_tokens=1, do_sample=True, top_k=0)[:, -1]
    expected = model(input_ids=prompt).logits[0, -1].softmax(-1)
    frequency = torch.bincount(drawn, minlength=97) / 4000
    assert (frequency - expected).abs().max() < 0.03


def test_inputs_embeds_equal_ids(build, ids) -> None:
    model = build(images=False)
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(input_ids=ids).logits)
    call = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = model.generate(input_ids=ids, **call)[:, 30:]
    assert torch.equal(model.generate(inputs_embeds=embeds, **call), expected)


def test_streaming_and_stop_strings(processor, build) -> None:
    tokenizer = processor.tokenizer
    model = build(images=False, text={"vocab_size": len(tokenizer)})
    inputs = processor(text="Question: what is red?", return_tensors="pt")
    call = {**inputs, "max_new_tokens": 20, "do_sample": False, "eos_token_id": None, **VARIED}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    full = model.generate(**call, streamer=streamer)
    length = inputs["input_ids"].shape[1]
    text = tokenizer.decode(full[0, length:])
    assert "".join(streamer) == text
    stop = tokenizer.decode(full[0, length + 9 : length + 11]).strip()
    options = {"stop_strings": [stop], "tokenizer": tokenizer}
    stopped = model.generate(**call, **options)
    assert stopped.shape[1] < full.shape[1]
    assert torch.equal(stopped, full[:, : stopped.shape[1]])
    assert torch.equal(model.generate(**call, **options, return_dict_in_generate=True).sequences, stopped)
    assisted = model.generate(
        **call, **options, assistant_model=build(images=False, text={"vocab_size": len(tokenizer)})
    )
    assert torch.equal(assisted, stopped)


def test_assisted_generation(build, ids) -> None:
    model, assistant = build(images=False), build(images=False, seed=1)
    call = {"input_ids": ids[:1], "max_new_tokens": 10, "do_sample": False, "eos_token_id": None, **VARIED}
    assert torch.equal(model.generate(**call, assistant_model=assistant), model.generate(**call))


def test_assistants_and_beams_read_images_too(build, ids) -> None:
    """An assistant is given the same prompt; beams over embeddings find their images by the placeholder's own."""
    model, assistant = build(), build(seed=1)
    rows, pixels = with_images(ids, 2)
    call = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, **VARIED}
    first = {"input_ids": rows[:1], "pixel_values": pixels[:2]}
    assert torch.equal(model.generate(**first, **call, assistant_model=assistant), model.generate(**first, **call))
    model.resize_token_embeddings(104)
    call |= {"num_beams": 2, "suppress_tokens": list(range(97, 104)), "no_repeat_ngram_size": 0}
    expected = model.generate(rows, pixel_values=pixels, **call)[:, 30:]
    embeds = model.get_input_embeddings()(rows)
    assert torch.equal(model.generate(inputs_embeds=embeds, pixel_values=pixels, **call), expected)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}])
def test_glm_span_counts_in_the_second_position(build, options: dict) -> None:
    """Filling a blank: the first position stays at the mask's, part A sees both ways; row by row without a cache."""
    model = build(position="learned_2d", images=False)
    generator = torch.Generator().manual_seed(6)
    rows, masks, length = [9, 7], [4, 2], 12
    ids = torch.ones(2, length, dtype=torch.long)
    attention, first, second = torch.zeros_like(ids), torch.zeros_like(ids), torch.zeros_like(ids)
    blocks = torch.full_like(ids, -1)
    for row, (size, place) in enumerate(zip(rows, masks, strict=True)):
        start = length - size - 1
        ids[row, start:] = torch.randint(4, 90, (size + 1,), generator=generator)
        attention[row, start:] = 1
        blocks[row, start:-1] = 0
        first[row, start:-1], first[row, -1], second[row, -1] = torch.arange(size), place, 1
    call = {"input_ids": ids, "attention_mask": attention, "position_ids": first, "position_in_span": second}
    call |= {"block_ids": blocks, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None, **VARIED}
    found = model.generate(**call, **options)
    if "num_beams" in options:  # beams by transformers' loop: with and without our cache and step
        assert torch.equal(found, model.generate(**call, **options, use_cache=False))
        return
    for row, (size, place) in enumerate(zip(rows, masks, strict=True)):
        tokens = ids[row, length - size - 1 :].tolist()
        for step in range(6):
            total = len(tokens)
            where = {"position_ids": torch.tensor([[*range(size), *[place] * (step + 1)]])}
            where["position_in_span"] = torch.tensor([[*[0] * size, *range(1, step + 2)]])
            where["block_ids"] = (torch.arange(total) < size).long()[None] - 1
            logits = model(input_ids=torch.tensor([tokens]), **where).logits[0, -1]
            logits[tokens] = -torch.inf
            tokens.append(int(logits.argmax()))
        assert found[row, length:].tolist() == tokens[size + 1 :]
