"""AWQ's gemv, GPTQ in Marlin's layout and HQQ, as the floats that their libraries quantized or make."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loragraft as lg
from checkpoints import Raw, changed
from intake_table import shows
from loragraft.errors import LoragraftError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.safetensors import SafetensorsFile, SafetensorsSpec, SafetensorsWriter
from loragraft.formats.views import float_rows
from loragraft.huggingface.hqq_weights import hqq_weight
from loragraft.huggingface.integer_weights import Integers, gptq_or_awq
from loragraft.huggingface.marlin_weights import marlin_weight
from paths import arrays

CASES = sorted({key.partition(":")[0] for key in arrays("golden/packed-weights.npz")})
DTYPES = {"u1": "U8", "i2": "BF16", "i4": "I32", "i8": "I64", "f2": "F16", "f4": "F32"}


def recorded(case: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors in a checkpoint, and what they mean."""
    tensors = {
        key.partition(":")[2]: array
        for key, array in arrays("golden/packed-weights.npz").items()
        if key.startswith(f"{case}:")
    }
    floats = tensors.pop("floats")
    if "bfloat16" in case:
        floats = (floats.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return tensors, floats.astype(np.float32)


def raw_of(array: np.ndarray) -> Raw:
    """NumPy has the bits of BF16 as int16."""
    dtype = DTYPES[array.dtype.str[1:]]
    return Raw(dtype, array.shape, np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8))


def opened(folder: Path, case: str, tensors: dict[str, np.ndarray]) -> Any:
    """Finds them in a file."""
    folder.mkdir(exist_ok=True)
    raw = {name: raw_of(array) for name, array in tensors.items()}
    specs = [SafetensorsSpec(name, one.dtype, one.shape) for name, one in raw.items()]
    with SafetensorsWriter(folder / "x.safetensors", specs) as writer:
        for name, one in raw.items():
            writer.write(name, 0, one.data)
    return SafetensorsFile.open(folder / "x.safetensors").tensors.get


def read(path: Path, case: str, find: Any) -> Integers:
    kind, group = case.split("-")[:2]
    if kind == "gemv":
        config = {"quant_method": "awq", "version": "gemv", "bits": 4, "group_size": int(group)}
        return gptq_or_awq(path, config, "w", find)
    return marlin_weight(path, "w", find) if kind == "marlin" else hqq_weight(path, "w", find)


def floats(weight: Integers) -> np.ndarray:
    """All rows, read in uneven pieces."""
    source = weight.source
    ends = sorted({end for end in (0, 1, 8, 23, 100, source.n_rows) if end <= source.n_rows})
    parts = [float_rows(source.rows(start, stop), source.type) for start, stop in pairwise(ends)]
    return np.concatenate(parts)


@pytest.mark.parametrize("case", CASES)
def test_the_floats_are_the_librarys(case: str, tmp_path: Path) -> None:
    tensors, expected = recorded(case)
    weight = read(tmp_path, case, opened(tmp_path, case, tensors))
    found = floats(weight)
    if case.startswith("marlin"):
        found = found[::5]
    np.testing.assert_array_equal(found, expected)
    assert weight.bits == (int(case.split("-")[1]) if case.startswith("hqq") else 4)


def whole_matrix(method: str) -> dict[str, np.ndarray]:
    """The tensors of a matrix [256, 256]."""
    rng = np.random.default_rng(5)
    if method == "marlin":
        return recorded("marlin-2")[0]
    if method == "gemv":
        return {name: np.tile(array, (16, 1)) for name, array in recorded("gemv-128")[0].items()}
    settings = recorded("hqq-4-1-float16")[0]
    return {
        **settings,
        "W_q": rng.integers(0, 256, (512, 64), dtype=np.uint8),
        "scale": rng.uniform(0.002, 0.01, (1024, 1)).astype(np.float16),
        "zero": rng.uniform(0, 15, (1024, 1)).astype(np.float16),
        "shape": np.array([256, 256]),
        "group_size": np.array(64, np.int32),
    }


Q = "model.layers.0.self_attn.q_proj"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemv": ("AWQ", {"quant_method": "awq", "version": "gemv", "bits": 4, "group_size": 128}),
    "marlin": ("GPTQ", {"quant_method": "gptq", "bits": 4, "group_size": 128, "is_marlin_format": True}),
    "hqq": ("HQQ", {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}}),
}


