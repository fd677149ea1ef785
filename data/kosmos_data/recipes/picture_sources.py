"""Three free picture collections as one list: which picture, what it is called, in which words else.

Fluent emoji 3D (npm, MIT) with the names of unicode-emoji-json and the keywords of emojilib; the stamps of Tux Paint
(Debian, GPL-2) with captions in dozens of languages; and openclipart (Debian, public domain) with the titles that its
users gave, most of which name a collection instead of the picture. What cannot be used is counted by reason.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from . import packages, wordnet

_NPM = {
    "@lobehub/fluent-emoji-3d": ("1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
    "unicode-emoji-json": ("0.9.0", "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401"),
    "emojilib": ("4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303"),
}
_APT = {
    "tuxpaint-stamps-default": ("2022.06.04-1", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"),
    "openclipart-png": ("1:0.18+dfsg-19", "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02"),
    "openclipart-svg": ("1:0.18+dfsg-19", "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5"),
}
_SHARED_TITLE = 5  # more pictures than this with one title: it names their collection
# Folders of stamps that name a kind of thing; others are occasions and places (seasonal, town, hobbies).
_STAMP_GROUPS = {"animals", "clothes", "food", "people", "plants", "space", "sports", "symbols", "vehicles"}
_FUNCTION_WORDS = {
    "and",
    "for",
    "from",
    "her",
    "his",
    "into",
    "our",
    "over",
    "the",
    "this",
    "that",
    "with",
    "without",
    "you",
}
_NOT_A_NAME = re.compile(r"\b(a|an|the|some|man|woman|men|women|person|people|boy|girl)\b|[\d\W_]+")


@dataclass(frozen=True, slots=True)
class Named:
    """A picture file with its name.

    Args:
        key: unique, ``SOURCE/…``.
        path: the file.
        phrase: what follows "An image of": ``grinning face``, ``a basset hound dog``.
        caption: the source's own words: ``A basset hound dog.``
        keywords: other words for it.
        translations: the caption by language code, where the source has it.
        group: what kind of thing its source says it is: ``animals and nature``; empty: it does not say.
    """

    key: str
    path: Path
    phrase: str
    caption: str
    keywords: tuple[str, ...] = ()
    translations: Mapping[str, str] = field(default_factory=dict)
    group: str = ""

    @property
    def base_name(self) -> str:
        """What the split goes by: variants of one thing (numbered, man or woman, of another source) share it."""
        return base_name(self.phrase)


def base_name(phrase: str) -> str:
    """A thing's name without numbers, articles, and man, woman, boy or girl."""
    return _NOT_A_NAME.sub(" ", phrase.lower().partition(":")[0]).strip() or phrase


def stamp_caption(text: Path) -> tuple[str, str, dict[str, str]]:
    """What a stamp's ``NAME.txt`` says: its name (empty: none), the English caption, and that of other languages."""
    lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
    caption = " ".join(lines[0].split()) if lines else ""
    # The first sentence, if it reads as the name of a thing.
    phrase = re.split(r"[.!](?= |$)", caption)[0].strip(' "“”')
    if not re.search(r"[^\W\d_]{2}", phrase) or len(phrase.split()) > 15:
        phrase = ""
    pairs = (line.partition(".utf8=") for line in lines[1:])
    return phrase, caption, {language: " ".join(words.split()) for language, _, words in pairs if words.strip()}


