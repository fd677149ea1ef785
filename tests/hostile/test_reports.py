"""Class 7 of hostile inputs: scripts, links and climbing names in what evaluation, chat and reports show."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from kosmos import Conversation, KosmosConfig, KosmosForConditionalGeneration
from kosmos.transcript import html_part
from kosmos_data import Document, Image, Text, write_shards
from kosmos_data.adapters import convert
from kosmos_data.web.ledger import IMAGES, PAGES, STAGES, Ledger
from kosmos_data.web.ledger_report import page
from kosmos_eval import results, tasks
from kosmos_eval.readers import load_items
from kosmos_eval.report import markdown

from .conftest import limited

SEEDS = int(os.environ.get("KOSMOS_SEEDS", "96")) // 8
MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "javascript:alert(1)",
    "</style><script>",
    "]]><script>",
    "<!--",
    "--><iframe src=//evil>",
    "<a href='javascript:x'>",
    "&lt;script&gt;",
    "\x00<b>",
    "| a | b |",
    "![x](http://evil/x.png)",
    "[x](javascript:alert(1))",
    "`",
    "\n# head\n",
    "\u202e",
    "<base href=//evil>",
    "{{7*7}}",
    "a",
]
PATHS = [
    "../secret.png",
    "/etc/passwd",
    "a/../../secret.png",
    "..\\secret.png",
    "file:///etc/passwd",
    "http://evil/x.png",
    "x\0.png",
    "~/.ssh/id",
    "./../secret.png",
    "//evil/x",
    "x" * 5000,
    "",
    ".",
    "..",
    "%2e%2e/secret.png",
    "secret.png",
    "images/0.png",
    "{split}",
    "{0}",
]


class Tags(HTMLParser):
    """What of a page is an element, and what its attributes may do."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def harmless(html: str) -> None:
    """No script, no handler, and no address but data of pictures and links that open http pages."""
    parser = Tags()
    parser.feed(html)
    for tag, attributes in parser.found:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form", "svg", "link"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name == "src":
                assert str(value).startswith("data:"), (tag, value)
            if name == "href":
                assert re.match(r"https?:|#", str(value)), (tag, value)


def odd(rng: random.Random) -> str:
    return "".join(rng.choice(MARKUP) for _ in range(rng.randint(1, 4)))


