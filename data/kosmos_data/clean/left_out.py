"""``left_out.jsonl``: a line for every document that is not in the result, in the order of the source.

::

    {"number": 17, "key": "speech/1790-001", "reason": "exact duplicate", "instead": "speech/1790-000"}
"""

from __future__ import annotations

import json
from dataclasses import dataclass

LEFT_OUT_NAME = "left_out.jsonl"


@dataclass(frozen=True)
class Verdict:
    """Why a document is left out.

    Args:
        stage: one of :data:`kosmos_data.web.ledger.STAGES`.
        reason: what it is counted under.
        detail: free text for the person who looks into it.
    """

    stage: str
    reason: str
    detail: str = ""


def line(number: int, key: str, reason: str, detail: str = "", instead: str = "") -> str:
    """A line of the file.

    Args:
        number: of the document in the source, from 0.
        key: of the document.
        reason: what it is counted under.
        detail: as in :class:`Verdict`.
        instead: key of the document that stayed in place of a duplicate.
    """
    body = {"number": number, "key": key, "reason": reason, "detail": detail, "instead": instead}
    return json.dumps({name: value for name, value in body.items() if value != ""}, ensure_ascii=False) + "\n"
