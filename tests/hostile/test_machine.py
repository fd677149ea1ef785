"""Class 8 of hostile inputs: a machine that has no room, ends processes, or is shared by two runs."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kosmos import settings
from kosmos.read_json import parse_json
from kosmos_data import Corpus, Document, Image, Text, write_shards
from kosmos_data.adapters import convert
from kosmos_data.check import index_folder
from kosmos_eval import results
from kosmos_train import TrainConfig
from kosmos_train.run_dir import RunDir

SEEDS = int(os.environ.get("KOSMOS_SEEDS", "96")) // 8
SECRETS = {"AWS_SECRET_ACCESS_KEY": "s3cr3t-aws", "HF_TOKEN": "hf_s3cr3t", "WANDB_API_KEY": "s3cr3t-wandb"}


@contextmanager
def room(size: int) -> Iterator[None]:
    """Every file may grow to so many bytes; what is written beyond is an error, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


ROW = {"task": "t", "model": "m", "shots": 0, "context": "c", "metric": "v", "value": 1, "low": 0, "high": 1, "n": 1}


def documents(picture: bytes) -> list[Document]:
    return [Document(f"{number:03d}", [Image(picture), Text("a cat on a mat")]) for number in range(20)]


def whole_json(path: Path) -> None:
    if path.exists():
        parse_json(path.read_bytes())


def test_no_room(tmp_path: Path, use: Callable[..., str], make_picture: Callable[..., bytes], processor: Any) -> None:
    """Each writer ends with one line, leaves what was there, and works when there is room again."""
    config = settings.from_dict(TrainConfig, {"data": {"sources": [{"name": "a" * 300, "shards": "x"}]}})
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(5):
        (photos / f"{number}.png").write_bytes(make_picture((64, 64)))
        (photos / f"{number}.txt").write_text("a cat")
    docs = documents(make_picture((64, 64)))

    def writers(out: Path) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
        return {
            "shards": (lambda: write_shards(out, docs, max_documents=5), lambda: len(Corpus(out)) == 20),
            "import": (lambda: convert("folder", photos, out), lambda: len(Corpus(out)) == 5),
            "yaml": (
                lambda: settings.write_yaml(config, out / "c.yaml"),
                lambda: settings.load(TrainConfig, out / "c.yaml"),
            ),
            "results": (lambda: results.write([ROW], out / "results.json"), lambda: whole_json(out / "results.json")),
            "processor": (lambda: processor.save_pretrained(out), lambda: whole_json(out / "processor_config.json")),
        }

    refused = 0
    for seed in range(SEEDS):
        rng, out = random.Random(f"room {seed}"), tmp_path / str(seed)
        name = rng.choice(sorted(writers(out)))
        write, check = writers(out)[name]
        with room(rng.choice([0, 1, 100, 511, 512, 3000, 10**4])):
            line = use((seed, name), write)
        refused += line != "used"
        if line != "used" and name in ("shards", "import"):  # half a corpus is none
            assert not (out / "index.json").exists(), (seed, name)
        if name in ("yaml", "results") and line != "used":
            assert not (out / "c.yaml").exists(), seed
            assert not (out / "results.json").exists(), seed
        if name in ("shards", "import"):
            shutil.rmtree(out, ignore_errors=True)
        write()
        assert check() is not False, (seed, name)
    assert refused


def test_what_was_there_stays(tmp_path: Path, use: Callable[..., str]) -> None:
    results.write([ROW], tmp_path / "results.json")
    before = (tmp_path / "results.json").read_bytes()
    with room(20):
        assert use("results", results.write, [ROW | {"model": "other"}], tmp_path / "results.json") != "used"
    assert (tmp_path / "results.json").read_bytes() == before


def test_an_index_of_tars_without_room(
    tmp_path: Path, use: Callable[..., str], make_picture: Callable[..., bytes]
) -> None:
    write_shards(tmp_path / "c", documents(make_picture()))
    (tmp_path / "c" / "index.json").unlink()
    with room(10):
        assert use("index", index_folder, tmp_path / "c") != "used"
    index_folder(tmp_path / "c")
    assert len(Corpus(tmp_path / "c")) == 20


def test_keys_of_clouds_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kosmos_train.distributed import start

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.record_launch(0, start(1), {})
    written = run.environment.read_text()
    assert json.loads(written)
    assert not [value for value in SECRETS.values() if value in written]


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """The second is refused while the first is there, also by another process, and not afterwards."""
    from kosmos_train.distributed import start

    config, world = settings.from_dict(TrainConfig, {"data": {"sources": [{"name": "a", "shards": "x"}]}}), start(1)
    first, second = RunDir(tmp_path / "run"), RunDir(tmp_path / "run")
    first.open(config, False, world)
    with pytest.raises(ValueError, match="another process trains in this folder"):
        second.open(config, True, world)
    first.close()
    second.open(config, True, world)
    second.close()


def test_a_reader_that_has_enough(tmp_path: Path, make_picture: Callable[..., bytes]) -> None:
    """``kosmos data inspect … | head -1`` ends without a word of Python."""
    write_shards(tmp_path / "c", [Document(str(n), [Text("word " * 2000)]) for n in range(50)])
    command = f"{sys.executable} -m kosmos data inspect {tmp_path / 'c'} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=400, check=False)
    assert len(done.stdout.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr
