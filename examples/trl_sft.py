"""Supervised fine-tuning by TRL: ``python examples/trl_sft.py CHECKPOINT ROWS --output_dir OUT [--max_steps 100 …]``.

ROWS is a folder that ``datasets`` saved, with columns ``images``, ``prompt`` and ``completion`` (messages). The loss is
on the completion. OUT is an ordinary checkpoint: ``kosmos chat OUT``.
"""

import sys

import datasets
import torch
import trl
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

import kosmos


def main(argv: list[str]) -> None:
    parser = HfArgumentParser(trl.SFTConfig)
    parser.add_argument("checkpoint")
    parser.add_argument("rows")
    if not torch.accelerator.is_available():
        parser.set_defaults(use_cpu=True, bf16=False)
    settings, given = parser.parse_args_into_dataclasses(argv)
    settings.max_length = None  # a cut would go through the places of a picture
    folder = kosmos.find_checkpoint(given.checkpoint)
    trainer = trl.SFTTrainer(
        AutoModelForImageTextToText.from_pretrained(folder),
        settings,
        train_dataset=datasets.load_from_disk(given.rows),
        processing_class=AutoProcessor.from_pretrained(folder),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(sys.argv[1:])
