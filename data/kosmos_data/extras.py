"""One sentence for whoever lacks a package that only some users need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kosmos.extras import install


@contextmanager
def hint(package: str | None = None) -> Iterator[None]:
    """Around an import: a missing package becomes an error that names the command which installs it.

    Args:
        package: what to install; None: the extra ``web``.

    Raises:
        ModuleNotFoundError: with that command.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        command = f'pip install "{package}"' if package else install("web")
        message = f"{error.name} is not installed; run: {command}"
        raise ModuleNotFoundError(message, name=error.name) from error
