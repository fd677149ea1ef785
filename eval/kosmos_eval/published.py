"""Readers of classification sets in the files in which they are published: SuperGLUE, PIQA, HellaSwag, Winogrande,
Winograd, COPA, StoryCloze, HatefulMemes, SST-2; and any texts with labels.

Each reader turns a published file into entries of our JSON lines (``id``, ``answers``, ``candidates``, fields), whose
wording the task's YAML then decides; MultiRC's passages into one each answer option, ReCoRD's into one a query. What
the field does to the texts before asking (GPT-3, appendix G; lm-eval's
HellaSwag clean-up) is done here, because no template can. Labels that are not public are an error, not a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .published_rows import (
    Entry,
    Rows,
    comma_separated,
    copa_xml,
    json_lines,
    multirc_options,
    record_queries,
    tab_separated,
    winograd_blocks,
    winograd_xml,
)


def read(kind: str, path: Path) -> Iterator[tuple[int, Entry]]:
    """Line numbers and entries of a published file.

    Args:
        kind: a key of ``FORMATS``.

    Raises:
        FileNotFoundError: no such file. ValueError: an entry lacks a column or its label.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    by_suffix, convert = FORMATS[kind]
    kinds = ", ".join(by_suffix)
    if (rows := by_suffix.get(path.suffix.lower()) or by_suffix.get(".jsonl")) is None:
        raise ValueError(f"{path}: format {kind} is read from {kinds} files as they are published")
    for number, row in rows(path):
        try:
            entry = convert(row)
        except KeyError as error:
            hint = (
                "; the labels of the test split are not public"
                if error.args[0] in ("label", "answer", "answers")
                else ""
            )
            raise ValueError(f"{path}:{number}: no {error} here, which format {kind} has{hint}") from error
        except (IndexError, TypeError, ValueError) as error:
            problem = f"{path}:{number}: not an entry of format {kind}: {error}"
            raise ValueError(problem if len(by_suffix) == 1 else f"{problem} (read as published: {kinds})") from error
        yield number, {"id": number, **entry}


def _yes_no(label: Any) -> list[str]:
    if not isinstance(label, bool):
        raise ValueError(f"label {label!r} is neither true nor false")
    return ["yes" if label else "no"]


def _chosen(candidates: list[str], place: int) -> Entry:
    if not 0 <= place < len(candidates):
        raise ValueError(f"the label names candidate {place + 1} of {len(candidates)}")
    return {"candidates": candidates, "answers": [candidates[place]]}


def _boolq(row: Entry) -> Entry:
    return {"passage": row["passage"], "question": row["question"].rstrip("?"), "answers": _yes_no(row["label"])}


def _entailment(row: Entry) -> Entry:
    """CommitmentBank and RTE; the classes are the published labels."""
    return {"premise": row["premise"], "hypothesis": row["hypothesis"].rstrip(), "answers": [row["label"]]}


def _copa(row: Entry) -> Entry:
    """Choices begin in lower case and lose their full stop, for they go on a sentence."""
    connective, joint = {"cause": ("because", " because"), "effect": ("so", ", so")}[row["question"]]
    choices = [_lower_first(row[name]).rstrip(".") for name in ("choice1", "choice2")]
    fields = {"premise": row["premise"].strip().rstrip("."), "connective": connective, "joint": joint}
    return fields | {"choice1": choices[0], "choice2": choices[1]} | _chosen(choices, int(row["label"]))


def _wic(row: Entry) -> Entry:
    return {name: row[name] for name in ("word", "sentence1", "sentence2")} | {"answers": _yes_no(row["label"])}


def _wsc(row: Entry) -> Entry:
    """The pronoun is marked in the text, as GPT-3 and T5 do."""
    target, words = row["target"], row["text"].split()
    place, length = int(target["span2_index"]), len(target["span2_text"].split())
    words[place] = "*" + words[place]
    words[place + length - 1] += "*"
    spans = {"noun": target["span1_text"], "pronoun": target["span2_text"]}
    return {"text": " ".join(words), **spans, "answers": _yes_no(row["label"])}


def _multirc(row: Entry) -> Entry:
    """One answer option of a question; all options of a question have its ``source``."""
    kept = {name: row[name] for name in ("id", "source", "passage", "question", "option")}
    return kept | {"answers": _yes_no(bool(int(row["label"])))}


