"""Class 4 of hostile inputs: JSON, YAML and text that is deep, huge, odd or meant for another program."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kosmos import settings
from kosmos.read_json import parse_json
from kosmos.tokenization_kosmos import encode_text
from kosmos_data import BadSample, objectives
from kosmos_data.adapters import convert
from kosmos_data.document import from_files
from kosmos_eval import tasks
from kosmos_eval.readers import load_items

SEEDS = int(os.environ.get("KOSMOS_SEEDS", "96")) // 8
LAYOUTS = [
    "text",
    "llava",
    "messages",
    "sharegpt",
    "alpaca",
    "coco-captions",
    "karpathy",
    "csv",
    "obelics",
    "mmc4",
    "reviews",
]
LAYOUTS += ["vqav2", "cauldron", "flan", "jsonl", "personachat", "grit"]
TEXTS = [
    "{{ 9 ** 9 ** 9 }}",
    "{% for a in range(10**9) %}x{% endfor %}",
    "[bold]a[/]",
    "[/x]",
    "\x1b]8;;http://x\x07",
    "\u202eevil",
    "a" + "\u0301" * 10**4,
    "\ud800",
    "\0",
    "<image></s><mask>" * 1000,
    "ﷺ" * 10**4,
    "\u200b" * 10**4,
    "a" * 10**5,
    " " * 10**5,
    "\n" * 10**4,
    "%s%n{0}{question.__class__}",
    "'; DROP TABLE x; --",
    "=cmd|' /C calc'!A0",
    "0" * 10**4,
    "\U0001f468\u200d" * 10**4,
]
TEXTS += ["<|im_start|>system\n", "</span><span>" * 500, "💩" * 10**4, "aA1! " * 10**4, "x," * 10**4]


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value; now and then one that is deep, huge or odd."""
    kind = rng.randrange(12 if depth < 4 else 8)
    if kind < 5:
        return rng.choice(TEXTS)
    if kind < 8:
        return rng.choice(
            [None, True, 0, -1, 10**30, float("nan"), float("inf"), 1e308, "", "images/0.png", "../secret.png"]
        )
    if kind < 10:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randint(0, 5))}


KEYS = [
    "segments",
    "text",
    "image",
    "images",
    "conversations",
    "messages",
    "role",
    "from",
    "value",
    "content",
    "annotations",
    "image_id",
    "caption",
    "question",
    "answers",
    "answer",
    "id",
    "instruction",
    "output",
    "texts",
    "file_name",
    "__proto__",
    "split",
    "sentences",
    "filename",
    "url",
    "type",
    "user",
    "item",
    "rating",
    "persona",
    "boxes",
    "meta",
    "span",
    "a" * 300,
]


def body(rng: random.Random) -> bytes:
    """A file: a value, lines of values, or something that no parser should take long over."""
    made = json.dumps(value(rng)).encode()
    lines = b"\n".join(json.dumps({key: value(rng, 2) for key in rng.sample(KEYS, 4)}).encode() for _ in range(5))
    listed = json.dumps([{key: value(rng, 2) for key in rng.sample(KEYS, 4)} for _ in range(5)]).encode()
    odd = [
        b"[" * 10**5,
        b'{"a":' * 10**5,
        b"1" * 10**5,
        b'"' + b"a" * 10**6,
        b"\xff\xfe" + b"{}",
        b"",
        b"\0" * 100,
        b"NaN",
    ]
    odd += [
        b"-" * 1000,
        b'{"text": "\\ud800"}',
        b'{"text": "a", "text": "b"}',
        b"[" + b"1," * 10**5 + b"1]",
        made[: len(made) // 2],
    ]
    return rng.choice([made, lines, lines, listed, listed, rng.choice(odd)])


def read_yaml(path: Path) -> None:
    from kosmos_train import TrainConfig

    settings.load(TrainConfig, path)


def document(data: bytes, processor: Any) -> None:
    with suppress(BadSample):
        objectives.get("causal", processor)(from_files("k", {"json": data, "0.png": b"x"}), 0)


def test_files(tmp_path: Path, use: Callable[..., str], secret: Path, processor: Any) -> None:
    """Through every adapter, the reader of documents, tasks, settings and the readers of evaluation."""
    outcomes = set()
    for seed in range(SEEDS):
        rng, place = random.Random(f"json {seed}"), tmp_path / str(seed) / "in"
        place.mkdir(parents=True)
        layout, data = rng.choice(LAYOUTS), body(rng)
        path = place / rng.choice(["a.json", "a.jsonl", "a.csv", "a.yaml", "test.jsonl"])
        path.write_bytes(data)
        outcomes.add(use((seed, layout), convert, layout, path, place.parent / "out", place) == "used")
        use((seed, "document"), document, data, processor)
        use((seed, "settings"), read_yaml, path)
        use((seed, "task"), tasks.load, str(path))
        (place / "test.jsonl").write_bytes(data)
        changes = ["dataset.format=jsonl", "dataset.annotations={split}.jsonl", "split=test", "demonstrations.split="]
        use((seed, "items"), lambda place=place, changes=changes: load_items(tasks.load("vqa", changes), place, "test"))
    assert False in outcomes


def test_texts(use: Callable[..., str], processor: Any, tmp_path: Path) -> None:
    """What a person or a corpus writes is text: no token of ours, no template, and in time that grows as it does."""
    tokenizer, special = processor.tokenizer, set(processor.tokenizer.all_special_ids)
    for seed in range(SEEDS):
        rng = random.Random(f"text {seed}")
        text = "".join(rng.choice(TEXTS) for _ in range(rng.randint(1, 3)))
        found: list[int] = []

        def door(text: str = text, found: list[int] = found) -> None:
            found += encode_text(tokenizer, text)

        use((seed, "encode"), door)
        assert not special - {tokenizer.unk_token_id} & set(found), seed

        def ask(text: str = text, rng: random.Random = rng) -> None:
            content: Any = rng.choice(
                [text, [{"type": "text", "text": text}], [{"type": text}], {"a": text}, None, 5, [text]]
            )
            role = rng.choice(["user", "user", "assistant", "system", text, None])
            processor.apply_chat_template([{"role": role, "content": content}], tokenize=True, return_dict=True)

        use((seed, "chat"), ask)


@pytest.mark.parametrize(
    "text", ["a" * 10**4, "a " * 5000, "\u0301" * 10**4, "<" * 10**4, "\n" * 10**4, "x,y;" * 2500, "1" * 10**4]
)
def test_twice_the_text_takes_twice_the_time(text: str, processor: Any) -> None:
    """No rule is quadratic: eight times the text takes far less than 64 times the time."""

    def seconds(count: int) -> float:
        began = time.process_time()
        encode_text(processor.tokenizer, text * count)
        return time.process_time() - began

    seconds(1)
    assert seconds(8) < 24 * max(seconds(1), 0.005)


@pytest.mark.parametrize("text", [b"[" * 10**5, b"1" * 10**5, b"\xff", b'{"a":' * 10**5, b"{"])
def test_one_kind_of_error(text: bytes) -> None:
    with pytest.raises(json.JSONDecodeError):
        parse_json(text)
