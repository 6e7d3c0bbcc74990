"""NVFP4's scales' codec and the repacking between ModelOpt's layout and GGUF's."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest

from loragraft.errors import FormatError, QuantizeError
from loragraft.quants import e4m3, native, nvfp4
from paths import data


def _nibbles(codes: np.ndarray) -> np.ndarray:
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)


# ---- E4M3


def test_e4m3_values_by_hand() -> None:
    by_hand = {
        0x00: 0.0,
        0x01: 2**-9,
        0x07: 7 * 2**-9,
        0x08: 2**-6,
        0x38: 1.0,
        0x39: 1.125,
        0x7E: 448.0,
        0xB8: -1.0,
    }
    assert {code: float(e4m3.VALUES[code]) for code in by_hand} == by_hand
    assert np.isnan(e4m3.VALUES[[0x7F, 0xFF]]).all()
    assert np.signbit(e4m3.VALUES[0x80])
    assert (np.diff(e4m3.VALUES[:127]) > 0).all()


def test_e4m3_encodes_every_value_to_its_own_code() -> None:
    assert (e4m3.encode(e4m3.VALUES) == np.arange(256)).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_e4m3_rounds_midpoints_to_even_and_their_neighbours_to_nearest(sign: int) -> None:
    low = np.arange(126)
    middle = ((e4m3.VALUES[low].astype(np.float64) + e4m3.VALUES[low + 1]) / 2).astype(np.float32)
    bit = 128 * (sign < 0)
    assert (e4m3.encode(sign * middle) == np.where(low % 2 == 0, low, low + 1) + bit).all()
    assert (e4m3.encode(sign * np.nextafter(middle, np.float32(0))) == low + bit).all()
    assert (e4m3.encode(sign * np.nextafter(middle, np.float32(1e9))) == low + 1 + bit).all()


def test_e4m3_saturates() -> None:
    assert e4m3.encode(np.array([449, 1e9, np.inf, -1e30], np.float32)).tolist() == [0x7E, 0x7E, 0x7E, 0xFE]


# ---- repacking


def test_repacking_places_every_code_and_scale() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (2, 3, 96), dtype=np.uint8)
    scales = rng.integers(0, 127, (2, 3, 12), dtype=np.uint8)
    packed = nvfp4.pack_modelopt(codes, scales)
    assert packed.shape == (2, 3, 3 * 36)
    blocks, wanted = packed.reshape(2, 3, 3, 36), _nibbles(codes).reshape(2, 3, 3, 4, 16)
    assert (blocks[..., :4].reshape(2, 3, 12) == scales).all()
    for sub in range(4):
        for j in range(8):
            byte = blocks[..., 4 + 8 * sub + j]
            assert (byte & 15 == wanted[..., sub, j]).all()
            assert (byte >> 4 == wanted[..., sub, 8 + j]).all()
    again = nvfp4.unpack_modelopt(packed)
    assert (again[0] == codes).all()
    assert (again[1] == scales).all()


@pytest.mark.parametrize(("byte", "position"), [(0x7F, (0, 3)), (0x81, (1, 0)), (0xFF, (1, 7))])
def test_a_scale_that_ggml_would_misread_is_refused(byte: int, position: tuple[int, int]) -> None:
    scales = np.full((2, 8), 0x38, np.uint8)
    scales[position] = byte
    with pytest.raises(FormatError, match=rf"blk\.0: .*0x{byte:02x} at \[{position[0]}, {position[1]}\]"):
        nvfp4.pack_modelopt(np.zeros((2, 64), np.uint8), scales, subject="blk.0")


def test_a_scale_of_minus_zero_becomes_zero() -> None:
    packed = nvfp4.pack_modelopt(np.zeros((1, 32), np.uint8), np.full((1, 4), 0x80, np.uint8))
    assert not packed.any()


def test_scales_in_gguf_that_ggml_reads_as_zero_or_unsigned() -> None:
    packed = np.zeros((1, 36), np.uint8)
    packed[0, 2] = 0x7F
    assert not nvfp4.unpack_modelopt(packed)[1].any()
    packed[0, 2] = 0xB8
    with pytest.raises(FormatError, match="0xb8"):
        nvfp4.unpack_modelopt(packed)


def test_columns_and_scales_must_fit() -> None:
    with pytest.raises(FormatError, match="found 96 columns, expected a multiple of 64"):
        nvfp4.pack_modelopt(np.zeros((2, 48), np.uint8), np.zeros((2, 6), np.uint8))
    with pytest.raises(FormatError, match="block scales do not fit"):
        nvfp4.pack_modelopt(np.zeros((2, 64), np.uint8), np.zeros((2, 4), np.uint8))


def _safetensor(path: Any, name: str) -> np.ndarray:
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8 : 8 + n])[name]
    start, stop = entry["data_offsets"]
    return np.frombuffer(raw[8 + n + start : 8 + n + stop], np.uint8).reshape(entry["shape"])


@pytest.mark.parametrize("module", ["mlp.down_proj", "mlp.gate_proj", "self_attn.v_proj"])
def test_repacking_equals_the_reference_converter(module: str) -> None:
    checkpoint = data("llama-kjv-nvfp4") / "model.safetensors"
    golden = json.loads(data("golden/convert.json").read_text())["llama-kjv-nvfp4"]["tensors"]
    name = {"mlp.down_proj": "ffn_down", "mlp.gate_proj": "ffn_gate", "self_attn.v_proj": "attn_v"}[module]
    prefix = f"model.layers.0.{module}.weight"
    packed = nvfp4.pack_modelopt(_safetensor(checkpoint, prefix), _safetensor(checkpoint, prefix + "_scale"))
    assert hashlib.sha256(packed.tobytes()).hexdigest() == golden[f"blk.0.{name}.weight"]["sha256"]


# ---- the quantizer


def _block_errors(x: np.ndarray, back: np.ndarray, w: np.ndarray | float = 1.0) -> np.ndarray:
    return (w * (x.astype(np.float64) - back) ** 2).reshape(-1, 16).sum(axis=1)


def _least_errors(x: np.ndarray, scale: float, w: np.ndarray) -> np.ndarray:
    """By brute force in float64: for every block the least error of all 126 scales."""
    y = np.abs(x.astype(np.float64)).reshape(-1, 16, 1) / np.float32(scale)
    codes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    least = np.full(len(y), np.inf)
    for value in e4m3.VALUES[1:127].astype(np.float64):
        nearest = np.abs(y - codes * value).min(axis=2) ** 2
        least = np.minimum(least, (w.reshape(-1, 16) * nearest).sum(axis=1))
    return least * np.float32(scale) ** 2


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_every_block_gets_the_scale_of_least_error(weighted: bool, spread: float) -> None:
    """Also where the block scales are subnormal (the tensor's largest weight is far larger than the rest)."""
    rng = np.random.default_rng(3)
    x = (rng.standard_cauchy((6, 256)) * 0.02).astype(np.float32)
    x[1::2] *= spread
    x[2] = 0
    w = rng.random(256, dtype=np.float32) ** 4 * (rng.random(256) < 0.8) if weighted else None
    scale = nvfp4.tensor_scale(float(np.abs(x).max()))
    back = nvfp4.dequantize_nvfp4(nvfp4.quantize_nvfp4(x, scale, w), scale)
    all_weights = np.broadcast_to(np.float32(1) if w is None else w, x.shape)
    error, least = _block_errors(x, back, all_weights), _least_errors(x, scale, all_weights)
    np.testing.assert_allclose(error, least, rtol=1e-5, atol=1e-5 * least.max() * 1e-9)


def test_error_on_gaussian_weights() -> None:
    x = (np.random.default_rng(0).standard_normal((256, 1024)) * 0.02).astype(np.float32)
    scale = nvfp4.tensor_scale(float(np.abs(x).max()))
    back = nvfp4.dequantize_nvfp4(nvfp4.quantize_nvfp4(x, scale), scale)
    assert ((x - back) ** 2).sum() / (x**2).sum() <= 0.0067


def test_representable_weights_survive() -> None:
    rng = np.random.default_rng(1)
    codes = rng.choice(np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -6], np.float32), (64, 16))
    x = (np.float32(0.25) * e4m3.VALUES[rng.integers(1, 127, (64, 1))] * codes).reshape(4, 256)
    assert (nvfp4.dequantize_nvfp4(nvfp4.quantize_nvfp4(x, 0.25), 0.25) == x).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [1e-40, 1e-20, 0.02, 1e30])
def test_native_equals_numpy(weighted: bool, size: float) -> None:
    rng = np.random.default_rng(7)
    x = (rng.standard_cauchy((9, 192)) * size).astype(np.float32)
    x[3], x[4, :64] = 0, 0
    x[5] = np.round(x[5] / np.float32(size)) * np.float32(size)
    w = rng.random(192, dtype=np.float32) ** 3 * (rng.random(192) < 0.9) if weighted else None
    for scale in (nvfp4.tensor_scale(float(np.abs(x).max())), np.float32(max(size / 100, 1e-44))):
        wanted = nvfp4.quantize_nvfp4(x, float(scale), w)
        for isa in native.isas():
            assert np.array_equal(native.quantize_nvfp4(x, float(scale), w, isa=isa), wanted), isa


def test_tensor_scale_is_modelopts() -> None:
    assert nvfp4.tensor_scale(2688.0) == 1.0
    assert nvfp4.tensor_scale(0.3) == float(np.float32(0.3) / np.float32(2688))
    assert nvfp4.tensor_scale(0.0) == 1.0


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(QuantizeError, match="per-tensor scale"):
        nvfp4.quantize_nvfp4(np.zeros((1, 64), np.float32), scale)
