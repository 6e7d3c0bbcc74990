"""Which modules a configuration names: PEFT's own answers, recorded; and what becomes of the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import loragraft as lg
from loragraft.errors import AdapterError
from loragraft.formats.views import float_rows
from loragraft.huggingface.targets import Targets
from loragraft.opening import load_adapter, open_model
from paths import data

RECORDED = json.loads(data("golden/peft-targets.json").read_text())
BASE, PLAIN = data("llama-kjv"), data("llama-kjv.shakespeare")


@pytest.mark.parametrize("row", RECORDED["configs"], ids=lambda row: str(row["config"])[:60])
def test_names_what_peft_names(row: dict[str, Any]) -> None:
    notes: list[str] = []
    targets = Targets(Path("c"), row["config"], notes)
    assert [module for module in RECORDED["modules"] if targets.name(module)] == row["names"]
    assert notes == []


def test_all_linear_and_expressions_that_are_not_checked() -> None:
    every = Targets(Path("c"), {"target_modules": "all-linear"}, [])
    named = [module for module in RECORDED["modules"] if every.name(module)]
    assert {"model.embed_tokens", "lm_head", "model.norm"}.isdisjoint(named)
    assert "model.layers.0.mlp.down_proj" in named
    notes: list[str] = []
    assert Targets(Path("c"), {"target_modules": r"(?!x).*q_proj"}, notes).name("anything")
    assert notes[0].startswith("c: target_modules is not checked against the tensors")
    assert not Targets(Path("c"), {}, []).known
    odd: list[dict[str, Any]] = [
        {"target_modules": 3},
        {"target_modules": ["q"], "layers_to_transform": ["a"]},
    ]
    odd += [
        {"target_modules": ["q"], "layers_pattern": value}
        for value in (5, {"a": 1}, [["layers"]], ["h"] * 65)
    ]
    for config in odd:
        with pytest.raises(AdapterError, match=r"bad (target_modules|layers_to_transform|layers_pattern)"):
            Targets(Path("c"), config, [])


def changed(folder: Path, **changes: Any) -> Path:
    shutil.copytree(PLAIN, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_what_the_configuration_does_not_name_is_left_out(tmp_path: Path) -> None:
    """As PEFT, which makes no module for it and passes over its tensors."""
    narrow = changed(tmp_path / "narrow", target_modules=["q_proj", "v_proj"])
    model = open_model(BASE)
    adapter = load_adapter(narrow, model)
    assert set(adapter.pairs) == {f"blk.{i}.attn_{part}.weight" for i in range(4) for part in "qv"}
    assert adapter.n_tensors == 16
    assert len(adapter.left_out) == 40
    assert "20 of 28 adapted modules" in adapter.notes[0]
    assert (
        "are left out, as in peft: target_modules of adapter_config.json does not name them"
        in adapter.notes[0]
    )
    without = changed(tmp_path / "without")
    tensors = load_file(without / "adapter_model.safetensors")
    kept = {name: array for name, array in tensors.items() if "q_proj" in name or "v_proj" in name}
    save_file(kept, without / "adapter_model.safetensors")
    ids = list(range(3, 30))
    found, expected = (lg.load(BASE, folder).logits(ids) for folder in (narrow, without))
    np.testing.assert_array_equal(found, expected)
    assert "covers 8 of the 28 modules that target_modules" in load_adapter(without, model).notes[0]
    report = lg.merge(BASE, narrow, tmp_path / "o.gguf")
    assert (report.adapters[0].found, report.adapters[0].tensors, report.adapters[0].targets) == (56, 16, 8)


def test_layers_and_exclusions_count_too(tmp_path: Path) -> None:
    model = open_model(BASE)
    some = load_adapter(changed(tmp_path / "some", layers_to_transform=[1, 3]), model)
    assert {target.split(".")[1] for target in some.pairs} == {"1", "3"}
    assert not any("covers" in note for note in some.notes)
    without = load_adapter(changed(tmp_path / "without", exclude_modules=["o_proj"]), model)
    assert len(without.pairs) == 24
    assert not any("attn_output" in target for target in without.pairs)
    with pytest.raises(AdapterError, match="holds no tensor that its configuration names"):
        load_adapter(changed(tmp_path / "none", target_modules=["c_attn"]), model)


def test_a_router_is_named_by_its_weight() -> None:
    """As PEFT writes all-linear for experts: target_parameters holds what is not a module's linear."""
    config = {"target_modules": ["q_proj"], "target_parameters": ["gate.weight", "gate_up_proj"]}
    targets = Targets(Path("c"), config, [])
    assert targets.name("model.layers.1.mlp.gate")
    assert not targets.name("model.layers.1.mlp.shared_experts.gate_proj")
    assert not targets.name("model.layers.1.mlp.experts.gate_up_proj")


def test_patterns_see_the_name_of_a_parameter(tmp_path: Path) -> None:
    """Where target_parameters names a weight, PEFT 0.21.2 looks its name up with `.weight`, and excludes nothing."""
    one = {
        "target_modules": ["o_proj"],
        "target_parameters": ["self_attn.q_proj.weight", "layers.1.self_attn.k_proj.weight"],
        "exclude_modules": ["q_proj"],
        "alpha_pattern": {"q_proj": 32, "k_proj.weight": 8, "o_proj": 4},
    }
    pairs = load_adapter(changed(tmp_path / "a", **one), open_model(BASE)).pairs
    scales = {name: pairs[f"blk.1.attn_{name}.weight"].scale for name in ("q", "k", "output")}
    assert scales == {"q": 2.0, "k": 1.0, "output": 0.5}
    assert len(pairs) == 4 + 1 + 4


@pytest.mark.parametrize("module", ["q_proj", "o_proj"])
def test_a_copy_of_a_weight_replaces_it_if_it_differs(module: str, tmp_path: Path) -> None:
    """As PEFT, which loads it. Rows of q_proj are in another order in GGUF."""
    base = open_model(BASE)
    name = f"layers.1.self_attn.{module}"
    weight = load_file(BASE / "model.safetensors")[f"model.{name}.weight"]
    for factor in (1, 2):
        folder = changed(tmp_path / str(factor))
        arrays = load_file(folder / "adapter_model.safetensors")
        arrays[f"base_model.model.model.{name}.base_layer.weight"] = weight * np.float16(factor)
        save_file(arrays, folder / "adapter_model.safetensors")
        adapter = load_adapter(folder, base)
        assert len(adapter.replaced) == factor - 1
        for target, copy in adapter.replaced.items():
            own = base.tensors[target]
            now = float_rows(copy.rows(0, own.n_rows), copy.type)
            np.testing.assert_array_equal(now, 2 * float_rows(own.rows(0, own.n_rows), own.type))
