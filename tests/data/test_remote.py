"""Corpora behind fsspec: the same documents by range reads, and network faults are retried, never skipped.

The servers are real and local: S3 by moto, and HTTP with Range requests that fails on demand.
"""

from __future__ import annotations

import logging
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import fsspec
import pytest

from kosmos.cli import main
from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import Corpus, DataConfig, build_loader, index


class Web:
    """An HTTP server of a folder. ``faults`` are what happens to the next requests for a tar, first to last."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: list[str] = []
        self.requests: list[str] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = self.root / request.path.lstrip("/")
        self.requests.append(request.path)
        fault = self.faults.pop(0) if self.faults and path.name.endswith(".tar") else ""
        if fault.isdigit() or not path.is_file():
            request.send_error(int(fault or 404))
            return
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if asked and fault != "whole file":
            data = data[int(asked[1]) : int(asked[2]) + 1]
        sent = data[:-1] if fault in ("cut off", "short range") else data
        request.send_response(206 if asked and fault != "whole file" else 200)
        request.send_header("Content-Length", str(len(data) if fault == "cut off" else len(sent)))
        request.end_headers()
        request.wfile.write(sent)


@pytest.fixture
def web(corpora: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(index, "_RETRY_SECONDS", (0.0, 0.0, 0.0))
    web = Web(corpora)
    yield web
    web.server.shutdown()
    web.server.server_close()


@pytest.fixture
def bucket(corpora: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The corpora in an S3 bucket; the endpoint and the keys come from the environment, as on a cluster."""
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(index, "_RETRY_SECONDS", (0.0, 0.0, 0.0))
    s3fs.S3FileSystem.clear_instance_cache()
    client = s3fs.S3FileSystem()
    client.mkdir("shards")
    client.put(str(corpora), "shards/corpora", recursive=True)
    yield "s3://shards/corpora"
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def memory(corpora: Path) -> Iterator[str]:
    """The corpora in fsspec's memory file system."""
    memory = fsspec.filesystem("memory")
    memory.put(str(corpora), "/corpora", recursive=True)
    yield "memory://corpora"
    memory.rm("/corpora", recursive=True)


def test_documents_in_memory_are_the_local_ones(memory: str, corpora: Path) -> None:
    corpus = Corpus(f"{memory}/pages")
    assert list(corpus) == list(Corpus(corpora / "pages"))
    assert list(pickle.loads(pickle.dumps(corpus))) == list(corpus)
    with pytest.raises(FileNotFoundError, match=r"holds no index\.json"):
        Corpus(f"{memory}/nowhere")


def test_documents_on_s3_are_the_local_ones(bucket: str, corpora: Path) -> None:
    corpus = Corpus(f"{bucket}/pages")
    assert list(corpus) == list(Corpus(corpora / "pages"))
    for place in (f"{bucket}/nowhere", "s3://nobucket/pages"):
        with pytest.raises(FileNotFoundError, match=r"holds no index\.json"):
            Corpus(place)
    fsspec.filesystem("s3").rm(corpus.shard_path(1).removeprefix("s3://"))
    with pytest.raises(FileNotFoundError, match=r"s3://shards/corpora/pages/000001\.tar: no such file"):
        corpus[20]


def test_documents_on_the_web_are_the_local_ones(web: Web, corpora: Path) -> None:
    corpus = Corpus(f"{web.url}/pages")
    assert list(corpus) == list(Corpus(corpora / "pages"))
    assert sum(path.endswith(".idx") for path in web.requests) == len(corpus.shards)


@pytest.mark.parametrize("fault", ["503", "500", "cut off", "short range"])
def test_a_fault_that_passes_is_retried(web: Web, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    corpus = Corpus(f"{web.url}/prose")
    expected = corpus[5]
    web.faults = [fault, fault]
    with caplog.at_level(logging.WARNING):
        assert corpus[5] == expected
    assert len([record for record in caplog.records if "prose/000000.tar: " in record.message]) == 2
    assert not web.faults


@pytest.mark.parametrize(
    ("faults", "error", "requests"),
    [
        (["503"] * 4, r"prose/000000\.tar: ClientResponseError: 503.*; gave up after 4 attempts", 4),
        (["short range"] * 4, r"prose/000000\.tar: \d+ of \d+ bytes came; gave up after 4 attempts", 4),
        (["cut off"] * 4, r"prose/000000\.tar: Client.*; gave up after 4 attempts", 4),
        (["404"], r"prose/000000\.tar: no such file", 1),
        (["whole file"], "does not answer Range requests", 1),
    ],
)
def test_a_fault_that_stays_names_the_shard(web: Web, faults: list[str], error: str, requests: int) -> None:
    """And is an OSError, never a bad sample that the loader would skip."""
    corpus = Corpus(f"{web.url}/prose")
    corpus.files(5)
    before, web.faults = len(web.requests), faults
    with pytest.raises(OSError, match=error):
        corpus[5]
    assert len(web.requests) - before == requests


def test_the_index_is_retried_too(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, calls = web.answer, []

    def flaky(request: BaseHTTPRequestHandler) -> None:
        calls.append(request.path)
        if calls.count(request.path) < 3:
            request.send_error(503)
        else:
            answer(request)

    monkeypatch.setattr(web, "answer", flaky)
    assert len(Corpus(f"{web.url}/prose")[0].segments) == 1
    assert calls == [f"/prose/{name}" for name in ("index.json", "000000.tar.idx", "000000.tar") for _ in range(3)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_may_move_from_local_to_remote_shards(
    web: Web, make_config: Callable[..., DataConfig], processor: KosmosProcessor, workers: int
) -> None:
    """Also with worker processes, after this process has used the same file system."""
    local, far = make_config(), make_config(workers=workers)
    for source in far.sources:
        source.shards = f"{web.url}/{source.name}"
    whole = [batch.stats["order"] for batch in islice(build_loader(local, processor), 4)]
    batches = list(islice(build_loader(local, processor), 2))
    web.faults = ["503", "cut off"]
    loader = build_loader(far, processor, state=batches[-1].state)
    resumed = list(islice(loader, 2))
    loader.close()
    assert [batch.stats["order"] for batch in batches + resumed] == whole
    assert not web.faults


def test_protocols_that_do_not_exist(capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "check", "s4://bucket/x"]) == 2
    assert "s4" in capsys.readouterr().err
    with pytest.raises(ValueError, match="s4"):
        Corpus("s4://bucket/x")
