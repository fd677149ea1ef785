"""Copies of checkpoints in a bucket: any fsspec URL, in the background, the manifest last.

A copy without ``trainer/manifest.json`` is not whole; ``latest`` in the bucket names the newest that is. A bucket that
cannot be written is an error before training starts; one that fails later is reported, training goes on with the local
checkpoints, and the run ends with the error.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = "trainer/manifest.json"


class Uploader:
    """Copies checkpoint folders below ``url``, one at a time, on a thread of rank 0.

    Raises:
        OSError: the place cannot be written.
        ValueError: no file system for such a URL.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.url)
            self.files.makedirs(self.root, exist_ok=True)
            self.files.pipe_file(f"{self.root}/.writable", b"")
            self.files.rm_file(f"{self.root}/.writable")
        except (ValueError, ImportError) as error:
            raise ValueError(f"checkpoint.upload={url}: {error}") from error
        except Exception as error:  # every file system has its own kinds
            raise OSError(f"checkpoint.upload={url} cannot be written: {error}") from error
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")
        self._running: Future[None] | None = None
        self.error: Exception | None = None

    def start(self, checkpoint: Path) -> None:
        """Begin to copy a whole checkpoint; call :meth:`finish` before it may be deleted."""
        assert self._running is None, "finish() the last copy first"
        self._running = self._thread.submit(self._copy, checkpoint)

    def finish(self) -> str | None:
        """Wait for the copy under way; returns what went wrong with it, if anything."""
        if self._running is None:
            return None
        try:
            self._running.result()
            self.error = None
        except Exception as error:  # every file system has its own kinds
            self.error = error
        self._running = None
        return None if self.error is None else f"upload to {self.url} failed: {self.error}"

    def close(self) -> None:
        """Wait for the last copy.

        Raises:
            OSError: the newest checkpoint is not in the bucket.
        """
        self.finish()
        self._thread.shutdown()
        if self.error is not None:
            raise OSError(f"upload to {self.url} failed: {self.error}; the local checkpoints are whole") from self.error

    def _copy(self, checkpoint: Path) -> None:
        target = f"{self.root}/{checkpoint.name}"
        names = [str(path.relative_to(checkpoint)) for path in sorted(checkpoint.rglob("*")) if path.is_file()]
        for name in [*(name for name in names if name != MANIFEST), MANIFEST]:
            self._put(checkpoint / name, f"{target}/{name}")
        self.files.pipe_file(f"{self.root}/latest", f"{checkpoint.name}\n".encode())

    def _put(self, local: Path, remote: str) -> None:
        self.files.makedirs(remote.rsplit("/", 1)[0], exist_ok=True)
        self.files.put_file(str(local), remote)


def open_uploader(url: str | None, world: Any) -> Uploader | None:
    """The uploader of rank 0, None elsewhere or without a URL; all ranks fail together."""
    return world.attempt("opening checkpoint.upload", lambda: Uploader(url) if url and world.is_main else None)
