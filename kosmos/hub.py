"""Models by their names: fetched through huggingface_hub, safetensors only, and found in its cache when offline.

A name is ``OWNER/MODEL``, or ``OWNER/MODEL@REVISION`` for a branch, tag or commit; whatever lies at such a path on this
machine is that. What is of another layout is converted once, into ``~/.cache/kosmos`` (``KOSMOS_CACHE``).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .atomic import open_to_umask
from .limits import read_object

FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_OWN_FOLDERS = ("runs", "corpora")  # where our commands write: a run that is not there yet is no name


def is_name(where: str | Path) -> bool:
    """Whether ``where`` can only be a name of the hub: two parts, and no file or folder here."""
    text = str(where)
    owner, _, model = text.partition("@")[0].partition("/")
    shaped = bool(owner and model) and "/" not in model and "\\" not in text and ":" not in text
    if not shaped or text.startswith((".", "~")) or owner in _OWN_FOLDERS:
        return False
    weights = Path(text).suffix in (*PICKLES, ".safetensors", ".gguf", ".json")
    return not weights and not Path(text).exists() and not Path(owner).is_dir()


def fetch(where: str, revision: str | None = None, needs: Sequence[str] = ("config.json", "model.safetensors")) -> Path:
    """Fetch a model of the hub into its cache; offline take what is there.

    Args:
        where: its name, perhaps with a revision.
        revision: branch, tag or commit.
        needs: files that its user will look for, for messages.

    Returns:
        The folder of this commit in the hub's cache.

    Raises:
        FileNotFoundError: it cannot be had; says what is missing and where to put it.
        ValueError: no possible name, or weights as pickles only.
    """
    from huggingface_hub import constants, list_repo_files, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, pinned = where.partition("@")
    revision = pinned or revision
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
        if not any(folder.glob("*.safetensors")) and not constants.HF_HUB_OFFLINE:
            refuse_pickles(name, list_repo_files(name, revision=revision))
        return folder
    except HFValidationError as error:
        raise ValueError(f"{name} is no name of the hub: {error}") from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: {needs[0]} is not in the cache {constants.HF_HUB_CACHE}, and the hub cannot be reached; fetch "
            f"it elsewhere (hf download {name}) and give the folder with {', '.join(needs[:-1])} and {needs[-1]}"
        ) from error
    except HfHubHTTPError as error:
        raise FileNotFoundError(
            f"{name}: no such folder, and the hub does not give it: {str(error).splitlines()[0]}"
        ) from error


def refuse_pickles(where: str, names: Sequence[str]) -> None:
    """Raise ValueError where the weights among files of these names are pickles only."""
    pickles = sorted(name for name in names if Path(name).suffix in PICKLES)
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise ValueError(
            f"{where} has its weights as pickles only ({pickles[0]}), which can run code when they are read; give a "
            "folder with model.safetensors (save_pretrained of transformers writes it)"
        )


def fetch_checkpoint(where: str) -> Path:
    """Return the folder of a Kosmos checkpoint by its name; one of Kosmos-2 is converted on its first use.

    Raises:
        FileNotFoundError, ValueError: as :func:`fetch`; the model is of another kind.
    """
    folder = fetch(where, needs=("config.json", "model.safetensors", "tokenizer.json"))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{where}: config.json is missing; put it into {folder}")
    kind = read_object(folder / "config.json").get("model_type")
    if kind == "kosmos":
        return folder
    if kind != "kosmos-2":
        raise ValueError(f"{where} is a model of type {kind!r}, neither 'kosmos' nor 'kosmos-2'")
    from .convert import from_kosmos2

    name = where.partition("@")[0].replace("/", "--")
    return made_once(cache() / "checkpoints" / f"{name}-{folder.name[:12]}", lambda new: from_kosmos2(folder, new))


def fetch_encoder(where: str) -> Path:
    """Return the folder of an encoder by its name: open_clip's ``MODEL/TAG`` or the hub's ``OWNER/MODEL``.

    Raises:
        FileNotFoundError, ValueError: as :func:`fetch`; the hub does not have what open_clip calls so.
    """
    from open_clip.pretrained import get_pretrained_cfg

    published = get_pretrained_cfg(*where.partition("@")[0].split("/"))
    if not published:
        return _with_weights(where, fetch(where), "model.safetensors")
    if not published.get("hf_hub"):
        raise ValueError(f"{where}: open_clip has these weights as a pickle only; convert them where you trust them")
    name = "/".join(published["hf_hub"].split("/")[:2])
    needs = ("open_clip_config.json", "open_clip_model.safetensors")
    return _with_weights(where, fetch(name, where.partition("@")[2] or None, needs), needs[1])


def _with_weights(where: str, folder: Path, usual: str) -> Path:
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{where}: {usual} is missing; put it into {folder}")
    return folder


def cache() -> Path:
    """Return the folder for what is converted once."""
    return Path(os.environ.get("KOSMOS_CACHE", "~/.cache/kosmos")).expanduser()


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return ``folder``, which ``make`` fills unless it is there; several processes may come here together."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))  # for this user alone, as what is made in it need not be
    try:
        partial = scratch / folder.name
        partial.mkdir()
        make(partial)
        open_to_umask(partial)
        if not folder.is_dir():
            partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was first
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
