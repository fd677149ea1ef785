"""Packages that only some models need."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kosmos.optional import UNCALLED, needed

ASKS = """
try:
    import wandb
    found = True
except ImportError:
    found = False
"""


def test_a_package_takes_no_tracker_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's summaries import one that takes longer than timm itself; who asks for it afterwards gets it."""
    (tmp_path / "asking.py").write_text(ASKS)
    (tmp_path / f"{UNCALLED}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, UNCALLED, raising=False)
    monkeypatch.delitem(sys.modules, "asking", raising=False)
    assert needed("asking", "asking").found is False
    assert UNCALLED not in sys.modules
    monkeypatch.delitem(sys.modules, "asking")
    monkeypatch.setitem(sys.modules, UNCALLED, object())  # it is there already
    assert needed("asking", "asking").found is True
    monkeypatch.delitem(sys.modules, "asking")
    with pytest.raises(ModuleNotFoundError, match="pip install missing-package"):
        needed("no_such_module", "missing-package")
