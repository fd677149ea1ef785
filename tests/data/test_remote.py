"""Corpora behind fsspec: the same documents by range reads, and network faults are retried, never skipped."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import fsspec
import pytest

from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import Corpus, DataConfig, build_loader, reader


@pytest.fixture
def remote(corpora: Path) -> Iterator[str]:
    """The three corpora in fsspec's memory file system."""
    memory = fsspec.filesystem("memory")
    memory.put(str(corpora), "/corpora", recursive=True)
    yield "memory://corpora"
    memory.rm("/corpora", recursive=True)


def test_remote_documents_are_the_local_ones(remote: str, corpora: Path) -> None:
    corpus = Corpus(f"{remote}/pages")
    assert list(corpus) == list(Corpus(corpora / "pages"))
    assert list(pickle.loads(pickle.dumps(corpus))) == list(corpus)
    with pytest.raises(FileNotFoundError, match=r"holds no index\.json"):
        Corpus(f"{remote}/nowhere")


def test_a_run_may_move_from_local_to_remote_shards(
    remote: str, make_config: Callable[..., DataConfig], processor: KosmosProcessor
) -> None:
    local, far = make_config(), make_config()
    for source in far.sources:
        source.shards = f"{remote}/{source.name}"
    whole = [batch.stats["order"] for batch in islice(build_loader(local, processor), 4)]
    batches = list(islice(build_loader(local, processor), 2))
    resumed = list(islice(build_loader(far, processor, state=batches[-1].state), 2))
    assert [batch.stats["order"] for batch in batches + resumed] == whole


@pytest.mark.parametrize(("failures", "succeeds"), [(2, True), (9, False)])
def test_faults_are_retried(remote: str, monkeypatch: pytest.MonkeyPatch, failures: int, succeeds: bool) -> None:
    """Errors and short reads in turn."""
    monkeypatch.setattr(reader, "_RETRY_SECONDS", (0.0, 0.0, 0.0))
    corpus = Corpus(f"{remote}/prose")
    expected, calls = corpus[5], []
    memory = type(fsspec.filesystem("memory"))
    original = memory.cat_file

    def flaky(self: object, path: str, start: int | None = None, end: int | None = None, **more: object) -> bytes:
        calls.append(path)
        if len(calls) <= failures:
            if len(calls) % 2:
                raise ConnectionError("reset by peer")
            return original(self, path, start=start, end=end - 1)
        return original(self, path, start=start, end=end)

    monkeypatch.setattr(memory, "cat_file", flaky)
    if succeeds:
        assert corpus[5] == expected
        assert len(calls) == failures + 1
    else:
        with pytest.raises(OSError, match="bytes came"):
            corpus[5]
