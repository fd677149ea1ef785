"""Addresses in the place of files."""

from __future__ import annotations

import os
import re


def refuse_address(path: str | os.PathLike[str]) -> None:
    """ValueError where a path is an address, also one of whose slashes pathlib has taken one.

    For what is read from files only: "https:/example.com: no such folder" tells nobody what is wrong.
    """
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}([^/].*)", text := os.fspath(path), re.DOTALL)
    if not found or os.path.lexists(text):
        return
    instead = "download it, then give the file or folder"
    if on_hub := re.match(r"(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", found[2]):
        instead = f"a model of the hub goes by its name, {on_hub[1]}; anything else is downloaded first"
    raise ValueError(f"{found[1]}://{found[2]} is an address, and this is read from files only: {instead}")
