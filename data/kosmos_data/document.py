"""A document: text, images and whatever else encoders read in reading order, and its form on disk.

Everything that the project trains on is a :class:`Document`. On disk one document is one sample of a webdataset tar:
``KEY.json`` holds ``{"segments": [...], "meta": {...}}`` and each file of a segment lies beside it: an image as
``KEY.0.jpg``, ``{"image": "0.jpg"}`` in the JSON, a sound as ``KEY.1.ogg``, ``{"audio": "1.ogg"}``.
KOSMOS-1 (section 2.3) writes text, image-caption pairs and interleaved pages in exactly this one form.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from unicodedata import category

from kosmos.segments import SEGMENTS, Image, Persona, Phrase, Segment, Text, modality_name
from kosmos.segments import Audio as Audio
from kosmos.segments import Entity as Entity
from kosmos.segments import Fused as Fused
from kosmos.segments import Span as Span
from kosmos.segments import Video as Video

from . import errors
from .errors import BadSample

_KEY = re.compile(r"[^./\x00]+(/[^./\x00]+)*")
_ODD_IN_KEYS = re.compile(r"[.\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LONGEST_KEY = 200
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm", "jfif", "jpe")
"""File endings of pictures, in the order in which one is looked for beside a caption."""
_SUFFIXES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"OggS": "ogg", b"fLaC": "flac",
             b"ID3": "mp3", b"\xff\xfb": "mp3", b"\x1aE\xdf\xa3": "mkv"}  # fmt: skip
_RIFF = {b"WAVE": "wav", b"AVI ": "avi"}
_UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: white space, and marks such as U+200B, which ``strip`` leaves."""
    return all(category(letter) in _UNSEEN for letter in text)


@dataclass(frozen=True, slots=True)
class Document:
    """Segments in reading order.

    Args:
        key: unique in its corpus; ``/`` groups, dots are not allowed (webdataset splits file names at the first dot).
        segments: what the model reads, in order.
        meta: anything worth keeping (source, licence, URL); never read by the loader.
    """

    key: str
    segments: Sequence[Segment]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> list[Image]:
        return [segment for segment in self.segments if isinstance(segment, Image)]

    @property
    def text(self) -> str:
        """All text, joined by newlines; for filters and statistics, not for training."""
        return "\n".join(text for segment in self.segments if isinstance(text := getattr(segment, "text", None), str))


def safe_key(name: str) -> str:
    """``name`` as a key. Keys are ours: a stranger's name with dots, control characters or 5,000 letters loses those.

    Two names may become one key; :class:`ShardWriter` then numbers the second.
    """
    if _KEY.fullmatch(name) and len(name) <= _LONGEST_KEY and not _ODD_IN_KEYS.search(name):
        return name
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    key = _ODD_IN_KEYS.sub("_", "/".join(parts)) or "_"
    if len(key) > _LONGEST_KEY:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        key = f"{key[: _LONGEST_KEY - 17].rstrip('/')}-{digest}"
    return key


def to_files(document: Document) -> dict[str, bytes]:
    """The files of one sample by extension: ``{"json": …, "0.jpg": …}``.

    Raises:
        ValueError: the key has a dot or is empty, or the document has no segment, or one of another kind.
    """
    if not _KEY.fullmatch(document.key):
        raise ValueError(f"key {document.key!r}: use letters, digits, '-', '_' and '/', without dots")
    if not document.segments:
        raise ValueError(f"document {document.key!r} has no segments")
    files: dict[str, bytes] = {}
    segments: list[dict[str, Any]] = []
    for number, segment in enumerate(document.segments):
        if fault := _fault(segment):
            raise ValueError(f"document {document.key!r}, segment {number}: {fault}")
        if isinstance(segment, Text):
            boxes = {} if segment.boxes is None else {"boxes": [phrase.as_json() for phrase in segment.boxes]}
            choices = {} if segment.choices is None else {"choices": list(segment.choices)}
            marks = ({} if segment.supervised else {"supervised": False}) | boxes | choices
            segments.append({"text": segment.text} | marks)
        else:
            segments.append({"persona": segment.values} if isinstance(segment, Persona) else _entry(segment, files))
    body: dict[str, Any] = {"segments": segments} | ({"meta": dict(document.meta)} if document.meta else {})
    files["json"] = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return files


def _entry(segment: Any, files: dict[str, bytes]) -> dict[str, Any]:
    """An encoder's segment as JSON: its first field under the modality's name, others where they are no defaults.

    Bytes of its files are put among ``files``.
    """
    first, *others = fields(segment)
    entry = {modality_name(segment): getattr(segment, first.name)}
    entry |= {part.name: value for part in others if (value := getattr(segment, part.name)) != part.default}
    for part, key in zip((first, *others), (modality_name(segment), *(part.name for part in others)), strict=True):
        if part.name in files_of(type(segment)):
            name = f"{len(files)}.{file_suffix(entry[key])}"
            files[name], entry[key] = entry[key], name
    return entry


def files_of(kind: type) -> tuple[str, ...]:
    """Return the fields of a kind of segment that are bytes of files."""
    return getattr(kind, "files", ())