class Collections:
    """The three collections, fetched when they are asked for.

    Args:
        cache: folder for the packages.
        strict: refuse other versions of the Debian packages than those above.
        progress: display of what is being fetched.
    """

    def __init__(self, cache: str, strict: bool, progress: Progress) -> None:
        self.cache, self.strict, self.progress = cache, strict, progress
        self.sources: list[dict[str, Any]] = []

    def read(self, name: str, skipped: Counter[str]) -> Iterator[Named]:
        """The usable pictures of collection ``name``, by key; ``skipped`` counts the others by reason.

        Raises:
            ValueError: no such collection.
            PackageUnavailable: a package cannot be fetched (an OSError; see :mod:`.packages`).
        """
        if name == "emoji":
            folders = [self._npm(package) for package in _NPM]
            return emoji(folders[0] / "assets", *(_emoji_tables(*folders[1:])), skipped)
        if name == "stamps":
            files = self._note(stamps_package(self.cache, self.strict, self.progress))
            return stamps(files / "usr/share/tuxpaint/stamps", skipped)
        if name == "clipart":
            svg, png = (self._apt(f"openclipart-{kind}") / "usr/share/openclipart" / kind for kind in ("svg", "png"))
            synsets, source = wordnet.load(self.cache, self.progress)
            self.sources.append(source)
            words = {part for synset in synsets for word in synset.words for part in re.findall(r"[^\W\d_]+", word)}
            return clipart(svg, png, words, skipped)
        raise ValueError(f"no picture collection {name!r}; known: emoji, stamps, clipart")

    def _npm(self, name: str) -> Path:
        version, sha256 = _NPM[name]
        return self._note(packages.npm(name, version, self.cache, sha256=sha256, progress=self.progress))

    def _apt(self, name: str) -> Path:
        return self._note(_debian(name, self.cache, self.strict, self.progress))

    def _note(self, files: Path) -> Path:
        self.sources.append(packages.describe(files))
        return files


def stamps_package(cache: str, strict: bool, progress: Progress) -> Path:
    """The files of Tux Paint's stamps (Debian, GPL-2), fetched where they are not in the cache.

    Raises:
        ClientMissing, PackageUnavailable, ValueError: see :func:`.packages.apt`.
    """
    return _debian("tuxpaint-stamps-default", cache, strict, progress)


def _debian(name: str, cache: str, strict: bool, progress: Progress) -> Path:
    version, sha256 = _APT[name]
    return packages.apt(name, cache, sha256, version=version, strict=strict, progress=progress)


def emoji(
    assets: Path, names: Mapping[str, Mapping[str, str]], words: Mapping[str, list[str]], skipped: Counter[str]
) -> Iterator[Named]:
    """Emoji by their code points; flags and skin tones are left out (they are 1,800 variations of few pictures)."""
    seen: set[str] = set()
    for path in sorted(assets.glob("*.webp")):
        code = emoji_code(path.stem)
        if code in seen:
            skipped["another file of one emoji"] += 1
        elif re.search(r"1f3f[b-f]", code):
            skipped["skin tone"] += 1
        elif code not in names:
            skipped["no name"] += 1
        elif names[code]["group"] == "Flags":
            skipped["flag"] += 1
        else:
            seen.add(code)
            name = names[code]["name"]
            others = (word.replace("_", " ") for word in words.get(code, []))
            keywords = tuple(word for word in others if re.fullmatch(r"[a-z][a-z' -]+", word) and word != name)
            group = names[code]["group"].lower().replace("&", "and")
            yield Named(f"emoji/{code}", path, name, name, keywords, group=group)


def stamps(folder: Path, skipped: Counter[str]) -> Iterator[Named]:
    """Tux Paint's stamps: ``NAME.txt`` holds the English caption, then ``LANGUAGE.utf8=`` lines."""
    for path in sorted(folder.rglob("*.txt")):
        if not path.with_suffix(".png").is_file():
            skipped["only as SVG"] += 1
            continue
        phrase, caption, translations = stamp_caption(path)
        if not phrase:
            skipped["no name"] += 1
            continue
        key = str(path.relative_to(folder).with_suffix("")).replace(".", "_")
        folder_name = key.partition("/")[0]
        group = folder_name if folder_name in _STAMP_GROUPS else ""
        phrase = phrase[:1].lower() + phrase[1:] if re.match(r"(An?|The|Some) ", phrase) else phrase
        yield Named(f"stamps/{key}", path.with_suffix(".png"), phrase, caption, (), translations, group)


