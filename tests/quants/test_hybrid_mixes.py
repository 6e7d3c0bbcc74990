"""The types of tensors of models with recurrent layers, against llama-quantize's (`make_hybrid_quantize.py`)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loragraft.quants.filetypes import file_type
from loragraft.quants.mixes import ModelFacts, TypeOptions, plan_types
from loragraft.quants.types import F16, F32
from paths import data

GOLDEN: dict[str, dict[str, Any]] = json.loads(data("golden/hybrid-quantize.json").read_text())


@pytest.mark.parametrize("model", GOLDEN)
def test_types_are_llama_quantizes(model: str) -> None:
    golden = GOLDEN[model]
    f32 = {
        name
        for (name, _), kind in zip(golden["tensors"], golden["types"]["Q8_0"], strict=True)
        if kind == "F32"
    }
    tensors = {name: (tuple(shape), F32 if name in f32 else F16) for name, shape in golden["tensors"]}
    facts = ModelFacts.of(golden["metadata"])
    assert len(golden["types"]) == 7
    for target, types in golden["types"].items():
        choices = plan_types(tensors, facts, TypeOptions(file_type(target)))
        assert [choice.type.name for choice in choices] == types, target
