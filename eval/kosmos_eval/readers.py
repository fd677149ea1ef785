"""Readers of the files in which evaluation data is published: one table, ``FORMATS``, which a task's YAML names.

The readers check what the field's tools pass over: that every image exists, every question has answers, and ids match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kosmos.addresses import refuse_address

from . import beginnings, corpus_items, formats, published
from .collection import none_searched
from .items import Item, check_fields

if TYPE_CHECKING:
    from .tasks import DatasetFiles, Task  # whose formats are the keys of FORMATS


@none_searched()
def load_items(task: Task, data: str | Path, split: str) -> list[Item]:
    """All items of a split, in file order.

    Raises:
        FileNotFoundError: a data file or an image is missing (the count and the first path are named).
        ValueError: a malformed file, a question without answers, an id that occurs twice.
    """
    refuse_address(data)
    data, files = Path(data), task.dataset
    if not data.is_dir():
        wanted = _path(Path(), files.annotations, split)
        raise FileNotFoundError(f"{data}: no such data folder (task {task.name} looks for {wanted} in it)")
    items = FORMATS[files.format](files, data, split)
    if files.beginning:
        items = beginnings.cut(items, files.beginning, files.continuation)
    if files.synonyms:
        other = {**files.synonyms, **{second: first for first, second in files.synonyms.items()}}
        items = [_with_synonyms(item, other) for item in items]
    if not items:
        raise ValueError(f"{_path(data, files.annotations, split)}: no items in split {split!r}")
    _check_ids(items, task, split)
    _check_images(items, task)
    return items


def _with_synonyms(item: Item, other: Mapping[str, str]) -> Item:
    """The item with the other spelling of each of its answers (of VQA, of each vote) behind its own."""
    more = tuple(other[answer] for answer in item.answers if answer in other)
    return replace(item, answers=item.answers + more) if more else item


def _path(data: Path, pattern: str, split: str, **names: Any) -> Path:
    for name, value in names.items():  # a data set of a stranger shows no picture from outside of its folder
        if isinstance(value, str) and (Path(value).is_absolute() or ".." in Path(value).parts):
            raise ValueError(f"{name} {value[:80]!r} lies outside of the data folder; give paths below it")
    try:
        check_fields(pattern)
        return data / pattern.format(split=split, **names)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in ("split", *names))
        raise ValueError(f"dataset path {pattern!r}: it may use {known} only ({error})") from error


def _images(files: DatasetFiles, data: Path, split: str, **names: Any) -> tuple[Path, ...]:
    return (_path(data, files.images, split, **names),) if files.images else ()


def _read_vqa(files: DatasetFiles, data: Path, split: str) -> list[Item]:
    if not files.questions:
        raise ValueError("dataset.questions is empty: format vqa needs a question file")
    path = _path(data, files.annotations, split)
    annotations = {entry.question_id: entry for entry in formats.read_vqa_annotations(path)}
    items = []
    by_image: dict[formats.Identifier, tuple[Path, ...]] = {}
    for entry in formats.read_vqa_questions(_path(data, files.questions, split)):
        truth = annotations.get(entry["question_id"])
        if truth is None:
            raise ValueError(f"{path}: question {entry['question_id']} has no annotation, so it cannot be scored")
        number = entry["image_id"]
        if number not in by_image:
            names = {"image_id": number, "file_name": entry.get("file_name", "")}
            by_image[number] = _images(files, data, split, **names)
        group = getattr(truth, files.group)
        fields = {"question": entry["question"]}
        items.append(Item(str(entry["question_id"]), fields, by_image[number], truth.answers, group))
    return items


def _read_captions(files: DatasetFiles, data: Path, split: str) -> list[Item]:
    references = formats.read_caption_references(_path(data, files.annotations, split))
    items = []
    for image_id, captions in references.captions.items():
        names = {"image_id": image_id, "file_name": references.file_names.get(image_id, "")}
        items.append(Item(str(image_id), {}, _images(files, data, split, **names), tuple(captions)))
    return items


def _read_karpathy(files: DatasetFiles, data: Path, split: str) -> list[Item]:
    """Karpathy's ``restval`` images belong to the training split, as everywhere in the literature."""
    splits = {"train", "restval"} if split == "train" else {split}
    path, items = _path(data, files.annotations, split), []
    entries = formats.read_list(path, "images")
    formats.require(path, entries, {"split": str, "filename": str, "imgid": formats.Identifier, "sentences": list})
    for entry in entries:
        if entry["split"] in splits:
            folder = f"{entry['filepath']}/" if "filepath" in entry else ""
            names = {"image_id": entry.get("cocoid", entry["imgid"]), "file_name": folder + entry["filename"]}
            formats.require(path, entry["sentences"], {"raw": str})
            captions = tuple(sentence["raw"] for sentence in entry["sentences"])
            items.append(Item(str(names["image_id"]), {}, _images(files, data, split, **names), captions))
    return items


def _read_vizwiz(files: DatasetFiles, data: Path, split: str) -> list[Item]:
    """VizWiz: a list of {image, question, answers: [{answer}]}; published files lack ``answer_id``, which we do not
    need."""
    path = _path(data, files.annotations, split)
    entries = formats.read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of questions, found a {type(entries).__name__}")
    formats.require(path, entries, {"image": str, "question": str})
    items = []
    for number, entry in enumerate(entries):
        if not entry.get("answers"):
            raise ValueError(
                f"{path}: entry {number} (counting from 0) has no answers; the test answers are not public"
            )
        answers = formats.votes(path, entry["image"], entry["answers"])
        images = _images(files, data, split, file_name=entry["image"])
        items.append(
            Item(entry["image"], {"question": entry["question"]}, images, answers, entry.get("answer_type", ""))
        )
    return items


