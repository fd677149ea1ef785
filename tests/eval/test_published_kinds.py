"""Sets that are published in several kinds of files, or in tables: COPA's XML, wsc273.txt, GLUE's SST-2."""

from __future__ import annotations

from pathlib import Path

import pytest

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos_eval import prompts, tasks
from kosmos_eval.evaluate import evaluate
from kosmos_eval.readers import load_items

COPA = """<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE copa-corpus SYSTEM "copa.dtd"><copa-corpus version="1.0">
<item id="1" asks-for="cause" most-plausible-alternative="1"><p>My body cast a shadow over the grass.</p>
<a1>The sun was rising.</a1><a2>The grass was cut.</a2></item>
<item id="2" asks-for="effect" most-plausible-alternative="2"><p>The pipe froze.</p><a1>It sang.</a1><a2>It burst.</a2>
</item></copa-corpus>"""
WSC = """The councilmen refused the demonstrators a permit because [MASK] feared violence.
[MASK]
The councilmen,The demonstrators
The councilmen

[MASK] is large, said Ann.
[MASK]
The trophy,Ann
Ann
"""
SST = "sentence\tlabel\nit 's a \" charming film\t1\nunflinchingly bleak\t0\n"
# task → overrides, file, content, each item's prompt and right continuation
CASES = {
    "copa": ("COPA/{split}.xml", "COPA/val.xml", COPA,
             ["My body cast a shadow over the grass because| the sun was rising.", "The pipe froze so| it burst."]),
    "winograd": ("wsc273.txt", "wsc273.txt", WSC,
                 ["The councilmen refused the demonstrators a permit because the councilmen| feared violence.",
                  " Ann| is large, said Ann."]),
    "sst2": ("SST-2/{split}.tsv", "SST-2/dev.tsv", SST,
             ["it 's a \" charming film\nQuestion: what is the sentiment of the opinion? Answer:| positive",
              "unflinchingly bleak\nQuestion: what is the sentiment of the opinion? Answer:| negative"]),
}  # fmt: skip


def write(folder: Path, name: str, content: str | None = None) -> tasks.Task:
    pattern, file, whole, _ = CASES[name]
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(whole if content is None else content)
    return tasks.load(name, [f"dataset.annotations={pattern}"])


@pytest.mark.parametrize("name", sorted(CASES))
def test_published_files_are_read_as_they_are(
    name: str, model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    task = write(tmp_path, name)
    items = load_items(task, tmp_path, task.split)
    for item, expected in zip(items, CASES[name][3], strict=True):
        prompt = prompts.with_candidate(prompts.build(task, item), prompts.wording(task, item, item.answers[0]))
        assert prompt.text + "|" + prompts.continuation(task, item, item.answers[0]) == expected
    monkeypatch.setattr(processor, "max_length", 512)
    rows = evaluate(model, processor, task, tmp_path)
    assert rows[0]["n"] == 2
    assert rows[0]["baselines"] == {"chance": task.chance}


def test_a_schema_without_its_answer_is_no_guess(tmp_path: Path) -> None:
    schema = "<collection><schema><text><txt1>Ann saw</txt1><pron>it</pron><txt2>fall.</txt2></text><answers><answer>a"
    (tmp_path / "WSCollection.xml").write_text(f"{schema}</answer><answer>b</answer></answers></schema></collection>")
    with pytest.raises(ValueError, match="xml:1: not an entry of format winograd"):
        load_items(tasks.load("winograd"), tmp_path, "test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("copa", "<copa-corpus>", "not valid XML"),
        ("copa", COPA.replace('most-plausible-alternative="2"', ""), "labels of the test split are not public"),
        ("copa", COPA.replace('asks-for="effect"', 'asks-for="x"'), r"no 'x' here"),
        ("winograd", WSC.replace("The councilmen\n\n", "Nobody\n\n"), r"txt:1: not an entry.*\.xml, \.txt"),
        ("winograd", WSC.replace("Ann\nAnn", "Ann"), "txt:6: .*'"),
        ("sst2", SST.replace("label", "index"), "labels of the test split are not public"),
        ("sst2", SST.replace("\t0", "\t2"), "tsv:2: not an entry of format sst2"),
    ],
)
def test_what_is_wrong_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    task = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message):
        load_items(task, tmp_path, task.split)


def test_another_kind_of_file_names_those_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "wsc.csv").write_text("x")
    with pytest.raises(ValueError, match=r"format winograd is read from \.xml, \.txt files"):
        load_items(tasks.load("winograd", ["dataset.annotations=wsc.csv"]), tmp_path, "test")
