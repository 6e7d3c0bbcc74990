"""Checkpoints of GPTQ, AWQ and compressed-tensors: whole numbers with scales, as the floats that the libraries make."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import loragraft as lg
from intake_table import shows
from loragraft import Measurement
from loragraft.cli import app
from loragraft.errors import LoragraftError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.safetensors import SafetensorsFile
from loragraft.formats.views import float_rows
from loragraft.huggingface.integer_weights import Integers, byte_weight, gptq_or_awq, packed_weight
from loragraft.opening import open_model
from paths import arrays, data

GOLDEN = sorted({key.partition(":")[0] for key in arrays("golden/integer-weights.npz")})
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """int32 [words]: the codes as one large number, the first lowest. (Slowly, and in another way than the reader.)"""
    number = sum(int(code) << (bits * place) for place, code in enumerate(codes))
    return np.frombuffer(number.to_bytes(len(codes) * bits // 8, "little"), "<i4")


def gptq(
    shape: tuple[int, int], bits: int, group: int, *, first: bool, shuffled: bool, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of a weight [out, in] in GPTQ's layout (`first`: its first version), and what they mean."""
    rng = np.random.default_rng(seed)
    out, columns = shape
    groups = -(-columns // group)
    codes = rng.integers(0, 1 << bits, (columns, out))
    zeros = rng.integers(1 if first else 0, 1 << bits, (groups, out))
    scales = rng.uniform(0.002, 0.01, (groups, out)).astype(np.float16)
    order = np.arange(columns) // group
    if shuffled:
        order = rng.permutation(order)
    found = {
        "qweight": np.stack([stream(codes[:, column], bits) for column in range(out)], axis=1),
        "qzeros": np.stack([stream(row - int(first), bits) for row in zeros]),
        "scales": scales,
        "g_idx": order.astype(np.int32),
    }
    values = (codes - zeros[order]).astype(np.float32) * scales[order].astype(np.float32)
    return found, values.T.astype(np.float16)


def opened(folder: Path, tensors: dict[str, np.ndarray]) -> Any:
    folder.mkdir(exist_ok=True)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "x.safetensors"
    )
    return SafetensorsFile.open(folder / "x.safetensors").tensors.get


def floats(read: Integers) -> np.ndarray:
    """All rows, read in uneven pieces."""
    weight = read.source
    ends = [0, 1, 8, 23, weight.n_rows]
    parts = [float_rows(weight.rows(start, stop), weight.type) for start, stop in pairwise(ends)]
    return np.concatenate(parts)


@pytest.mark.parametrize("case", GOLDEN)
def test_the_floats_are_the_librarys(case: str, tmp_path: Path) -> None:
    tensors = {
        key.partition(":")[2]: array
        for key, array in arrays("golden/integer-weights.npz").items()
        if key.startswith(f"{case}:")
    }
    expected = tensors.pop("floats")
    find = opened(tmp_path, tensors)
    if case == "awq":
        read = gptq_or_awq(tmp_path, {"quant_method": "awq"}, "w", find)
        assert gptq_or_awq(tmp_path, {}, "w", find).bits == 4  # the shapes tell
    elif "weight" in tensors:
        read = byte_weight(tmp_path, "w", find("weight"), find)
    else:
        read = packed_weight(tmp_path, "w", find("weight_packed"), find, None)
    np.testing.assert_array_equal(floats(read), expected.astype(np.float32))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("shuffled", [True, False])