def from_files(key: str, files: Mapping[str, bytes]) -> Document:
    """Rebuild a document from the files of its sample.

    A sample without segments but with ``KEY.txt`` is an image-caption pair as img2dataset and most published
    webdatasets have it (``KEY.jpg KEY.txt KEY.json``), and is read as it is; others have the ``caption`` in their
    ``KEY.json`` alone. Extensions are in lower case.

    Raises:
        BadSample: no or malformed JSON, an unknown kind of segment, a file of one that the tar does not hold, or boxes
            that are not of an image or phrases that are not of the text.
    """
    if "json" not in files and "txt" not in files:
        raise BadSample(errors.NO_TEXT, f"{key} has {', '.join(sorted(files)) or 'no file'}")
    try:
        body = json.loads(files["json"]) if "json" in files or "txt" not in files else {}
        if "segments" not in body and ("txt" in files or isinstance(body.get("caption"), str)):
            return _pair(
                key, files, files["txt"] if "txt" in files else body["caption"].encode("utf-8", "surrogatepass")
            )
        segments = [_segment(entry, files) for entry in body["segments"]]
        meta = body.get("meta", {})
    except KeyError as error:
        what = f"{error} is missing" + (", and so are a txt and a caption" if error.args == ("segments",) else "")
        raise BadSample(errors.JSON, f"{key}: {what}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadSample(errors.JSON, f"{key}: {error}") from error
    if not segments:
        raise BadSample(errors.EMPTY, f"{key}: no segments")
    return Document(key, segments, meta if isinstance(meta, dict) else {})


def _pair(key: str, files: Mapping[str, bytes], text: bytes) -> Document:
    picture = next((files[kind] for kind in PICTURES if files.get(kind)), None)
    try:
        caption = text.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSample(errors.ENCODING, f"{key}: {error}") from error
    if picture is None:
        raise BadSample(errors.IMAGE_MISSING, f"{key} has {', '.join(sorted(files))}")
    if is_blank(caption):
        raise BadSample(errors.EMPTY, f"{key}: no caption")
    return Document(key, [Image(picture), Text(caption)])


def file_suffix(data: bytes) -> str:
    """The usual file ending for the bytes of a picture, sound or video, by the first of them (``bin`` when unknown)."""
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12], "webp")
    if data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis", b"heic", b"mif1"):
        return "mp4"
    return next((suffix for magic, suffix in _SUFFIXES.items() if data.startswith(magic)), "bin")


def _segment(entry: Mapping[str, Any], files: Mapping[str, bytes]) -> Segment:
    match entry:
        case {"text": str(text), **rest}:
            boxes, choices = _phrases(text, rest.get("boxes")), rest.get("choices")
            if choices is not None:
                choices = tuple(_encodable(str(choice)) for choice in choices)
            return Text(_encodable(text), bool(rest.get("supervised", True)), boxes, choices)
        case {"persona": values}:
            _encodable(json.dumps(values, ensure_ascii=False))
            return Persona(values)
    for name, kind in SEGMENTS.items():
        if name in entry:
            first, *others = fields(kind)
            content = {first.name: entry[name]} | {part.name: entry[part.name] for part in others if part.name in entry}
            for each, value in content.items():
                if each in files_of(kind):
                    content[each] = _file(value, name, files)
                elif isinstance(value, str):
                    content[each] = _encodable(value)
            return kind(**content)
    raise ValueError(f"a segment has one of the keys text, persona, {', '.join(SEGMENTS)}; got {str(entry)[:80]}")


def _file(name: Any, kind: str, files: Mapping[str, bytes]) -> bytes:
    if not isinstance(name, str):
        raise ValueError(f"the {kind} of a segment is the name of a file, got {str(name)[:80]}")
    if name.lower() not in files:
        reason = errors.IMAGE_MISSING if kind in ("image", "fused") else errors.FILE_MISSING
        raise BadSample(reason, f"no file {name!r} beside the json")
    return files[name.lower()]


def _phrases(text: str, entries: Any) -> tuple[Phrase, ...] | None:
    """The ``boxes`` of a text segment: ``[{"phrase": [12, 21], "boxes": [[x1, y1, x2, y2], …]}, …]``."""
    if entries is None:
        return None
    try:
        return Text(text, boxes=tuple(Phrase.from_json(entry) for entry in entries)).boxes
    except (KeyError, TypeError, ValueError) as error:
        raise BadSample(errors.BOXES, str(error)) from error


def _fault(segment: Any) -> str | None:
    """Why ``segment`` cannot be written, for people who make documents by hand; None if it can."""
    match segment:
        case Text(text=str()):
            return None
        case Text(text=text):
            return f"a Text holds a str, here a {type(text).__name__}"
    if isinstance(segment, Persona):
        return None
    if type(segment) in SEGMENTS.values():
        given = {name: getattr(segment, name) for name in files_of(type(segment))}
        what = f"an {modality_name(segment).capitalize()} holds the bytes of a file" if given else ""
        if isinstance(segment, Image):
            what = "an Image holds the bytes of a picture file"
        wrong = (type(data).__name__ for data in given.values() if not isinstance(data, bytes))
        return next((f"{what}, here a {name}; Path(name).read_bytes()" for name in wrong), None)
    kinds = ", ".join(kind.__name__ for kind in (Text, Persona, *SEGMENTS.values()))
    return f"a {type(segment).__name__}, where one of {kinds} is expected"


def _encodable(text: str) -> str:
    """``text`` itself; UnicodeEncodeError if it holds a lone surrogate, as JSON may and no tokenizer takes."""
    if not text.isascii():
        text.encode()
    return text
