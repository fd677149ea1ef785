"""What makes the parts of a model (small CLIP, text encoder, vocabulary) counts the documents it cannot read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from kosmos.processing_kosmos import load_processor
from kosmos_data import Document, Image, Text, write_shards
from kosmos_train.parts.encoder import EncoderConfig, train_encoder
from kosmos_train.parts.tokenizer import TokenizerConfig, make_processor
from kosmos_train.parts.training import PartConfig, _optimizers
from kosmos_train.parts.vision import LockedText, train_vision
from kosmos_train.parts.vision_data import VisionConfig, read_pairs

CLIP = {"embed_dim": 16, "vision_cfg": {"width": 32, "layers": 1, "head_width": 16, "patch_size": 8}}
CLIP |= {"text_cfg": {"width": 16, "heads": 2, "layers": 1}}
BERT = {"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
BERT |= {"num_attention_heads": 2, "max_position_embeddings": 64}


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """80 pairs, of which three have a truncated picture and two a broken JSON."""
    documents = []
    for index in range(80):
        colour = tiny.COLOURS[index % 4]
        picture = tiny.picture(colour)[: 40 if index in (3, 5, 7) else None]
        sea = "BREAK HERE" if index in (11, 12) else "calm sea"
        documents.append(Document(f"p{index}", [Image(picture), Text(f"An image of a {colour} fish over a {sea}")]))
    write_shards(tmp_path / "corpus", documents, max_documents=40)
    (shard, *_) = sorted((tmp_path / "corpus").glob("*.tar"))
    shard.write_bytes(shard.read_bytes().replace(b"BREAK HERE", b'BREAK"HERE'))
    return str(tmp_path / "corpus")


def vision(values: dict[str, Any], corpus: str, out: Path) -> None:
    config = VisionConfig(dict(CLIP), values["processor"], [corpus], steps=1, batch_size=8, held_out=8)
    train_vision(config, out)
    assert json.loads((out / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == 16


def encoder(values: dict[str, Any], corpus: str, out: Path) -> None:
    """Four epochs: each document is counted once."""
    train_encoder(EncoderConfig(BERT, values["processor"], [corpus], window=48, steps=40, batch_size=8), out)


def tokenizer(values: dict[str, Any], corpus: str, out: Path) -> None:
    make_processor(TokenizerConfig([corpus], vocab_size=100, image_size=16), out)


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        (vision, "2 × broken json, 3 × image broken"),
        (encoder, "2 × broken json, 3 × image broken"),
        (tokenizer, "2 × broken json"),
    ],
)
def test_unreadable_documents_are_counted(
    make: Callable[..., None],
    counts: str,
    values: dict[str, Any],
    corpus: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By reason, once, in a warning that names the corpus; the part is made from the rest."""
    make(values, corpus, tmp_path / "out")
    assert [record.getMessage() for record in caplog.records if "left out" in record.getMessage()] == [
        f"{corpus}: documents left out: {counts}"
    ]


def test_pairs_with_the_wanted_caption(values: dict[str, Any], corpus: str) -> None:
    """The prefix chooses and is cut off; too few pairs are refused with both numbers."""
    processor = load_processor(values["processor"])
    config = VisionConfig(dict(CLIP), values["processor"], [corpus], batch_size=4, held_out=4)
    config.caption_prefixes = ["An image of a red"]
    pairs = read_pairs(config, processor)
    assert set(pairs.captions) == {"fish over a calm sea"}
    assert len(pairs.captions) == len(pairs.pixels) == 20 - 1  # p12
    assert torch.equal(pairs.pixels[0, :, 0, 0], torch.tensor([255, 0, 0], dtype=torch.uint8))
    config.caption_prefixes, config.batch_size = ["A photo of"], 128
    with pytest.raises(
        ValueError, match=r"0 pairs whose caption begins with 'A photo of' .* 128 \+ 4; caption_prefixes=\[\]"
    ):
        read_pairs(config, processor)
    config.caption_prefixes, config.batch_size = [], 4  # any beginning
    every = read_pairs(config, processor).captions
    assert "An image of a red fish over a calm sea" in every
    assert len(every) > 20
    config.batch_size = 128
    with pytest.raises(ValueError, match=r"^\d+ pairs in .* = 128 \+ 4$"):
        read_pairs(config, processor)


