"""Quantized checkpoints: every format's weights against its published formula, and what cannot be carried over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import Edit, Raw, V, changed, nvfp4_formula
from loragraft.errors import CheckpointError, LoragraftError, UnsupportedError
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.views import float_rows
from loragraft.huggingface.quantization_config import read_quantization_config
from loragraft.opening import open_model
from loragraft.quants import e4m3
from loragraft.quants.nvfp4 import dequantize_nvfp4
from paths import data

DOWN = "model.layers.1.mlp.down_proj"


def weights(folder: Path, name: str, *, dequantize: bool = False) -> np.ndarray:
    """A tensor of the model as float32, its scale applied."""
    model = open_model(folder, dequantize=dequantize)
    tensor = model.tensors[name]
    rows = tensor.rows(0, tensor.n_rows)
    if tensor.type.name != "NVFP4":
        return float_rows(rows, tensor.type)
    scale = model.tensors.get(f"{name.removesuffix('.weight')}.scale")
    return dequantize_nvfp4(rows, 1.0 if scale is None else float(scale.rows(0, 1).view("<f4")[0, 0]))


def test_modelopt_nvfp4(tmp_path: Path) -> None:
    kept: dict[str, Raw] = {}
    folder = changed(tmp_path / "m", lambda _, tensors: kept.update(tensors))
    np.testing.assert_allclose(weights(folder, "blk.0.attn_v.weight"), nvfp4_formula(kept, V), rtol=3e-7)
    np.testing.assert_allclose(weights(folder, "blk.1.ffn_down.weight"), nvfp4_formula(kept, DOWN), rtol=3e-7)


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


@pytest.mark.parametrize(
    ("config", "block"),
    [
        ({"quant_method": "fp8", "weight_block_size": [8, 32]}, (8, 32)),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "float-quantized",
                "config_groups": {
                    "group_0": {
                        "format": "float-quantized",
                        "weights": {"num_bits": 8, "strategy": "block", "block_structure": [8, 32]},
                    }
                },
            },
            (8, 32),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"group_size": 64}}},
            },
            (1, 64),
        ),
    ],
    ids=["as many blocks as rows", "block_structure", "group_size"],
)
def test_fp8_blocks_of_a_size_that_the_configuration_gives(
    tmp_path: Path, config: dict[str, Any], block: tuple[int, int]
) -> None:
    """16 x 8 blocks of a matrix of 128 rows are not 128 rows with a scale each."""
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 0x7F, (128, 256), np.uint8)
    scales = rng.uniform(0.1, 2, (128 // block[0], 256 // block[1])).astype(np.float32)
    folder = changed(tmp_path / "m", fp8(config, codes, weight_scale=Raw.f32(scales)))
    expected = e4m3.decode(codes) * np.repeat(np.repeat(scales, block[0], axis=0), block[1], axis=1)
    np.testing.assert_array_equal(weights(folder, "blk.0.attn_v.weight"), expected)


def fp8(config: dict[str, Any], codes: np.ndarray, **companions: Raw) -> Edit:
    """v_proj of layer 0 in FP8, beside NVFP4."""

    def edit(whole: dict[str, Any], tensors: dict[str, Raw]) -> None:
        for part in ("weight_scale_2", "weight_scale", "input_scale"):
            del tensors[f"{V}.{part}"]
        tensors[f"{V}.weight"] = Raw.of_bytes("F8_E4M3", codes)
        tensors.update({f"{V}.{part}": raw for part, raw in companions.items()})
        whole["quantization_config"] = config

    return edit


def test_fp8_with_a_scale_per_row_as_fbgemm_has_it(tmp_path: Path) -> None:
    codes = np.random.default_rng(5).integers(0, 0x7F, (128, 256), np.uint8)
    scales = np.linspace(0.1, 1, 128, dtype=np.float32)[:, None]
    parts = {"weight_scale": Raw.f32(scales), "input_scale_ub": Raw.f32([1200])}
    parts["weight_zero_point"] = Raw.of_bytes("F8_E4M3", np.zeros(1, np.uint8))  # symmetric: says nothing
    folder = changed(tmp_path / "m", fp8({"quant_method": "fbgemm_fp8"}, codes, **parts))
    np.testing.assert_array_equal(weights(folder, "blk.0.attn_v.weight"), e4m3.decode(codes) * scales)
    assert open_model(folder).notes == []


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (None, r"v_proj\.weight lacks its scale: expected .*weight_scale or \.weight_scale_inv"),
        ((1, 128), r"do not fit its shape \(128, 256\): found \(1, 128\), expected .*128 x 128"),
        ((2, 2), r"found \(2, 2\)"),
        ((1, 2, 2), r"found \(1, 2, 2\)"),
        ((0,), r"found \(0, 1\)"),
    ],
)
def test_fp8_with_scales_that_do_not_fit(tmp_path: Path, shape: tuple[int, ...] | None, message: str) -> None:
    companions = {} if shape is None else {"weight_scale": Raw.f32(np.ones(shape))}
    edit = fp8({"quant_method": "fp8"}, np.zeros((128, 256), np.uint8), **companions)
    with pytest.raises(CheckpointError, match=message):
        open_model(changed(tmp_path / "m", edit))


def test_fp8_groups_beside_nvfp4_groups(tmp_path: Path) -> None:
    """compressed-tensors' mixed-precision: a format for every group of modules, found by name or by expression."""
    codes = np.random.default_rng(6).integers(0, 0x7F, (128, 256), np.uint8)
    original = open_model(data("llama-kjv-nvfp4"))

    def edit(config: dict[str, Any], tensors: dict[str, Raw]) -> None:
        fp8({}, codes, weight_scale=Raw.f32(np.full((128, 1), 0.5)))(config, tensors)
        as_compressed_tensors(config, tensors)
        config["compression_config"] = {
            "quant_method": "compressed-tensors",
            "format": "mixed-precision",
            "config_groups": {
                "group_0": {"format": "nvfp4-pack-quantized", "targets": ["Linear"]},
                "group_1": {"format": "float-quantized", "targets": ["re:.*layers.0.self_attn.v_proj$"]},
            },
            "ignore": ["lm_head", "re:.*router.*"],
            "sparsity_config": {"format": "dense"},
            "transform_config": {"config_groups": {}},
        }
        del config["quantization_config"]

    folder = changed(tmp_path / "m", edit)
    np.testing.assert_array_equal(weights(folder, "blk.0.attn_v.weight"), e4m3.decode(codes) * 0.5)
    found = open_model(folder).tensors["blk.0.attn_q.weight"]
    np.testing.assert_array_equal(found.rows(0, 8), original.tensors["blk.0.attn_q.weight"].rows(0, 8))