@shows("04", "AWQ's gemv, GPTQ in Marlin's layout, HQQ", "named; read to the bit with `--dequantize`")
@pytest.mark.parametrize("method", METHODS)
def test_a_folder(method: str, tmp_path: Path) -> None:
    """Converts to what the same folder with the floats does."""
    tensors, (who, config) = whole_matrix(method), METHODS[method]
    expected = floats(read(tmp_path, f"{method}-128", opened(tmp_path / "x", method, tensors)))

    def packed(own: dict[str, Any], weights: dict[str, Raw]) -> None:
        del weights[f"{Q}.weight"]
        weights |= {f"{Q}.{name}": raw_of(array) for name, array in tensors.items()}
        own["quantization_config"] = config

    def plain(own: dict[str, Any], weights: dict[str, Raw]) -> None:
        weights[f"{Q}.weight"] = raw_of(expected.astype(np.float16))

    one, other = (changed(tmp_path / edit.__name__, edit, "llama-kjv") for edit in (packed, plain))
    with pytest.raises(LoragraftError, match=rf"quantized by {who} to 4 bits, .*convert .* --dequantize -o"):
        lg.convert(one, tmp_path / "o.gguf")
    report = lg.convert(one, tmp_path / "o.gguf", type="F16", dequantize=True)
    assert any(f"{who} quantized it to 4 bits" in note for note in report.notes)
    lg.convert(other, tmp_path / "e.gguf", type="F16")
    found, wanted = (GGUFFile.open(tmp_path / name).tensors for name in ("o.gguf", "e.gguf"))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name].data(), tensor.data(), name)


def whole(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int32)


def text(value: str) -> np.ndarray:
    return np.frombuffer(value.encode(), np.uint8)


HUGE = np.array([1 << 30, 1 << 30])


@pytest.mark.parametrize(
    ("case", "change", "says"),
    [
        ("gemv-64", {"qzeros": whole(16, 0)}, "qzeros of w does not fit"),
        ("gemv-32", {"qzeros": whole(16, 1)}, "qzeros of w does not fit: .*at least 2"),
        ("gemv-32", {"qzeros": whole(15, 4)}, "qzeros of w does not fit"),
        ("gemv-32", {"scales": np.ones((16, 10), "f2")}, "scales of w does not fit: .*at least 11"),
        ("gemv-32", {"scales": np.full((16, 32), np.inf, "f2")}, "the scales of w hold NaN or infinity"),
        (
            "gemv-128",
            {"qweight": whole(16, 31)},
            "w does not fall into groups: found 248 inputs, group_size 128",
        ),
        ("marlin-2", {"s": None}, "B and s of w do not fit each other"),
        ("marlin-2", {"s": np.ones((3, 256), "f2")}, "B and s of w do not fit each other"),
        ("marlin-2", {"s": np.ones((2, 255), "f2")}, "B and s of w do not fit each other"),
        ("marlin-2", {"s": np.ones((0, 256), "f2")}, "B and s of w do not fit each other"),
        ("marlin-2", {"B": whole(16, 511)}, "B and s of w do not fit each other"),
        ("marlin-2", {"B": whole(16)}, "B of w does not fit"),
        ("marlin-2", {"s": np.full((2, 256), np.nan, "f2")}, "hold NaN or infinity"),
        ("hqq-4-1-float16", {"shape": HUGE}, r"W_q of w does not fit"),
        ("hqq-4-1-float16", {"shape": np.array([-24, 48])}, "bad shape of w"),
        ("hqq-4-1-float16", {"shape": None}, "bad shape of w"),
        ("hqq-4-1-float16", {"group_size": np.array(1 << 30, "i4")}, "does not fall into groups of HQQ"),
        ("hqq-4-1-float16", {"group_size": np.array(0, "i4")}, "does not fall into groups of HQQ"),
        ("hqq-4-1-float16", {"group_size": None}, "bad group_size of w: found none"),
        ("hqq-4-1-float16", {"group_size": np.ones(7, "i4")}, "bad group_size of w"),
        ("hqq-4-1-float16", {"axis": np.array(2, "i4")}, "does not fall into groups of HQQ"),
        ("hqq-4-1-float16", {"scale": np.ones((71, 1), "f2")}, "scale of w does not fit"),
        ("hqq-4-1-float16", {"zero": None}, "zero of w does not fit: found none"),
        ("hqq-4-1-float16", {"zero": np.full((72, 1), np.nan, "f2")}, "hold NaN or infinity"),
        ("hqq-4-1-float16", {"W_q": np.ones((35, 16), "u1")}, "W_q of w does not fit"),
        ("hqq-4-1-float16", {"packing": text("4bit_32")}, "HQQ packs w in another way: found '4bit_32'"),
        ("hqq-4-1-float16", {"packing": text("x" * 99)}, "bad packing"),
        ("hqq-4-1-float16", {"packing": None}, "HQQ packs w in another way: found ''"),
        ("hqq-3-0-float16", {"W_q": whole(1, 72)}, "W_q of w does not fit"),
        ("hqq-4-1-float16", {"quant_zero": np.array(1, "u1")}, "the scales of w are quantized themselves"),
    ],
)
def test_what_does_not_fit(case: str, change: dict[str, Any], says: str, tmp_path: Path) -> None:
    tensors, _ = recorded(case)
    tensors = {name: array for name, array in {**tensors, **change}.items() if array is not None}
    with pytest.raises(LoragraftError, match=says) as refusal:
        read(tmp_path, case, opened(tmp_path, case, tensors))
    assert "\n" not in str(refusal.value)