@pytest.fixture(scope="module")
def chat(processor: Any) -> Conversation:
    """A tiny model of text alone, to talk with."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = KosmosConfig(
        text_config={**sizes, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 256},
        vision_config=None,
        connector_config=None,
    )
    return Conversation(KosmosForConditionalGeneration(config).eval(), processor, max_new_tokens=2)


def test_pages_hold_no_markup_of_others(
    use: Callable[..., str], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    """The report of a web corpus, a conversation in a notebook, and the report of an evaluation."""
    import base64

    thumbnail = "data:image/jpeg;base64," + base64.b64encode(make_picture(form="JPEG")).decode()
    for seed in range(SEEDS):
        rng = random.Random(f"html {seed}")
        ledger = Ledger()
        for kind in (PAGES, IMAGES):
            ledger.entered[kind] = 3
            example = {
                "url": odd(rng),
                "page": odd(rng),
                "title": odd(rng),
                "text": odd(rng),
                "detail": odd(rng),
                "alt": odd(rng),
            }
            example["thumbnail"] = rng.choice([thumbnail, odd(rng)])
            ledger.drop(kind, rng.choice(STAGES), odd(rng), odd(rng), lambda example=example: example)
        shown: list[str] = []
        with limited(tmp_path, (seed, "report")):
            shown.append(page(odd(rng), ledger, None))
        shown.append("".join(html_part({"type": "text", "text": odd(rng)}) for _ in range(3)))
        for html in shown:
            harmless(html)
        names = {"task": odd(rng), "model": odd(rng), "metric": odd(rng), "context": odd(rng), "prompt": odd(rng)}
        row = {
            **names,
            "shots": 0,
            "value": 0.5,
            "low": 0.4,
            "high": 0.6,
            "n": 3,
            "decoding": odd(rng),
            "question_type": None,
        }
        text = markdown([row])
        tables = "\n".join(line for line in text.splitlines() if line.startswith(("|", "#")))
        harmless(tables)
        bars = [len(re.findall(r"(?<!\\)\|", line)) for line in tables.splitlines() if line[0] == "|"]
        assert bars == [4] * 3 + [9] * 3, text
        (how,) = (line for line in text.splitlines() if line.startswith("Prompt "))
        read = MarkdownIt().parseInline(how)[0].children or []
        assert next(part.content for part in read if part.type == "code_inline") == repr(row["prompt"]), how
        results.write([row], tmp_path / "results.json")
        assert row in results.read(tmp_path / "results.json")


def test_pictures_lie_in_their_folder(
    tmp_path: Path, use: Callable[..., str], secret: Path, make_picture: Callable[..., bytes]
) -> None:
    """COCO, VQA, Karpathy, LLaVA and messages name pictures; those outside of the folder are not opened."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "0.png").write_bytes(make_picture())
    imported, loaded = set(), set()
    for seed in range(SEEDS):
        rng, data = random.Random(f"names {seed}"), tmp_path / "data"
        name = rng.choice([*PATHS, *["images/0.png"] * 10])
        entry: dict[str, Any] = {"image": name, "file_name": name, "images": [name], "filename": name, "id": 1}
        entry |= {"image_id": rng.choice([1, name]), "caption": odd(rng), "sentences": [{"raw": odd(rng)}], "cocoid": 1}
        entry |= {"question": odd(rng), "answers": [odd(rng)], "question_id": 1, "filepath": "", "imgid": 1}
        entry["split"] = rng.choice(["train", "test"])
        entry["conversations"] = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": odd(rng)}]
        entry["messages"] = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "a"}]
        both = {"images": [entry], "annotations": [entry]}
        (data / "test.jsonl").write_text(json.dumps(entry))
        layout, listed = rng.choice([("llava", [entry]), ("messages", None), ("coco-captions", both),
                                     ("karpathy", both), ("sharegpt", [entry])])  # fmt: skip
        (data / "test.json").write_text(json.dumps(listed))
        source = data / ("test.json" if listed else "test.jsonl")
        line = use((seed, layout, name[:20]), convert, layout, source, tmp_path / f"out{seed}", data)
        imported.add((name == "images/0.png", line == "used"))
        form, listed = rng.choice([("jsonl", None), ("karpathy", both), ("captions", both), ("vizwiz", [entry])])
        (data / "test.json").write_text(json.dumps(listed))
        kind = "json" if listed else "jsonl"
        changes = [
            f"dataset.format={form}",
            f"dataset.annotations={{split}}.{kind}",
            "dataset.images={file_name}",
            "split=test",
        ]
        line = use(
            (seed, form, name[:20]),
            lambda c=changes, d=data: load_items(tasks.load("vqa", [*c, "demonstrations.split="]), d, "test"),
        )
        loaded.add((name == "images/0.png", line == "used"))
    for found in (imported, loaded):  # the picture of the folder is used, and of the other names none
        assert {is_there for is_there, is_used in found if is_used} == {True}
        assert (False, False) in found


def test_a_long_chat_of_odd_questions(use: Callable[..., str], chat: Conversation) -> None:
    """A hundred turns of anything: each is answered or refused in a line, and the chat goes on."""
    answered = 0
    for seed in range(min(100, SEEDS)):
        rng = random.Random(f"chat {seed}")
        question = rng.choice([odd(rng), odd(rng) * 200, "", "\ud800", "<image>" * 50, "</s>", "x" * 10**5])
        answered += use(seed, chat.ask, question) == "used"
    assert answered == sum(message["role"] == "assistant" for message in chat.messages) > 0
    harmless(chat._repr_html_())


def test_shards_of_odd_texts_are_shown(
    use: Callable[..., str], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    from kosmos_data.cli import main

    def made(rng: random.Random) -> list[Document]:
        return [Document(str(number), [Image(make_picture()), Text(odd(rng))]) for number in range(3)]

    for seed in range(SEEDS):
        folder = tmp_path / str(seed)
        use((seed, "write"), write_shards, folder, made(random.Random(f"shards {seed}")))
        assert use((seed, "inspect"), main, ["inspect", str(folder)]) == "used"
