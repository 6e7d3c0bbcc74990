"""Quantized checkpoints: every format's weights against its published formula, and what cannot be carried over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import Edit, Raw, V, changed
from loragraft.errors import CheckpointError, LoragraftError, UnsupportedError
from loragraft.formats.views import float_rows
from loragraft.models import open_model
from loragraft.quants import e4m3
from loragraft.quants.nvfp4 import dequantize_nvfp4
from paths import data

DOWN = "model.layers.1.mlp.down_proj"
#: E2M1: sign, two exponent bits, one mantissa bit (OCP Microscaling Formats 1.0, section 5.3.3).
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def weights(folder: Path, name: str, *, dequantize: bool = False) -> np.ndarray:
    """A tensor of the model as float32, its scale applied."""
    model = open_model(folder, dequantize=dequantize)
    tensor = model.tensors[name]
    rows = tensor.rows(0, tensor.n_rows)
    if tensor.type.name != "NVFP4":
        return float_rows(rows, tensor.type)
    scale = model.tensors.get(f"{name.removesuffix('.weight')}.scale")
    return dequantize_nvfp4(rows, 1.0 if scale is None else float(scale.rows(0, 1).view("<f4")[0, 0]))


def formula(tensors: dict[str, Raw], stem: str) -> np.ndarray:
    """W = E2M1[nibble] * weight_scale * weight_scale_2, in float64."""
    codes = tensors[f"{stem}.weight"].matrix
    values = np.stack([E2M1[codes & 15], E2M1[codes >> 4]], axis=-1).reshape(len(codes), -1)
    blocks = e4m3.decode(tensors[f"{stem}.weight_scale"].matrix).astype(np.float64)
    return values * np.repeat(blocks, 16, axis=1) * tensors[f"{stem}.weight_scale_2"].data.view("<f4")[0]


def test_modelopt_nvfp4(tmp_path: Path) -> None:
    kept: dict[str, Raw] = {}
    folder = changed(tmp_path / "m", lambda _, tensors: kept.update(tensors))
    np.testing.assert_allclose(weights(folder, "blk.0.attn_v.weight"), formula(kept, V), rtol=3e-7)
    np.testing.assert_allclose(weights(folder, "blk.1.ffn_down.weight"), formula(kept, DOWN), rtol=3e-7)


def as_compressed_tensors(config: dict[str, Any], tensors: dict[str, Raw]) -> None:
    """compressed-tensors' names, and the reciprocals of both scales."""
    names = {"weight_scale_2": "weight_global_scale", "input_scale": "input_global_scale"}
    for name in list(tensors):
        stem, _, part = name.rpartition(".")
        if part == "weight" and tensors[name].dtype == "U8":
            tensors[f"{stem}.weight_packed"] = tensors.pop(name)
        elif part in names:
            tensors[f"{stem}.{names[part]}"] = Raw.f32(1 / tensors.pop(name).data.view("<f4"))
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}


def test_compressed_tensors_nvfp4_is_the_same_model(tmp_path: Path) -> None:
    original = open_model(data("llama-kjv-nvfp4"))
    model = open_model(changed(tmp_path / "m", as_compressed_tensors))
    assert list(model.tensors) == list(original.tensors)
    for name, tensor in model.tensors.items():
        ours, theirs = tensor.rows(0, tensor.n_rows), original.tensors[name].rows(0, tensor.n_rows)
        if name.endswith("scale"):
            np.testing.assert_allclose(ours.view("<f4"), theirs.view("<f4"), rtol=2e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(ours, theirs, name)


@pytest.mark.parametrize(
    ("scale", "expanded"),
    [
        (np.float32(0.25), lambda s: s),
        (np.linspace(0.1, 1.0, 128, dtype=np.float32), lambda s: s[:, None]),
        (np.linspace(0.1, 1.0, 128, dtype=np.float32)[:, None], lambda s: s),
        (np.array([[0.5, 2.0]], np.float32), lambda s: np.repeat(s, 128, axis=1)),
        (
            np.array([0.5, 2.0], np.float32).reshape(1, 1, 2, 1),
            lambda s: np.repeat(s.reshape(1, 2), 128, axis=1),
        ),
    ],
    ids=["tensor", "row", "column of rows", "blocks", "blocks of modelopt"],
)
def test_fp8_beside_nvfp4(
    tmp_path: Path, scale: np.ndarray, expanded: Callable[[np.ndarray], np.ndarray]
) -> None:
    codes = np.random.default_rng(1).integers(0, 0x7F, (128, 256), np.uint8)

    def edit(config: dict[str, Any], tensors: dict[str, Raw]) -> None:
        for part in ("weight_scale_2", "weight_scale"):
            del tensors[f"{V}.{part}"]
        tensors[f"{V}.weight"] = Raw.of_bytes("F8_E4M3", codes)
        tensors[f"{V}.weight_scale"] = Raw.f32(scale)
        layers = {V: {"quant_algo": "FP8"}, DOWN: {"quant_algo": "NVFP4", "group_size": 16}}
        config["quantization_config"] = {
            "quant_method": "modelopt",
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": layers,
        }

    folder = changed(tmp_path / "m", edit)
    expected = e4m3.decode(codes).astype(np.float64) * expanded(np.asarray(scale, np.float64))
    np.testing.assert_allclose(weights(folder, "blk.0.attn_v.weight"), expected, rtol=1e-7)
    assert open_model(folder).tensors["blk.1.ffn_down.weight"].type.name == "NVFP4"


def test_fp8_blocks_that_do_not_divide(tmp_path: Path) -> None:
    """DeepSeek's layout, weight_scale_inv per 128 x 128, on 256 x 768 cut to 200 rows in blocks of 96 x 500."""
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 0x7F, (256, 768), np.uint8)
    scales = rng.uniform(0.1, 2, (3, 2)).astype(np.float32)

    def edit(config: dict[str, Any], tensors: dict[str, Raw]) -> None:
        for part in ("weight_scale_2", "weight_scale", "input_scale"):
            del tensors[f"{DOWN}.{part}"]
        tensors[f"{DOWN}.weight"] = Raw.of_bytes("F8_E4M3", codes)
        tensors[f"{DOWN}.weight_scale_inv"] = Raw.f32(scales)
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [96, 500]}

    expected = e4m3.decode(codes) * np.repeat(np.repeat(scales, 96, axis=0)[:256], 500, axis=1)[:, :768]
    np.testing.assert_array_equal(weights(changed(tmp_path / "m", edit), "blk.1.ffn_down.weight"), expected)


