"""JSON of others: whatever is wrong with it is one kind of error."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        json.JSONDecodeError: it is malformed, or wrong in a way that ``json`` has other errors for: nested too deep, a
            number of thousands of digits, bytes that are no UTF-8.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), "", 0) from error
