"""Files of people at the doors that read text or JSON: byte order marks are read, other encodings and kinds named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kosmos import KosmosConfig, KosmosForConditionalGeneration, settings
from kosmos.chat import read_persona
from kosmos.hub import made_once
from kosmos.limits import read_object
from kosmos.processing_kosmos import load_processor
from kosmos.read_json import read_utf8
from kosmos.tuning import Tuning, attach, save_adapter
from kosmos.tuning.methods import attachments
from kosmos_data.entity_names import read_kinds
from kosmos_data.web.held_out import HeldOutIndex
from kosmos_data.web.http.fetch import read_list
from kosmos_data.web.rules import HeldOut
from kosmos_eval import beginnings, formats, published
from kosmos_train.config import ModelConfig
from kosmos_train.describe import described_by
from kosmos_train.distributed import start
from kosmos_train.named_configs import find_config
from kosmos_train.run_dir import RunDir

WORDS = "one two three four five six seven eight nine"


def held_out(path: Path) -> None:
    assert HeldOutIndex(HeldOut(texts=[str(path)])).grams


DOORS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "settings": ("a.yaml", "steps: 5\n", settings.read_yaml),
    "persona": ("a.json", '{"city": "Rome"}', read_persona),
    "JSON of evaluation": ("a.json", "[]", formats.read_json),
    "lines of evaluation": ("a.jsonl", '{"a": 1}\n', lambda path: list(formats.read_json_lines(path))),
    "beginnings": ("A.TXT", "Once upon\n", beginnings.read),
    "glue": ("a.tsv", "sentence\tlabel\nfine\t1\n", lambda path: list(published.read("sst2", path))),
    "held out": ("a.txt", WORDS, held_out),
    "held out JSON": ("a.JSON", json.dumps([WORDS]), held_out),
    "addresses": ("a.txt", "http://a.example/1.png\n", read_list),
    "names": ("entities.json", '{"user": ["ann"]}', lambda path: read_kinds([path.parent])),
}


@pytest.mark.parametrize("name", DOORS)
def test_a_mark_is_read_and_another_encoding_named(name: str, tmp_path: Path) -> None:
    file, text, door = DOORS[name]
    path = tmp_path / file
    path.write_bytes(text.encode("utf-8-sig"))
    door(path)
    for encoding in ("utf-16", "utf-16-be"):
        mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
        path.write_bytes(mark + text.encode(encoding))
        with pytest.raises(ValueError, match="in UTF-16: save it as UTF-8") as refused:
            door(path)
        assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", sorted(set(DOORS) - {"addresses"}))
def test_a_byte_that_is_none_is_named_with_its_file(name: str, tmp_path: Path) -> None:
    file, text, door = DOORS[name]
    path = tmp_path / file
    path.write_bytes(text.encode()[:-2] + b"\xe9" + text.encode()[-2:])
    with pytest.raises(ValueError, match=r"utf-8|UTF-8") as refused:
        door(path)
    assert str(path) in str(refused.value)


def test_one_odd_address_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_bytes(b"http://a.example/1.png\nhttp://a.example/\xe9.png\n")
    assert len(read_list(tmp_path / "urls.txt")) == 2


def test_the_line_of_a_wrong_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\nb\xe9\n")
    with pytest.raises(ValueError, match=r"a\.txt:2: byte 0xe9 is no UTF-8: save the file as UTF-8"):
        read_utf8(tmp_path / "a.txt")


def test_a_table_whose_quotation_mark_stays_open(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text('InputStoryid,"a\n' + "x" * 200_000)
    with pytest.raises(ValueError, match=r"val\.csv:\d+: field larger than field limit .*quotation mark not closed"):
        list(published.read("storycloze", tmp_path / "val.csv"))


@pytest.mark.parametrize("body", ["[1]", "{", "", "5", "\ufeff{}"])
def test_a_model_described_in_json(body: str, tmp_path: Path) -> None:
    """``model.preset: my.json``, and the description beside an encoder's weights."""
    path = tmp_path / "my.json"
    path.write_text(body)
    if body == "\ufeff{}":
        assert read_object(path) == {}
        assert described_by(ModelConfig(preset=str(path)))
    else:
        with pytest.raises(ValueError, match=r"my\.json (is not valid JSON|holds a)"):
            described_by(ModelConfig(preset=str(path)))
    (tmp_path / "open_clip_config.json").write_text(body)
    with pytest.raises(ValueError, match=r"open_clip_config\.json (is not|holds a)"):
        described_by(ModelConfig(preset="tiny", vision_weights=str(tmp_path)))


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nope\.json: no such file"):
        described_by(ModelConfig(preset=str(tmp_path / "nope.json")))
    with pytest.raises(ValueError, match="unknown preset 'tinny'; did you mean 'tiny'"):
        KosmosConfig.preset("tinny")
    with pytest.raises(ValueError, match="has no name; is a variable of the shell not set"):
        load_processor("")
    with pytest.raises(ValueError, match="https://x/y is an address"):
        load_processor("https://x/y")
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match=r"run is a folder, no settings file$"):
        find_config(str(tmp_path / "run"))
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(FileNotFoundError, match=r"the settings of this run are .*config\.yaml, and run=.* --resume"):
        find_config(str(tmp_path / "run"))


def test_a_run_below_a_file(tmp_path: Path) -> None:
    from kosmos_train import TrainConfig

    config = settings.from_dict(TrainConfig, {"data": {"sources": [{"name": "a", "shards": "x"}]}})
    (tmp_path / "photo.png").touch()
    file = tmp_path / "photo.png"
    for run, kind in ((file, ValueError), (file / "runs" / "a", NotADirectoryError)):
        with pytest.raises(kind, match=r"run=.*photo\.png is a file; name a folder"):
            RunDir(run).open(config, False, start(1))


def test_what_is_saved_is_open_to_whom_the_umask_says(tmp_path: Path) -> None:
    """Weights are written for their owner alone by safetensors, and so are the folders of ``mkdtemp``."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = KosmosConfig(text_config={**sizes, "vocab_size": 90}, vision_config=None, connector_config=None)
    model = KosmosForConditionalGeneration(config)
    umask = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path / "model")
        attach(model, Tuning("lora", rank=2), str(tmp_path / "model"))
        save_adapter(model, tmp_path / "adapter", name=next(iter(attachments(model))))
        made_once(tmp_path / "once", lambda folder: save_file({"a": torch.zeros(1)}, folder / "a.safetensors"))
    finally:
        os.umask(umask)
    weights = sorted(tmp_path.glob("*/*.safetensors"))
    assert len(weights) == 3
    assert {path.stat().st_mode & 0o777 for path in weights} == {0o640}
    assert (tmp_path / "once").stat().st_mode & 0o777 == 0o750
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model", "once"]
