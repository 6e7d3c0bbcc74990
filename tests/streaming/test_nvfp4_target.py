"""NVFP4 as a target of `quantize` and `merge`: which tensors, which scales, which codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_files import write_gguf
from loragraft.adapters.delta import Delta, add_deltas
from loragraft.errors import QuantizeError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.gguf.values import Value
from loragraft.formats.split import SplitLimits
from loragraft.opening import load_adapter, open_model
from loragraft.quants import reference
from loragraft.quants.nvfp4 import NVFP4, dequantize_nvfp4, quantize_nvfp4, tensor_scale
from loragraft.quants.roles import scale_group
from loragraft.quants.types import BY_NAME, F16
from loragraft.streaming.options import QuantizeOptions, tensor_type
from loragraft.verbs.merge import merge
from loragraft.verbs.quantize import quantize
from loragraft.verbs.split import split
from paths import data


def rounded(x: np.ndarray) -> np.ndarray:
    """As the F16 file in between would hold it."""
    return reference.dequantize(reference.quantize(x, F16), F16)


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The bytes of every tensor, rows first, and its type."""
    with GGUFFile.open(path) as file:
        return {n: t.data().copy() for n, t in file.tensors.items()}, {
            n: t.type.name for n, t in file.tensors.items()
        }


def floats(path: Path, name: str) -> np.ndarray:
    with GGUFFile.open(path) as file:
        tensor = file.tensors[name]
        return reference.dequantize(tensor.data(), tensor.type)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tuned model in F16, which the quantized ones are held against."""
    path = tmp_path_factory.mktemp("merged") / "f16.gguf"
    merge(data("llama-kjv"), [(data("llama-kjv.shakespeare"), 1.0)], path, type="F16")
    return path


def test_which_tensors(merged: Path, tmp_path: Path) -> None:
    for target, attention in (("NVFP4", "NVFP4"), ("NVFP4_MLP", "Q8_0")):
        quantize(merged, tmp_path / "out.gguf", target)
        _, types = read(tmp_path / "out.gguf")
        weights = {n: t for n, t in types.items() if n.endswith(".weight") and "norm" not in n}
        assert weights.pop("token_embd.weight") == weights.pop("output.weight") == "Q8_0"
        assert {t for n, t in weights.items() if "attn" in n} == {attention}
        assert {t for n, t in weights.items() if "ffn" in n} == {"NVFP4"}
        assert {n for n in types if n.endswith(".scale")} == {
            n.replace(".weight", ".scale") for n, t in weights.items() if t == "NVFP4"
        }
    quantize(merged, tmp_path / "out.gguf", "NVFP4", options=QuantizeOptions(output_tensor_type=F16))
    assert read(tmp_path / "out.gguf")[1]["output.weight"] == "F16"


def test_scales_and_codes(merged: Path, tmp_path: Path) -> None:
    """ModelOpt's rule for the scale, over what shares an input; the codes are those of the NumPy quantizer."""
    quantize(merged, tmp_path / "out.gguf", "NVFP4")
    found, _ = read(tmp_path / "out.gguf")
    for names in (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"), ("ffn_down",), ("attn_output",)):
        weights = {name: floats(merged, f"blk.1.{name}.weight") for name in names}
        scale = tensor_scale(max(float(np.abs(w).max()) for w in weights.values()))
        for name, weight in weights.items():
            assert found[f"blk.1.{name}.scale"].view(np.float32).tolist() == [[np.float32(scale)]]
            assert np.array_equal(found[f"blk.1.{name}.weight"], quantize_nvfp4(weight, scale))


def test_importance_weighs_the_search(merged: Path, tmp_path: Path) -> None:
    imatrix = data("gguf/llama-kjv.merged.imatrix.gguf")
    quantize(merged, tmp_path / "plain.gguf", "NVFP4")
    quantize(merged, tmp_path / "out.gguf", "NVFP4", options=QuantizeOptions(imatrix=imatrix))
    from loragraft.formats.imatrix import Imatrix

    name = "blk.2.ffn_down"
    importance = Imatrix.load(imatrix).importance(f"{name}.weight", (256, 768))
    assert importance is not None
    wanted = floats(merged, f"{name}.weight")
    errors = []
    for path in ("plain.gguf", "out.gguf"):
        tensors, _ = read(tmp_path / path)
        scale = float(tensors[f"{name}.scale"].view(np.float32)[0, 0])
        wrong = dequantize_nvfp4(tensors[f"{name}.weight"], scale) - wanted
        errors.append(float((importance[0] * wrong.astype(np.float64) ** 2).sum()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("name", ["llama-kjv-nvfp4", "qwen2-bias-nvfp4"])
def test_merging_into_an_nvfp4_base(name: str, tmp_path: Path) -> None:
    """Codes times both scales, plus the delta, quantized under a new scale; what no adapter touches is copied."""
    adapter = {"llama-kjv-nvfp4": "llama-kjv.shakespeare", "qwen2-bias-nvfp4": "qwen2-bias.rslora"}[name]
    model = open_model(data(name))
    pairs = load_adapter(data(adapter), model).pairs
    report = merge(data(name), [(data(adapter), 1.0)], tmp_path / "out.gguf")
    assert report.target.name == "NVFP4"
    merge(data(name), [], tmp_path / "base.gguf", type="COPY")
    base, _ = read(tmp_path / "base.gguf")
    found, types = read(tmp_path / "out.gguf")
    sums = {}
    for target, pair in pairs.items():
        old = float(base[target.replace(".weight", ".scale")].view(np.float32)[0, 0])
        weight = reference.dequantize(base[target], NVFP4) * np.float32(old)
        sums[target] = rounded(add_deltas(weight, [Delta(pair.a, pair.b, pair.scale)]))
    for target, total in sums.items():
        together = [scale_group(other) == scale_group(target) for other in sums]
        amax = max(float(np.abs(x).max()) for x, same in zip(sums.values(), together, strict=True) if same)
        scale = tensor_scale(amax)
        assert found[target.replace(".weight", ".scale")].view(np.float32)[0, 0] == np.float32(scale)
        assert np.array_equal(found[target], quantize_nvfp4(total, scale))
        inputs = target.replace(".weight", ".input_scale")
        assert np.array_equal(found[inputs], base[inputs])
    for other in set(found) - set(sums):
        if types[other] == "NVFP4":
            assert np.array_equal(found[other], base[other])


def test_requantizing_an_nvfp4_base_to_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="already quantized"):
        merge(
            data("llama-kjv-nvfp4"),
            [(data("llama-kjv.shakespeare"), 1.0)],
            tmp_path / "out.gguf",
            type="Q4_K_M",
        )
    assert list(tmp_path.iterdir()) == []


def experts_model(path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        f"blk.0.ffn_{part}_exps.weight": (
            rng.standard_normal((3, 64, 64)) * 10.0 ** np.arange(-2, 1)[:, None, None]
        ).astype(np.float32)
        for part in ("gate", "up", "down")
    }
    metadata = {"general.architecture": Value.string("qwen3moe"), "qwen3moe.block_count": Value.u32(1)}
    write_gguf(path, {**metadata, "qwen3moe.expert_count": Value.u32(3)}, arrays)
    return arrays


def test_every_expert_has_its_own_scale(tmp_path: Path) -> None:
    arrays = experts_model(tmp_path / "in.gguf")
    quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "NVFP4")
    found, _ = read(tmp_path / "out.gguf")
    for part, together in (("gate", ("gate", "up")), ("down", ("down",))):
        amax = np.max(
            [np.abs(arrays[f"blk.0.ffn_{p}_exps.weight"]).max(axis=(1, 2)) for p in together], axis=0
        )
        expected = np.array([tensor_scale(float(a)) for a in amax], np.float32)
        assert found[f"blk.0.ffn_{part}_exps.scale"].view(np.float32).ravel().tolist() == expected.tolist()
        weight = arrays[f"blk.0.ffn_{part}_exps.weight"]
        rows = [quantize_nvfp4(w, float(scale)) for w, scale in zip(weight, expected, strict=True)]
        assert np.array_equal(found[f"blk.0.ffn_{part}_exps.weight"], np.concatenate(rows))


def test_by_tensor_type_and_ggmls_own(merged: Path, tmp_path: Path) -> None:
    ffn = [tensor_type("ffn_down=nvfp4")]
    quantize(merged, tmp_path / "out.gguf", "Q8_0", options=QuantizeOptions(tensor_types=ffn))
    naive = QuantizeOptions(tensor_types=ffn, nvfp4_naive=True)
    quantize(merged, tmp_path / "naive.gguf", "Q8_0", options=naive)
    found, types = read(tmp_path / "out.gguf")
    plain, _ = read(tmp_path / "naive.gguf")
    assert {n for n in found if n.endswith(".scale")} == {f"blk.{i}.ffn_down.scale" for i in range(4)}
    assert [n for n in plain if n.endswith(".scale")] == []
    name = "blk.0.ffn_down.weight"
    assert types[name] == "NVFP4"
    wanted = floats(merged, name)
    assert np.array_equal(plain[name], reference.quantize(wanted, BY_NAME["NVFP4"]))
    scale = float(found["blk.0.ffn_down.scale"].view(np.float32)[0, 0])

    def error(x: np.ndarray) -> float:
        return float(np.square(x - wanted).sum() / np.square(wanted).sum())

    ours, theirs = error(dequantize_nvfp4(found[name], scale)), error(dequantize_nvfp4(plain[name], 1.0))
    assert ours < 0.0067
    assert ours < 0.75 * theirs


def test_scales_lie_beside_their_weights_in_a_split_output(merged: Path, tmp_path: Path) -> None:
    split(merged, tmp_path / "in", SplitLimits(max_tensors=12))
    first = sorted(tmp_path.glob("in-*"))[0]
    quantize(first, tmp_path / "kept.gguf", "NVFP4", options=QuantizeOptions(keep_split=True))
    quantize(
        merged, tmp_path / "cut.gguf", "NVFP4", options=QuantizeOptions(split=SplitLimits(max_tensors=9))
    )
    quantize(merged, tmp_path / "whole.gguf", "NVFP4")
    whole, _ = read(tmp_path / "whole.gguf")
    for kind in ("kept", "cut"):
        parts = [read(path)[0] for path in sorted(tmp_path.glob(f"{kind}-*"))]
        assert len(parts) > 1
        assert sum(map(len, parts)) == len(whole)
        together = {name: rows for part in parts for name, rows in part.items()}
        assert all(np.array_equal(together[name], rows) for name, rows in whole.items())
    for part in (read(path)[0] for path in sorted(tmp_path.glob("kept-*"))):
        for name in part:
            if name.endswith(".scale"):
                assert name.replace(".scale", ".weight") in part
