"""The notebook of personas and recommendations, with few steps of training."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient


@pytest.mark.slow
def test_the_notebook_runs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both trainings and every cell behind them; with so few steps the answers are not yet right."""
    monkeypatch.setenv("KOSMOS_WORK", str(tmp_path))
    monkeypatch.setenv("KOSMOS_STEPS", "8")
    notebook = nbformat.read(repository / "notebooks" / "personas.ipynb", as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(repository)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if cell.id != "cell-3"
    )
    assert "another user's: " in printed
    assert "0.0 Rome" in printed
    assert any("text/html" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