def test_gptq_reads_as_it_was_packed(bits: int, first: bool, shuffled: bool, tmp_path: Path) -> None:
    tensors, expected = gptq((64, 96), bits, 32, first=first, shuffled=shuffled)
    config = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq" if first else "gptq_v2"}
    read = gptq_or_awq(tmp_path, config, "w", opened(tmp_path, tensors))
    assert read.bits == bits  # what the tensors say
    np.testing.assert_array_equal(floats(read), expected.astype(np.float32))
    del tensors["g_idx"]
    if not shuffled:
        config |= {"bits": bits, "group_size": 32}
        read = gptq_or_awq(tmp_path, config, "w", opened(tmp_path, tensors))
        np.testing.assert_array_equal(floats(read), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("packing", "first"),
    [
        ("auto_round:auto_gptq", True),
        ("auto_round:gptq", True),
        (None, True),
        ("auto_round", False),
        ("auto_round:exllamav2", False),
        ("auto_round:gptqmodel", False),
    ],
)
def test_autorounds_own_words_for_gptqs_layouts(packing: str | None, first: bool, tmp_path: Path) -> None:
    """Zero points less 1, or as they are; modules may have bits of their own."""
    tensors, expected = gptq((64, 96), 4, 32, first=first, shuffled=False)
    del tensors["g_idx"]
    config: dict[str, Any] = {"quant_method": "auto-round", "bits": 2, "group_size": 32, "data_type": "int"}
    config["extra_config"] = {"w": {"bits": 4}, "other": {"bits": 16}}
    if packing is not None:
        config["packing_format"] = packing
    read = gptq_or_awq(tmp_path, config, "w.weight", opened(tmp_path, tensors))
    assert read.bits == 4
    np.testing.assert_array_equal(floats(read), expected.astype(np.float32))


def test_autorounds_words_for_awqs_layout(tmp_path: Path) -> None:
    tensors = {
        key.partition(":")[2]: array
        for key, array in arrays("golden/integer-weights.npz").items()
        if key.startswith("awq:")
    }
    expected = tensors.pop("floats").astype(np.float32)
    config = {"quant_method": "intel/auto-round", "packing_format": "auto_round:auto_awq", "bits": 4}
    read = gptq_or_awq(tmp_path, config, "w.weight", opened(tmp_path, tensors))
    np.testing.assert_array_equal(floats(read), expected)


@pytest.mark.parametrize(
    "other",
    [{"packing_format": "auto_round:mlx"}, {"packing_format": "auto_round:fp8"}, {"data_type": "mx_fp"}],
)
def test_what_is_not_read_of_autoround(other: dict[str, str], tmp_path: Path) -> None:
    tensors, _ = gptq((64, 96), 4, 32, first=True, shuffled=False)
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, **other}
    with pytest.raises(
        LoragraftError, match=r"AutoRound's weights in a layout that is not read: found packing"
    ):
        gptq_or_awq(tmp_path, config, "w.weight", opened(tmp_path, tensors))


def test_a_folder_of_autoround(tmp_path: Path) -> None:
    quantized, plain = folder(tmp_path, "auto-round", packing_format="auto_round:auto_gptq")
    lg.convert(plain, tmp_path / "e.gguf", type="F16")
    report = lg.convert(quantized, tmp_path / "o.gguf", type="F16", dequantize=True)
    assert any("AutoRound quantized it to 4 bits" in note for note in report.notes)
    found, expected = (GGUFFile.open(tmp_path / name).tensors for name in ("o.gguf", "e.gguf"))
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name].data(), tensor.data(), name)


def test_groups_in_another_order(tmp_path: Path) -> None:
    """weight_g_idx of compressed-tensors; -1 means that it was not set."""
    tensors = {
        key.partition(":")[2]: array
        for key, array in arrays("golden/integer-weights.npz").items()
        if key.startswith("int4-group-asym:")
    }
    plain = tensors.pop("floats").astype(np.float32)
    order = np.random.default_rng(0).permutation(np.arange(96) // 32).astype(np.int32)
    for index in (order, np.full(96, -1, np.int32)):
        find = opened(tmp_path, {**tensors, "weight_g_idx": index})
        found = floats(packed_weight(tmp_path, "w", find("weight_packed"), find, 4))
        if index[0] == -1:
            np.testing.assert_array_equal(found, plain)
            continue
        scales = tensors["weight_scale"].astype(np.float32)
        words = tensors["weight_zero_point"].view(np.uint32)
        zeros = (words[:, None] >> np.arange(0, 32, 4, dtype=np.uint32)[:, None] & 15).reshape(64, 3)
        codes = tensors["weight_packed"].view(np.uint32)
        codes = (codes[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15).reshape(64, 96)
        expected = (codes.astype(np.float32) - zeros[:, order]) * scales[:, order]
        np.testing.assert_array_equal(found, expected.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 3)])
