"""``kosmos share``: a folder to give away, with its code and a model card, and the way of that folder to the hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .atomic import whole_folder
from .licences import read_licence
from .loading import find_model, load, quiet_saving
from .model_card import model_card


def share(
    checkpoint: str | Path, folder: str | Path, licence: str | None = None, results: str | Path | None = None
) -> Path:
    """Write a checkpoint, its code and its card to a new folder, and return that.

    Args:
        checkpoint: checkpoint folder or run directory; a LoRA or IA³ run is merged with its base.
        folder: must be empty or not exist.
        licence: of the weights, an identifier of the hub or SPDX such as ``mit``, or a file with its text; None: the
            card says that none was given.
        results: a ``results.json`` of ``kosmos eval``; None: that of the run directory, if there is one.

    Raises:
        ValueError: the folder holds something, the licence is none, or the run's tuning cannot be merged.
        FileNotFoundError: there is no checkpoint.
    """
    from .configuration_kosmos import KosmosConfig
    from .image_processing_kosmos import KosmosImageProcessor
    from .modeling_kosmos import KosmosForConditionalGeneration
    from .processing_kosmos import KosmosProcessor
    from .tuning.merge import merge
    from .tuning.methods import attachments

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already; give a new folder")
    terms = None if licence is None else read_licence(licence)
    source = find_model(checkpoint)
    model, processor = load(checkpoint, device="cpu")
    if attached := attachments(model):
        model = merge(model, next(iter(attached)))
    classes: dict[Any, str] = {
        KosmosConfig: "AutoConfig",
        KosmosForConditionalGeneration: "AutoModelForImageTextToText",
        KosmosProcessor: "AutoProcessor",
        KosmosImageProcessor: "AutoImageProcessor",
    }
    try:  # with the code, but only here: what is saved elsewhere in this program stays as it was
        for kind, door in classes.items():
            kind.register_for_auto_class(door)
        with whole_folder(folder) as partial, quiet_saving():
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
            card = model_card(partial, folder.resolve().name, source, terms, results)
            if terms is not None and terms.text is not None:
                (partial / "LICENSE").write_text(terms.text, encoding="utf-8")
            (partial / "README.md").write_text(card, encoding="utf-8")
    finally:
        for kind in classes:
            kind._auto_class = None
    return folder


def push(folder: str | Path, repository: str, private: bool = False) -> str:
    """Copy a folder to the hub (``HF_ENDPOINT``), into a repository that is made if it is not there.

    Args:
        folder: what :func:`share` wrote.
        repository: ``NAME/MODEL``.
        private: who may see a new repository.

    Returns:
        Its address.

    Raises:
        OSError: the hub cannot be reached, or does not let this user (``hf auth login``) write there.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    name = hub.create_repo(repository, private=private, exist_ok=True).repo_id
    hub.upload_folder(repo_id=name, folder_path=folder, commit_message="kosmos share")
    return f"{hub.endpoint}/{name}"


def check_repository(repository: str) -> str:
    """Return the name of a repository of the hub; ValueError if it can be none."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"--push {repository!r} is no name of the hub, NAME/MODEL: {error}") from error
    return repository


def main(argv: Sequence[str]) -> int:
    """``kosmos share CHECKPOINT FOLDER [--licence mit] [--results FILE] [--push NAME/MODEL]``."""
    parser = argparse.ArgumentParser(
        prog="kosmos share",
        description="Write a folder to give away: weights, processor, code for trust_remote_code, and a model card.",
    )
    parser.add_argument("checkpoint", help="checkpoint folder or run directory, e.g. runs/demo/tune")
    parser.add_argument("folder", help="new folder")
    parser.add_argument(
        "--licence", "--license", help="of the weights: as the hub or SPDX calls it, e.g. mit, or a file with its text"
    )
    parser.add_argument("--results", help="results.json of kosmos eval (RUN/eval/results.json)")
    parser.add_argument("--push", metavar="NAME/MODEL", help="copy the folder to this repository of the hub, too")
    parser.add_argument("--private", action="store_true", help="nobody else may see a new repository")
    arguments = parser.parse_args(list(argv))
    if arguments.push:
        check_repository(arguments.push)  # before minutes of work
    folder = share(arguments.checkpoint, arguments.folder, arguments.licence, arguments.results)
    names = sorted(path.name for path in folder.iterdir())
    code = [name for name in names if name.endswith(".py")]
    listed = ", ".join(name for name in names if name not in code)
    print(f"{folder}: {listed}" + (f", and {len(code)} files of code" if code else ""))
    if arguments.push:
        try:
            print(push(folder, arguments.push, arguments.private))
        except OSError as error:  # of the hub's client, or of the network
            said = " ".join(str(error).split())
            raise OSError(
                f"{folder} is written, but not pushed: {said} (hf auth login, then hf upload {arguments.push} {folder})"
            ) from error
    return 0
