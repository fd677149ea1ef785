"""WARC files: the pages and images in them, whatever else is broken in them, and a small writer.

fastwarc reads and writes the records. What it does not do is go on behind a broken one: a record is believed only when
the next one begins where it should, else it is counted and the file is searched for the next beginning.
"""

from __future__ import annotations

import io
import re
import uuid
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import fsspec

from .. import extras
from .html import html_rules
from .html.html_images import absolute

if TYPE_CHECKING:
    from fastwarc.warc import HeaderMap, WarcRecord

BROKEN: Final = "broken WARC record"
TOO_LARGE: Final = "record too large"
NOT_OK: Final = "status not 200"
OTHER_SCHEME: Final = "not http or https"
OTHER_TYPE: Final = "neither HTML nor image"
UNDECODABLE: Final = "broken content encoding"

MAX_IMAGE_BYTES = 20 << 20

_HTML_TYPES = frozenset(("text/html", "application/xhtml+xml"))
_PLAIN = b"WARC/1."
_STARTS = {b"\x1f\x8b": b"\x1f\x8b\x08"}  # how a record begins, by how its file begins
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,8}[ \t]*(?:;[^\r\n]*)?\r\n")
_SEARCHED = 1 << 20  # bytes read at a time when looking for the next record


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response with status 200.

    Args:
        url: as the record has it.
        content_type: without parameters, lower case; ``""`` if it declares none.
        charset: of the header, if it declares one that Python knows.
        position: of the record in the file.
        body: what was sent, decoded (chunks, gzip, deflate, brotli).
    """

    url: str
    content_type: str
    charset: str | None
    position: int
    body: bytes

    @property
    def is_html(self) -> bool:
        return self.content_type in _HTML_TYPES

    @property
    def is_image(self) -> bool:
        return self.content_type.startswith("image/")


def pages(path: str | Path, skipped: Counter[str] | None = None) -> Iterator[tuple[str, bytes, str | None]]:
    """(address, HTML, declared encoding) of every page in a WARC file, in the order of the file.

    Args:
        path: of the file, gzip or plain; or a URL that fsspec opens.
        skipped: counts what was left out, by reason; image responses are not counted.
    """
    skipped = Counter() if skipped is None else skipped
    for response in responses(path, skipped):
        if response.is_html:
            yield response.url, response.body, response.charset
        elif not response.is_image:
            skipped[OTHER_TYPE] += 1


def responses(path: str | Path, skipped: Counter[str]) -> Iterator[Response]:
    """Every HTTP response with status 200 in a WARC file; what is left out is counted."""
    with fsspec.open(str(path), "rb") as file:
        start: int | None = 0
        while start is not None:
            start = yield from _read_from(file, start, skipped)


def _read_from(file: BinaryIO, start: int, skipped: Counter[str]) -> Generator[Response, None, int | None]:
    """Read on until a record is broken; return where to go on behind it, or None at the end of the file."""
    with extras.hint():
        from fastwarc.warc import ArchiveIterator
    file.seek(start)
    position, held = start, None
    try:
        for record in ArchiveIterator(file, parse_http=False):
            yield from _believed(held, skipped)
            position, held = start + record.stream_pos, None
            held = _parse(record, position)
    except (OSError, ValueError):  # ValueError: header bytes that are no text
        skipped[BROKEN] += 1
        return _next_start(file, position + 1)
    yield from _believed(held, skipped)
    return None


def _believed(held: Response | str | None, skipped: Counter[str]) -> Iterator[Response]:
    if isinstance(held, Response):
        yield held
    elif held is not None:
        skipped[held] += 1


def _parse(record: WarcRecord, position: int) -> Response | str | None:
    """A response; why it is left out; or None for the other kinds of record.

    Raises:
        OSError: the record is shorter than it says.
    """
    from fastwarc.warc import WarcRecordType

    if record.record_type != WarcRecordType.response:
        return None
    url = (record.headers.get("WARC-Target-URI") or "").strip("<> ")
    if not url.startswith(("http://", "https://")):
        return OTHER_SCHEME
    record.parse_http()
    if record.http_headers is None or record.http_headers.status_code != 200:
        return NOT_OK
    content_type = (record.http_content_type or "").strip().lower()
    limit = html_rules.MAX_BYTES if content_type in _HTML_TYPES else MAX_IMAGE_BYTES
    body = record.reader.read(limit + 1)
    if len(body) < min(record.content_length, limit + 1):
        raise OSError(f"{len(body)} bytes, the record declares {record.content_length}")
    try:
        body = _decoded(body, record.http_headers, limit)
    except (OSError, zlib.error):
        return UNDECODABLE
    if len(body) > limit:
        return TOO_LARGE
    return Response(url, content_type, record.http_charset, position, body)


def _decoded(body: bytes, headers: HeaderMap, limit: int) -> bytes:
    """The body without chunks and compression, of which some archives keep the header but not the bytes.

    Raises:
        OSError, zlib.error: it is broken, or cut off.
    """
    from fastwarc.stream_io import BrotliReader, ChunkedReader

    if "chunked" in (headers.get("Transfer-Encoding") or "").lower() and _CHUNK_SIZE.match(body):
        body = ChunkedReader(io.BytesIO(body)).read(limit + 1)
    match (headers.get("Content-Encoding") or "").strip().lower():
        case "gzip" | "x-gzip" if body.startswith(b"\x1f\x8b"):
            return _inflated(body, limit, zlib.MAX_WBITS | 16)
        case "deflate" if body.startswith(b"\x78"):
            return _inflated(body, limit, zlib.MAX_WBITS)
        case "br" if not body.lstrip().startswith(b"<"):
            return BrotliReader(io.BytesIO(body)).read(limit + 1)
    return body


def _inflated(body: bytes, limit: int, wbits: int) -> bytes:
    unpack = zlib.decompressobj(wbits)
    plain = unpack.decompress(body, limit + 1)
    if len(plain) <= limit and not unpack.eof:
        raise OSError("the compressed body is cut off")
    return plain


def _next_start(file: BinaryIO, position: int) -> int | None:
    """Where the next record may begin: at the magic number of a gzip member, or at ``WARC/1.`` of a plain file."""
    file.seek(0)
    start = _STARTS.get(file.read(2), _PLAIN)
    file.seek(position)
    tail = b""
    while block := file.read(_SEARCHED):
        if (at := (tail + block).find(start)) >= 0:
            return position - len(tail) + at
        position += len(block)
        tail = (tail + block)[-len(start) :]
    return None


def image_at(path: str | Path, position: int, url: str) -> bytes | None:
    """The bytes of the image that :func:`responses` found at ``position`` under the address ``url``, or None."""
    with fsspec.open(str(path), "rb") as file:
        # A file compressed as a whole has no place to start from but its beginning.
        for start in (position, 0):
            for response in _read_from(file, start, Counter()):
                if response.is_image and absolute(response.url, "") == url:
                    return response.body
                if start:
                    break
    return None


class WarcWriter:
    """Write responses to a WARC file, each a gzip member of its own; a context manager.

    The same responses give the same bytes: record ids follow from the address, and the date is an argument.

    Args:
        path: of the file, usually ``….warc.gz``.
        date: of all records.
    """

    def __init__(self, path: str | Path, date: str = "1970-01-01T00:00:00Z") -> None:
        self.path, self.date = Path(path), date
        self.records = 0
        self._file = self.path.open("wb")

    def write(self, url: str, content_type: str, body: bytes) -> None:
        """Append a response with status 200."""
        with extras.hint():
            from fastwarc.stream_io import GzipWriter
            from fastwarc.warc import WarcRecord, WarcRecordType
        record = WarcRecord()
        urn = f"uuid:{uuid.uuid5(uuid.NAMESPACE_URL, url)}"
        record.init_headers(WarcRecordType.response, urn.encode())
        record.headers["WARC-Date"] = self.date
        record.headers["WARC-Target-URI"] = url
        record.is_http = True
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        record.set_bytes_content(head.encode() + body)
        member = io.BytesIO()
        writer = GzipWriter(member, compression_level=6)
        record.write(writer, checksum_data=True)
        writer.finish()
        self._file.write(member.getvalue())
        self.records += 1

    def __enter__(self) -> WarcWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
