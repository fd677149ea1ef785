"""A guard for hostile inputs: one outcome is allowed, used or counted or one clear line, and all else is a violation.

While it is on, an audit hook of Python watches what the process does: files are written below the test's own folder
only, no program is started, no address is looked up or connected to, no pickle names a class, and nobody opens the
file ``secret.png`` beside the inputs. Each input has 10 seconds of CPU, and 1 GB over what the process held before.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kosmos.plain import one_line

SECONDS, BYTES = 10, 1 << 30
SECRET = "secret.png"
_FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.system", "os.exec")
_FORBIDDEN += ("os.posix_spawn", "os.fork", "os.startfile", "pickle.find_class", "urllib.Request")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """What happened while an input was read."""

    def __init__(self) -> None:
        self.inside: Path | None = None
        self.violations: list[str] = []
        self.allowed: tuple[str, ...] = ()

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event in _FORBIDDEN and event not in self.allowed:
            self.violations.append(f"{event} {str(arguments)[:200]}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)):
                if os.fsdecode(path).endswith(SECRET):
                    self.violations.append(f"opened {path!r}")
                elif isinstance(flags, int) and flags & _WRITING:
                    self.changed(event, path)
        elif event in _CHANGES:
            for path in arguments[:2]:
                if isinstance(path, (str, bytes)):
                    self.changed(event, path)

    def changed(self, event: str, path: str | bytes) -> None:
        where, inside = os.path.realpath(os.fsdecode(path)), os.path.realpath(self.inside or "/")
        ours = where.startswith((inside + os.sep, "/dev/", "/proc/")) or where == inside or "__pycache__" in where
        if not ours:
            self.violations.append(f"{event} {where}")


WATCH = Watch()
sys.addaudithook(WATCH.hear)


class TooSlow(BaseException):
    """Ten seconds of CPU time have passed; a busy machine does not count."""


@contextmanager
def limited(inside: Path, what: object) -> Iterator[None]:
    """Hold what is done in the block to the limits; ``what`` names the input."""

    def ring(*_: Any) -> None:
        WATCH.violations.append(f"longer than {SECONDS} s")  # whoever catches the exception
        raise TooSlow(f"{what}: longer than {SECONDS} s")

    before, WATCH.inside, WATCH.violations = signal.signal(signal.SIGVTALRM, ring), inside, []
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        WATCH.inside = None
        signal.signal(signal.SIGVTALRM, before)
    assert not WATCH.violations, (what, WATCH.violations)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) * 1024
    assert grown < BYTES, f"{what}: {grown / 1e9:.1f} GB"


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Call a door with a hostile input: ``used``, or the one line by which it was refused."""
    monkeypatch.setenv("KOSMOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(what: object, door: Callable[..., Any], *arguments: Any, **options: Any) -> str:
        line = "used"
        with limited(tmp_path, what):
            try:
                door(*arguments, **options)
            except (ValueError, OSError, ModuleNotFoundError) as error:  # kosmos.cli.USER_ERRORS
                line = one_line(str(error))
        assert line, f"{what}: a message without words"
        return line

    return run


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let events happen in this test that are violations in the others."""
    return lambda *events: monkeypatch.setattr(WATCH, "allowed", events)


@pytest.fixture
def secret(tmp_path: Path, make_picture: Callable[..., bytes]) -> Path:
    """A private picture beside the folder of the inputs, which no input may reach."""
    path = tmp_path / SECRET
    path.write_bytes(make_picture())
    return path


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., bytes]:
    """The bytes of a picture of one colour."""
    import io

    from PIL import Image

    def make(size: tuple[int, int] = (8, 8), form: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
        file = io.BytesIO()
        Image.new(mode, size).save(file, form, **options)
        return file.getvalue()

    return make
