"""Each filter with something that it must drop and something that it must keep; the ledger; held-out data."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos_data import errors
from kosmos_data.document import to_files
from kosmos_data.errors import BadSample
from kosmos_data.web.draft import Draft, look_at, page_key, thumbnail
from kosmos_data.web.filters import Filters, junk_share
from kosmos_data.web.ledger import IMAGES, KINDS, PAGES, PARAGRAPHS, WITH_PAGE, Ledger, read_ledger
from kosmos_data.web.options import WebOptions
from kosmos_data.web.page import ImageReference, Page
from kosmos_data.web.rules import SOURCES, HeldOut, ImageRules, TextRules

pytest.importorskip("datatrove")
pytest.importorskip("py3langid")

PROSE = (
    "The old bridge was built by the people of the village to cross the river in spring.",
    "It had to be wide enough for two carts, and that is what the council asked of the masons.",
    "Stone came from a quarry with good granite, which lies on the other side of the valley.",
    "After the great flood the bridge was repaired, but nobody remembers who paid for the work.",
    "Today it is a place where visitors stop to look at the water and to take photographs.",
)
FRENCH = (
    "Le vieux pont fut construit par les habitants du village pour traverser la rivière au printemps.",
    "Il devait être assez large pour deux charrettes, et c'est ce que le conseil demanda aux maçons.",
    "La pierre venait d'une carrière de bon granit, située de l'autre côté de la vallée, près du bois.",
    "Après la grande inondation le pont fut réparé, mais personne ne se souvient de qui paya les travaux.",
)


def noise(size: tuple[int, int] = (80, 70), seed: int = 0, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], len(mode)), dtype=np.uint8)
    return encoded(PIL.Image.fromarray(pixels, mode))


def encoded(image: PIL.Image.Image, form: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


class Store(dict[str, bytes]):
    """Images by address."""


GOOD = Store({f"http://x/{number}.png": noise(seed=number) for number in range(40)})


def page(*paragraphs: str, images: int = 2, url: str = "http://x/page") -> Page:
    nodes: list[str | ImageReference] = [*(paragraphs or PROSE)]
    nodes[1:1] = [ImageReference(f"http://x/{number}.png", "alt") for number in range(images)]
    return Page(url, "A title", "en", nodes)


@pytest.fixture(scope="module")
def make() -> Callable[..., Filters]:
    shared = Filters(TextRules(), ImageRules(), HeldOut(), GOOD)

    def build(
        text: TextRules | None = None, images: ImageRules | None = None, held_out: HeldOut | None = None
    ) -> Filters:
        if text is images is held_out is None:
            return shared
        return Filters(text or TextRules(), images or ImageRules(), held_out or HeldOut(), GOOD)

    return build


def verdict(filters: Filters, given: Page) -> str | None:
    """The reason why a page is dropped, or None; checks that the ledger adds up."""
    ledger, draft = Ledger(), Draft.of(given)
    ledger.enter(PAGES)
    if filters.run(draft, ledger):
        ledger.keep(PAGES)
        ledger.keep(PARAGRAPHS, len(draft.paragraphs))
        ledger.keep(IMAGES, len(draft.images))
    ledger.check()
    reasons = [reason for _, reason, _ in ledger.dropped(PAGES)]
    assert all(reason in SOURCES for reason in reasons)
    return reasons[0] if reasons else None


def left_out(filters: Filters, given: Page, kind: str) -> dict[str, int]:
    """What of a page that stays was left out, by reason."""
    ledger = Ledger()
    assert filters.run(Draft.of(given), ledger)
    return {reason: rule.count for _, reason, rule in ledger.dropped(kind)}


def test_a_good_page_stays_whole(make: Callable[..., Filters]) -> None:
    ledger, draft = Ledger(), Draft.of(page())
    assert make().run(draft, ledger)
    assert not ledger.rules
    assert len(draft.pictures) == 2
    document = draft.document()
    assert document.key == page_key("http://x/page")
    assert [type(segment).__name__ for segment in document.segments] == ["Text", "Image", "Image", "Text"]
    assert document.segments[3].text == "\n".join(PROSE[1:])
    assert document.meta["images"][1] == {"url": "http://x/1.png", "alt": "alt"}


BULLETS = [f"- {line}" for line in (*PROSE, *(line.replace("the", "a") for line in PROSE))]
DROPPED: dict[str, list[str]] = {
    "too few words": [PROSE[0], PROSE[1]],
    "words too short on average": ["to be of a it is to be of a it at we so " * 8],
    "words too long on average": [" ".join(f"incomprehensibilities of internationalisation{n} the" for n in range(30))],
    "too many hash signs": [PROSE[0], *(f"C # minor and D # major are keys of {n} pieces" for n in range(12))],
    "too many ellipses": [line.replace(" of ", " ... of ... ").replace(" the ", " ... the ") for line in PROSE],
    "nearly all lines are bullets": BULLETS,
    "too many lines end in an ellipsis": [line[:-1] + " …" for line in PROSE],
    "too few words with a letter": [*PROSE, *(f"{n} 17 {n * n} = 22.5 {n + 7} the" for n in range(20))],
    "too few stop words": ["red green blue yellow house river stone bridge village council masons water " * 5],
    "repeated lines": [PROSE[0], PROSE[1], PROSE[0], PROSE[2], PROSE[0], PROSE[0], PROSE[0]],
    "repeated phrases": [f"click here to read more of the story and win, {name}." for name in "abcdefghijklmno"],
}


@pytest.mark.parametrize("reason", DROPPED)
def test_text_that_is_dropped(make: Callable[..., Filters], reason: str) -> None:
    filters = make()
    assert filters.quality.page("\n".join(DROPPED[reason])) == reason
    assert verdict(filters, page(*DROPPED[reason])) in (reason, "other language")  # gibberish is hardly English
    assert filters.quality.page("\n".join(PROSE)) is None
    assert reason in SOURCES


def test_pages_in_other_languages_and_placeholders_are_dropped(make: Callable[..., Filters]) -> None:
    assert verdict(make(), page(*FRENCH)) == "other language"
    assert verdict(make(), page(*PROSE, "Lorem ipsum dolor sit amet.")) == "lorem ipsum"


def test_each_threshold_can_be_moved(make: Callable[..., Filters]) -> None:
    assert verdict(make(TextRules(min_words=10)), page(*DROPPED["too few words"])) is None
    assert verdict(make(TextRules(max_words=60)), page()) == "too many words"
    assert verdict(make(TextRules(language="fr", min_stop_words=0)), page(*FRENCH)) is None
    assert verdict(make(TextRules(language_confidence=1.1)), page()) == "other language"
    assert verdict(make(TextRules(min_alphabetic_share=0.2)), page(*DROPPED["too few words with a letter"])) is None
    ten = DROPPED["words too long on average"]
    assert verdict(make(TextRules(max_mean_word_length=30)), page(*ten)) != "words too long on average"
    with pytest.raises(ValueError, match="1 to 64"):
        ImageRules(max_per_page=65)
    with pytest.raises(ValueError, match="a share"):
        ImageRules(keep_one_image=2)


def test_number_of_images(make: Callable[..., Filters]) -> None:
    assert verdict(make(), page(images=0)) == "no image"
    assert verdict(make(), page(images=31)) == "too many images"
    assert verdict(make(), page(images=30)) is None


@pytest.mark.parametrize(
    ("paragraph", "reason"),
    [
        ("Follow us #bridge #river #photo @village https://example.org/x", "links, hashtags or emoji"),
        ("🎉 🎉 great 👍🏽 ❤️ www.win-now.com", "links, hashtags or emoji"),
        ("This site uses cookies to be nice to you.", "cookie notice, JavaScript warning or overlong word"),
        ("Please turn on JavaScript to see this page.", "cookie notice, JavaScript warning or overlong word"),
        ("a" * 1001, "cookie notice, JavaScript warning or overlong word"),
        ("The photographer's page, www.example.org, has more pictures of #bridge and of its masons.", None),
        ("He was No. 1 in 1999, and 5 × 4 = 20 — that costs £3.", None),
        ("A celebration 🎉 with all people of the village.", None),
    ],
)
def test_paragraphs(make: Callable[..., Filters], paragraph: str, reason: str | None) -> None:
    assert left_out(make(), page(*PROSE, paragraph), PARAGRAPHS) == ({reason: 1} if reason else {})


def test_junk_is_counted_by_word() -> None:
    assert junk_share("") == 0
    assert junk_share("see #this now please") == 0.25
    assert junk_share("☀ ☁ example.com/a@b") == 1


def _flat(colour: tuple[int, ...], size: tuple[int, int] = (90, 90)) -> PIL.Image.Image:
    return PIL.Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (noise((63, 200)), "too small"),
        (noise((64, 64)), None),
        (noise((64, 193)), "too long and thin"),
        (noise((192, 64)), None),
        (encoded(_flat((10, 200, 30))), "one colour"),
        (encoded(_flat((10, 200, 30)), "JPEG", quality=30), "one colour"),
        (encoded(_flat((10, 200, 30, 0))), "one colour"),
        (encoded(_flat((255, 255, 255)).convert("P")), "one colour"),
        (encoded(PIL.Image.linear_gradient("L").resize((90, 90))), None),
        (noise((90, 90), mode="RGBA"), None),
        (noise()[:900], errors.IMAGE_BROKEN),
        (b"<html>not found</html>", errors.IMAGE_BROKEN),
        (None, errors.IMAGE_MISSING),
    ],
)
def test_images(
    make: Callable[..., Filters], data: bytes | None, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    filters = make()
    monkeypatch.setattr(filters, "source", Store(GOOD | ({"http://x/0.png": data} if data else {})))
    if data is None:
        del filters.source["http://x/0.png"]
    assert left_out(filters, page(), IMAGES) == ({reason: 1} if reason else {})
    assert verdict(filters, page(images=1)) == ("no usable image" if reason else None)


def test_a_picture_is_looked_at_once_and_wholly() -> None:
    found = look_at(ImageReference("u"), noise((80, 70)))
    assert (found.width, found.height, found.aspect_ratio) == (80, 70, 80 / 70)
    assert found.colour_range > 200
    assert PIL.Image.open(io.BytesIO(thumbnail(noise((200, 100))))).size == (96, 48)
    again = look_at(ImageReference("u"), encoded(PIL.Image.open(io.BytesIO(found.data)), "JPEG", quality=90))
    assert (found.phash ^ again.phash).bit_count() <= 3
    with pytest.raises(BadSample, match="too large"):
        look_at(ImageReference("u"), _bomb())


def _bomb() -> bytes:
    data = bytearray(noise((8, 8)))
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # the header's width and height
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def test_held_out_texts_and_images(
    make: Callable[..., Filters], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "questions.json").write_text(
        json.dumps({"questions": [{"question": PROSE[2], "id": 7}, {"x": "short"}]})
    )
    (tmp_path / "lines.jsonl").write_text(
        json.dumps({"text": "What did the council of the village ask of them?"}) + "\n"
    )
    (tmp_path / "plain.txt").write_text("one two three four five six seven\n")
    texts = [str(tmp_path / name) for name in ("questions.json", "lines.jsonl", "plain.txt")]
    filters = make(held_out=HeldOut(texts=texts))
    shares = "shares 13 words with an evaluation text"
    assert verdict(filters, page()) == shares  # PROSE[2] is in it
    others = [line for line in PROSE if line != PROSE[2]]
    assert verdict(filters, page(*others, "one two three four five six seven are words.")) is None  # too short to tell
    assert verdict(filters, page(*others, "And WHAT did the council, of the village, ask of them?")) == shares

    (tmp_path / "images" / "deep").mkdir(parents=True)
    copy = PIL.Image.open(io.BytesIO(GOOD["http://x/1.png"])).resize((160, 140))
    (tmp_path / "images" / "deep" / "a.jpg").write_bytes(encoded(copy, "JPEG", quality=85))
    (tmp_path / "images" / "b.png").write_bytes(b"broken, but known by its bytes")
    near = HeldOut(images=[str(tmp_path / "images")])
    assert verdict(make(held_out=near), page()) == "shows an evaluation image"
    assert "held-out pictures that cannot be opened: 1, the first b.png" in caplog.text
    assert verdict(make(held_out=near), page(images=1)) is None
    assert verdict(make(held_out=replace(near, image_bits=-1)), page()) is None
    (tmp_path / "images" / "c.png").write_bytes(GOOD["http://x/0.png"])
    assert verdict(make(held_out=replace(near, image_bits=-1)), page(images=1)) == "shows an evaluation image"


def test_held_out_data_that_cannot_be_read_is_an_error(make: Callable[..., Filters], tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "table.csv").write_text("a,b")
    for name in ("bad.json", "table.csv"):
        with pytest.raises(ValueError, match=name):
            make(held_out=HeldOut(texts=[str(tmp_path / name)]))
    with pytest.raises(FileNotFoundError):
        make(held_out=HeldOut(texts=[str(tmp_path / "none.txt")]))
    with pytest.raises(FileNotFoundError, match="held-out images"):
        make(held_out=HeldOut(images=[str(tmp_path / "none")]))
    with pytest.raises(ValueError, match="no picture"):
        make(held_out=HeldOut(images=[str(tmp_path)]))


def test_a_lone_surrogate_does_not_reach_a_shard(make: Callable[..., Filters]) -> None:
    given = page(*PROSE, "half a \ud83d character of the text", url="http://x/\udc80")
    given.title, given.nodes[1] = "\udfff", ImageReference("http://x/1.png", "\udfff")
    draft = Draft.of(given)
    assert make().run(draft, Ledger())
    to_files(draft.document())
    assert "half a  character" in draft.text


def test_keys_are_those_of_the_canonical_address() -> None:
    assert page_key("http://x/p?b=2&a=1#top") == page_key("http://x/p?a=1&b=2")
    assert page_key("http://x/p?a=1") != page_key("http://x/p?a=2")
    hostile = ["http://x/ü\udc80", "http://[x/", "http://x:99999999/", "http://" + "a" * 300, ""]
    assert len({page_key(url) for url in hostile}) == len(hostile)


_DROPS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(0, 2)), max_size=40)


@settings(max_examples=50, deadline=None)
@given(_DROPS, st.randoms(use_true_random=False), st.integers(1, 4))
def test_ledgers_merge_to_the_same_in_any_order_and_parts(
    drops: list[tuple[str, int, int]], rng: random.Random, parts: int
) -> None:
    def ledger_of(some: list[tuple[str, int, int]]) -> Ledger:
        ledger = Ledger(examples=3)
        for reason, identity, version in some:
            ledger.enter(PAGES)
            ledger.drop(PAGES, "text", reason, str(identity), lambda v=(identity, version): {"seen": list(v)})
        return ledger

    whole, merged = ledger_of(drops), Ledger(examples=3)
    shuffled = rng.sample(drops, len(drops))
    for part in range(parts):
        merged.merge(Ledger.from_json(ledger_of(shuffled[part::parts]).to_json()))
    merged.check()
    assert merged.to_json() == whole.to_json()
    for _, reason, rule in whole.dropped(PAGES):
        assert rule.count == sum(drop[0] == reason for drop in drops)
        assert len(rule.examples) == min(3, len({drop[1] for drop in drops if drop[0] == reason}))


def test_a_ledger_that_does_not_add_up_says_so(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.enter(PAGES, 3)
    ledger.keep(PAGES)
    ledger.drop_many(PAGES, "text", WITH_PAGE, 1)
    with pytest.raises(RuntimeError, match="3 pages in, 1 out, 1 dropped"):
        ledger.check()
    ledger.keep(PAGES)
    ledger.check()
    assert ledger.count(PAGES, WITH_PAGE) == 1
    ledger.write(tmp_path)
    assert read_ledger(tmp_path).to_json() == ledger.to_json()
    assert list(json.loads(ledger.to_json()))[2:] == list(KINDS)
    (tmp_path / "ledger.json").write_text('{"version": 9}')
    with pytest.raises(ValueError, match="not a ledger"):
        read_ledger(tmp_path)
    with pytest.raises(FileNotFoundError, match="kosmos data web"):
        read_ledger(tmp_path / "none")


def test_options_and_sources_of_the_readme_are_those_of_the_program(repository: Path) -> None:
    section = (repository / "data/README.md").read_text().split("## Web pages")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if len(row) == 4 and row[0] in ("page", "paragraph", "image")]
    named = 0
    for row in rows:
        group = ""
        for name in re.findall(r"`([a-z_.]+)`", row[2]):
            first, _, last = name.rpartition(".")
            group = first or group
            rules = vars(WebOptions())[group]
            assert hasattr(rules, last), name
            shown = re.search(rf"{re.escape(last)}` \(([0-9.]+)", row[2])
            assert shown is None or float(shown[1]) == getattr(rules, last), name
            named += 1
    assert named >= 18
    for source in set(re.split(", ", ", ".join(SOURCES.values()))) - {"FineWeb"}:
        assert any(source in row[3] for row in rows), source


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_broken_images_are_bad_samples_and_nothing_else(form: str) -> None:
    rng = random.Random(form)
    whole = encoded(PIL.Image.open(io.BytesIO(noise((40, 30)))).convert("P" if form == "GIF" else "RGB"), form)
    reasons: list[str] = []
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 12)):
            data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        try:
            look_at(ImageReference("u"), bytes(data))
        except BadSample as error:
            reasons.append(error.reason)
    assert len(reasons) > 5
    assert set(reasons) <= {errors.IMAGE_BROKEN, errors.IMAGE_TOO_LARGE}
