"""What `kosmos data inspect` shows of an objective: tokens, and a mask as a picture, which are those of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import Document, Text, objectives, write_shards

from .test_objectives_loader import corpus  # noqa: F401 - a fixture


def test_inspect_shows_and_draws_the_mask(
    corpus: str,  # noqa: F811
    objective_processor: KosmosProcessor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command prints tokens, loss exposure and the mask, and writes it as a PNG."""
    from PIL import Image as Pictures

    from kosmos_data.cli import main

    objective_processor.save_pretrained(tmp_path / "processor")
    settings = ["--processor", str(tmp_path / "processor"), "--masks", str(tmp_path / "masks")]
    main(["inspect", corpus, "--objective", "{name: prefix_lm, chunk_tokens: 64}", *settings])
    shown = capsys.readouterr().out
    assert "loss exposure" in shown
    assert "█" in shown
    assert "▒" in shown
    (picture,) = (tmp_path / "masks").iterdir()
    assert Pictures.open(picture).size[0] > Pictures.open(picture).size[1]
    for wrong in ("{name: glm", "[glm]", ""):
        with pytest.raises(ValueError, match="is neither a name nor settings like"):
            main(["inspect", corpus, "--objective", wrong, *settings])
    write_shards(tmp_path / "given", [Document("a/0", [Text("kaband mocort", supervised=False)])])
    main(["inspect", str(tmp_path / "given"), "--objective", "{name: causal, loss: supervised}", *settings])
    assert "left out: no supervised token: a/0" in capsys.readouterr().out


def test_a_long_mask_is_thinned(
    objective_processor: KosmosProcessor, objective_words: list[str], tmp_path: Path
) -> None:
    """A book fits the screen and the memory; the colours of the picture are those of the letters."""
    from PIL import Image as Pictures

    from kosmos_data.objectives_view import mask_art, save_mask

    document = Document("k", [Text(" ".join(objective_words * 65))])
    example = objectives.get("prefix_lm", objective_processor, chunk_tokens=4000)(document, 0)
    *lines, note = mask_art(example, 50).splitlines()
    assert (len(example), note) == (5201, "one cell: 105 tokens")
    assert len(lines) == 50
    save_mask(example, tmp_path / "mask.png")
    picture = Pictures.open(tmp_path / "mask.png")
    assert picture.size == (1734 + 2 * 12, 1734)
    letters = {(150, 150, 150): "▒", (70, 110, 220): "█", (255, 255, 255): "·"}
    for row in range(50):
        assert lines[row][:50] == "".join(letters[picture.getpixel((35 * key, 35 * row))] for key in range(50))


def test_views_agree_with_the_model(objective_processor: KosmosProcessor, objective_words: list[str]) -> None:
    """The mask that is drawn is the model's, and the exposure counts the outputs with loss."""
    from kosmos.masks import document_mask
    from kosmos_data.objectives_view import attention_mask, colour_tokens, loss_exposure, mask_art

    document = Document("k", [Text(" ".join(objective_words[:20]))])
    for name in ("causal", "prefix_lm", "glm", "span_corruption", "mlm"):
        example = objectives.get(name, objective_processor)(document, 1)
        columns = [torch.from_numpy(column)[None].long() for column in (example.document, example.block)]
        assert (attention_mask(example) == document_mask(*columns)[0].numpy()).all()
        assert loss_exposure(example) == pytest.approx((example.weight > 0).sum() / len(example))
        assert mask_art(example).count("◀") == int((example.weight > 0).sum())
        styles = [str(part.style) for part in colour_tokens(example, objective_processor).spans]
        assert sum("red" in style for style in styles) > 0
        assert ("on blue" in " ".join(styles)) == bool((example.block >= 0).any())
        plain = str(colour_tokens(example, objective_processor, colours=False))  # for a file or a pipe: marks instead
        assert "«" in plain
        assert ("{" in plain) == ("on blue" in " ".join(styles)) or name == "mlm"


def test_a_long_example_is_shown_where_its_predictions_begin(
    objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """GLM writes its spans behind the text: the table leaves the middle of the text out."""
    from rich.console import Console

    from kosmos_data.inspection import show_example

    document = Document("k", [Text(" ".join(objective_words * 2))])
    example = objectives.get("glm", objective_processor)(document, 1)
    console = Console(record=True, width=120, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        show_example(console, example, objective_processor, rows=20)
    shown = capture.get()
    first = int(np.argmax(example.weight > 0))
    assert first > 40
    assert f"│ {first} " in shown
    assert "│ …" in shown
    assert "│ 9 " in shown
    assert "│ 10 " not in shown
