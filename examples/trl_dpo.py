"""Preferences by TRL (DPO): ``python examples/trl_dpo.py CHECKPOINT ROWS [lora] --output_dir OUT [--beta 0.1 …]``.

ROWS is a folder that ``datasets`` saved, with columns ``images``, ``prompt``, ``chosen`` and ``rejected`` (messages).
The reference is the checkpoint itself, with ``lora`` the model without the adapter, which takes no second copy.
``kosmos chat OUT``, with ``lora`` ``kosmos chat CHECKPOINT --adapter OUT``.
"""

import sys

import datasets
import peft
import torch
import trl
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

import kosmos


def main(argv: list[str]) -> None:
    parser = HfArgumentParser(trl.DPOConfig)
    parser.add_argument("checkpoint")
    parser.add_argument("rows")
    parser.add_argument("lora", nargs="?", choices=["lora"])
    if not torch.accelerator.is_available():
        parser.set_defaults(use_cpu=True, bf16=False)
    settings, given = parser.parse_args_into_dataclasses(argv)
    settings.max_length = None
    folder = kosmos.find_checkpoint(given.checkpoint)
    trainer = trl.DPOTrainer(
        AutoModelForImageTextToText.from_pretrained(folder),
        args=settings,
        train_dataset=datasets.load_from_disk(given.rows),
        processing_class=AutoProcessor.from_pretrained(folder),
        peft_config=peft.LoraConfig(r=16, target_modules=["q_proj", "v_proj"]) if given.lora else None,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(sys.argv[1:])
