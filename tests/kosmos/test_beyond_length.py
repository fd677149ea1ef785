"""A checkpoint reads beyond its training length by blockwise causal attention, through the doors that a person uses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kosmos import (
    Conversation,
    KosmosConfig,
    KosmosForConditionalGeneration,
    KosmosImageProcessor,
    KosmosProcessor,
    train_tokenizer,
)
from kosmos.chat import main as chat
from kosmos.extrapolation import extrapolate
from kosmos_eval.cli import main as evaluate

LENGTH = 32
WORDS = [
    "the",
    "fish",
    "sails",
    "over",
    "a",
    "calm",
    "sea",
    "while",
    "seven",
    "birds",
    "sing",
    "of",
    "far",
    "hills",
    "and",
    "cold",
    "rain",
]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose training length is 32 tokens."""
    folder = tmp_path_factory.mktemp("short")
    texts = [" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS))]
    tokenizer = train_tokenizer(texts, vocab_size=150)
    processor = KosmosProcessor(KosmosImageProcessor(image_size=16), tokenizer, num_image_tokens=2, max_length=LENGTH)
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": LENGTH}
    torch.manual_seed(0)
    model = KosmosForConditionalGeneration(KosmosConfig(text_config=text, vision_config=None, image_token_id=None))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_conversation_goes_on_beyond_the_training_length(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = " ".join(WORDS * 3)
    with pytest.raises(ValueError, match="the model takes 32"):
        chat([str(short), "--ask", long])
    assert chat([str(short), "--ask", long, "--extrapolate", "--max-new-tokens", "4"]) == 0
    with pytest.raises(ValueError, match="the model takes 64"):
        Conversation(short, extrapolate=2).ask(" ".join(WORDS * 6))


def test_evaluation_reads_long_prompts_alike_in_any_batch(short: Path, tmp_path: Path) -> None:
    """Long and short prompts together, padded, are answered as each alone; the logs tell blockwise answers apart."""
    rows = [{"id": str(count), "text": " ".join(WORDS * count), "answers": ["calm"]} for count in (1, 4, 2, 6)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tmp_path / "long.yaml"
    task.write_text(
        "description: long\ndataset: {format: jsonl, annotations: '{split}.jsonl'}\nprompt: {template: '{text}'}\n"
        "decoding: {method: rank, candidates: [calm, cold, far sea]}\nmetrics: [accuracy]\n"
    )
    asked = [str(short), "--tasks", str(task), "--data", str(tmp_path), "--device", "cpu"]
    with pytest.raises(ValueError, match="the model 32"):
        evaluate([*asked, "--out", str(tmp_path / "plain")])
    scores = {}
    for size in ("1", "8"):
        evaluate([*asked, "--out", str(tmp_path / size), "--batch-size", size, "--extrapolate", "16"])
        (log,) = (tmp_path / size).rglob("samples/**/*.jsonl")
        scores[size] = {row["id"]: row["scores"] for row in map(json.loads, log.read_text().splitlines())}
    for name, alone in scores["1"].items():
        assert scores["8"][name] == pytest.approx(alone, abs=1e-4), name


def test_what_cannot_go_beyond_says_why(short: Path) -> None:
    processor = KosmosProcessor.from_pretrained(short)
    for kind in ("sinusoidal", "learned_2d"):
        text = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        text |= {"num_attention_heads": 2, "position_type": kind}
        model = KosmosForConditionalGeneration(KosmosConfig(text_config=text, vision_config=None, image_token_id=None))
        with pytest.raises(ValueError, match=f"position_type is '{kind}'"):
            extrapolate(model, processor)
    model = KosmosForConditionalGeneration.from_pretrained(short)
    with pytest.raises(ValueError, match="0 times the training length"):
        extrapolate(model, processor, 0)
    assert extrapolate(model, processor, 3) == processor.max_length == 96


@torch.no_grad()
def test_padding_does_not_move_the_blocks(short: Path) -> None:
    """A row behind 5 places of padding gives what it gives alone, in one pass and token by token."""
    model = KosmosForConditionalGeneration.from_pretrained(short).eval()
    model.config.text_config.blockwise_causal_length = LENGTH
    ids = torch.randint(4, 90, (1, 80), generator=torch.Generator().manual_seed(1))
    alone = model(input_ids=ids).logits
    padded, mask = torch.nn.functional.pad(ids, (5, 0), value=1), torch.ones(1, 85, dtype=torch.long)
    mask[:, :5] = 0
    shifted = model(input_ids=padded, attention_mask=mask).logits[:, 5:]
    torch.testing.assert_close(shifted, alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_generate_equals_whole_passes(short: Path) -> None:
    model = KosmosForConditionalGeneration.from_pretrained(short).eval()
    extrapolate(model, KosmosProcessor.from_pretrained(short), 4)
    ids = torch.randint(4, 90, (1, 60), generator=torch.Generator().manual_seed(2))
    written = model.generate(input_ids=ids, max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=1)
    assert written[0, 60:].tolist() == model(input_ids=written[:, :-1]).logits[0, 59:].argmax(-1).tolist()
