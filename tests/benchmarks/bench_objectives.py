"""What building examples costs, per token, beside a training step of a small decoder on the same core.

    python tests/benchmarks/bench_objectives.py [--documents 200] [--words 350] [--width 256]

Documents are made of random words, tokenised by a tokenizer trained on them. The loader of a run works beside the
training step; even so every objective must cost less than a tenth of one. CPU time of one thread is compared, so that
a busy machine changes both alike. The cost above ``causal`` is what the objective itself adds to tokenising.
"""

from __future__ import annotations

import argparse
import json
import random
import time

import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.image_processing_kosmos import KosmosImageProcessor
from kosmos.processing_kosmos import KosmosProcessor
from kosmos.tokenization_kosmos import train_tokenizer
from kosmos_data import Document, Text, objectives


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--words", type=int, default=350)
    parser.add_argument("--width", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    documents, processor = make(arguments.documents, arguments.words)
    step = training_seconds_per_token(processor, arguments.width)
    table = {}
    for name in objectives.names():
        if name in ("mixture", "schedule"):
            continue
        build = objectives.get(name, processor)
        build(documents[0], 0)
        start = time.process_time()
        tokens = sum(len(build(document, seed)) for seed, document in enumerate(documents))
        cost = (time.process_time() - start) / tokens
        table[name] = {"microseconds per token": round(1e6 * cost, 2), "share of a step": round(cost / step, 4)}
    print(json.dumps({"training step, microseconds per token": round(1e6 * step, 1), "objectives": table}, indent=1))


def make(count: int, words: int) -> tuple[list[Document], KosmosProcessor]:
    """Documents of about ``words`` words, and a processor with every objective's tokens."""
    rng = random.Random(0)
    lexicon = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(rng.choices(lexicon, k=words)) for _ in range(count)]
    extra = objectives.special_tokens(["ul2", "glm", "fim", "cm3"])
    tokenizer = train_tokenizer(texts, vocab_size=4000, extra_tokens=extra)
    processor = KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, num_image_tokens=4)
    return [Document(str(number), [Text(text)]) for number, text in enumerate(texts)], processor


def training_seconds_per_token(processor: KosmosProcessor, width: int, rows: int = 4, length: int = 512) -> float:
    """CPU seconds of forward, backward and update of a four-layer decoder, divided by the tokens of the batch."""
    config = KosmosConfig.preset(
        "tiny",
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
        vision_config=None,
        image_token_id=None,
    )
    model = KosmosForConditionalGeneration(config).train()
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(4, 2000, (rows, length))
    seconds = []
    for _ in range(4):
        start = time.process_time()
        model(input_ids=ids, shift_labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    return min(seconds) / ids.numel()


if __name__ == "__main__":
    main()
