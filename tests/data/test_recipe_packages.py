"""Source packages: fetched once, checked, whole or not there; with small stand-ins for apt-get and npm on the path."""

from __future__ import annotations

import hashlib
import io
import logging
import sys
import tarfile
from pathlib import Path

import pytest

from kosmos_data.recipes import packages

DEBIAN = "1:2.0+dfsg-1"


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with npm, apt-get and dpkg-deb that write to ``calls``; apt-get has only version 1:2.0+dfsg-1."""
    folder = tmp_path / "clients"
    folder.mkdir()
    with tarfile.open(folder / "thing.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("package/data.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    scripts = {
        "npm": f'cp {folder}/thing.tgz "thing-$3.tgz"',
        "apt-get": f'case "$2" in thing|thing={DEBIAN}) echo deb > thing_1%3a2.0+dfsg-1_all.deb;;\n'
        '*) echo "E: Version was not found" >&2; exit 100;; esac',
        "dpkg-deb": 'mkdir -p "$3/usr/share" && cp "$2" "$3/usr/share/thing"',
    }
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/calls\n{script}\n')
        path.chmod(0o755)
    (folder / "calls").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def calls(clients: Path) -> int:
    return len((clients / "calls").read_text().splitlines())


def test_a_second_call_asks_no_client(clients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KOSMOS_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256((clients / "thing.tgz").read_bytes()).hexdigest()
    first = packages.npm("@scope/thing", "1.0", sha256=digest)
    assert (first / "data.json").read_text() == "{}"
    assert first.is_relative_to(tmp_path / "cache")
    assert packages.npm("@scope/thing", "1.0") == first
    assert calls(clients) == 1
    record = packages.describe(first)
    size = (clients / "thing.tgz").stat().st_size
    assert record == {"client": "npm", "name": "@scope/thing", "version": "1.0", "bytes": size, "sha256": digest}


def test_what_fails_leaves_nothing(clients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"has sha256 .* the recipe expects 00"):
        packages.npm("thing", "1.0", tmp_path / "cache", sha256="00")
    (clients / "npm").write_text("#!/bin/sh\necho 'npm error network ENOTFOUND' >&2; exit 1\n")
    with pytest.raises(OSError, match=r"npm pack thing@1\.0 .*failed: npm error network ENOTFOUND"):
        packages.npm("thing", "1.0", tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"the program npm is missing: install Node\.js"):
        packages.npm("thing", "1.0", tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="apt-get is missing: it comes with Debian"):
        packages.apt("thing", tmp_path / "cache")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(FileNotFoundError, match="pip is missing in /bin/false"):
        packages.pip("thing", "1.0", tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.name.startswith(".")]


def test_a_debian_package_of_the_pinned_version(clients: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"deb\n").hexdigest()
    files = packages.apt("thing", tmp_path, digest, version=DEBIAN, strict=True)
    assert (files / "usr/share/thing").read_text() == "deb\n"
    assert packages.describe(files)["version"] == DEBIAN
    assert "wanted_version" not in packages.describe(files)
    assert packages.apt("thing", tmp_path) == files
    assert calls(clients) == 2


def test_a_debian_package_that_has_moved_on(clients: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"thing 1\.9-1 is gone from this release"):
        packages.apt("thing", tmp_path, version="1.9-1", strict=True)
    with caplog.at_level(logging.WARNING):
        files = packages.apt("thing", tmp_path, "00", version="1.9-1")
    assert "taking the release's version" in caplog.text
    record = packages.describe(files)
    assert (record["version"], record["wanted_version"]) == (DEBIAN, "1.9-1")
    before = calls(clients)
    assert packages.apt("thing", tmp_path, "00", version="1.9-1") == files
    assert calls(clients) == before
    with pytest.raises(ValueError, match="is gone from this release"):
        packages.apt("thing", tmp_path, version="1.9-1", strict=True)
