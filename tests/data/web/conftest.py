"""A small web in three WARC files, of which it is known what must become of everything in it."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import pytest

from kosmos_data.web.options import Execution, WebOptions

WORDS = (  # noqa: SIM905 - easier to read
    "the river of history and light that have turned with wonder to be seen across mountain valley garden window "
    "scientist letter village market painter stone music bridge harbour winter summer evening morning people house "
    "street forest island teacher captain engine silver copper cloud thunder field orchard ladder tower"
).split()
GAP = "http://images.example/nowhere.png"  # no file has it


def _picture(seed: int, size: tuple[int, int] = (96, 80)) -> PIL.Image.Image:
    """Overlapping rectangles, so that different seeds look different."""
    rng = random.Random(seed)
    image = PIL.Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
    draw = PIL.ImageDraw.Draw(image)
    for _ in range(12):
        x, y = (sorted(rng.randrange(side) for _ in range(2)) for side in size)
        draw.rectangle((x[0], y[0], x[1], y[1]), fill=tuple(rng.randrange(256) for _ in range(3)))
    return image


def _encoded(image: PIL.Image.Image, form: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _paragraphs(seed: int, count: int = 4) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(30)).capitalize() + "." for _ in range(count)]


def _html(title: str, texts: list[str], images: list[str]) -> bytes:
    """Text, image, text, image …, then the texts or images that are left."""
    body = ""
    for number in range(max(len(texts), len(images))):
        body += f"<p>{texts[number]}</p>\n" if number < len(texts) else ""
        body += f'<img src="{images[number]}" alt="{number}">\n' if number < len(images) else ""
    return f"<html lang=en><head><title>{title}</title></head><body><main>{body}</main></body></html>".encode()


@dataclass
class Web:
    """Three WARC files, and what must become of what is in them."""

    warcs: list[Path]
    bare: Path  # the pages without the images
    bytes_of: dict[str, bytes] = field(default_factory=dict)  # the images by address
    pages: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    singles: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    writers: list[Any] = field(default_factory=list)

    def image(self, seed: int, warc: int = 0, data: bytes | None = None) -> str:
        """Put an image into a WARC file, once; its address."""
        url = f"http://images.example/{seed}.png"
        if url not in self.bytes_of:
            self.bytes_of[url] = data or _encoded(_picture(seed))
            self.writers[warc].write(url, "image/png", self.bytes_of[url])
        return url

    def write(self, name: str, content_type: str, body: bytes, warc: int) -> str:
        for writer in (self.writers[warc], self.writers[3]):
            writer.write(f"http://site.example/{name}", content_type, body)
        return f"http://site.example/{name}"

    def page(self, name: str, seed: int, images: list[str], warc: int = 0, texts: list[str] | None = None) -> str:
        html = _html(f"Page {name}", texts or _paragraphs(seed), images)
        return self.write(name, "text/html; charset=utf-8", html, warc)


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Web:
    from kosmos_data.web.warc import WarcWriter

    folder = tmp_path_factory.mktemp("warcs")
    web = Web([folder / f"{number}.warc.gz" for number in range(3)], folder / "bare.warc.gz")
    web.writers = [WarcWriter(path) for path in (*web.warcs, web.bare)]
    _write_good_pages(web)
    _write_pages_to_leave_out(web)
    for number in range(10):
        web.singles.append(web.page(f"single{number}", 200 + number, [web.image(2000 + number)], number % 3))
    for writer in web.writers:
        writer.__exit__()
    return web


def _write_good_pages(web: Web) -> None:
    """Pages that are kept, some without all of their images."""
    logo = web.image(9000, 1)
    for number in range(12):  # ordinary pages, all with the logo, each picture in another file than its page
        shown = [web.image(10 * number + at, (number + 1) % 3) for at in range(2)]
        web.kept.add(web.page(f"plain{number}", number, [logo, *shown], number % 3))
    web.images["on too many pages"] = 12

    web.kept.add(web.page("seven", 100, [web.image(1000 + at) for at in range(7)]))
    web.images["beyond the first few"] = 2
    web.kept.add(web.page("twice", 101, [web.image(1010), web.image(1011), web.image(1010)]))
    web.images["again on the same page"] = 1
    web.kept.add(web.page("original", 102, [web.image(1020), web.image(1021)]))
    small = _encoded(_picture(1020).resize((80, 67)), "JPEG", quality=80)
    web.kept.add(web.page("copier", 103, [web.image(1030, 2, small), web.image(1031), web.image(1032)], 2))
    web.images["copy of an image on another page"] = 1
    dot = web.image(1040, 0, _encoded(_picture(1, (1, 1))))
    web.kept.add(web.page("gaps", 104, [GAP, web.image(1041), dot, web.image(1042)], 1))
    web.images |= {"image missing": 1, "too small": 1}


def _write_pages_to_leave_out(web: Web) -> None:
    """A page for each reason."""
    web.page("copy-of-plain3", 3, [web.image(1050)], 2, [*_paragraphs(3)[:3], _paragraphs(3)[3][:-20] + " and more."])
    web.page("plain4", 400, [web.image(1060)], 1)  # captured again, with fewer images
    web.page("empty", 105, [])
    french = "Le vieux pont fut construit par les habitants du village pour traverser la grande rivière au printemps."
    web.page("french", 0, [web.image(1070), web.image(1071)], texts=[french] * 2 + [french.replace("pont", "mur")] * 2)
    web.page("short", 0, [web.image(1080)], texts=["Too short to be a page of the corpus that we want."])
    web.page("nothing-to-see", 106, [GAP], 2)
    web.write("binary", "text/html", bytes(range(256)) * 8, 1)
    web.write("style.css", "text/css", b"p {}", 1)
    web.pages = {
        "near-duplicate text": 1,
        "same address": 1,
        "no image": 1,
        "other language": 1,
        "too few words": 1,
        "no usable image": 1,
        "not HTML": 1,
    }
    web.images["image missing"] += 1


def _options(tasks: int = 0, **execution: Any) -> WebOptions:
    return WebOptions(tasks=tasks, documents_per_shard=6, execution=Execution(**execution))


def _files(out: Path) -> dict[str, bytes]:
    """What a corpus consists of, without what comes and goes."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def _mutate(html: bytes, rng: random.Random) -> bytes:
    """One to six edits: bytes flipped, cut, repeated; markup, entities and nesting inserted."""
    markup = (
        b"<table>",
        b"</div>",
        b"<figure><figcaption>",
        b"<noscript>",
        b"<picture><source srcset=",
        b"<pre>",
        b"&#x110000;",
    )
    markup += (
        b"<!--",
        b"<svg><foreignObject>",
        b"\x00",
        b"<base href=",
        b"<select>",
        b"]]>",
        b"<plaintext>",
        b"&" * 50,
        b"\xff\xfe",
    )
    changed = bytearray(html)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : rng.choice((at + rng.randint(1, 40), len(changed)))]
            case 2:
                changed[at:at] = changed[at : at + rng.randint(1, 200)] * rng.randint(1, 5)
            case 3:
                changed[at:at] = rng.choice(markup)
            case 4:
                changed[at:at] = rng.choice((b"<div>", b"<b>", b"<ul><li>", b"<a>")) * rng.choice((3, 300, 3000))
            case _:
                changed[at:at] = rng.randbytes(rng.randint(1, 30))
    return bytes(changed)


@pytest.fixture(scope="session")
def made(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, made in one task by one process."""
    from kosmos_data.web.pipeline import run

    out = tmp_path_factory.mktemp("made") / "corpus"
    run(web.warcs, out, _options(tasks=1, workers=1))
    return out


@pytest.fixture(scope="session")
def paragraphs() -> Callable[..., list[str]]:
    """Paragraphs of English words, by seed."""
    return _paragraphs


@pytest.fixture(scope="session")
def html_page() -> Callable[[str, list[str], list[str]], bytes]:
    """A page of title, paragraphs and addresses of images."""
    return _html


@pytest.fixture(scope="session")
def options() -> Callable[..., WebOptions]:
    """Options of a run on :func:`web`: tasks, then those of its execution."""
    return _options


@pytest.fixture(scope="session")
def files() -> Callable[[Path], dict[str, bytes]]:
    """What a corpus consists of, by name, without what comes and goes."""
    return _files


@pytest.fixture(scope="session")
def mutate() -> Callable[[bytes, random.Random], bytes]:
    """Bytes of a page, or of an archive of pages, with a few edits."""
    return _mutate