def test_packed_weights_under_one_scale(shape: tuple[int, ...], tmp_path: Path) -> None:
    """For all rows, or for each group of all rows."""
    tensors = {
        key.partition(":")[2]: array
        for key, array in arrays("golden/integer-weights.npz").items()
        if key.startswith("int4-group:")
    }
    del tensors["floats"]
    tensors["weight_scale"] = np.linspace(0.5, 2, shape[-1]).astype(np.float16).reshape(shape)
    find = opened(tmp_path, tensors)
    found = floats(packed_weight(tmp_path, "w", find("weight_packed"), find, 4))
    codes = tensors["weight_packed"].view(np.uint32)
    codes = (codes[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15).reshape(64, 96).astype(np.float32)
    scales = np.repeat(tensors["weight_scale"].reshape(-1).astype(np.float32), 96 // shape[-1])
    np.testing.assert_array_equal(found, ((codes - 8) * scales).astype(np.float16).astype(np.float32))


# ---- whole folders ----


def folder(path: Path, method: str, **settings: Any) -> tuple[Path, Path]:
    """llama-kjv with two of its weights quantized, and with these weights as floats."""
    quantized, plain = path / "quantized", path / "plain"
    tensors = load_file(data("llama-kjv") / "model.safetensors")
    others = dict(tensors)
    for number, module in enumerate((Q, DOWN)):
        shape = tensors.pop(f"{module}.weight").shape
        assert len(shape) == 2
        parts, values = gptq(shape, 4, 128 if module == DOWN else 64, first=True, shuffled=True, seed=number)
        tensors |= {f"{module}.{part}": array for part, array in parts.items()}
        others[f"{module}.weight"] = values
    for out, content in ((quantized, tensors), (plain, others)):
        shutil.copytree(data("llama-kjv"), out)
        content = {name: np.ascontiguousarray(array) for name, array in content.items()}
        save_file(content, out / "model.safetensors")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128, **settings}
    (quantized / "config.json").write_text(json.dumps(config))
    return quantized, plain


@shows("04", "GPTQ (2, 3, 4, 8 bits, act-order, v1 and v2), AWQ, compressed-tensors' int4 and int8",
       "named; read to the bit with `--dequantize`")  # fmt: skip
def test_converting_is_converting_the_floats(tmp_path: Path) -> None:
    quantized, plain = folder(tmp_path, "gptq")
    with pytest.raises(
        LoragraftError,
        match=r"quantized by GPTQ to 4 bits, .*; make a GGUF of it: loragraft convert .* --dequantize -o",
    ):
        lg.convert(quantized, tmp_path / "o.gguf")
    for type_ in ("F16", "Q4_K_M"):
        report = lg.convert(quantized, tmp_path / "o.gguf", type=type_, dequantize=True)
        lg.convert(plain, tmp_path / "e.gguf", type=type_)
        assert any("GPTQ quantized it to 4 bits" in note for note in report.notes)
        found, expected = (GGUFFile.open(tmp_path / name).tensors for name in ("o.gguf", "e.gguf"))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name].data(), tensor.data(), name)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_it_runs_as_it_is(tmp_path: Path, with_adapter: bool) -> None:
    """`run` and `compare` need no GGUF made first; what was dequantized is said once."""
    quantized, plain = folder(tmp_path, "gptq")
    adapter = ["--lora", str(data("llama-kjv.shakespeare"))] if with_adapter else []

    def shown(path: Path) -> tuple[str, str]:
        more = ["-p", "And the", "-n", "12", "--temp", "0", "--threads", "1"]
        done = CliRunner().invoke(app, ["run", str(path), *adapter, *more])
        assert done.exit_code == 0, done.output
        return done.stdout, done.stderr

    (found, said), (expected, nothing) = shown(quantized), shown(plain)
    assert found == expected
    assert said.count("GPTQ quantized it to 4 bits") == 1
    assert "GPTQ" not in nothing


def test_it_is_compared_as_it_is(tmp_path: Path) -> None:
    """With what `merge --base-as-trained` makes of it."""
    quantized, plain = folder(tmp_path, "gptq")
    adapter = data("llama-kjv.shakespeare")
    text = Measurement("In the beginning God created the heaven and the earth. " * 12, context=64, windows=2)
    found, expected = (lg.compare(path, adapter, text=text, types=["Q4_K_M"]) for path in (quantized, plain))
    assert found.as_dict() == expected.as_dict()