def _read_parquet(files: DatasetFiles, data: Path, split: str) -> list[Item]:
    """A table with the columns of the JSON lines."""
    from pyarrow import parquet

    path = _path(data, files.annotations, split)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    rows = parquet.read_table(path).to_pylist()
    kept = [{key: value for key, value in row.items() if value is not None} for row in rows]
    return [_json_item(row, path, number, data, files, split) for number, row in enumerate(kept, start=1)]


def _read_jsonl(files: DatasetFiles, data: Path, split: str) -> list[Item]:
    """Lines ``{"id", "images": [...], "answers": [...], "candidates": [...], FIELD: text, …}``; all but answers
    optional. ``files`` is another name of ``images``, for sounds and videos."""
    path = _path(data, files.annotations, split)
    return [_json_item(entry, path, number, data, files, split) for number, entry in _json_lines(path, "answers")]


def _json_item(entry: dict[str, Any], path: Path, number: int, data: Path, files: DatasetFiles, split: str) -> Item:
    for key in ("answers", "images", "files", "candidates", "wordings", "candidate_images", "demonstrations"):
        if not isinstance(entry.get(key, []), list):
            raise ValueError(f'{path}:{number}: "{key}" must be a list, not {entry[key]!r}')
    if not entry.get("answers"):
        raise ValueError(f'{path}:{number}: "answers" must be a list with at least one answer')

    def image(name: str) -> Path:
        return _path(data, files.images or "{file_name}", split, file_name=name)

    candidates, wordings = (tuple(map(str, entry.get(key, []))) for key in ("candidates", "wordings"))
    if wordings and len(wordings) != len(candidates):
        raise ValueError(
            f"{path}:{number}: {len(wordings)} wordings for {len(candidates)} candidates; give one for each"
        )
    if entry.get("images") and entry.get("files"):
        raise ValueError(f'{path}:{number}: "images" and "files" are two names of one list; give one')
    known = (
        "id",
        "images",
        "files",
        "answers",
        "candidates",
        "wordings",
        "candidate_images",
        "group",
        "demonstrations",
    )
    identifier = str(entry.get("id", number))
    own = [{"id": f"{identifier}:{i}", **shot} for i, shot in enumerate(entry.get("demonstrations", ()), start=1)]
    return Item(
        id=identifier,
        fields={key: str(value) for key, value in entry.items() if key not in known},
        images=tuple(image(name) for name in entry.get("images") or entry.get("files", [])),
        answers=tuple(map(str, entry["answers"])),
        group=str(entry.get("group", "")),
        candidates=candidates,
        wordings=wordings,
        candidate_images=tuple(image(name) for name in entry.get("candidate_images", [])),
        demonstrations=tuple(_json_item(shot, path, number, data, files, split) for shot in own),
    )


def _read_published(files: DatasetFiles, data: Path, split: str) -> list[Item]:
    path, items = _path(data, files.annotations, split), []
    for number, entry in published.read(files.format, path):
        source = entry.pop("source", "")
        items.append(replace(_json_item(entry, path, number, data, files, split), source=source))
    return items


def _read_text(files: DatasetFiles, data: Path, split: str) -> list[Item]:
    """Lines ``{"id", "text"}`` whose likelihood is measured."""
    path = _path(data, files.annotations, split)
    return [
        Item(str(entry.get("id", number)), {}, (), (str(entry["text"]),), str(entry.get("group", "")))
        for number, entry in _json_lines(path, "text")
    ]


def _read_shards(files: DatasetFiles, data: Path, split: str) -> list[Item]:
    return corpus_items.read(_path(data, files.annotations, split), files.lead)


def _read_beginnings(files: DatasetFiles, data: Path, split: str) -> list[Item]:
    return beginnings.read(_path(data, files.annotations, split))


def _json_lines(path: Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSON lines file, each with something under ``key``."""
    for number, entry in formats.read_json_lines(path):
        if not entry.get(key):
            raise ValueError(f'{path}:{number}: expected an object with something under "{key}"')
        yield number, entry


FORMATS: dict[str, Callable[[DatasetFiles, Path, str], list[Item]]] = {
    "vqa": _read_vqa,
    "captions": _read_captions,
    "karpathy": _read_karpathy,
    "vizwiz": _read_vizwiz,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "text": _read_text,
    "shards": _read_shards,
    "beginnings": _read_beginnings,
    **dict.fromkeys(published.FORMATS, _read_published),
}


def _check_ids(items: Sequence[Item], task: Task, split: str) -> None:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise ValueError(f"task {task.name}, split {split}: item id {item.id} occurs twice")
        seen.add(item.id)


def _check_images(items: Sequence[Item], task: Task) -> None:
    shown = [one for item in items for one in (item, *item.demonstrations)]
    paths = dict.fromkeys(path for item in shown for path in (*item.images, *item.candidate_images))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        from .tasks import FILE_MARKS, IMAGE_MARK  # which imports this module

        further = any(mark in task.prompt.template for mark in FILE_MARKS if mark != IMAGE_MARK)
        what = "files" if further else "images"
        raise FileNotFoundError(
            f"task {task.name}: {len(missing)} of {len(paths)} {what} are missing, first {missing[0]}; where they lie "
            f"is dataset.images, here {task.dataset.images!r} (--set dataset.images=…)"
        )
