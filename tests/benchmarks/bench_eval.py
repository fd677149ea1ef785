"""How much batching, cached images and shared beginnings save; prints one JSON object.

    python tests/benchmarks/bench_eval.py [--items 200]

Bars: batched and cached against a plain loop of ``generate`` with batch 1, at least 3 times as fast with the same
answers; 8-shot prompts with shared demonstrations, at least 2 times as fast as without sharing. Both ratios are taken
in one run, on random weights of the ``tiny`` preset, so they hold for any machine; the seconds do not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kosmos import KosmosConfig, KosmosForConditionalGeneration, KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos_eval.model import EvaluatedModel, in_order
from kosmos_eval.prompts import Prompt
from kosmos_eval.runner import Runner
from kosmos_eval.tasks import Decoding

QUESTIONS = [
    f"Question: {words}? Answer:"
    for words in (
        "what color is it",
        "is there a circle in the image",
        "what is the red shape",
        "does it contain no triangle",
    )
]


def build() -> tuple[KosmosForConditionalGeneration, KosmosProcessor]:
    """A random model of the tiny preset and a processor."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(QUESTIONS * 10, vocab_size=200)
    config = KosmosConfig.preset("tiny")
    text = config.text_config.to_dict() | {"vocab_size": len(tokenizer)}
    slot = tokenizer.convert_tokens_to_ids("<image_slot>")
    config = KosmosConfig.preset("tiny", text_config=text, image_token_id=slot)
    processor = KosmosProcessor(KosmosImageProcessor(image_size=64), tokenizer, config.num_image_tokens, 1024)
    return KosmosForConditionalGeneration(config).eval(), processor


def make_prompts(folder: Path, items: int) -> tuple[list[Prompt], list[Prompt]]:
    """Zero-shot prompts, four questions an image, and the same behind eight shared demonstrations."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(items // 4 + 8):
        paths.append(folder / f"{number}.png")
        Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(paths[-1])
    shots = [segment for path in paths[:8] for segment in (path, f"{QUESTIONS[0]} red\n")]
    asked = [(path, question) for path in paths[8:] for question in QUESTIONS]
    zero = [Prompt((path, question), (1,)) for path, question in asked]
    few = [Prompt((*shots, path, question), (len(shots), len(shots) + 1)) for path, question in asked]
    return zero, few


def plain_loop(model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompts: list[Prompt]) -> list[str]:
    """What one writes without this package: open, process and generate, one prompt at a time."""
    texts = []
    stop = [processor.tokenizer.eos_token_id, *processor.encode_text("\n")]
    for prompt in prompts:
        images = [Image.open(path) for path in prompt.images]
        inputs = processor(images=images, text=prompt.text, return_tensors="pt")
        ids = model.generate(
            **inputs, do_sample=False, max_new_tokens=4, eos_token_id=stop, pad_token_id=1,
            suppress_tokens=[processor.image_slot_id],
        )  # fmt: skip
        texts.append(
            processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        )
    return texts


def batched(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompts: list[Prompt], share: bool
) -> list[str]:
    asked = EvaluatedModel(Runner(model, processor), share=share)
    return in_order(asked.generate(prompts, Decoding(max_new_tokens=4), [0] * len(prompts)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=200)
    items = parser.parse_args().items
    model, processor = build()
    seconds, answers = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        zero, few = make_prompts(Path(folder), items)
        batched(model, processor, zero[:8], True)  # warm up
        for name, function in {
            "plain": lambda: plain_loop(model, processor, zero),
            "batched": lambda: batched(model, processor, zero, True),
            "8-shot, not shared": lambda: batched(model, processor, few, False),
            "8-shot, shared": lambda: batched(model, processor, few, True),
        }.items():
            start = time.perf_counter()
            answers[name] = function()
            seconds[name] = round(time.perf_counter() - start, 2)
    print(
        json.dumps(
            {
                "items": len(zero),
                "seconds": seconds,
                "batched and cached, times as fast": round(seconds["plain"] / seconds["batched"], 1),
                "shared demonstrations, times as fast": round(
                    seconds["8-shot, not shared"] / seconds["8-shot, shared"], 1
                ),
                "same answers": answers["plain"] == answers["batched"]
                and answers["8-shot, shared"] == answers["8-shot, not shared"],
            }
        )
    )


if __name__ == "__main__":
    main()