def test_frequent_captions_alone_are_corrected() -> None:
    """The others are what the sentence encoder says, after updates as before; a frequent one moves by its own row."""
    torch.manual_seed(0)
    captions, frequent = torch.randn(5, 8), torch.tensor([False, True, False, False, True])
    model = LockedText(captions, frequent, {"width": 16, "layers": 1, "head_width": 8, "patch_size": 8}, False)
    optimizer = torch.optim.AdamW([model.corrections], lr=0.1, weight_decay=0.5)
    wanted = torch.randn(5, 8)
    for text in (torch.arange(5), torch.tensor([4, 0, 2])):
        optimizer.zero_grad()
        ((model.encode_text(text) - wanted[text]) ** 2).sum().backward()
        optimizer.step()
    read = model.encode_text(torch.arange(5))
    assert torch.equal(read[~frequent], captions[~frequent])
    assert torch.equal(read[frequent], captions[frequent] + model.corrections)
    assert model.corrections.abs().min() > 0


def test_both_trainings_have_the_same_settings() -> None:
    """One definition; each has its own defaults and says what it trains."""
    assert issubclass(VisionConfig, PartConfig)
    assert issubclass(EncoderConfig, PartConfig)
    assert (VisionConfig().steps, EncoderConfig().steps) == (600, 10_000)


@pytest.mark.parametrize(("rate", "kinds"), [(0.0, ["AdamW"]), (0.02, ["AdamW", "Muon"])])
def test_muon_takes_the_matrices_of_layers(rate: float, kinds: list[str]) -> None:
    """Every parameter has one optimiser; embeddings, norms, convolutions and projections stay with AdamW."""
    import open_clip

    text = {"width": 16, "heads": 2, "layers": 1, "vocab_size": 50, "context_length": 8}
    model = open_clip.model.CLIP(16, dict(CLIP["vision_cfg"]), text)
    made = _optimizers(model, PartConfig(muon_lr=rate), (0.9, 0.98))
    assert [type(one).__name__ for one in made] == kinds
    owners = [id(weight) for one in made for group in one.param_groups for weight in group["params"]]
    assert sorted(owners) == sorted(map(id, model.parameters()))
    names = {id(weight): name for name, weight in model.named_parameters()}
    for group in made[1].param_groups if rate else ():
        for weight in group["params"]:
            assert re.fullmatch(r"(visual\.)?transformer\.resblocks\.0\..*weight", names[id(weight)])
            assert weight.ndim == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tokenizer", "tokenizer.yaml", "run=p", "vocab_size=0"], "vocab_size=0: it may be 1 to 16,777,216"),
        (["tokenizer", "tokenizer.yaml", "run=p", "vocab_size=1e12"], "vocab_size=1000000000000: it may be"),
        (["tokenizer", "tokenizer.yaml", "run=p", "image_size=0"], "image_size=0: it may be 1 to"),
        (["tokenizer", "tokenizer.yaml", "run=p", "num_image_tokens=-2"], "num_image_tokens=-2: it may be"),
        (["tokenizer", "tokenizer.yaml", "run=p", "max_length=0"], "max_length=0: it may be 1 to"),
        (["tokenizer", "tokenizer.yaml", "run=p", "documents_per_corpus=0"], "documents_per_corpus=0: it may be"),
        (["doctor", "--preset", "tiny", "--rows", "0"], "--rows 0: at least 1 is needed"),
        (["doctor", "--preset", "tiny", "--length", "-8"], "--length -8: at least 1"),
        (["doctor", "--preset", "tiny", "--gpus", "0"], "--gpus 0: at least 1"),
        (["simulate", "small", "--bubble", "-5"], "--bubble -5.0: milliseconds are 0 or more"),
        (["simulate", "small", "--peak", "inf"], "--peak inf: a rate is above 0"),
        (["simulate", "small", "--images-per-row", "nan"], "--images-per-row nan: a row has"),
        (["demo", "--steps-factor", "inf", "--out", "d"], "--steps-factor inf: it must be above 0, and a number"),
    ],
)
def test_sizes_that_no_model_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    from kosmos.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.yaml").write_text("shards: [corpus]\nimage_size: 16\n")
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.yaml"]
