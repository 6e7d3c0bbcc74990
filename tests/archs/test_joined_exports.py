"""Exports of matrices that GGUF has in several tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loragraft as lg
from archs.test_hf_configs import write
from gguf_files import write_gguf
from hf_configs import export_layout, exported, records, weights, write_packed
from loragraft.formats.gguf.values import Value
from loragraft.formats.safetensors import SafetensorsFile
from loragraft.formats.source import ModelSource
from loragraft.formats.views import in_memory, values_of
from loragraft.huggingface.tensor_names import TensorNames
from loragraft.opening import open_model
from loragraft.quants.types import BY_NAME
from loragraft.streaming.checkpoint.heads import RowPart, matrix_of_parts
from paths import data
from tolerances import REFERENCE, nmse


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("qwen3_next", "model.layers.0.linear_attn.in_proj_qkvz.weight"),
        ("granitehybrid-dense", "model.layers.1.shared_mlp.input_linear.weight"),
    ],
)
def test_the_matrix_is_the_checkpoints(tmp_path: Path, case: str, name: str) -> None:
    model = open_model(write(tmp_path / "m", case))
    expected = weights(records()[case]["shapes"], records()[case]["config"]["model_type"])[name]
    parts = [
        RowPart(model.tensors[place.name], order)
        for place in TensorNames(model.metadata).places(name)
        if (order := place.order(len(expected))) is not None
    ]
    assert len(parts) == 2
    matrix = matrix_of_parts(name, parts)
    assert matrix.shape == expected.shape
    np.testing.assert_array_equal(values_of(matrix).reshape(expected.shape), expected)
    for start, stop in ((0, 1), (3, 17), (17, len(expected)), (5, 5)):
        rows = matrix.rows(start, stop).view(np.float32)
        np.testing.assert_array_equal(rows.reshape(-1, expected.shape[1]), expected[start:stop])


@pytest.mark.parametrize(
    ("case", "target", "stem"),
    [
        ("qwen3_next", "blk.0.attn_qkv", "model.layers.0.linear_attn.in_proj_qkvz"),
        ("granitemoe", "blk.0.ffn_up_exps", "model.layers.0.block_sparse_moe.input_linear"),
        ("falcon_h1", "blk.0.ssm_in", "model.layers.0.mamba.in_proj"),  # rows times multipliers
        ("gpt2", "blk.0.attn_qkv", "transformer.h.0.attn.c_attn"),  # [in, out]
        ("gpt_oss", "blk.0.ffn_up_exps", "model.layers.0.mlp.experts.gate_up_proj"),
        ("llama4", "blk.0.ffn_up_exps", "model.layers.0.feed_forward.experts.1.up_proj"),
    ],
)
def test_an_adapter_goes_with_it(tmp_path: Path, case: str, target: str, stem: str) -> None:
    """As into the GGUF that is then exported."""
    base = write(tmp_path / "m", case) if case != "gpt_oss" else write_packed(tmp_path / "m")
    adapter = _write_pair(tmp_path / "a.gguf", open_model(base), f"{target}.weight")
    layout = export_layout(records()[case]["config"])
    lg.merge(base, adapter, tmp_path / "merged.gguf", type="F32")
    lg.export(tmp_path / "merged.gguf", tmp_path / "two", format=layout)
    lg.export(base, tmp_path / "one", adapters=adapter, format=layout)
    lg.export(base, tmp_path / "plain", format=layout)
    found, expected, plain = (
        SafetensorsFile.open(tmp_path / name / "model.safetensors").tensors
        for name in ("one", "two", "plain")
    )
    own = [name for name in found if name.startswith(stem)]
    assert any(bytes(found[name].data()) != bytes(plain[name].data()) for name in own)
    for name in own:
        np.testing.assert_array_equal(found[name].data(), expected[name].data(), name)


def _write_pair(path: Path, base: ModelSource, target: str) -> Path:
    """A GGUF adapter on one tensor."""
    *stack, rows, columns = base.tensors[target].shape
    shapes = {f"{target}.lora_a": [*stack, 2, columns], f"{target}.lora_b": [*stack, rows, 2]}
    metadata = {
        "general.type": Value.string("adapter"),
        "general.architecture": Value.string(base.arch),
        "adapter.type": Value.string("lora"),
        "adapter.lora.alpha": Value.f32(4),
    }
    write_gguf(path, metadata, weights(shapes))
    return path


def test_scales_of_experts_go_into_the_stack(tmp_path: Path) -> None:
    """In GGUF each expert has its own; the checkpoint's stack has one."""

    def wider(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config.update(hidden_size=64, intermediate_size=64)
        wide = {16: 32, 32: 64, 48: 64, 96: 128}
        shapes = {name: [wide.get(size, size) for size in tensor.shape] for name, tensor in tensors.items()}
        tensors.update(weights(shapes))

    lg.convert(write(tmp_path / "m", "granitemoe", wider), tmp_path / "m.gguf", type="F32")
    model, scales = open_model(tmp_path / "m.gguf"), np.array([1, 2, 4, 8], np.float32)
    gate, up = "blk.0.ffn_gate_exps", "blk.0.ffn_up_exps"
    model.tensors[f"{gate}.scale"] = in_memory(f"{gate}.scale", scales)  # type: ignore[index]
    lg.export(model, tmp_path / "out")
    again = open_model(tmp_path / "out").tensors
    for stack, times in ((gate, scales), (up, np.ones(4, np.float32))):
        assert again[f"{stack}.weight"].type == BY_NAME["NVFP4"]
        scale = values_of(again[f"{stack}.scale"])
        expected, found = (values_of(of[f"{stack}.weight"]) for of in (model.tensors, again))
        for expert in range(4):
            own = found[expert] * scale[expert if len(scale) > 1 else 0]
            assert nmse(own, expected[expert] * times[expert]) < 0.02  # what NVFP4 leaves
    assert np.isfinite(lg.load(tmp_path / "out", threads=1, context=8).logits([1, 2, 3])).all()


def test_experts_of_gpt_oss_are_carried_over(tmp_path: Path) -> None:
    """From a GGUF in MXFP4, bit for bit."""
    lg.convert(write_packed(tmp_path / "m"), tmp_path / "m.gguf", type="F32")
    lg.quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", type="MXFP4_MOE")
    report = lg.export(tmp_path / "q.gguf", tmp_path / "out", format="mxfp4")
    assert (report.algorithm, report.carried_over, report.quantized) == ("MXFP4", 4, 0)
    before, after = (open_model(tmp_path / name).tensors for name in ("q.gguf", "out"))
    experts = [name for name in before if name.endswith("_exps.weight")]
    assert len(experts) == 6
    for name in experts:
        assert before[name].type == after[name].type == BY_NAME["MXFP4"]
        count = before[name].n_rows
        np.testing.assert_array_equal(after[name].rows(0, count), before[name].rows(0, count))


def test_gpt_oss_in_mxfp4_is_the_export_that_transformers_loaded(tmp_path: Path) -> None:
    """`make_mxfp4_export.py` recorded it."""
    recorded = json.loads(data("golden/mxfp4-export.json").read_text())
    assert exported(write_packed(tmp_path / "m"), tmp_path)["digest"] == recorded["digest"]
    assert recorded["error"] < REFERENCE
    assert recorded["loss"] < 0.1


def test_layouts_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(lg.LoragraftError, match=r"stacked by expert \[in, out\].*--format mxfp4$"):
        lg.export(write_packed(tmp_path / "oss"), tmp_path / "out")
    with pytest.raises(lg.LoragraftError, match=r"has experts in MXFP4: found .?llama.?; --format modelopt"):
        lg.export(write(tmp_path / "llama", "llama"), tmp_path / "out", format="mxfp4")
    assert not (tmp_path / "out").exists()