def test_pre_quant_scale_is_refused_or_multiplied_in(tmp_path: Path) -> None:
    """AWQ: the product is W (x * pre_quant_scale), so the weight for x is W diag(pre_quant_scale)."""
    factors = np.linspace(0.5, 2, 768, dtype=np.float32)
    kept: dict[str, Raw] = {}

    def edit(config: dict[str, Any], tensors: dict[str, Raw]) -> None:
        tensors[f"{DOWN}.pre_quant_scale"] = Raw.f32(factors)
        config["quantization_config"]["quant_algo"] = "NVFP4_AWQ"
        kept.update(tensors)

    folder = changed(tmp_path / "m", edit)
    every = changed(tmp_path / "every", lambda config, tensors: [edit(config, tensors), everywhere(tensors)])
    notes = open_model(every, dequantize=True).notes
    assert [note for note in notes if "dequantized" in note] == [
        "model.layers.0.mlp.down_proj.weight and 3 more: dequantized, as its input is scaled by pre_quant_scale (AWQ)"
    ]
    with pytest.raises(UnsupportedError, match=r"down_proj\.weight cannot .*pre_quant_scale.*--dequantize"):
        open_model(folder)
    model = open_model(folder, dequantize=True)
    assert "adapters must have been trained on it" in model.notes[0]
    assert model.tensors["blk.1.ffn_down.weight"].type.name == "F32"
    assert "blk.1.ffn_down.scale" not in model.tensors
    assert model.tensors["blk.1.ffn_up.weight"].type.name == "NVFP4"
    assert any("down_proj.weight: dequantized" in note for note in model.notes)
    found = weights(folder, "blk.1.ffn_down.weight", dequantize=True)
    np.testing.assert_allclose(found, nvfp4_formula(kept, DOWN) * factors, rtol=3e-7)


