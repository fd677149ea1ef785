"""What ``kosmos share --licence`` may be: an identifier of the hub, one of SPDX, or a file with the licence's text.

The hub reads its own identifiers only (huggingface.co/docs/hub/repositories-licenses, as of November 2026); what it has
no word for stands in a card as ``other``, with its name and where its text is.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import NamedTuple

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

OF_THE_HUB = tuple(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research
    intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
    mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 pddl postgresql unknown unlicense
    wtfpl zlib
    """.split()  # noqa: SIM905
)
LONGEST = 1_000_000  # bytes of a licence's text
# SPDX has other names for some that the hub has, apart from capitals.
_SPDX = {"gpl-2.0-only": "gpl-2.0", "gpl-3.0-only": "gpl-3.0", "agpl-3.0-only": "agpl-3.0", "lgpl-2.1-only": "lgpl-2.1",
         "lgpl-3.0-only": "lgpl-3.0", "odbl-1.0": "odbl", "odc-by-1.0": "odc-by", "pddl-1.0": "pddl",
         "lgpllr": "lgpl-lr", "c-uda-1.0": "c-uda"}  # fmt: skip


class Licence(NamedTuple):
    """A licence as a card has it: its name, the lines of the header, and its text where a file gives one."""

    name: str
    header: list[str]
    text: str | None = None


def read_licence(given: str) -> Licence:
    """Return what is meant by a name or a file.

    Args:
        given: such as ``mit``, ``Apache-2.0``, ``MIT OR Apache-2.0``, or a text file.

    Raises:
        ValueError: it is neither; says the nearest names.
    """
    name = given.strip().lower()
    name = _SPDX.get(name, name)
    if name in OF_THE_HUB:
        return Licence(name, [f"license: {name}"])
    if _is_file(given):
        return _of_file(Path(given))
    try:
        spdx = canonicalize_license_expression(given)
    except InvalidLicenseExpression as error:
        near = difflib.get_close_matches(name, OF_THE_HUB, n=3)
        meant = f"did you mean {' or '.join(near)}?" if near else "such as mit, apache-2.0, cc-by-4.0, openrail."
        raise ValueError(
            f"--licence {given[:80]!r} is no identifier of the hub or SPDX, and no file; {meant} "
            "For a licence of your own give a file with its text"
        ) from error
    return Licence(spdx, _other(spdx, "https://spdx.org/licenses/"))


def _is_file(given: str) -> bool:
    try:
        return Path(given).is_file()
    except OSError:  # too long for a path
        return False


def _of_file(file: Path) -> Licence:
    """The licence that a file holds; the card names it by the file."""
    raw = file.read_bytes()[: LONGEST + 1]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--licence {file}: no text in UTF-8 ({error.reason}); give the licence's text") from error
    if not text.strip() or len(raw) > LONGEST:
        raise ValueError(f"--licence {file}: {len(raw)} bytes are no licence's text; it has 1 to {LONGEST}")
    name = re.sub(r"[^a-z0-9.+-]+", "-", file.stem.lower()).strip("-.") or "licence"
    return Licence(f"{name}: its text is in the file LICENSE", _other(name, "LICENSE"), text)


def _other(name: str, link: str) -> list[str]:
    return ["license: other", f"license_name: {json.dumps(name)}", f"license_link: {link}"]
