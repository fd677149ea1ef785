"""Image-caption pairs: img2dataset tars, COCO captions, and Karpathy's split files (Flickr30k, COCO)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..check import sample_offsets
from ..document import Document, Text, from_files
from ..errors import BadSample
from ..reader import parse_sample
from ._files import files, key_of, read_image, read_json


def img2dataset(source: Path, images: Path, skipped: Counter[str]) -> Iterator[Document]:
    """Tars as ``img2dataset --output_format webdataset`` writes them: ``KEY.jpg``, ``KEY.txt``, ``KEY.json``.

    The loader reads these tars as they are, too, once ``kosmos data index`` has indexed them.
    """
    for path in files(source, "*.tar"):
        with path.open("rb") as file:
            for start, end in itertools.pairwise(sample_offsets(path)):
                file.seek(start)
                try:
                    document = from_files(*parse_sample(file.read(end - start)))
                except BadSample as error:
                    skipped[error.reason] += 1
                    continue
                yield replace(document, key=f"{key_of(path.stem)}/{document.key}")


def coco_captions(source: Path, images: Path, skipped: Counter[str]) -> Iterator[Document]:
    """COCO's ``captions_*.json``; one document per caption."""
    body = read_json(source)
    names = {image["id"]: image["file_name"] for image in body["images"]}
    for annotation in body["annotations"]:
        picture = read_image(images, names.get(annotation["image_id"], "?"), skipped)
        if picture is not None:
            key = f"{annotation['image_id']}-{annotation['id']}"
            yield Document(key, [picture, Text(annotation["caption"].strip())])


def karpathy(source: Path, images: Path, skipped: Counter[str]) -> Iterator[Document]:
    """``dataset_flickr30k.json`` and its like; only the training split."""
    for image in read_json(source)["images"]:
        if image["split"] not in ("train", "restval"):
            continue
        picture = read_image(images, f"{image.get('filepath', '.')}/{image['filename']}", skipped)
        if picture is None:
            continue
        for number, sentence in enumerate(image["sentences"]):
            yield Document(f"{key_of(Path(image['filename']).stem)}-{number}", [picture, Text(sentence["raw"].strip())])
