"""Models by their names, from a server that speaks the hub's HTTP; one process asks for all, as a user would."""

from __future__ import annotations

import json
import os
from pathlib import Path

import open_clip
import pytest
import sentencepiece
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, Kosmos2Config, Kosmos2ForConditionalGeneration

from kosmos.hub import is_name
from kosmos.tokenization_kosmos import GROUNDING_TOKENS, KOSMOS1_TOKENS

from ..warm_python import WarmPython
from .conftest import CLIP
from .hub_server import COMMIT, serving
from .test_docking import make_tokenizer

KOSMOS2, MINILM, TOWER = "microsoft/kosmos-2-patch14-224", "sentence-transformers/all-MiniLM-L6-v2", "ViT-L-14/openai"
ON_HUB = "timm/vit_large_patch14_clip_224.openai"


def publish_kosmos2(folder: Path) -> None:
    """Random weights in the published layout: config, safetensors, SentencePiece model."""
    folder.mkdir()
    words = iter(["Question: what is in the image? Answer: a snowman by a fire"] * 30)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=words, model_prefix=str(folder / "sentencepiece.bpe"), model_type="unigram", vocab_size=40,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "sentencepiece.bpe.vocab").unlink()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model")).vocab_size()
    torch.manual_seed(0)
    text = {"vocab_size": 1 + pieces + len(KOSMOS1_TOKENS) + len(GROUNDING_TOKENS), "embed_dim": 32, "layers": 2}
    text |= {"attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 256}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    Kosmos2ForConditionalGeneration(
        Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=4)
    ).save_pretrained(folder)


