"""Gemma 4's experts beyond their logits: adapters on them, and files quantized and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
