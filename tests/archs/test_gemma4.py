"""Gemma 4's experts beyond their logits: adapters on them, whole routers, and files quantized and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import loragraft as lg
from archs.test_hf_configs import write
from hf_configs import logits, records, weights
from loragraft.adapters.lora import Adapter, LoraPair
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.views import values_of
from loragraft.opening import load_adapter
from loragraft.verbs.adapter_files import write_adapter
from tolerances import NATIVE_F32, nmse


def pair(target: str, out: int, columns: int) -> LoraPair:
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((4, *shape), dtype=np.float32) for shape in ((2, columns), (out, 2)))
    return LoraPair(target, a, b, 0.5, None)


def test_an_adapter_on_what_the_architecture_scales_is_refused(tmp_path: Path) -> None:
    """And one on the other experts is merged as it runs."""
    folder, ids = write(tmp_path / "m", "gemma4-experts"), logits()["ids"]
    base = lg.load(folder, backend="reference", activations="f32")
    for target, out, columns in (("ffn_down_exps", 32, 24), ("ffn_gate_up_exps", 48, 32)):
        name = f"blk.1.{target}.weight"
        made = Adapter(tmp_path / target, {name: pair(name, out, columns)}, "gemma4", n_tensors=2)
        write_adapter(made, base.source, tmp_path / f"{target}.gguf")
    with pytest.raises(
        lg.LoragraftError, match=r"adapts blk.1.ffn_down_exps.weight, and the base multiplies"
    ):
        load_adapter(tmp_path / "ffn_down_exps.gguf", base.source)
    lg.merge(folder, tmp_path / "ffn_gate_up_exps.gguf", output=tmp_path / "merged.gguf", type="F32")
    adapted = lg.load(
        folder, adapters=[tmp_path / "ffn_gate_up_exps.gguf"], backend="reference", activations="f32"
    )
    merged = lg.load(tmp_path / "merged.gguf", backend="reference", activations="f32")
    assert nmse(merged.logits(ids), adapted.logits(ids)) < 1e-11
    assert nmse(merged.logits(ids), base.logits(ids)) > 1e-6


def test_scales_of_experts_and_routers_stay_beside_quantized_weights(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "gemma4-experts")
    lg.convert(folder, tmp_path / "m.gguf", type="F32")
    lg.quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", type="Q4_0")
    file, drawn = open_gguf(tmp_path / "q.gguf"), weights(records()["gemma4-experts"]["shapes"])
    assert file.tensors["blk.0.ffn_gate_up_exps.weight"].type.name == "Q4_0"
    for gguf, hf in (("ffn_gate_inp", "scale"), ("ffn_down_exps", "per_expert_scale")):
        found = values_of(file.tensors[f"blk.0.{gguf}.scale"]).reshape(-1)
        np.testing.assert_array_equal(found, drawn[f"model.layers.0.router.{hf}"])
    reference, native = (
        lg.load(tmp_path / "q.gguf", backend=backend, threads=1, activations="f32").logits(logits()["ids"])
        for backend in ("reference", "native")
    )
    assert nmse(native, reference) < NATIVE_F32


def moved(*modules: str) -> Any:
    """An edit of `write`: the tensors whose names end so, in the last layer, grow by a half."""

    def edit(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        for name in tensors:
            if name.startswith("model.layers.1.") and name.endswith(modules):
                tensors[name] = tensors[name] * np.float32(1.5)

    return edit


def test_an_extracted_adapter_leaves_out_what_none_can_carry(tmp_path: Path) -> None:
    """It says so, and gives the logits of what it has; scales of the architecture are tensors of their own."""
    base = write(tmp_path / "m", "gemma4-experts")
    carried, scaled = ("q_proj.weight", "gate_up_proj"), ("experts.down_proj", "router.scale")
    all_of_it = write(tmp_path / "t", "gemma4-experts", moved(*carried, *scaled))
    report = lg.extract(base, all_of_it, tmp_path / "a.gguf", rank=48)
    assert {one.target for one in report.modules} == {
        "blk.1.attn_q.weight",
        "blk.1.ffn_gate_up_exps.weight",
    }
    assert set(report.left_out) == {"blk.1.ffn_down_exps.weight", "blk.1.ffn_gate_inp.scale"}
    assert any("no adapter can carry them (blk.1.ffn_down_exps.weight): gemma4" in n for n in report.notes)
    adapted, wanted = (
        lg.load(path, adapters=adapters, backend="reference", activations="f32").logits(logits()["ids"])
        for path, adapters in (
            (base, [tmp_path / "a.gguf"]),
            (write(tmp_path / "part", "gemma4-experts", moved(*carried)), []),
        )
    )
    assert nmse(adapted, wanted) < 1e-11


def test_a_router_that_is_saved_whole_keeps_its_scale(tmp_path: Path) -> None:
    """`modules_to_save`: what multiplies the router's input is not a scale of its weight."""
    base, name = write(tmp_path / "m", "gemma4-experts"), "model.layers.1.router.proj.weight"
    tuned = write(tmp_path / "t", "gemma4-experts", moved("router.proj.weight"))
    whole = weights(records()["gemma4-experts"]["shapes"])[name] * np.float32(1.5)
    adapter = tmp_path / "a"
    adapter.mkdir()
    said = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(said | {"modules_to_save": ["proj"]}))
    q = "model.layers.1.self_attn.q_proj"
    nothing = {f"{q}.lora_A.weight": np.zeros((1, 32)), f"{q}.lora_B.weight": np.zeros((64, 1))}
    tensors = {f"base_model.model.{key}": array for key, array in {**nothing, name: whole}.items()}
    save_file(
        {key: np.float32(array) for key, array in tensors.items()}, adapter / "adapter_model.safetensors"
    )
    found, wanted = (
        lg.load(path, adapters=adapters, backend="reference", activations="f32").logits(logits()["ids"])
        for path, adapters in ((base, [adapter]), (tuned, []))
    )
    np.testing.assert_array_equal(found, wanted)
