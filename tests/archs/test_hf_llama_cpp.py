"""llama.cpp's own logits of the files that we convert small models into, as it computed them once."""

from __future__ import annotations

import pytest

from hf_configs import records
from hf_measured import DIFFERS, llama_cpp, reason
from tolerances import LLAMA_CPP

RECORDED = llama_cpp()


def test_every_model_is_recorded() -> None:
    assert RECORDED.keys() == records().keys()
    named = [case for cases in DIFFERS.values() for case in cases]
    assert len(named) == len(set(named))
    assert set(named) <= records().keys()


@pytest.mark.parametrize("case", records())
def test_llama_cpp_computes_the_same_or_we_know_why_not(case: str) -> None:
    """`test_hf_configs` holds the file to the digest of the one that it ran."""
    agrees = "refused" not in RECORDED[case] and RECORDED[case]["error"] < LLAMA_CPP
    assert agrees == (reason(case) is None), RECORDED[case]
