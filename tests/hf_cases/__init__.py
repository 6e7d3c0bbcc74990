"""Configurations of small models, by family, for `make_hf_configs.py`."""

from __future__ import annotations

from hf_cases import dense, gemma, llama, multimodal, older, qwen, routed
from hf_cases.common import ABSENT, BASE, Cases
from hf_cases.recurrent import CASES as RECURRENT

CASES: Cases = {}
for family in (llama, qwen, gemma, dense, routed, older, multimodal):
    assert not CASES.keys() & family.CASES.keys()
    CASES |= family.CASES

__all__ = ["ABSENT", "BASE", "CASES", "RECURRENT"]