def test_pre_quant_scale_is_refused_or_multiplied_in(tmp_path: Path) -> None:
    """AWQ: the product is W (x * pre_quant_scale), so the weight for x is W diag(pre_quant_scale)."""
    factors = np.linspace(0.5, 2, 768, dtype=np.float32)
    kept: dict[str, Raw] = {}

    def edit(config: dict[str, Any], tensors: dict[str, Raw]) -> None:
        tensors[f"{DOWN}.pre_quant_scale"] = Raw.f32(factors)
        config["quantization_config"]["quant_algo"] = "NVFP4_AWQ"
        kept.update(tensors)

    folder = changed(tmp_path / "m", edit)
    with pytest.raises(UnsupportedError, match=r"down_proj\.weight cannot .*pre_quant_scale.*--dequantize"):
        open_model(folder)
    model = open_model(folder, dequantize=True)
    assert model.tensors["blk.1.ffn_down.weight"].type.name == "F32"
    assert "blk.1.ffn_down.scale" not in model.tensors
    assert model.tensors["blk.1.ffn_up.weight"].type.name == "NVFP4"
    assert any("down_proj.weight: dequantized" in note for note in model.notes)
    found = weights(folder, "blk.1.ffn_down.weight", dequantize=True)
    np.testing.assert_allclose(found, formula(kept, DOWN) * factors, rtol=3e-7)


def test_cache_scales_are_read_and_reported(tmp_path: Path) -> None:
    def edit(_: dict[str, Any], tensors: dict[str, Raw]) -> None:
        tensors["model.layers.0.self_attn.k_proj.k_scale"] = Raw.f32(0.02)
        tensors["model.layers.0.self_attn.v_proj.v_scale"] = Raw.f32(0.05)

    model = open_model(changed(tmp_path / "m", edit))
    assert len(model.notes) == 1
    assert "2 scales of an FP8 key-value cache (0.02 to 0.05)" in model.notes[0]


def test_weights_for_16_bit_activations_are_marked(tmp_path: Path) -> None:
    def edit(config: dict[str, Any], tensors: dict[str, Raw]) -> None:
        for name in [name for name in tensors if name.endswith("input_scale")]:
            del tensors[name]
        config["quantization_config"]["quant_algo"] = "W4A16_NVFP4"

    model = open_model(changed(tmp_path / "m", edit))
    marked = model.metadata["general.tensor_extra.name"].data
    assert sorted(marked) == sorted(
        name for name, tensor in model.tensors.items() if tensor.type.name == "NVFP4"
    )
    assert not any(model.metadata["general.tensor_extra.prec_a4"].data)
    assert not any(name.endswith("input_scale") for name in model.tensors)


def set_config(**values: Any) -> Edit:
    return lambda config, _: config["quantization_config"].update(values)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (set_config(quant_method="gptq"), UnsupportedError, "quant_method 'gptq'"),
        (set_config(quant_algo="W4A8_AWQ"), UnsupportedError, "W4A8_AWQ"),
        (set_config(format="pack-quantized"), UnsupportedError, "pack-quantized"),
        (lambda _, t: t.pop(f"{V}.weight_scale"), UnsupportedError, "v_proj.weight is no NVFP4 weight"),
        (
            lambda _, t: t.update({f"{V}.weight_scale_2": Raw.f32(np.nan)}),
            CheckpointError,
            "v_proj.weight_scale_2",
        ),
        (
            lambda _, t: t.update({f"{V}.weight_scale_2": Raw.f32([1, 2])}),
            CheckpointError,
            "v_proj.weight_scale_2",
        ),
        (
            lambda _, t: t.update({"lm_head.weight_scale": Raw.f32(1)}),
            CheckpointError,
            "belongs to no quantized",
        ),
        (
            lambda _, t: t.update({f"{V}.weight": Raw.of_bytes("I32", np.zeros((4, 16), np.uint8))}),
            LoragraftError,
            "v_proj.weight",
        ),
    ],
)
def test_what_is_not_understood(
    tmp_path: Path, edit: Edit, error: type[LoragraftError], message: str
) -> None:
    def fixed(config: dict[str, Any], tensors: dict[str, Raw]) -> None:
        edit(config, tensors)
        if (raw := tensors[f"{V}.weight"]).dtype == "I32":
            tensors[f"{V}.weight"] = Raw("I32", (4, 4), raw.data)

    with pytest.raises(error, match=message) as refusal:
        open_model(changed(tmp_path / "m", fixed))
    assert "\n" not in str(refusal.value)
