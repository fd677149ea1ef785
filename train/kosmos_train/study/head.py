"""A linear classifier on a pretrained model: what GLM's cloze is compared with (arXiv 2103.10360, section 2.3).

The same batches as the objective ``cloze`` reads, in the same order, with the same optimiser, schedule and dropout; the
output that would judge the words of a blank is read by ``D × classes`` new weights instead of the output matrix.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kosmos.choices import NAMES, Choices
from kosmos_data import Document, build_loader, objectives
from kosmos_data.cloze import pad
from kosmos_eval import statistics, training
from kosmos_eval.metrics import mean_score
from kosmos_eval.readers import load_items
from kosmos_eval.tasks import Task

from ..build import build_model, build_processor
from ..config import TrainConfig
from ..engine import seed_everything
from ..optim import learning_rate, parameter_groups
from .jobs import Figures

BATCH_TEXTS = 32
_STANDARD_DEVIATION = 0.02  # of BERT's classifiers


class Classifier(nn.Module):
    """The model without its output matrix, and a head."""

    def __init__(self, model: Any, classes: int) -> None:
        super().__init__()
        self.model = model.model
        self.head = nn.Linear(model.config.text_config.hidden_size, classes)
        nn.init.normal_(self.head.weight, std=_STANDARD_DEVIATION)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Mapping[str, Tensor], place_Q: Tensor) -> Tensor:
        """Logits of the classes at outputs, given as flat indices into the rows, (Q, C)."""
        hidden_BTD = self.model(**inputs).last_hidden_state
        return self.head(hidden_BTD.flatten(0, 1)[place_Q])


def classify(config: TrainConfig, task: Task, data: Path, folder: Path) -> Figures:
    """Tune model and head as ``config`` says, and tell which items of the task's split are right, by id.

    Raises:
        ValueError: a label whose word is not a single token, by which batches tell what is right.
    """
    processor = build_processor(config)
    words = [task.decoding.verbalizers.get(label, label) for label in task.decoding.candidates]
    ids = [processor.encode_text(word) for word in words]
    if any(len(one) != 1 for one in ids):
        raise ValueError(f"a head needs labels with words of one token each, got {words}")
    class_of = {one[0]: number for number, one in enumerate(ids)}
    classifier = Classifier(build_model(config, processor), len(class_of))
    folder.mkdir(parents=True, exist_ok=True)
    learn(classifier, class_of, config, processor, folder / "metrics.jsonl")
    items = {item.id: item for item in load_items(task, data, task.split)}
    made = training.documents(task, [items[key] for key in sorted(items)])
    right = [float(one) for one in _right(classifier, class_of, config, processor, list(made))]
    score = mean_score("accuracy", right)
    low, high = statistics.interval(score)
    size = sum(parameter.numel() for parameter in classifier.parameters())
    return {"accuracy": score.value, "low": low, "high": high, "right": right, "parameters": size}


def learn(classifier: Classifier, class_of: Mapping[int, int], config: TrainConfig, processor: Any, log: Path) -> None:
    """Train by mean cross-entropy over the questions of each step; ``log`` gets a line a step."""
    optim = config.optim
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in parameter_groups(classifier, optim)]
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    loader = build_loader(config.data, processor)
    with log.open("w", encoding="utf-8") as lines:
        for step in range(1, config.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, optim, config.steps)
            batch = next(loader)
            questions = sum(len(micro[NAMES[2]]) for micro in batch.micro_batches)
            optimizer.zero_grad()
            total = 0.0
            for index, micro in enumerate(batch.micro_batches):
                seed_everything(config.seed, step, 0, index)
                loss = micro_loss(classifier, class_of, micro) / questions
                loss.backward()
                total += float(loss.detach())
            if optim.clip:
                nn.utils.clip_grad_norm_(classifier.parameters(), optim.clip)
            optimizer.step()
            lines.write(json.dumps({"step": step, "loss": round(total, 5)}) + "\n")
    loader.close()


def micro_loss(classifier: Classifier, class_of: Mapping[int, int], micro: Mapping[str, Tensor]) -> Tensor:
    """Summed cross-entropy over the questions of a micro-batch."""
    choices = Choices(*(micro[name] for name in NAMES))
    word_of = dict(zip(choices.tokens_K3[:, 2].tolist(), choices.tokens_K3[:, 1].tolist(), strict=True))
    place_Q, right_Q = choices.right_Q2.unbind(1)
    class_Q = torch.tensor([class_of[word_of[candidate]] for candidate in right_Q.tolist()])
    read = ("input_ids", "document_ids", "position_ids", "block_ids", "position_in_span")
    return F.cross_entropy(
        classifier({name: micro[name] for name in read if name in micro}, place_Q).float(), class_Q, reduction="sum"
    )


@torch.no_grad()
def _right(
    classifier: Classifier, class_of: Mapping[int, int], config: TrainConfig, processor: Any, asked: list[Document]
) -> Iterator[bool]:
    """Whether the likeliest class of each document is its own."""
    objective = objectives.from_settings(config.data.sources[0].objective, processor)
    classifier.eval()
    for start in range(0, len(asked), BATCH_TEXTS):
        examples = [objective(document, 0) for document in asked[start : start + BATCH_TEXTS]]
        inputs = pad(examples, processor, "cpu", two_positions=bool(getattr(objective, "pairs", True)))
        width = inputs["input_ids"].shape[1]
        own = [one.choices for one in examples if one.choices is not None]
        place_Q = torch.tensor([number * width + int(one.answers[0, 0]) for number, one in enumerate(own)])
        best = classifier(inputs, place_Q).argmax(1).tolist()
        yield from (class_of[int(one.tokens[0, 1])] == found for one, found in zip(own, best, strict=True))
