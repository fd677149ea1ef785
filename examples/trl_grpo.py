"""Rewards by TRL (GRPO): ``python examples/trl_grpo.py CHECKPOINT ROWS --output_dir OUT [--num_generations 8 …]``.

ROWS is a folder that ``datasets`` saved, with columns ``images``, ``prompt`` (messages) and ``answer``. The model
writes several answers to each prompt; those with a reward above their mean are made likelier, the others less likely.
Put your own reward in place of ``holds_answer``.
"""

import sys

import datasets
import torch
import trl
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

import kosmos


def holds_answer(completions: list, answer: list[str], **columns: object) -> list[float]:
    """Return 1 for each completion that holds the answer of its row, else 0."""
    written = [completion[0]["content"] for completion in completions]
    return [float(right in text) for text, right in zip(written, answer, strict=True)]


def main(argv: list[str]) -> None:
    parser = HfArgumentParser(trl.GRPOConfig)
    parser.add_argument("checkpoint")
    parser.add_argument("rows")
    if not torch.accelerator.is_available():
        parser.set_defaults(use_cpu=True, bf16=False)
    settings, given = parser.parse_args_into_dataclasses(argv)
    folder = kosmos.find_checkpoint(given.checkpoint)
    trainer = trl.GRPOTrainer(
        AutoModelForImageTextToText.from_pretrained(folder),
        holds_answer,
        settings,
        train_dataset=datasets.load_from_disk(given.rows),
        processing_class=AutoProcessor.from_pretrained(folder),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(sys.argv[1:])
