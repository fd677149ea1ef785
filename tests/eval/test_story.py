"""Texts that go on from a beginning: cut from real ones or a person's own, written, scored, and judged by people."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos.cli import main
from kosmos_data import ShardWriter
from kosmos_data.document import Document, Text
from kosmos_eval import beginnings, metrics, tasks
from kosmos_eval.compare import compare_samples
from kosmos_eval.evaluate import evaluate
from kosmos_eval.items import Item
from kosmos_eval.rating import judgements
from kosmos_eval.readers import load_items

LINES = ["a red circle is it a blue square yes", "no", "An image of a green triangle Question: what color is it?"]


def speeches(root: Path, count: int = 3) -> Path:
    (root / "test").mkdir(parents=True)
    records = [{"id": f"s{i}", "text": "\n".join(LINES[: 1 + i] + [f"black {word}" * 3 for word in "xyz"[:i]])} for i in
               range(count)]  # fmt: skip
    (root / "test/text.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return root


def test_lines_are_cut_in_two() -> None:
    items = beginnings.cut([Item("s", {}, (), ("one two three four five\n\na b\nsix seven eight",))], 2, 2)
    assert [(item.id, item.fields["beginning"], item.answers) for item in items] == [
        ("s:1", "one two", ("three four",)),
        ("s:4", "six seven", ("eight",)),
    ]
    assert {item.cluster for item in items} == {"s"}


def test_a_corpus_is_cut_too(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "test") as writer:
        writer.write(Document("d", [Text("one two three four")]))
    task = tasks.load("story", ["dataset.format=shards", "dataset.annotations={split}", "dataset.beginning=3"])
    (item,) = load_items(task, tmp_path, "test")
    assert (item.id, item.fields["beginning"], item.answers) == ("d:1", "one two three", ("four",))


def test_own_beginnings(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeffOnce upon a time \n\n  Es war {einmal}\n".encode())
    assert [(item.id, item.fields["beginning"], item.answers) for item in beginnings.read(tmp_path / "p.txt")] == [
        ("1", "Once upon a time", ()),
        ("3", "Es war {einmal}", ()),
    ]
    (tmp_path / "p.jsonl").write_text('{"id": "x", "prompt": "A", "continuation": " b "}\n\n{"prompt": "C"}\n')
    assert [(item.id, item.answers) for item in beginnings.read(tmp_path / "p.jsonl")] == [("x", ("b",)), ("3", ())]


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"text": "A"}', 'no "prompt"'), ('{"prompt": " "}', 'no "prompt"'), ("[1]", "p.jsonl:1"),
     ('{"prompt": "A", "continuation": 3}', "continuation")],
)  # fmt: skip
def test_bad_beginnings_name_the_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        beginnings.read(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("override", "message"),
    [("dataset.beginning=-1", "must be 0 words or more"), ("dataset.continuation=0", "at least 1"),
     ("dataset.format=jsonl", "goes with format text or shards")],
)  # fmt: skip
def test_bad_cuts_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.load("story", [override])


def test_repetition_by_hand() -> None:
    """``a b a b``: of 4 words 2 differ, of 3 pairs 2; ``c``: 1 of 1, no pair; the empty text says nothing."""
    texts = ["a b a b", "c", ""]
    one, two, three, words = metrics.compute(
        ["intra_distinct_1", "intra_distinct_2", "intra_distinct_3", "words"], texts, [[], [], []]
    )
    assert (one.value, two.value, three.value) == pytest.approx((3 / 5, 2 / 3, 1))
    assert list(one.per_item) == [0.5, 1, 0]
    assert words.value == pytest.approx(5 / 3)
    with pytest.raises(ValueError, match=r"item 0 .* has no reference"):
        metrics.compute(["words", "rouge_l"], texts, [[], [], []])


def test_likelihood_is_behind_the_beginning(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path
) -> None:
    """Bits per byte of the continuations equal those of plain forward passes over beginning and continuation."""
    task = tasks.load("story_likelihood", ["dataset.beginning=3", "dataset.continuation=4"])
    items = load_items(task, speeches(tmp_path), "test")
    bits = size = 0.0
    for item in items:
        head = [processor.tokenizer.bos_token_id, *processor.encode_text(item.fields["beginning"])]
        rest = processor.encode_text(f" {item.answers[0]}")
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([head + rest])).logits[0].log_softmax(-1)
        nats = [float(logits[len(head) + i - 1, token]) for i, token in enumerate(rest)]
        bits -= sum(nats) / torch.log(torch.tensor(2.0)).item()
        size += len(item.answers[0].encode())
    rows = evaluate(model, processor, task, tmp_path, contexts=("image+text", "none"))
    found = {row["context"]: row for row in rows if row["model"] == "model"}
    assert found["image+text"]["value"] == pytest.approx(bits / size, abs=1e-4)
    assert found["none"]["value"] != pytest.approx(bits / size, abs=1e-2)
    assert found["image+text"]["images"] == 3  # the bootstrap draws whole speeches
    assert found["image+text"]["baselines"] == {"chance": 8}


def test_own_beginnings_cannot_be_compared(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\nis it\n")
    command = [
        "eval",
        str(checkpoint),
        "--tasks",
        "story_prompts",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*command, "--set", "metrics=rouge_l"]) == 2
    assert "rouge_l needs a known continuation, which 2 of 2 items lack (first: 1)" in capsys.readouterr().err
    assert main(command) == 0
    rows = json.loads((tmp_path / "o/results.json").read_text())
    assert {row["metric"] for row in rows} == {"intra_distinct_2", "words"}
    log = tmp_path / "o/samples/toy/story_prompts-0shot-image+text.jsonl"
    assert [json.loads(line)["prompt"] for line in log.read_text().splitlines()] == ["a red circle", "is it"]


def judge_all(address: str, judgement: str) -> int:
    """Press one button until the last page, then the one that finishes; returns how many items there were."""
    place = urlsplit(address)
    headers = {"Origin": f"http://{place.netloc}", "Content-Type": "application/x-www-form-urlencoded"}

    def ask(method: str, path: str, body: str | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(place.netloc, timeout=60)
        connection.request(method, path, body, headers)
        return connection.getresponse()

    count, where = 0, ask("GET", place.path).headers["Location"]
    while not where.endswith("/done"):
        where, count = ask("POST", where, f"judgement={judgement}").headers["Location"], count + 1
    assert ask("POST", f"{place.path}finish").status == 200
    return count


@pytest.mark.slow
def test_two_ways_of_writing_are_judged(
    checkpoint: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a checkpoint to who won: two evaluations with unlike decoding, their folders, the page, the report."""
    data, outs = speeches(tmp_path / "data"), []
    for name, method in (("likeliest", "greedy"), ("drawn", "sample")):
        outs.append(tmp_path / name)
        settings = [f"decoding.method={method}", "dataset.beginning=3", "decoding.max_new_tokens=12"]
        command = [
            "eval",
            str(checkpoint),
            "--tasks",
            "story",
            "--data",
            str(data),
            "--out",
            str(outs[-1]),
            "--name",
            name,
        ]
        assert main([*command, *(part for one in settings for part in ("--set", one))]) == 0
    rows = json.loads((outs[0] / "results.json").read_text())
    assert {row["model"] for row in rows} == {"likeliest", "another's continuation"}
    log = "samples/{0}/story-0shot-image+text.jsonl"
    compared = compare_samples(*(out / log.format(out.name) for out in outs), "words")
    assert compared.clusters == 3
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(repository / name) for name in (".", "data", "eval"))}
    line = [sys.executable, "-m", "kosmos", "eval", "rate", f"A={outs[0]}", str(outs[1]), "--rater", "ann"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    assert process.stdout is not None
    shown = ""
    while (found := re.search(r"open (http://\S+)", shown)) is None:
        part = process.stdout.readline()
        assert part, shown
        shown += part
    count = judge_all(found[1], "left")
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    made = judgements.read(tmp_path / "ratings.jsonl")
    assert count == sum(not one.same for one in made) > 0
    assert f"{count} of {count} judged" in rest
    wins: dict[Any, int] = {}
    for one in made:
        wins[one.winner] = wins.get(one.winner, 0) + 1
    capsys.readouterr()
    assert main(["eval", "rate", "--report", str(tmp_path / "ratings.jsonl"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["systems"] == ["A", "drawn"]
    assert report["all"]["win_rate"] == pytest.approx((wins.get("A", 0) + wins.get(None, 0) / 2) / len(made))
    assert (report["decided"], report["left"]) == (count, 1.0)
