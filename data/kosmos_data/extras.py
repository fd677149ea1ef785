"""One sentence for whoever lacks a package that only some users need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hint(package: str = "kosmos-metalm[web]") -> Iterator[None]:
    """Around an import: a missing package becomes an error that names the command which installs it.

    Args:
        package: what to install; the extra of the web path unless it is said.

    Raises:
        ModuleNotFoundError: with that command.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f'{error.name} is not installed; run: pip install "{package}"'
        raise ModuleNotFoundError(message, name=error.name) from error