def clipart(svg: Path, png: Path, words: Set[str], skipped: Counter[str]) -> Iterator[Named]:
    """openclipart's PNGs with the titles of its SVGs, where a title is an English name of this one picture.

    Args:
        words: English words in the case in which a dictionary has them.
    """
    lower = {word.lower() for word in words} | _FUNCTION_WORDS
    works = {path: _work(path.read_text(encoding="utf-8", errors="replace")) for path in sorted(svg.rglob("*.svg"))}
    shared = Counter(title for title, _ in works.values())
    for path, (title, keywords) in works.items():
        picture = (png / path.relative_to(svg)).with_suffix(".png")
        reason = (
            "no title"
            if not title
            else "no PNG"
            if not picture.is_file()
            else "flag"
            if "flags" in path.parts
            else _title_fault(title, path.stem, shared[title], lower)
        )
        if reason:
            skipped[reason] += 1
            continue
        name = _clean_title(title)
        phrase = " ".join(word.lower() if word.istitle() and word.lower() in words else word for word in name.split())
        key = str(path.relative_to(svg).with_suffix("")).replace(".", "_")
        yield Named(f"clipart/{key}", picture, phrase, name, keywords)


def _title_fault(title: str, stem: str, times: int, words: Set[str]) -> str | None:
    """Why a title does not name its picture, or None."""
    if title.startswith("Clipart by "):  # "Clipart by NAME - FILE", copied on to other files
        if title.rpartition(" - ")[2] != stem:
            return "title of another picture"
    elif times > _SHARED_TITLE:
        return "title of a collection"
    found = re.findall(r"[^\W\d_]{3,}", _clean_title(title))
    if not found or re.search(r"@|https?:", title):
        return "title is no name"
    return None if all(_known(word.lower(), words) for word in found) else "title not in English words"


def _clean_title(title: str) -> str:
    """Without author, remarks in parentheses, underscores and the number at the end."""
    title = re.sub(r"^Clipart by .* - |\([^)]*\)", " ", title)
    return re.sub(r"[\W\d]+$", "", re.sub(r"[\s_]+", " ", title).strip())


def _known(word: str, words: Set[str]) -> bool:
    forms = (word, *(word.removesuffix(ending) for ending in ("s", "es", "ed", "ing")), word.removesuffix("ing") + "e")
    return any(form in words for form in forms)


def _work(svg: str) -> tuple[str, tuple[str, ...]]:
    """Title and keywords of an SVG's Creative Commons metadata."""
    work = re.search(r"<(cc:)?Work.*?</(cc:)?Work>", svg, re.DOTALL)
    if work is None:
        return "", ()
    title = re.search(r"<dc:title>(.*?)</dc:title>", work[0], re.DOTALL)
    listed = (" ".join(html.unescape(word).split()) for word in re.findall(r"<rdf:li>(.*?)</rdf:li>", work[0]))
    keywords = tuple(word.replace("_", " ") for word in listed if re.fullmatch(r"(?!hash\b)[a-z][a-z' _-]+", word))
    return " ".join(html.unescape(title[1]).split()) if title else "", tuple(dict.fromkeys(keywords))


def _emoji_tables(names: Path, words: Path) -> tuple[dict[str, Any], dict[str, list[str]]]:
    tables = (names / "data-by-emoji.json", words / "dist" / "emoji-en-US.json")
    read = (json.loads(table.read_text(encoding="utf-8")) for table in tables)
    by_name, by_word = ({emoji_code(emoji): body for emoji, body in table.items()} for table in read)
    return by_name, by_word


def emoji_code(emoji: str) -> str:
    """``1f441-200d-1f5e8`` for an emoji or a file name; the variation selector fe0f comes and goes, so it goes."""
    parts = emoji.split("-") if emoji.isascii() and len(emoji) > 1 else [f"{ord(character):04x}" for character in emoji]
    return "-".join(part.zfill(4) for part in parts if part != "fe0f")
