"""Where pages and the bytes of their images come from: WARC files, and a folder that ``kosmos data fetch`` filled."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from kosmos.atomic import whole_folder

from ..errors import BadSample
from . import warc
from .html.extract import extract
from .html.html_images import absolute
from .page import Page, url_name
from .work_folder import read_job

_PLACE: Final = np.dtype([("url", "<u8"), ("file", "<i4"), ("position", "<i8")])


def pages(path: str, skipped: Counter[str]) -> Iterator[tuple[str, Page | BadSample]]:
    """(address, page) of each HTML response in a WARC file, or why the page cannot be read.

    Args:
        path: of the WARC file.
        skipped: counts the records that are no page, by reason.
    """
    for url, body, encoding in warc.pages(path, skipped):
        try:
            yield url, extract(body, url, encoding)
        except BadSample as error:
            yield url, error


@dataclass
class IndexImages:
    """First stage: where the images of this task's WARC files lie, a sorted array of a few bytes per image.

    A page of one file may show an image of another, whichever task reads it.
    """

    work: str

    def __call__(self, data: None, rank: int, world_size: int) -> None:
        job = read_job(Path(self.work))
        places = []
        for number in range(rank, len(job.warcs), job.tasks):
            for response in warc.responses(job.warcs[number], Counter()):
                if response.is_image and (url := absolute(response.url, "")):
                    places.append((_hash(url), number, response.position))
        with whole_folder(Path(self.work) / "images" / f"{rank:05d}") as folder:
            np.save(folder / "places.npy", np.array(places, dtype=_PLACE))


class ImageFiles:
    """Images by address: from the folder of fetched ones, else from the WARC files.

    Args:
        work: the work folder, with what :class:`IndexImages` wrote.
        image_folder: what ``kosmos data fetch`` filled, or None.
    """

    def __init__(self, work: str, image_folder: str | None) -> None:
        job = read_job(Path(work))
        self.warcs = job.warcs
        paths = [Path(work) / "images" / f"{task:05d}" / "places.npy" for task in range(job.tasks)]
        # Of several images with one address the first counts, in the order of the files, whoever indexed them.
        self.places = np.sort(np.concatenate([np.load(path) for path in paths if path.exists()] or [_none()]))
        self.folder = Path(image_folder) if image_folder else None

    def get(self, url: str) -> bytes | None:
        """The bytes of the image at ``url``, or None if nobody has it."""
        if self.folder is not None and (path := self.folder / url_name(url)).is_file():
            return path.read_bytes()
        place = int(np.searchsorted(self.places["url"], _hash(url)))
        if place == len(self.places) or self.places["url"][place] != _hash(url):
            return None
        _, file, position = self.places[place].item()
        return warc.image_at(self.warcs[file], position, url)


def _hash(url: str) -> int:
    return int.from_bytes(hashlib.sha256(url.encode("utf-8", "replace")).digest()[:8], "little")


def _none() -> np.ndarray:
    return np.zeros(0, dtype=_PLACE)
