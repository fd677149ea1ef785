"""Image-caption pairs: img2dataset tars, COCO captions, and Karpathy's split files (Flickr30k, COCO)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import errors
from ..document import Document, Text, from_files
from ..errors import BadSample, Tally
from ..images import open_header
from ..tars import find_tars
from ._files import caption, image, key_of, read_list
from ._tar_samples import Files, tar_samples


def img2dataset(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """Tars as ``img2dataset --output_format webdataset`` writes them: ``KEY.jpg``, ``KEY.txt``, ``KEY.json``.

    The loader reads these tars as they are, too, once ``kosmos data index`` has indexed them. Here links are followed
    and the files of a sample need not lie together.
    """
    for path in [source] if source.is_file() else find_tars(source):
        for key, read in tar_samples(path, tally):
            yield from tally.usable(key, _pair, key, read)


def _pair(key: str, read: Files) -> Iterator[Document]:
    document = from_files(key, read())
    for picture in document.images:
        open_header(picture.data)
    yield document


def coco_captions(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """COCO's ``captions_*.json``; one document per caption."""
    names: dict[Any, str] = {}

    def document(entry: dict[str, Any]) -> Iterator[Document]:
        text = caption(entry["caption"])
        if not names.get(entry["image_id"]):
            raise BadSample(errors.IMAGE_MISSING, f"image_id {entry['image_id']} has no file_name in the file")
        picture = image(images, names[entry["image_id"]])
        yield Document(f"{entry['image_id']}-{entry.get('id', 0)}", [picture, Text(text)])

    for number, entry in enumerate(read_list(source, tally, "annotations")):
        if number == 0:
            names = _file_names(source, tally)
        yield from tally.usable(f"annotation {number}", document, entry)


def _file_names(source: Path, tally: Tally) -> dict[Any, str]:
    """The picture's file of each image id."""
    images = (entry for entry in read_list(source, tally, "images") if isinstance(entry, dict))
    return {one["id"]: one.get("file_name", "") for one in images if isinstance(one.get("id"), int | float | str)}


def karpathy(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """``dataset_flickr30k.json`` and its like; only the training split."""

    def document(entry: dict[str, Any], number: int, sentence: dict[str, Any]) -> Iterator[Document]:
        text = caption(sentence["raw"])
        picture = image(images, f"{entry.get('filepath', '.')}/{entry['filename']}")
        yield Document(f"{key_of(Path(entry['filename']).stem)}-{number}", [picture, Text(text)])

    def sentences(entry: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        if entry["split"] in ("train", "restval"):
            yield from enumerate(list(entry["sentences"]))

    for place, entry in enumerate(read_list(source, tally, "images")):
        for number, sentence in tally.usable(f"image {place}", sentences, entry):
            yield from tally.usable(f"image {place}, sentence {number}", document, entry, number, sentence)
