"""One sentence for whoever has not installed the optional packages of the web path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hint(package: str = "kosmos-metalm[web]") -> Iterator[None]:
    """Around an import: a missing package becomes an error that names the command which installs it.

    Raises:
        ModuleNotFoundError: with that command.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f'{error.name} is not installed; run: pip install "{package}"'
        raise ModuleNotFoundError(message, name=error.name) from error