def _record(row: Entry) -> Entry:
    """A query whose @placeholder is one of the passage's entities; highlights of the article become a list (PET)."""
    passage, query = row["passage"]["text"], row["query"]
    before, after = query.split("@placeholder")
    named = [passage[one["start"] : one["end"] + 1] for one in row["passage"]["entities"]]
    fields = {"passage": passage.replace("@highlight\n", "- "), "before": before.rstrip(), "after": after}
    answers = list(dict.fromkeys(one["text"] for one in row["answers"]))
    candidates = list(dict.fromkeys(named))
    if not answers or set(answers) - set(candidates):
        raise ValueError(f"answers {answers} are not all entities of the passage")
    return {"id": row["id"], "source": row["source"], **fields, "candidates": candidates, "answers": answers}


def _piqa(row: Entry) -> Entry:
    return {"goal": row["goal"]} | _chosen([row["sol1"], row["sol2"]], int(row["label"]))


def _hellaswag(row: Entry) -> Entry:
    begun = f"{row['ctx_a']} {row['ctx_b'].capitalize()}" if row["ctx_b"] else row["ctx_a"]
    context = _without_marks(f"{row['activity_label']}: {begun}")
    return {"context": context} | _chosen([_without_marks(text) for text in row["endings"]], int(row["label"]))


def _winogrande(row: Entry) -> Entry:
    before, after = row["sentence"].split("_")
    label = row["answer"] or row["label"]
    return {"before": before.strip(), "after": after.strip()} | _chosen(
        [row["option1"], row["option2"]], int(label) - 1
    )


def _winograd(row: Entry) -> Entry:
    options = [_lower_article(text) if row["txt1"] else text for text in row["answers"]]
    return {"before": row["txt1"], "after": row["txt2"]} | _chosen(options, ("A", "B").index(row["label"]))


def _story_cloze(row: Entry) -> Entry:
    story = " ".join(row[f"InputSentence{i}"] for i in range(1, 5))
    endings = [row[f"RandomFifthSentenceQuiz{i}"] for i in (1, 2)]
    return {"id": row["InputStoryid"], "story": story} | _chosen(endings, int(row["AnswerRightEnding"]) - 1)


def _hateful_memes(row: Entry) -> Entry:
    return {"id": row["id"], "images": [row["img"]], "text": row["text"], "answers": _yes_no(bool(int(row["label"])))}


def _sst2(row: Entry) -> Entry:
    """GLUE's table; its sentences are tokenized, which is left as it is."""
    return {"text": row["sentence"].strip(), "answers": [("negative", "positive")[int(row["label"])]]}


def _labelled(row: Entry) -> Entry:
    return {"text": row["text"], "answers": [str(row["label"])]}


def _without_marks(text: str) -> str:
    """HellaSwag's WikiHow texts carry marks in square brackets."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ").strip()


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:].strip()


def _lower_article(text: str) -> str:
    """ "The trophy" in the middle of a sentence; names keep their capital."""
    first, _, rest = text.partition(" ")
    lowered = first.lower() if first.lower() in ("the", "a", "an", "my", "his", "her", "their", "our") else first
    return f"{lowered} {rest}".strip()


_JSON_LINES: dict[str, Rows] = {".jsonl": json_lines, ".json": json_lines}
# format → how its files are read, by their suffix; what makes an entry of a row
FORMATS: dict[str, tuple[dict[str, Rows], Callable[[Entry], Entry]]] = {
    "boolq": (_JSON_LINES, _boolq),
    "cb": (_JSON_LINES, _entailment),
    "rte": (_JSON_LINES, _entailment),
    "copa": (_JSON_LINES | {".xml": copa_xml}, _copa),
    "wic": (_JSON_LINES, _wic),
    "wsc": (_JSON_LINES, _wsc),
    "multirc": ({".jsonl": multirc_options}, _multirc),
    "record": ({".jsonl": record_queries}, _record),
    "piqa": (_JSON_LINES, _piqa),
    "hellaswag": (_JSON_LINES, _hellaswag),
    "winogrande": (_JSON_LINES, _winogrande),
    "winograd": ({".xml": winograd_xml, ".txt": winograd_blocks}, _winograd),
    "storycloze": ({".csv": comma_separated}, _story_cloze),
    "hateful_memes": (_JSON_LINES, _hateful_memes),
    "sst2": ({".tsv": tab_separated}, _sst2),
    "labelled": (_JSON_LINES, _labelled),
}
