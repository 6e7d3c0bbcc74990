"""The notebook of the examples, cell by cell, as a reader runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paths import ROOT

EXAMPLES = ROOT / "examples"


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(EXAMPLES)
    before = sorted(path.name for path in EXAMPLES.iterdir())
    names: dict[str, Any] = {}
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text())["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "56 of 56 tensors used, on 28 weights" in said
    assert "tuned.Q4_K_M.gguf: Q4_K_M, 39 tensors" in said
    assert names["comparison"].verdict in said
    assert Path(names["work"] / "comparison.html").read_text() == names["page"]
    assert sorted(path.name for path in EXAMPLES.iterdir()) == before
