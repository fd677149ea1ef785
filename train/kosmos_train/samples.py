"""Greedy answers to a few fixed prompts during training: one sees what the loss does not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from kosmos.pictures import open_picture
from kosmos.plain import escape

from .config import SampleConfig
from .engine import Engine
from .log import cut_after


def encode_prompts(config: SampleConfig, processor: Any) -> list[Any]:
    """The prompts as model inputs, checked before training starts rather than after the first thousand steps.

    Raises:
        FileNotFoundError: a picture is missing.
        OSError: a picture cannot be read.
        ValueError: a prompt is too long.
    """
    if not config.every:
        return []
    encoded = []
    for prompt in config.prompts:
        images = [open_picture(name) for name in prompt.images] or None
        text = "<image>" * len(prompt.images) + prompt.text
        encoded.append(processor(images=images, text=text, return_tensors="pt"))
    return encoded


class Sampler:
    """Generates on the prompts of ``samples.prompts``, logs them and appends them to ``samples.jsonl``."""

    def __init__(self, config: SampleConfig, processor: Any, path: Path, start_step: int, main: bool) -> None:
        self.config, self.processor, self.path = config, processor, path
        if main:
            cut_after(path, start_step)
        self.inputs = encode_prompts(config, processor)

    @torch.no_grad()
    def run(self, step: int, engine: Engine, say: Any) -> None:
        """Answer every prompt; all ranks take part (ZeRO-3 gathers weights), rank 0 writes."""
        model, world = engine.model, engine.world
        model.eval()
        rows = []
        for prompt, inputs in zip(self.config.prompts, self.inputs, strict=True):
            moved = {name: tensor.to(world.device) for name, tensor in inputs.items()}
            moved = {
                name: tensor.to(engine.dtype) if tensor.is_floating_point() else tensor
                for name, tensor in moved.items()
            }
            with engine.uncompiled():
                output = model.generate(
                    **moved,
                    max_new_tokens=self.config.max_new_tokens,
                    do_sample=False,
                    synced_gpus=engine.config.engine.zero_stage == 3 and world.size > 1,
                )
            new = output[0, moved["input_ids"].shape[1] :]
            answer = self.processor.decode(new, skip_special_tokens=True).strip()
            rows.append({"step": step, "images": prompt.images, "prompt": prompt.text, "answer": answer})
        model.train()
        if world.is_main:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            for row in rows:
                name = " ".join(Path(image).name for image in row["images"])
                asked, answered = (escape(row[key].replace("\n", " ⏎ ")) for key in ("prompt", "answer"))
                say(f"  [dim]sample {escape(name)}[/dim] {asked} [green]{answered}[/green]")