def everywhere(tensors: dict[str, Raw]) -> None:
    for layer in range(4):
        tensors[f"model.layers.{layer}.mlp.down_proj.pre_quant_scale"] = Raw.f32(np.ones(768))


def test_cache_scales_are_read_and_reported(tmp_path: Path) -> None:
    def edit(_: dict[str, Any], tensors: dict[str, Raw]) -> None:
        tensors["model.layers.0.self_attn.k_proj.k_scale"] = Raw.f32(0.02)
        tensors["model.layers.0.self_attn.v_proj.v_scale"] = Raw.f32(0.05)
        tensors["model.layers.1.self_attn.q_scale"] = Raw.f32([0.03])
        tensors["model.layers.1.self_attn.k_proj.output_scale"] = Raw.f32([0.04])

    model = open_model(changed(tmp_path / "m", edit))
    assert len(model.notes) == 1
    assert "4 scales of a quantized key-value cache (0.02 to 0.05)" in model.notes[0]


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


def test_compressed_tensors_without_scales_of_activations_is_marked(tmp_path: Path) -> None:
    """NVFP4A16: its groups have no input_activations, and its modules no input_global_scale."""

    def edit(config: dict[str, Any], tensors: dict[str, Raw]) -> None:
        del tensors[f"{V}.input_scale"]
        as_compressed_tensors(config, tensors)

    model = open_model(changed(tmp_path / "m", edit))
    assert model.metadata["general.tensor_extra.name"].data == ["blk.0.attn_v.weight"]
    assert not any(model.metadata["general.tensor_extra.prec_a4"].data)