def test_an_adapter_merged_into_the_base_as_trained(tmp_path: Path) -> None:
    quantized, plain = folder(tmp_path, "gptq")
    adapter = str(data("llama-kjv.shakespeare"))
    command = ["merge", str(quantized), "--lora", adapter, "-o", str(tmp_path / "o.gguf"), "--type", "Q8_0"]
    assert CliRunner().invoke(app, command).exit_code == 1
    done = CliRunner().invoke(app, [*command, "--base-as-trained"])
    assert done.exit_code == 0, done.output
    lg.merge(plain, adapter, tmp_path / "e.gguf", type="Q8_0")
    found, expected = (GGUFFile.open(tmp_path / name) for name in ("o.gguf", "e.gguf"))
    said = found.metadata["loragraft.base.as_trained"].data
    assert said == "GPTQ quantized it to 4 bits (2 weights)"
    assert "loragraft.base.as_trained" not in expected.metadata
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name].data(), tensor.data(), name)
    command[1] = str(plain)
    done = CliRunner().invoke(app, [*command, "--base-as-trained"])
    assert done.exit_code == 1
    assert "holds no quantized weights that become floats" in done.output
    assert "leave --base-as-trained out" in done.output


# ---- what does not fit ----


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"qweight": None}, "g_idx belongs to a quantized weight that is not there"),
        ({"qzeros": None}, "qzeros of .* does not fit: found none"),
        ({"scales": None}, "scales of .* does not fit: found none"),
        ({"scales": np.ones((3, 64), "f2")}, "scales of .* does not fit"),
        ({"scales": np.full((4, 256), np.nan, "f2")}, "the scales of .* hold NaN"),
        ({"qzeros": np.ones((4, 31), "i4")}, "qzeros of .* does not fit"),
        ({"g_idx": np.full(256, 4, "i4")}, "scales of .* does not fit: .*g_idx"),
        ({"g_idx": np.full(256, -1, "i4")}, "scales of .* does not fit: .*g_idx"),
        ({"g_idx": np.zeros(0, "i4")}, "does not fit|into groups"),
        ({"g_idx": np.zeros(100, "i4")}, "does not fit"),
        ({"qweight": np.ones((32, 256), "f4")}, "qweight of .* does not fit: found F32"),
        ({"checkpoint_format": "marlin"}, "in a layout that is not read: found 'marlin'"),
        (
            {"quant_method": "awq", "version": "gemv_fast"},
            "in a layout that is not read: found version gemv_fast",
        ),
        ({"quant_method": "awq", "version": "gemv"}, "does not fit"),
        ({"quant_method": "awq"}, "does not fit"),
        ({"quant_method": "aqlm"}, "unsupported quantization: quant_method"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    quantized, _ = folder(tmp_path, "gptq")
    tensors = load_file(quantized / "model.safetensors")
    config = json.loads((quantized / "config.json").read_text())
    for key, value in change.items():
        if key in ("qweight", "qzeros", "scales", "g_idx"):
            tensors.pop(f"{Q}.{key}")
            if value is not None:
                tensors[f"{Q}.{key}"] = value
        else:
            config["quantization_config"][key] = value
    save_file(tensors, quantized / "model.safetensors")
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoragraftError, match=says):
        open_model(quantized, dequantize=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight_shape": None}, "weight_shape of w does not fit"),
        ({"weight_shape": np.array([64, 1 << 40])}, "weight_shape of w does not fit"),
        ({"weight_shape": np.array([1 << 40, 96])}, "weight_shape of w does not fit"),
        ({"weight_shape": np.array([64, -96])}, "weight_shape of w does not fit"),
        ({"weight_scale": np.ones((64, 5), "f2")}, "does not fall into groups"),
        ({"weight_scale": np.ones((63, 3), "f2")}, "weight_scale of w does not fit"),
        ({"weight_zero_point": np.ones((64, 3), "i4")}, "weight_zero_point of w does not fit"),
        ({"weight_g_idx": np.full(96, 3, "i4")}, "weight_g_idx of w does not fit"),
    ],
)
def test_packed_weights_that_do_not_fit(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    tensors = {
        key.partition(":")[2]: array
        for key, array in arrays("golden/integer-weights.npz").items()
        if key.startswith("int4-group-asym:") and not key.endswith("floats")
    }
    tensors = {name: array for name, array in {**tensors, **change}.items() if array is not None}
    find = opened(tmp_path, tensors)
    with pytest.raises(LoragraftError, match=says):
        packed_weight(tmp_path, "w", find("weight_packed"), find, 4)
