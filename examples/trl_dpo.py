"""Preferences by TRL (DPO): ``python examples/trl_dpo.py CHECKPOINT ROWS [lora] --output_dir OUT [--beta 0.1 …]``.

ROWS is a folder that ``datasets`` saved, with columns ``images``, ``prompt``, ``chosen`` and ``rejected`` (messages).
The reference is the checkpoint itself, with ``lora`` the model without the adapter, which takes no second copy.
``kosmos chat OUT``, with ``lora`` ``kosmos chat CHECKPOINT --adapter OUT``.
"""

import sys

import datasets
import peft
import trl
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

import kosmos


def main(argv: list[str]) -> None:
    parser = HfArgumentParser(trl.DPOConfig)
    settings, (checkpoint, rows, *lora) = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    settings.max_length = None
    folder = kosmos.find_checkpoint(checkpoint)
    trainer = trl.DPOTrainer(
        AutoModelForImageTextToText.from_pretrained(folder),
        args=settings,
        train_dataset=datasets.load_from_disk(rows),
        processing_class=AutoProcessor.from_pretrained(folder),
        peft_config=peft.LoraConfig(r=16, target_modules=["q_proj", "v_proj"]) if lora else None,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(sys.argv[1:])
