"""Files and folders that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write (text as UTF-8) beside ``path``, then take its name, in a folder that is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)


def open_to_umask(folder: Path, below: bool = True) -> None:
    """Give the weights in a folder the permissions that other files have which this process makes.

    safetensors writes for the owner alone, whatever the umask; a colleague or a server could not read a checkpoint.

    Args:
        folder: that was just written.
        below: also of the folders in it.
    """
    umask = os.umask(0)
    os.umask(umask)
    with suppress(PermissionError):  # of what another made, who may have meant it
        for path in folder.rglob("*.safetensors") if below else folder.glob("*.safetensors"):
            path.chmod(0o666 & ~umask)


@contextmanager
def writing(where: object) -> Iterator[None]:
    """Around libraries in Rust, which have errors of their own for a full disk: raise the OSError that they mean."""
    try:
        yield
    except Exception as error:
        if "(os error " in str(error) and not isinstance(error, OSError):
            raise OSError(f"{where}: {error}") from error
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the name ``path`` only when the block ends well."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
