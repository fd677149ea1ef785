"""Documents whose texts have boxes: on disk, importing GRIT, what the loader writes of them, what objectives do."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kosmos.grounding import read_answer
from kosmos.image_processing_kosmos import KosmosImageProcessor
from kosmos.processing_kosmos import KosmosProcessor
from kosmos.segments import Phrase
from kosmos.tokenization_kosmos import train_tokenizer
from kosmos_data import Document, Image, Text, objectives
from kosmos_data.adapters import get
from kosmos_data.document import from_files, to_files
from kosmos_data.errors import BadSample, Tally
from kosmos_data.objectives._flatten import flatten

CAPTION = "a red dog beside the old house."
BOX = (0.25, 0.5, 0.75, 1.0)
DOG = Text(CAPTION, boxes=(Phrase(0, 9, (BOX, (0.0, 0.0, 0.125, 0.125))), Phrase(17, 30, (BOX,))))


@pytest.fixture(scope="module")
def grounded() -> KosmosProcessor:
    """Four slots per image, the middle square of pictures, and the tokens for boxes."""
    extra = objectives.special_tokens(["fim", "glm"])
    tokenizer = train_tokenizer([CAPTION] * 20, vocab_size=100, extra_tokens=extra, grounding=True)
    return KosmosProcessor(KosmosImageProcessor(image_size=8), tokenizer, num_image_tokens=4)


def test_boxes_stay_what_they_are_on_disk(make_png: Callable[..., bytes]) -> None:
    document = Document("a", [Image(make_png(1)), DOG, Text("Is it?", supervised=False, boxes=())])
    files = to_files(document)
    assert from_files("a", files) == document
    assert json.loads(files["json"])["segments"][1]["boxes"][1] == {"phrase": [17, 30], "boxes": [list(BOX)]}
    assert "boxes" not in json.loads(to_files(Document("a", [Text("b")]))["json"])["segments"][0]


@pytest.mark.parametrize(
    "boxes",
    [
        [{"phrase": [0, 3], "boxes": [[0, 0, 2, 1]]}],
        [{"phrase": [0, 99], "boxes": []}],
        [{"phrase": [0.5, 3], "boxes": []}],
        [{"boxes": []}],
        [7],
        7,
    ],
)
def test_what_fits_neither_image_nor_text_is_a_bad_sample(boxes: Any) -> None:
    body = json.dumps({"segments": [{"text": CAPTION, "boxes": boxes}]}).encode()
    with pytest.raises(BadSample, match="boxes that fit neither image nor text"):
        from_files("a", {"json": body})


def test_a_wide_picture_is_cropped_and_so_are_its_boxes(grounded, make_png: Callable[..., bytes]) -> None:
    """Of 16×8 pixels the middle half is seen: the dog's second box is outside, its first fills the width."""
    document = Document("a", [Image(make_png(1, (16, 8))), DOG])
    flat = flatten(document, grounded)
    text, phrases = read_answer(grounded, flat.ids[6:].tolist())
    assert text == CAPTION
    assert [text[one.begin : one.end] for one in phrases] == ["a red dog", "the old house"]
    assert phrases[0].boxes == ((0.5 / 32, 16.5 / 32, 31.5 / 32, 31.5 / 32),)
    known = grounded.grounding_ids
    opens, closes = (flat.ids.tolist().index(known[token]) for token in ("<phrase>", "</object>"))
    assert not flat.cuts[opens + 1 : closes + 1].any()  # no row cuts a box in two
    assert flat.weight[opens : closes + 1].all()  # trained like text, as in the release
    far = Text(CAPTION, boxes=(Phrase(0, 9, ((0.0, 0.0, 0.2, 1.0),)),))
    assert known["<grounding>"] not in flatten(Document("a", [Image(make_png(1, (16, 8))), far]), grounded).ids
    with pytest.raises(BadSample, match="before the first picture"):
        flatten(Document("a", [DOG]), grounded)


def test_objectives_that_tear_texts_leave_boxes_out_or_whole(grounded, make_png: Callable[..., bytes]) -> None:
    document = Document("a", [Image(make_png(1)), DOG, Text(" And so on and so on.")])
    known = grounded.grounding_ids
    opens = known["<object>"]
    for name, options, count in (
        ("causal", {}, 2),
        ("prefix_lm", {}, 2),
        ("fim", {"rate": 1.0}, 2),
        ("glm", {"ratio": 0.3}, 0),
    ):
        objective = objectives.get(name, grounded, **options)
        for seed in range(5):
            example = objective(document, seed)
            found = example.token.tolist()
            assert found.count(opens) == count, name
            if count:  # no other token between a phrase and its boxes
                at = found.index(known["</phrase>"])
                assert found[at + 1] == opens


def test_grit_is_imported_and_what_is_left_out_counted(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    expressions = [
        [0, 9, 0.1, 0.1, 0.5, 0.5, 0.9],
        [2, 9, 0.1, 0.1, 0.5, 0.5, 0.9],  # within the first
        [0, 9, 0.5, 0.5, 1.0004, 0.9, 0.7],  # a second box, over the border by rounding
        [17, 30, 0.2, 0.2, 0.6, 0.7, 0.3],
        [17, 30, 0.2, 0.2, 1.6, 0.7, 0.9],
        [17, 30, 0.6, 0.2, 0.2, 0.7, 0.9],
        [7, 20, 0.1, 0.1, 0.5, 0.5, 0.9],  # overlaps the first
        [17, 99, 0.1, 0.1, 0.5, 0.5, 0.9],
        ["?"],
    ]
    rows = [
        {"caption": CAPTION, "ref_exps": expressions},
        {"caption": CAPTION, "ref_exps": [], "noun_chunks": [[2.0, 9.0, 0.1, 0.1, 0.5, 0.5, 0.8]]},
        {"caption": CAPTION},
        {"ref_exps": []},
    ]
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for number, row in enumerate(rows):
            for name, data in ((f"{number}.jpg", make_png(number)), (f"{number}.json", json.dumps(row).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    tally = Tally()
    documents = list(get("grit")(tmp_path, tmp_path, tally))
    wanted = (Phrase(0, 9, ((0.1, 0.1, 0.5, 0.5), (0.5, 0.5, 1.0, 0.9))),)
    assert [document.segments[1].boxes for document in documents] == [
        wanted, (Phrase(2, 9, ((0.1, 0.1, 0.5, 0.5),)),), None
    ]  # fmt: skip
    assert dict(tally) == {
        "boxes that fit neither image nor text": 5, "box of a low score": 1, "fields missing or of another kind": 1
    }  # fmt: skip
    assert tally.records == 1
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "p.png").write_bytes(make_png(1))
    (tmp_path / "lines" / "a.jsonl").write_text(json.dumps(rows[0] | {"image": "p.png"}))
    (document,) = get("grit")(tmp_path / "lines" / "a.jsonl", tmp_path / "lines", Tally())
    assert document.segments[1].boxes == wanted
