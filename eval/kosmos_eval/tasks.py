"""Evaluation tasks: one YAML each, read into these dataclasses (unknown keys are refused with a suggestion).

A task says where its data lies below ``--data``, how an item becomes a prompt, how the model answers, and what scores
the answer. Prompts, decoding and splits follow KOSMOS-1 (arXiv 2302.14045, section 4) and end up in every result row:
the field's scores differ by tens of points over a blank or a full stop.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from kosmos import settings
from kosmos.segments import SEGMENTS
from kosmos.suggest import suggest

from .items import check_fields
from .metrics import CONFIDENCE_METRICS, LIKELIHOOD_METRICS, resolve
from .readers import FORMATS

if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[tuple(FORMATS)]

IMAGE_MARK = "<image>"
FILE_MARKS = {f"<{name}>": kind for name, kind in SEGMENTS.items() if [each.name for each in fields(kind)] == ["data"]}
"""Marks that stand for a file of an item, pictures, sounds and videos, and the segments that they make of it."""
IMAGES_MARK = "<images>"  # as many marks as the item has images
CANDIDATE = "{candidate}"  # where each candidate is put in turn
RATIONALE = "{rationale}"  # where the free answer to the first prompt is put
BLANK = "<mask>"  # what method cloze fills
CONTEXTS = ("image+text", "shuffled", "text-only", "none")
# In a checkout the YAML files lie in eval/tasks; a wheel carries them beside this module.
_FOLDERS = (Path(__file__).parents[1] / "tasks", Path(__file__).parent / "tasks")


@dataclass
class DatasetFiles:
    """Where the items are. Paths are relative to ``--data``; ``{split}`` stands for the split's name.

    Args:
        format: how the files are written, a key of ``readers.FORMATS``: ``vqa`` (VQAv2 questions and annotations),
            ``captions`` (COCO captions), ``karpathy`` (the split file of Karpathy and Fei-Fei:
            ``dataset_coco.json``, ``dataset_flickr30k.json``), ``vizwiz`` (a list of image, question, answers),
            ``jsonl`` (one object a line) or ``parquet`` (the same columns; needs pyarrow), ``text`` (lines with
            ``text``), ``shards`` (a corpus folder as made for training), ``beginnings`` (of one's own: the lines of a
            ``.txt`` file, or JSON lines with ``prompt`` and, where it is known, ``continuation``), or a classification
            set in its published files: ``boolq``, ``cb``, ``rte``, ``wic``, ``wsc``, ``multirc``, ``record``
            (SuperGLUE), ``piqa``, ``hellaswag``, ``winogrande``, ``winograd`` (XML, or ``wsc273.txt``), ``copa``
            (its XML too), ``storycloze``, ``hateful_memes``, ``sst2`` (GLUE); ``labelled``: JSON lines with ``text``
            and ``label``.
        questions: VQAv2 question file.
        annotations: VQAv2 annotations, COCO captions, the Karpathy file, the JSON lines, or the corpus folder.
        images: image path with ``{image_id}`` or, where the file has it, ``{file_name}`` (and ``{split}``); empty for
            tasks without images. Of sounds and videos the same.
        group: which of VQAv2's two types the scores are split by (VQAv2 has 65 question types and 3 answer types).
        lead: of ``shards``: only captions that begin with these words, which the prompt says, are taken.
        beginning: of ``text`` and ``shards``: so many words of each line become the field ``{beginning}``, and how it
            goes on the answer; lines without more words are left. 0: whole texts.
        continuation: words of such an answer at most.
        synonyms: two spellings of one answer, ``{grey: gray}``: an item that has either accepts both.
    """

    format: Format
    annotations: str
    questions: str = ""
    images: str = ""
    group: Literal["question_type", "answer_type"] = "question_type"
    lead: str = ""
    beginning: int = 0
    continuation: int = 60
    synonyms: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.beginning < 0 or self.continuation < 1:
            raise ValueError(
                f"dataset.beginning {self.beginning} must be 0 words or more, dataset.continuation "
                f"{self.continuation} at least 1"
            )
        if self.beginning and self.format not in ("text", "shards"):
            raise ValueError(f"dataset.beginning cuts texts: it goes with format text or shards, not {self.format}")


@dataclass
class Prompt:
    """How an item is written.

    Args:
        template: text with ``<image>`` marks (``<audio>`` and ``<video>`` for sounds and videos) and ``{field}`` names,
            for example ``<image>Question: {question} Answer:``; ``<images>`` stands for all images of an item. No blank
            at its end: the answer brings its own. ``{candidate}``: each candidate is put here, and the same ``answer``
            is scored after each (Winogrande's partial evaluation). ``<mask>``: the blank of method ``cloze``.
        answer: how an answer continues it; ``{answer}`` is the reference answer of a demonstration or a candidate. Text
            and fields after it are scored with a candidate, which makes a cloze: ``" {answer}, because {reason}"``.
        separator: between demonstrations, which show where an answer stops: where it begins with a line end or
            ``</s>``, that ends an answer too. Default: as the checkpoint ends its answers, with a line end, or with
            ``</s>`` where it was tuned so. source: where the wording comes from, copied into the results. shorten: a
            field (a web page's text) that loses words at its end where a prompt is too long even without
            demonstrations; how many prompts did is said in red and in the results. Empty: such a prompt is an error.
        grounding: end the prompt with ``<grounding>``: the answer has phrases with boxes (KOSMOS-2), which the sample
            log keeps and ``kosmos eval gallery`` draws. zooms: every picture is seen at each of these scales, 1.25 from
            nearer and 0.8 from farther, and its features are averaged (multi-crop testing, Krizhevsky et al. 2012,
            section 4.1); so many times as much is encoded. others: more templates for method ``rank``: a candidate's
            score is the mean over all (prompt ensembling, Radford et al. 2021, section 3.1.4).
    """

    template: str
    answer: str = " {answer}"
    separator: str | None = None
    source: str = ""
    shorten: str = ""
    grounding: bool = False
    zooms: list[float] = field(default_factory=lambda: [1.0])
    others: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.zooms or not all(0.1 <= zoom <= 10 for zoom in self.zooms):
            raise ValueError(
                f"prompt.zooms {self.zooms}: give one scale or more from 0.1 to 10; [1] is the picture as it is"
            )


@dataclass
class Demonstrations:
    """Which solved examples stand before the question in a few-shot prompt; always of another split.

    Args:
        split: split they are drawn from; empty: the task allows none.
        method: ``random`` draws for each item by a hash of (seed, task, item), as KOSMOS-1 and OpenFlamingo do;
            ``shared`` draws once for the task, so that one encoded prefix serves all items; ``rices`` takes the items
            whose images are nearest by the vision tower (Yang et al. 2021), the nearest last; ``own`` takes the first
            of those that each item of a ``jsonl`` file brings with it, and needs no split.
        seed: of the draw.
        labels: the answers that they show: the ``true`` ones; ``random`` ones of the same candidates, or of examples of
            the same question type; or ``shuffled``, each that of another of them (one alone keeps its own). Min et al.
            2022 ask so whether demonstrations show more than the form.
    """

    split: str = ""
    method: Literal["random", "shared", "rices", "own"] = "random"
    seed: int = 0
    labels: Literal[True, "random", "shuffled"] = True


@dataclass
class Decoding:
    """How the answer is obtained.

    Args:
        method: ``greedy``, ``beam``, ``sample``, ``rank`` (the candidate with the highest likelihood), ``cloze`` (the
            likeliest candidate in the template's ``<mask>``, for models trained to fill blanks), or ``likelihood``
            (nothing is written: how probable is the item's text, behind the prompt if there is one?). max_new_tokens:
            the answer's length at most; it also ends where the checkpoint's answers do, or the demonstrations'.
            num_beams, length_penalty: for ``beam`` (KOSMOS-1: 5 for captions, 2 for ImageNet). temperature, top_p: for
            ``sample``; the draws depend on the item alone, not on its batch. candidates: for ``rank`` and ``cloze``
            where items bring none of their own, and for ``constrained``; without any, the answers that occur in the
            evaluated split (its class names).
            verbalizers: the words that stand for a class of the data, ``{entailment: "Yes"}``; its
            classes are then the candidates. described: each candidate is ranked by its description in the item's data
            (``wordings``, KOSMOS-1 section 4.8), not by its own words.
            normalisation: of a candidate's log-likelihood: ``sum``, ``mean`` over its tokens, per ``byte``,
            ``unconditional`` (minus the log-likelihood after ``bare_prompt``, GPT-3 section 2.4), or ``marginal``
            (minus the log of its mean likelihood with ``other_images`` in the place of the item's: the pointwise
            mutual information of image and candidate). bare_prompt: what says nothing of the item, as GPT-3's
            ``Answer:``. other_images: so many of the demonstrations' split, drawn by hash. constrained: for ``beam``:
            only the candidates can be written (KOSMOS-1's constrained ImageNet).
    """

    method: Literal["greedy", "beam", "sample", "rank", "cloze", "likelihood"] = "greedy"
    max_new_tokens: int = 10
    num_beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    candidates: list[str] = field(default_factory=list)
    verbalizers: dict[str, str] = field(default_factory=dict)
    described: bool = False
    normalisation: Literal["sum", "mean", "byte", "unconditional", "marginal"] = "sum"
    bare_prompt: str = "Answer:"
    other_images: int = 32
    constrained: bool = False

    def __post_init__(self) -> None:
        if self.verbalizers and not self.candidates:
            self.candidates = list(self.verbalizers)
        for name in ("max_new_tokens", "num_beams", "other_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"decoding.{name} {getattr(self, name)} must be at least 1")
        if not 0 < self.temperature < math.inf or not math.isfinite(self.length_penalty):
            given = f"decoding.temperature {self.temperature}, length_penalty {self.length_penalty}"
            raise ValueError(f"{given}: finite numbers, the temperature above 0 (method greedy draws nothing)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"decoding.top_p {self.top_p} must lie above 0 and up to 1")
        strange = sorted(set(self.verbalizers) - set(self.candidates))
        if strange:
            raise ValueError(
                f"decoding.verbalizers has {strange[0]!r}, which is none of the candidates {self.candidates}"
            )


@dataclass
class Chain:
    """How a rationale is written, of a task that asks for one.

    Args:
        samples: 1: one, greedily. More: so many are sampled, an answer is asked behind each, and the commonest wins; of
            several that are as common, the one that came first (self-consistency, Wang et al. 2022).
        temperature: of these samples; Wang et al. take 0.5 to 0.7. Each depends on the item and its number alone.
        of: ``item``; or, to see whether rationales are read, ``another``: the answer is asked behind what the model
            writes to the first prompt of another item.
    """

    samples: int = 1
    temperature: float = 0.7
    of: Literal["item", "another"] = "item"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"chain.samples {self.samples} must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"chain.temperature {self.temperature} must be above 0; samples=1 writes greedily")


@dataclass
class Task:
    """One evaluation task.

    Args:
        description: one line for the table of tasks.
        dataset: the data files.
        prompt: the wording.
        split: the split to evaluate.
        demonstrations: few-shot examples.
        decoding: how answers are made.
        metrics: what scores them; the first one is the headline.
        rationale: a first prompt whose free answer becomes ``{rationale}`` in ``prompt`` (KOSMOS-1's multimodal
            chain of thought); empty: none. Demonstrations show their own, the text under ``rationale`` in their data:
            before the first prompt those that have one, before the second all, without a rationale where there is none.
        rationale_tokens: length of the rationale at most.
        chain: how it is written.
        chance: score of a blind guess, printed beside the results, where it is defined.
        name: file name without ``.yaml``; filled in by :func:`load`.
    """

    description: str
    dataset: DatasetFiles
    prompt: Prompt
    split: str = "test"
    demonstrations: Demonstrations = field(default_factory=Demonstrations)
    decoding: Decoding = field(default_factory=Decoding)
    metrics: list[str] = field(default_factory=lambda: ["vqa"])
    rationale: str = ""
    rationale_tokens: int = 64
    chain: Chain = field(default_factory=Chain)
    chance: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        self.metrics = resolve(self.metrics)
        templates = [("prompt.template", self.prompt.template)]
        templates += [(f"prompt.others[{number}]", text) for number, text in enumerate(self.prompt.others)]
        for where, text in templates:
            if text != text.rstrip():
                raise ValueError(f"{where} {text!r} ends in white space; the answer brings its own blank")
        for where, text in (*templates, ("prompt.answer", self.prompt.answer), ("rationale", self.rationale)):
            try:
                check_fields(text)
            except ValueError as error:
                raise ValueError(f"{where} {text!r}: {error}") from error
        self._check_answers()
        self._check_chain()
        is_likelihood = self.decoding.method == "likelihood"
        if any((metric in LIKELIHOOD_METRICS) != is_likelihood for metric in self.metrics):
            raise ValueError(
                f"metrics {self.metrics} do not go with method {self.decoding.method}: "
                f"{', '.join(LIKELIHOOD_METRICS)} and method likelihood belong together"
            )
        if self.demonstrations.split and self.demonstrations.split == self.split:
            raise ValueError(f"demonstrations.split is {self.split!r}, the evaluated split; draw them from another one")
        if self.demonstrations.labels == "shuffled" and self.decoding.described:
            raise ValueError(
                "demonstrations.labels=shuffled: with decoding.described an example has no words for the answer of "
                "another one; use labels=random"
            )
        if self.demonstrations.method == "rices" and any(
            mark in self.prompt.template for mark in FILE_MARKS if mark != IMAGE_MARK
        ):
            raise ValueError("demonstrations.method rices compares images; with sounds and videos use random")
        if self.decoding.method == "beam" and self.prompt.zooms != [1.0]:
            raise ValueError(
                f"prompt.zooms {self.prompt.zooms}: method beam reads each picture once; use greedy, sample or rank"
            )
        if self.decoding.constrained and self.decoding.method != "beam":
            raise ValueError(
                f"decoding.constrained needs method beam, not {self.decoding.method}; to rank, use method rank"
            )

    def _check_chain(self) -> None:
        """What is said of a rationale needs one, and a vote has no confidence."""
        if self.chain != Chain() and not self.rationale:
            raise ValueError(f"chain: {self.chain} needs a first prompt; give rationale, or leave chain out")
        if self.chain.samples > 1 and self.decoding.method == "likelihood":
            raise ValueError(f"chain.samples {self.chain.samples}: method likelihood gives no answers to vote on")
        if self.chain.samples > 1 and set(self.metrics) & set(CONFIDENCE_METRICS):
            raise ValueError(
                f"metrics {self.metrics}: roc_auc needs one confidence an item, a vote of {self.chain.samples} has "
                "none; use chain.samples=1"
            )

    def _check_answers(self) -> None:
        """Template, answer, method and candidates must go together."""
        template, method, candidates = self.prompt.template, self.decoding.method, self.decoding.candidates
        if CANDIDATE not in template and "{answer}" not in self.prompt.answer:
            raise ValueError(f"prompt.answer {self.prompt.answer!r} must hold {{answer}}")
        if self.prompt.others and (method != "rank" or self.rationale or CANDIDATE in template):
            raise ValueError(
                f"prompt.others {self.prompt.others}: several templates need method rank, without {CANDIDATE} and "
                "without a rationale"
            )
        if CANDIDATE in template and method != "rank":
            raise ValueError(f"prompt.template holds {CANDIDATE}, which needs method rank, not {method}")
        if method == "cloze" and template.count(BLANK) != 1:
            raise ValueError(f"prompt.template {template!r}: method cloze needs exactly one {BLANK} in it")
        is_choice = method in ("rank", "cloze") and len(candidates) == 2
        if set(self.metrics) & set(CONFIDENCE_METRICS) and not is_choice:
            raise ValueError(
                f"metrics {self.metrics}: roc_auc needs decoding.method rank and two candidates, the positive first; "
                f"this task has method {method} and {len(candidates)} candidates"
            )


def load(name: str | Path, overrides: Sequence[str] = ()) -> Task:
    """The task called ``name`` (a file of the tasks folder) or the YAML at the path ``name``.

    Args:
        overrides: ``key=value``, for example ``demonstrations.seed=1``; a value for a key of text is taken as it is
            (``dataset.images={split}/{file_name}``), one for a list may be ``a,b``; both may be YAML in quotes or
            brackets.

    Raises:
        ValueError: unknown task or key, with a suggestion.
    """
    path = _find(str(name))
    task = settings.load(Task, path, [_as_yaml(override) for override in overrides])
    return dataclasses.replace(task, name=task.name or path.stem)


def _as_yaml(override: str) -> str:
    """An override with its value quoted where the key holds text or a list of texts: braces, colons and yes would be
    something else in YAML."""
    key, separator, value = override.partition("=")
    kind: Any = Task
    for name in key.split("."):
        kind = get_type_hints(kind).get(name) if dataclasses.is_dataclass(kind) else None
    if kind is str and not value.startswith(("'", '"')):
        value = json.dumps(value)
    elif kind == list[str] and not value.startswith("["):
        value = json.dumps([text.strip() for text in value.split(",")])
    return key + separator + value


def known() -> dict[str, Path]:
    """Paths of the tasks that come with the package, by name."""
    return {path.stem: path for folder in reversed(_FOLDERS) for path in sorted(folder.glob("*.yaml"))}


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    tasks = known()
    if name not in tasks:
        hint = suggest(name, tasks, "known tasks")
        raise ValueError(f"unknown task {name!r}; {hint} (or give the path of a YAML file)")
    return tasks[name]
