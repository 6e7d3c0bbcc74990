"""docs/architectures.md has what the tests have recorded."""

from __future__ import annotations

import runpy

from hf_configs import records
from hf_measured import measured, peft_records
from loragraft.archs import ARCHS
from paths import ROOT
from tolerances import NATIVE_F32, REFERENCE


def test_the_page_is_current() -> None:
    page, path = (
        runpy.run_path(str(ROOT / "docs" / "make_architectures.py"))["page"],
        ROOT / "docs" / "architectures.md",
    )
    assert page(path.read_text()) == path.read_text(), "run docs/make_architectures.py"


def test_the_readme_counts_what_there_is() -> None:
    kinds = {config.model_type for arch in ARCHS for config in arch.classes}
    said = f"| {len(list(ARCHS))}, with {len(kinds)} of transformers' model types:"
    assert said in (ROOT / "README.md").read_text()


def test_every_figure_is_recorded_and_within_its_bound() -> None:
    assert measured().keys() == records().keys()
    for case, found in measured().items():
        assert found["reference"] < REFERENCE, case
        assert found["native"] < NATIVE_F32, case
        assert ("merged" in found) == (case in peft_records())
        assert max(found.get("merged", 0), found.get("adapted", 0)) < NATIVE_F32, case


def test_every_type_has_an_adapter_of_peft() -> None:
    """But Qwen3.5 within a multimodal model, whose language model has one."""
    kinds = {record["config"]["model_type"] for case, record in records().items() if case != "qwen3_5-vl"}
    assert {records()[case]["config"]["model_type"] for case in peft_records()} >= kinds
