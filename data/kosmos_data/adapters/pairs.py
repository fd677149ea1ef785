"""Image-caption pairs: img2dataset tars, COCO captions, and Karpathy's split files (Flickr30k, COCO)."""

from __future__ import annotations

import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeAlias

from .. import errors
from ..document import Document, Text, from_files, safe_key
from ..errors import BadSample, Tally
from ..images import open_header
from ..reader import split_name
from ..tars import find_tars, members
from ._files import caption, image, key_of, read_list

Place: TypeAlias = tuple[int, int] | str
"""Where a member's bytes are: (offset, size), or the name that a link points to."""


def img2dataset(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """Tars as ``img2dataset --output_format webdataset`` writes them: ``KEY.jpg``, ``KEY.txt``, ``KEY.json``.

    The loader reads these tars as they are, too, once ``kosmos data index`` has indexed them. Here links are followed
    and the files of a sample need not lie together.
    """
    for path in [source] if source.is_file() else find_tars(source):
        for key, read in tar_samples(path, tally):
            yield from tally.usable(key, _pair, key, read)


def _pair(key: str, read: Callable[[], dict[str, bytes]]) -> Iterator[Document]:
    document = from_files(key, read())
    for picture in document.images:
        open_header(picture.data)
    yield document


def tar_samples(path: Path, tally: Tally) -> Iterator[tuple[str, Callable[[], dict[str, bytes]]]]:
    """The key of each sample of a tar, and what reads its files by their extension."""
    stem = key_of(path.stem)
    with path.open("rb") as file:
        places = _places(path, tally)
        for name, kinds in _samples(places).items():

            def read(kinds: dict[str, str] = kinds) -> dict[str, bytes]:
                found = {kind: _bytes(file, places, name) for kind, name in kinds.items()}
                return {kind: data for kind, data in found.items() if data is not None}

            yield f"{stem}/{safe_key(name)}", read


def _places(path: Path, tally: Tally) -> dict[str, Place]:
    """Every file and link of a tar by its name; of two members of one name the last, as tar unpacks them."""
    places: dict[str, Place] = {}
    for member in members(path, tally):
        name = str(PurePosixPath(member.name))
        if name in places:
            tally.count(errors.TAR, f"{path.name}: {name} is in it twice", record=False)
        if member.issym():
            places[name] = str(PurePosixPath(name).parent / member.linkname)
        elif member.islnk():
            places[name] = str(PurePosixPath(member.linkname))
        elif _is_plain(member):
            places[name] = (member.offset_data, member.size)
        else:
            tally.count(errors.TAR, f"{path.name}: {name} is a sparse file", record=False)
    return places


def _is_plain(member: tarfile.TarInfo) -> bool:
    return not member.issparse()


def _samples(places: dict[str, Place]) -> dict[str, dict[str, str]]:
    """The file names of each sample by extension, in the order in which samples begin.

    A name is cut at its first dot, as webdataset does. Where that leaves neither text nor JSON (``a.v2.jpg``,
    ``a.v2.txt``), at its last.
    """
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name in places:
        stem, extension = split_name(name)
        found[stem][extension] = name
    samples: dict[str, dict[str, str]] = {}
    for stem, kinds in found.items():
        if kinds.keys() & {"json", "txt"}:
            samples[stem] = kinds
            continue
        for extension, name in kinds.items():
            last = extension.rpartition(".")[2]
            samples.setdefault(name[: -len(last) - 1] if last else name, {})[last] = name
    return samples


def _bytes(file: BinaryIO, places: dict[str, Place], name: str) -> bytes | None:
    """A member's bytes, through links; None if they lead nowhere or in a circle."""
    for _ in range(8):
        place = places.get(name)
        if place is None:
            return None
        if not isinstance(place, str):
            offset, size = place
            file.seek(offset)
            return file.read(size)
        name = place
    return None


def coco_captions(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """COCO's ``captions_*.json``; one document per caption."""
    annotations = read_list(source, tally, "annotations")
    names: dict[Any, str] = {}
    for entry in read_list(source, tally, "images"):
        if isinstance(entry, dict) and isinstance(entry.get("id"), int | float | str):
            names[entry["id"]] = entry.get("file_name", "")

    def document(entry: dict[str, Any]) -> Iterator[Document]:
        text = caption(entry["caption"])
        if not names.get(entry["image_id"]):
            raise BadSample(errors.IMAGE_MISSING, f"image_id {entry['image_id']} has no file_name in the file")
        picture = image(images, names[entry["image_id"]])
        yield Document(f"{entry['image_id']}-{entry.get('id', 0)}", [picture, Text(text)])

    for number, entry in enumerate(annotations):
        yield from tally.usable(f"annotation {number}", document, entry)


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
