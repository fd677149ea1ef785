"""What is heard in Tux Paint's stamps (Debian, GPL-2): their names, read aloud in nine languages, and their sounds.

    animals/dogs/dog.txt            captions: English, then LANGUAGE.utf8= lines
    animals/dogs/dog_desc_es.ogg    the Spanish one, read aloud
    animals/dogs/dog.ogg            a dog

A recording that several stamps have is used once. What cannot be used is counted by reason.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kosmos.media import read_sound
from kosmos.segments import Unreadable

from .picture_sources import base_name, stamp_caption

LANGUAGES = {
    "be": "Belarusian",
    "bg": "Bulgarian",
    "ca": "Catalan",
    "da": "Danish",
    "el": "Greek",
    "es": "Spanish",
    "fr": "French",
    "ro": "Romanian",
    "ru": "Russian",
}
"""Languages with several hundred recordings; the others have 6 to 67."""
SOUND = ""
"""In the place of a language: a sound that is no speech."""
_RATE = 16_000
_NOT_SPOKEN = re.compile(r"[\d()\[\]/…$%=]|\w[-–]$")  # one cannot tell how it is read, or whether


@dataclass(frozen=True, slots=True)
class Recording:
    """A file of sound and what it says, or what makes it.

    Args:
        key: unique, ``LANGUAGE/…`` or ``sound/…``.
        path: the file.
        language: a key of :data:`LANGUAGES`, or :data:`SOUND`.
        words: what is said, in small letters; of a sound its English name.
        thing: what the split goes by, in every language the same.
    """

    key: str
    path: Path
    language: str
    words: str
    thing: str


def recordings(folder: Path, languages: Sequence[str], seconds: float, skipped: Counter[str]) -> Iterator[Recording]:
    """The usable recordings below a folder of stamps, by path; ``skipped`` counts the others by reason.

    Args:
        folder: ``…/tuxpaint/stamps``.
        languages: keys of :data:`LANGUAGES`.
        seconds: longest recording.

    Raises:
        ValueError: another language.
    """
    if unknown := [language for language in languages if language not in LANGUAGES]:
        raise ValueError(f"languages has {unknown[0]!r}; there are recordings in {', '.join(LANGUAGES)}")
    seen: set[str] = set()
    for path in sorted([*folder.rglob("*.ogg"), *folder.rglob("*.wav")]):
        stem, spoken, language = path.stem.partition("_desc")
        language = language.removeprefix("_") or ("en" if spoken else SOUND)
        if language not in (*languages, SOUND):
            skipped["another language"] += 1
            continue
        found = _recording(path, folder, stem, language)
        reason = found if isinstance(found, str) else _fault(path, seconds, seen)
        if reason:
            skipped[reason] += 1
        elif not isinstance(found, str):
            yield found


def _recording(path: Path, folder: Path, stem: str, language: str) -> Recording | str:
    """The recording by its captions alone, or why there is none."""
    text = path.with_name(f"{stem}.txt")
    if not text.is_file():
        return "letters and numbers"  # which have no captions
    phrase, _, translations = stamp_caption(text)
    words = translations.get(language, "") if language else phrase
    words = words.lower().strip(' .!"“”„«»')
    if not phrase or not words:
        return "no name in its language"
    if _NOT_SPOKEN.search(words):
        return "numbers and remarks"
    place = str(path.relative_to(folder).with_name(stem)).replace(".", "_")
    return Recording(f"{language or 'sound'}/{place}", path, language, words, base_name(phrase))


def _fault(path: Path, seconds: float, seen: set[str]) -> str | None:
    """Why a file of sound cannot be used, or None."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest in seen:
        return "same recording again"
    try:
        samples = read_sound(data, _RATE, seconds)
    except Unreadable as error:
        return f"longer than {seconds:g} s" if "longer" in str(error) else "broken"
    if not samples.any():
        return "silent"
    seen.add(digest)
    return None
