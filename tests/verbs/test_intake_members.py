"""Every member of `intake_members`: what is taken is merged to the numbers, what is refused says what to type."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from intake_folders import BASE, plain
from intake_members import MEMBERS, Member
from loragraft.cli import app
from loragraft.formats.views import float_rows, widened
from loragraft.opening import open_model
from loragraft.quants.types import F32
from paths import ROOT


def values(path: Path) -> dict[str, np.ndarray]:
    found = {}
    for name, tensor in open_model(path).tensors.items():
        wide = widened(tensor)
        found[name] = float_rows(wide.rows(0, wide.n_rows), F32).reshape(tensor.shape)
    return found


@pytest.fixture(scope="module")
def base() -> dict[str, np.ndarray]:
    return values(BASE)


@pytest.fixture(scope="module")
def delta(base: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What the plain adapter adds (`test_intake.expected_plain` holds it to its own tensors)."""
    out = tmp_path_factory.mktemp("plain") / "plain.gguf"
    CliRunner().invoke(app, ["merge", str(BASE), "--lora", str(plain()), "-o", str(out), "--type", "F32"])
    return {name: array - base[name] for name, array in values(out).items()}


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.what)
def test_a_member(
    member: Member, base: dict[str, np.ndarray], delta: dict[str, np.ndarray], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    named, out = member.make(tmp_path / "in"), tmp_path / "out.gguf"
    command = ["convert", str(named)] if member.as_model else ["merge", str(BASE), "--lora", str(named)]
    result = CliRunner().invoke(app, [*command, "-o", str(out), "--type", "F32", *member.options])
    for part in member.says:
        assert part in result.output, result.output
    if member.scale is None:
        assert result.exit_code == 1, result.output
        assert not out.exists()
        assert member.says
        return
    assert result.exit_code == 0, result.output
    found = values(out)
    assert found.keys() == base.keys()
    for name, array in base.items():
        np.testing.assert_allclose(found[name], array + member.scale * delta[name], rtol=0, atol=member.atol)


def test_the_page_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_intake.py"))["page"]()
    assert (ROOT / "docs" / "intake.md").read_text() == page, "run `make docs`"