def publish_encoders(root: Path) -> dict[str, Path]:
    """A tower as open_clip publishes one, a BERT with its tokenizer, and a model of pickles."""
    tower, bert, pickles = (root / name for name in ("tower", "bert", "pickles"))
    tower.mkdir()
    torch.manual_seed(0)
    made = open_clip.CLIP(**CLIP, text_cfg={"width": 16, "layers": 1, "heads": 2, "context_length": 8, "vocab_size": 9})
    save_file(
        {name: tensor.contiguous() for name, tensor in made.state_dict().items()}, tower / "open_clip_model.safetensors"
    )
    (tower / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP}))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = make_tokenizer(None)
    tokenizer.add_special_tokens({"cls_token": "[CLS]"})
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(bert)
    tokenizer.save_pretrained(bert)
    pickles.mkdir()
    (pickles / "config.json").write_text('{"model_type": "kosmos-2"}')
    (pickles / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return {ON_HUB: tower, MINILM: bert, "someone/pickles": pickles, "someone/lm": bert}


ASK = f"""
import json, os, sys
from pathlib import Path
from huggingface_hub import constants
from kosmos.cli import main
from kosmos_train.build import build_config, build_model, build_processor, origins
from kosmos_train.config import TrainConfig
from kosmos.settings import load

def said(*arguments):
    print("$", *arguments, flush=True)
    print("=", main(list(arguments)), flush=True)

said("chat", "{KOSMOS2}", "--image", "a.png", "--grounding", "--ask", "what is in the image?", "--max-new-tokens", "3")
said("convert", "--from", "kosmos2", "{KOSMOS2}@main", "converted")
said("chat", "someone/pickles", "--ask", "what?")
said("chat", "someone/lm", "--ask", "what?")
said("chat", "someone/nobody", "--ask", "what?")
config = load(TrainConfig, "run.yaml", [])
processor = build_processor(config)
model = build_model(config, processor)
from safetensors.torch import save_file
encoders = model.model.vision_tower, model.model.span_encoder
for number, encoder in enumerate(encoders):
    save_file({{k: v.contiguous() for k, v in encoder.encoder.state_dict().items()}}, f"encoder{{number}}.safetensors")
print("origins", json.dumps(origins(config.model)), flush=True)
constants.HF_HUB_OFFLINE = True
said("chat", "{KOSMOS2}", "--ask", "what?", "--max-new-tokens", "3")
said("chat", "someone/else", "--ask", "what?")
said("convert", "--from", "kosmos2", "someone/else", "other")
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, warm_python: WarmPython) -> tuple[Path, str]:
    """The folder in which a process asked for everything, and what it printed."""
    root = tmp_path_factory.mktemp("hub")
    publish_kosmos2(root / "kosmos2")
    models = {KOSMOS2: root / "kosmos2", **publish_encoders(root)}
    Image.new("RGB", (40, 30), "red").save(root / "a.png")
    from kosmos.image_processing_kosmos import KosmosImageProcessor
    from kosmos.processing_kosmos import KosmosProcessor
    from kosmos.tokenization_kosmos import train_tokenizer

    processor = KosmosProcessor(
        KosmosImageProcessor(image_size=32), train_tokenizer(["a b c"] * 9, 120), 8, span_tokenizer=make_tokenizer(None)
    )
    processor.save_pretrained(root / "processor")
    config = {
        "processor": "processor", "data": {"sources": [], "row_tokens": 64, "rows_per_step": 1},
        "model": {
            "preset": "tiny", "vision_weights": TOWER, "span_weights": MINILM,
            "overrides": {"span_connector_config": {"kind": "linear"}},
        },
    }  # fmt: skip
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    with serving(models, root / "home") as where:
        environment = {**os.environ, **where, "KOSMOS_CACHE": str(root / "cache")}
        done = warm_python.run(ASK, folder=root, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, done.stdout + done.stderr


def answer_of(printed: str, command: str) -> str:
    return printed.split(f"$ {command}")[1].split("$")[0]


def test_kosmos_2_answers_by_its_name(asked: tuple[Path, str]) -> None:
    """Fetched, converted once into the cache, and found there when offline."""
    root, printed = asked
    assert answer_of(printed, f"chat {KOSMOS2} --image").rstrip().endswith("= 0")
    assert answer_of(printed, f"chat {KOSMOS2} --ask").rstrip().endswith("= 0")
    (converted,) = (root / "cache" / "checkpoints").iterdir()
    assert converted.name == f"microsoft--kosmos-2-patch14-224-{COMMIT[:12]}"
    assert (converted / "processor_config.json").is_file()
    again, first = load_file(root / "converted" / "model.safetensors"), load_file(converted / "model.safetensors")
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_encoders_are_taken_by_their_names(asked: tuple[Path, str]) -> None:
    """Their architecture comes with them, their weights are the published ones, the commit is kept."""
    root, printed = asked
    tower, bert = (load_file(root / f"encoder{number}.safetensors") for number in (0, 1))
    theirs = load_file(root / "tower" / "open_clip_model.safetensors")
    assert all(torch.equal(tensor, theirs[f"visual.{name}"]) for name, tensor in tower.items())
    published = load_file(root / "bert" / "model.safetensors")
    assert all(torch.equal(tensor, published[name]) for name, tensor in bert.items())
    origins = json.loads(printed.split("origins ")[1].splitlines()[0])
    assert {part: Path(folder).name for part, folder in origins.items()} == {
        "vision_weights": COMMIT, "span_weights": COMMIT
    }  # fmt: skip


def test_what_cannot_be_had_is_one_line(asked: tuple[Path, str]) -> None:
    printed = asked[1]
    lines = [line for line in printed.splitlines() if line.startswith("kosmos: ")]
    assert printed.count("\n= 2") == len(lines) == 5
    for wanted in (
        "someone/pickles has its weights as pickles only (pytorch_model.bin)",
        "someone/lm is a model of type 'bert', neither 'kosmos' nor 'kosmos-2'",
        "someone/nobody: no such folder, and the hub does not give it",
        "someone/else: config.json is not in the cache",
        "give the folder with config.json, model.safetensors and tokenizer.json",
    ):
        assert any(wanted in line for line in lines), (wanted, printed)
    assert not (asked[0] / "other").exists()


def test_names_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    names = [KOSMOS2, MINILM, TOWER, f"{MINILM}@{COMMIT}"]
    assert all(map(is_name, names))
    others = ["runs/demo", "models/gone", "./a/b", "~/a/b", "a", "a/b/c", "/a/b", "a/b.gguf", "a/b.safetensors", "C:/b"]
    assert not any(map(is_name, [*others, "package:a/b", "..\\a/b"]))
