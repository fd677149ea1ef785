"""A corpus of real text and drawn pictures, of which it is known what must become of everything in it."""

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

from kosmos_data import Document, Image, Text, write_shards
from kosmos_data.recipes import speeches

GERMAN = (
    "Als Gregor Samsa eines Morgens aus unruhigen Träumen erwachte, fand er sich in seinem Bett zu einem ungeheueren "
    "Ungeziefer verwandelt."
)


@dataclass
class Soiled:
    """Documents, and why those of them must go that must: (key, reason, key of the one that stays instead)."""

    documents: list[Document] = field(default_factory=list)
    gone: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, key: str, *segments: Any, reason: str = "", instead: str = "", **meta: Any) -> None:
        """Append a document, which goes for a reason or stays."""
        self.documents.append(Document(key, list(segments), meta))
        if reason:
            self.gone.append((key, reason, instead))

    def write(self, root: Path, per_shard: int = 8) -> Path:
        """The documents as shards."""
        write_shards(root, self.documents, per_shard)
        return root


def _drawing(seed: int, form: str = "PNG", **options: int) -> bytes:
    """A picture of overlapping rectangles, so that different seeds look different."""
    rng = random.Random(seed)
    image = PIL.Image.new("RGB", (96, 80), tuple(rng.randrange(256) for _ in range(3)))
    draw = PIL.ImageDraw.Draw(image)
    for _ in range(12):
        x, y = (sorted(rng.randrange(side) for _ in range(2)) for side in image.size)
        draw.rectangle((x[0], y[0], x[1], y[1]), fill=tuple(rng.randrange(256) for _ in range(3)))
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _edited(text: str, share: float, seed: int = 0) -> str:
    """The text with a share of its words replaced by words that nobody uses."""
    rng, words = random.Random(seed), text.split(" ")
    for place in rng.sample(range(len(words)), round(len(words) * share)):
        words[place] = f"zq{rng.randrange(10**6)}x"
    return " ".join(words)


@pytest.fixture(scope="session")
def parts() -> list[str]:
    """Real English: 60 parts of about 900 characters, from as many speeches."""
    addresses, _ = speeches.load()
    return [next(speeches.parts(speech.text, 900)) for speech in addresses[-60:]]


@pytest.fixture(scope="session")
def edited() -> Callable[..., str]:
    """A text with a share of its words replaced."""
    return _edited


@pytest.fixture(scope="session")
def drawing() -> Callable[..., bytes]:
    """A picture by seed, form and options of its encoder."""
    return _drawing


@pytest.fixture(scope="session")
def soiled(parts: list[str]) -> Soiled:
    """Every kind of document that goes, each beside one like it that stays."""
    made = Soiled()
    for number, part in enumerate(parts[:20]):
        made.add(f"speech-{number}", Text(part), source="speeches")
    made.add("copy", Text(parts[3]), reason="exact duplicate", instead="speech-3", source="elsewhere")
    made.add("longer", Text(parts[4] + " So be it."))
    made.gone.append(("speech-4", "near-duplicate text", "longer"))
    made.add("like-5", Text(_edited(parts[5], 0.005)[:-40]), reason="near-duplicate text", instead="speech-5")
    made.add("unlike-6", Text(_edited(parts[6], 0.2)))
    made.add("german", Text(GERMAN), reason="other language")
    made.add("few-words", Text("A red dog."))
    made.add("program", Text("for i in range(10): the sum of all"), reason="source left out", pile_set_name="Github")
    made.add("nested", Text(parts[21]), reason="source left out", meta={"pile_set_name": "ArXiv"})
    leaked = f"{parts[22]}\nWhich of the seven lamps stood in the northern window when the frost came down that night?"
    made.add("leaked", Text(leaked), reason="shares 13 words with an evaluation text")
    made.add("tag-in-text", Text("The element <PERSON> of the schema holds a name, and that is all it is for."))

    seen, other = Image(_drawing(1)), Image(_drawing(2))
    made.add("pair", seen, Text("A red dog, beside a house!"))
    made.add("same-words", other, Text("A red dog, beside a house!"))
    copy = Image(_drawing(1, "JPEG", quality=85))
    near = "near-duplicate text, pictures alike"
    made.add("same-picture", copy, Text("a red dog beside a house"), reason=near, instead="pair")
    made.add("other-words", copy, Text("Nobody lives here any more"))
    made.add("person", Image(_drawing(3)), Text("<PERSON> opens the fair"), reason="tag such as <PERSON>")
    made.add("broken", Image(b"\x89PNG nothing"), Text("A red dog"), reason="image broken")
    question = Text("Question: what is left of the red dog that stands beside the house? Answer:", supervised=False)
    made.add("question-1", seen, question, Text(" a cat"))
    made.add("question-2", seen, question, Text(" a cow"))
    made.add("question-3", seen, question, Text(" a cow"), reason="exact duplicate", instead="question-2")
    return made


@pytest.fixture(scope="session")
def soiled_corpus(soiled: Soiled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:func:`soiled` as shards."""
    return soiled.write(tmp_path_factory.mktemp("soiled") / "corpus")
