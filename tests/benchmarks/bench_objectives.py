"""What building examples costs, per token, beside a training step of a small decoder on the same core.

    python tests/benchmarks/bench_objectives.py [--documents 200] [--words 350] [--width 256]

Documents are made of random words, tokenised by a tokenizer trained on them; ``semi_causal, own tokenizer`` tokenises
its spans once more, for an encoder with another vocabulary. The loader of a run works beside the training step; even
so every objective must cost less than a tenth of one (exit code 1 otherwise). CPU time of one thread is compared, the
least of some rounds, so that a busy machine changes both alike. The cost above ``causal`` is what the objective itself
adds to tokenising.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time

import torch
from transformers import BertTokenizerFast

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.image_processing_kosmos import KosmosImageProcessor
from kosmos.processing_kosmos import KosmosProcessor
from kosmos.tokenization_kosmos import train_tokenizer
from kosmos_data import Document, Text, objectives

BAR, ROUNDS = 0.1, 4
PARTS_ONLY = ("mixture", "schedule")


def main() -> int:
    """Print the figures; 1 if an objective is over the bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--words", type=int, default=350)
    parser.add_argument("--width", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    documents, processor = make(arguments.documents, arguments.words)
    step = training_seconds_per_token(processor, arguments.width)
    table = {}
    cases = {name: objectives.get(name, processor) for name in objectives.names() if name not in PARTS_ONLY}
    cases["semi_causal, own tokenizer"] = objectives.get("semi_causal", with_span_tokenizer(processor, documents))
    for name, build in cases.items():
        cost = min(seconds_per_token(build, documents) for _ in range(ROUNDS))
        table[name] = {"microseconds per token": round(1e6 * cost, 2), "share of a step": round(cost / step, 4)}
    print(json.dumps({"training step, microseconds per token": round(1e6 * step, 1), "objectives": table}, indent=1))
    return int(any(row["share of a step"] > BAR for row in table.values()))


def seconds_per_token(build: objectives.Objective, documents: list[Document]) -> float:
    """CPU seconds of making all examples once, divided by their tokens."""
    start = time.process_time()
    tokens = sum(len(build(document, seed)) for seed, document in enumerate(documents))
    return (time.process_time() - start) / tokens


def with_span_tokenizer(processor: KosmosProcessor, documents: list[Document]) -> KosmosProcessor:
    """The same, for a text encoder whose WordPiece vocabulary holds the words whole."""
    words = sorted({word for document in documents for word in document.text.split()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    own = BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)})
    return KosmosProcessor(processor.image_processor, processor.tokenizer, num_image_tokens=4, span_tokenizer=own)


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
    for _ in range(ROUNDS):
        start = time.process_time()
        model(input_ids=ids, shift_labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    return min(seconds) / ids.numel()


if __name__ == "__main__":
    sys.exit(main())