@pytest.mark.parametrize("block", [32, 64])
def test_larger_blocks_share_their_scale(tmp_path: Path, block: int) -> None:
    """ModelOpt's NVFP4_MLP_WEIGHT_ONLY and W4A8_NVFP4_FP8 have blocks of 32; the latter's input_scale is FP8's."""
    kept: dict[str, Raw] = {}

    def edit(config: dict[str, Any], tensors: dict[str, Raw]) -> None:
        scales = tensors[f"{V}.weight_scale"].matrix[:, :: block // 16]
        tensors[f"{V}.weight_scale"] = Raw.of_bytes("F8_E4M3", np.ascontiguousarray(scales))
        kept.update(tensors)
        kept[f"{V}.weight_scale"] = Raw.of_bytes("F8_E4M3", np.repeat(scales, block // 16, axis=1))
        layers = {V: {"quant_algo": "W4A8_NVFP4_FP8", "group_size": block}}
        config["quantization_config"].update(quant_algo="MIXED_PRECISION", quantized_layers=layers)

    folder = changed(tmp_path / "m", edit)
    np.testing.assert_allclose(weights(folder, "blk.0.attn_v.weight"), nvfp4_formula(kept, V), rtol=3e-7)
    model = open_model(folder)
    assert "blk.0.attn_v.input_scale" not in model.tensors
    assert "blk.1.attn_v.input_scale" in model.tensors
    assert model.metadata["general.tensor_extra.name"].data == ["blk.0.attn_v.weight"]


@pytest.mark.parametrize("shape", [(128, 0), (128, 3), (128, 32), (64, 16), (128,), ()])
def test_block_scales_that_do_not_fit(tmp_path: Path, shape: tuple[int, ...]) -> None:
    def edit(_: dict[str, Any], tensors: dict[str, Raw]) -> None:
        tensors[f"{V}.weight_scale"] = Raw.of_bytes("F8_E4M3", np.ones(shape, np.uint8))

    expected = r"v_proj.weight is not an NVFP4 weight: .* expected F8_E4M3 \(128, 16\)"
    with pytest.raises(UnsupportedError, match=expected):
        open_model(changed(tmp_path / "m", edit))


def set_config(**values: Any) -> Edit:
    return lambda config, _: config["quantization_config"].update(values)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (set_config(quant_method="aqlm"), UnsupportedError, "quant_method: found 'aqlm'"),
        (set_config(quant_algo="W4A8_AWQ"), UnsupportedError, "quant_algo: found 'W4A8_AWQ'"),
        (set_config(quant_algo="NVFP4_SVD"), UnsupportedError, "NVFP4_SVD"),
        (
            set_config(quantized_layers={"lm_head": {"quant_algo": "MXFP8"}}),
            UnsupportedError,
            "found 'MXFP8'",
        ),
        (set_config(format="marlin-24"), UnsupportedError, "format: found 'marlin-24'"),
        (
            set_config(config_groups={"group_1": {"format": "mxfp4-pack-quantized"}}),
            UnsupportedError,
            "mxfp4-pack",
        ),
        (
            set_config(sparsity_config={"format": "sparse-24-bitmask"}),
            UnsupportedError,
            "sparsity_config format: found 'sparse-24-bitmask'",
        ),
        (
            set_config(transform_config={"config_groups": {"R4": {"type": "hadamard"}}}),
            UnsupportedError,
            r"transform_config.*found R4",
        ),
        (set_config(weight_block_size=[128, 0]), CheckpointError, r"bad weight_block_size: found \[128, 0\]"),
        (lambda c, _: c.update(quantization_config=[4]), CheckpointError, r"not an object: found \[4\]"),
        (lambda _, t: t.pop(f"{V}.weight_scale"), UnsupportedError, "v_proj.weight is not an NVFP4 weight"),
        (lambda _, t: t.pop(f"{V}.weight_scale_2"), CheckpointError, "v_proj.weight lacks its scale"),
        (
            lambda _, t: t.update(
                {f"{V}.weight_zero_point": Raw.of_bytes("F8_E4M3", np.ones((128, 16), np.uint8))}
            ),
            CheckpointError,
            r"v_proj\.weight_zero_point does not belong to any quantized weight that loragraft can read",
        ),
        (
            lambda _, t: t.update({f"{V}.weight_g_idx": Raw("I32", (256,), np.zeros(1024, np.uint8))}),
            CheckpointError,
            "weight_g_idx does not belong to any",
        ),
        (
            lambda _, t: t.update({f"{V}.svdquant_lora_a": Raw.f32(np.ones((4, 256)))}),
            CheckpointError,
            "svdquant",
        ),
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
            "does not belong to any quantized",
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


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 300) | st.sampled_from(["", "NVFP4", "FP8", "dense", "x"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "format", "weights"]), inner)
    ),
    max_leaves=6,
)
KEYS = [
    "quant_method",
    "quant_algo",
    "format",
    "quantized_layers",
    "config_groups",
    "weight_block_size",
    "sparsity_config",
    "transform_config",
]


@given(st.dictionaries(st.sampled_from(KEYS), JUNK) | JUNK)
def test_any_configuration_is_read_or_refused(config: Any) -> None:
    checkpoint = Checkpoint(Path("m"), {"quantization_config": config}, [])
    with contextlib.suppress(LoragraftError):
        found = read_quantization_config(checkpoint, [])
        assert all(tall > 0 and wide > 0 for tall, wide in found.blocks)
        assert found.algorithm("a.b") is None or isinstance(found.algorithm("a.b"), str)
