"""`merge`: against llama-export-lora, and one pass against two steps, byte for byte."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import golden
from checkpoints import Raw, changed, nvfp4_formula
from gguf_files import write_gguf
from loragraft.adapters.delta import Delta, add_deltas
from loragraft.adapters.lora import Adapter, LoraPair
from loragraft.errors import AdapterError, OutputError, QuantizeError, UnsupportedError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.gguf.values import Value
from loragraft.formats.split import SplitLimits
from loragraft.inference.model import load
from loragraft.opening import load_adapter, open_model
from loragraft.quants import reference
from loragraft.quants.filetypes import file_type
from loragraft.quants.nvfp4 import dequantize_nvfp4
from loragraft.quants.types import BY_NAME, F16
from loragraft.streaming import steps
from loragraft.streaming.options import QuantizeOptions, tensor_type
from loragraft.verbs.check import check
from loragraft.verbs.merge import merge
from loragraft.verbs.quantize import quantize
from paths import data
from tolerances import nmse


def bits(path: Path) -> dict[str, np.ndarray]:
    with GGUFFile.open(path) as file:
        return {name: tensor.data().copy() for name, tensor in file.tensors.items()}


@pytest.mark.parametrize("adapter", ["llama-kjv.shakespeare", "gguf/llama-kjv.shakespeare-lora.gguf"])
def test_agrees_with_llama_export_lora(adapter: str, tmp_path: Path, summary: dict[str, str]) -> None:
    """The peer adds the rank's products in another order on some machines: at most 0.02 % may differ, by one unit."""
    report = merge(data("llama-kjv"), [(data(adapter), 1.0)], tmp_path / "out.gguf")
    recorded = json.loads(data("golden/convert.json").read_text())["llama-kjv.merged-f16"]
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        facts = {name: (t.type.name, list(reversed(t.shape))) for name, t in file.tensors.items()}
        assert facts == {name: (t["type"], t["shape"]) for name, t in recorded["tensors"].items()}
        for key, value in recorded["metadata"].items():
            if key not in ("general.name", "general.size_label") and not key.startswith("tokenizer.ggml."):
                assert file.metadata[key].data == pytest.approx(value), key
        assert list(file.metadata)[-1] == "general.file_type"
    assert [(use.tensors, use.targets) for use in report.adapters] == [(56, 28)]
    ours, theirs = bits(tmp_path / "out.gguf"), bits(data("gguf/llama-kjv.merged-f16.gguf"))
    differing = weights = 0
    for name, found in ours.items():
        if facts[name][0] == "F16" and name.startswith("blk."):
            distance = np.abs(found.view(np.int16).astype(int) - theirs[name].view(np.int16).astype(int))
            assert distance.max() <= 1
            differing += int((distance > 0).sum())
            weights += distance.size
        else:
            assert np.array_equal(found, theirs[name]), name
    summary[f"merge of {adapter}"] = f"{differing} of {weights} weights differ from llama-export-lora's"
    assert weights == 3145728
    assert differing <= 0.0002 * weights


TARGETS = ["Q8_0", "Q4_0", "IQ4_XS", "Q4_K_M", "Q6_K", "MXFP4_MOE", "NVFP4", "BF16", "F32"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("base", ["folder", "gguf"])
def test_one_pass_equals_two_steps(target: str, base: str, tmp_path: Path) -> None:
    model, adapters = data("llama-kjv"), [(data("llama-kjv.shakespeare"), 0.7)]
    if base == "gguf":
        merge(model, [], tmp_path / "base.gguf")
        model = tmp_path / "base.gguf"
    options = QuantizeOptions(tensor_types=[tensor_type("attn_v=q8_0")])
    merge(model, adapters, tmp_path / "one.gguf", type=target, options=options)
    merge(model, adapters, tmp_path / "f16.gguf")
    if file_type(target).is_float:
        # These are not rounded through F16, so only what no adapter touches is the same.
        quantize(tmp_path / "f16.gguf", tmp_path / "two.gguf", target)
        one, two = bits(tmp_path / "one.gguf"), bits(tmp_path / "two.gguf")
        assert {n for n in one if not np.array_equal(one[n], two[n])} == {
            n for n in one if "_norm" not in n
        } - {
            "output.weight",
            "token_embd.weight",
        }
        return
    quantize(tmp_path / "f16.gguf", tmp_path / "two.gguf", target, options=options)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        QuantizeOptions(prune_layers=frozenset({1})),
        QuantizeOptions(override_kv={"general.name": Value.string("x"), "llama.block_count": Value.u32(4)}),
        QuantizeOptions(leave_output_tensor=True, token_embedding_type=BY_NAME["Q5_0"]),
        QuantizeOptions(pure=True, output_tensor_type=BY_NAME["BF16"]),
        QuantizeOptions(imatrix=Path("imatrix.gguf"), exclude_weights=["blk.2."]),
        QuantizeOptions(split=SplitLimits(max_tensors=10)),
    ],
    ids=["prune", "override", "leave-output", "pure", "imatrix", "split"],
)
def test_options_mean_the_same_in_one_pass(
    options: QuantizeOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options.imatrix:
        shutil.copy(data("gguf/llama-kjv.merged.imatrix.gguf"), tmp_path / "imatrix.gguf")
    monkeypatch.chdir(tmp_path)
    adapters = [(data("llama-kjv.shakespeare"), 1.0)]
    merge(data("llama-kjv"), adapters, "f16.gguf")
    for folder in ("one", "two"):
        Path(folder).mkdir()
    merge(data("llama-kjv"), adapters, "one/out.gguf", type="Q4_K_S", options=options)
    quantize("f16.gguf", "two/out.gguf", "Q4_K_S", options=options)
    names = sorted(path.name for path in Path("one").iterdir())
    assert names == sorted(path.name for path in Path("two").iterdir())
    for name in names:
        assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes()


def test_merged_and_quantized_tensors_are_the_recorded_ones(tmp_path: Path) -> None:
    """On this machine the merge equals the peer's exactly, so every mix of it must, too."""
    run = next(run for run in golden.runs("llama-merged") if run.name == "Q8_0")
    merge(data("llama-kjv"), [(data("llama-kjv.shakespeare"), 1.0)], tmp_path / "out.gguf", type="Q8_0")
    found = {name: hashlib.sha256(rows).hexdigest() for name, rows in bits(tmp_path / "out.gguf").items()}
    assert found == {name: tensor["sha256"] for name, tensor in run.result["tensors"].items()}


def test_neither_chunks_nor_threads_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = [(data("llama-kjv.shakespeare"), 1.0), (data("llama-kjv.shakespeare"), -0.25)]
    merge(data("llama-kjv"), adapters, tmp_path / "one.gguf", type="Q8_0", threads=1)
    monkeypatch.setattr(steps, "CHUNK_WEIGHTS", 5000)
    merge(data("llama-kjv"), adapters, tmp_path / "many.gguf", type="Q8_0", threads=5)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()
    options = QuantizeOptions(max_memory=1)
    merge(data("llama-kjv"), adapters, tmp_path / "small.gguf", type="Q8_0", threads=2, options=options)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "small.gguf").read_bytes()


def test_fused_experts(tmp_path: Path) -> None:
    merge(data("qwen3moe-8x"), [(data("qwen3moe-8x.experts"), 1.0)], tmp_path / "one.gguf", type="Q8_0")
    merge(data("qwen3moe-8x"), [(data("qwen3moe-8x.experts"), 1.0)], tmp_path / "f16.gguf")
    quantize(tmp_path / "f16.gguf", tmp_path / "two.gguf", "Q8_0")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    model = open_model(data("qwen3moe-8x"))
    untouched = open_model(tmp_path / "f16.gguf").tensors["blk.0.ffn_down_exps.weight"]
    source = model.tensors["blk.0.ffn_down_exps.weight"]
    assert not np.array_equal(untouched.rows(0, 8), source.rows(0, 8))


# ---- small models made for one question each ----


def small_base(path: Path, **tensors: np.ndarray) -> Path:
    metadata = {"general.architecture": Value.string("llama"), "llama.block_count": Value.u32(1)}
    named = {f"blk.0.{name}.weight": array for name, array in tensors.items()}
    return write_gguf(path, metadata, named)


def adapter_of(**pairs: tuple[np.ndarray, np.ndarray]) -> Adapter:
    loras = {
        f"blk.0.{name}.weight": LoraPair(f"blk.0.{name}.weight", a, b, 1.0) for name, (a, b) in pairs.items()
    }
    return Adapter(Path("adapter"), loras, n_tensors=2 * len(loras))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_target_that_the_base_has_not(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base.gguf", attn_q=normal(0, 64, 64))
    adapter = adapter_of(
        attn_q=(normal(1, 4, 64), normal(2, 64, 4)), attn_x=(normal(1, 4, 64), normal(2, 64, 4))
    )
    with pytest.raises(AdapterError, match=r"1 of its 2 targets .* found blk\.0\.attn_x\.weight"):
        merge(base, [(adapter, 1.0)], tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_pair_of_another_shape_names_both(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base.gguf", attn_q=normal(0, 64, 96))
    adapter = adapter_of(attn_q=(normal(1, 4, 64), normal(2, 64, 4)))
    message = r"shape \[64, 96\]: found A \[4, 64\] and B \[64, 4\], expected A \[4, 96\] and B \[64, 4\]"
    with pytest.raises(AdapterError, match=message):
        merge(base, [(adapter, 1.0)], tmp_path / "out.gguf")


def test_a_sum_too_large_for_f16_is_named(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base.gguf", attn_q=np.zeros((64, 64), np.float32))
    b = np.zeros((64, 1), np.float32)
    b[7] = 1e6
    adapter = adapter_of(attn_q=(np.ones((1, 64), np.float32), b))
    with pytest.raises(QuantizeError, match=r"'blk\.0\.attn_q\.weight', row 7, column 0 does not fit F16"):
        merge(base, [(adapter, 1.0)], tmp_path / "out.gguf", type="Q8_0")
    merge(base, [(adapter, 1.0)], tmp_path / "out.gguf", type="BF16")


def test_a_quantized_base(tmp_path: Path) -> None:
    """Dequantizing needs no leave, quantizing again does; what no adapter touches is copied."""
    x, adapter = normal(0, 64, 64), adapter_of(attn_q=(normal(1, 4, 64), normal(2, 64, 4)))
    base = small_base(tmp_path / "base.gguf", attn_q=x, attn_k=normal(3, 64, 64))
    quantize(base, tmp_path / "q8.gguf", "Q8_0")
    stored = open_model(tmp_path / "q8.gguf").tensors
    expected = add_deltas(
        reference.dequantize(stored["blk.0.attn_q.weight"].rows(0, 64), BY_NAME["Q8_0"]),
        [the_delta(adapter)],
    )
    merge(tmp_path / "q8.gguf", [(adapter, 1.0)], tmp_path / "f32.gguf", type="F32")
    found = bits(tmp_path / "f32.gguf")["blk.0.attn_q.weight"]
    assert np.array_equal(found.view(np.float32), expected)
    with pytest.raises(QuantizeError, match=r"already quantized.*--allow-requantize"):
        merge(tmp_path / "q8.gguf", [(adapter, 1.0)], tmp_path / "out.gguf", type="Q8_0")
    allowed = QuantizeOptions(allow_requantize=True)
    merge(tmp_path / "q8.gguf", [(adapter, 1.0)], tmp_path / "out.gguf", type="Q8_0", options=allowed)
    out = bits(tmp_path / "out.gguf")
    assert np.array_equal(out["blk.0.attn_k.weight"], stored["blk.0.attn_k.weight"].rows(0, 64))
    rounded = reference.dequantize(reference.quantize(expected, F16), F16)
    assert np.array_equal(out["blk.0.attn_q.weight"], reference.quantize(rounded, BY_NAME["Q8_0"]))


def the_delta(adapter: Adapter) -> Delta:
    (pair,) = adapter.pairs.values()
    return Delta(pair.a, pair.b, pair.scale)


def test_the_scale_of_an_adapted_tensor_is_folded_in(tmp_path: Path) -> None:
    """NVFP4 keeps a scale per tensor beside it. The delta belongs to the scaled weights, and the scale then goes."""
    x = normal(0, 64, 64)
    metadata = {"general.architecture": Value.string("llama"), "llama.block_count": Value.u32(1)}
    tensors = {"blk.0.attn_q.weight": x, "blk.0.attn_q.scale": np.full(1, 0.5, np.float32)}
    tensors |= {"blk.0.attn_k.weight": x, "blk.0.attn_k.scale": np.full(1, 0.5, np.float32)}
    base = write_gguf(tmp_path / "base.gguf", metadata, tensors)
    adapter = adapter_of(attn_q=(normal(1, 4, 64), normal(2, 64, 4)))
    merge(base, [(adapter, 1.0)], tmp_path / "out.gguf", type="F32")
    out = bits(tmp_path / "out.gguf")
    assert sorted(out) == ["blk.0.attn_k.scale", "blk.0.attn_k.weight", "blk.0.attn_q.weight"]
    expected = add_deltas(x * np.float32(0.5), [the_delta(adapter)])
    assert np.array_equal(out["blk.0.attn_q.weight"].view(np.float32), expected)
    assert np.array_equal(out["blk.0.attn_k.weight"].view(np.float32), x)


@pytest.mark.parametrize("target", ["F16", "Q8_0"])
def test_a_base_that_leaves_nvfp4_takes_its_scales_along(tmp_path: Path, target: str) -> None:
    """Also where no delta comes: llama.cpp applies a scale beside the weight in some of its graphs only."""
    base, adapter = data("starcoder2-bias-nvfp4"), data("starcoder2-bias.pattern")
    options = QuantizeOptions(allow_requantize=True)
    merge(base, [], tmp_path / "plain.gguf", type=target, options=options)
    with GGUFFile.open(tmp_path / "plain.gguf") as file:
        assert {tensor.type.name for tensor in file.tensors.values()} == {"F32", target}
        assert not [name for name in file.tensors if name.endswith("scale")]
    linears = check(tmp_path / "plain.gguf").linears
    assert len(linears) == 20
    assert {linear.llama_cpp.name for linear in linears} == {"RIGHT"}
    ids = np.arange(40)
    floats = load(base, [adapter], backend="reference").logits(ids)
    merge(base, [adapter], tmp_path / "tuned.gguf", type=target, options=options)
    assert nmse(load(tmp_path / "tuned.gguf", backend="reference").logits(ids), floats) < 1e-3


def test_the_scale_of_a_tied_output_goes_with_both_its_uses(tmp_path: Path) -> None:
    """A tied weight's scale may be kept under the output's name; an adapter of the embedding alone parts the two."""
    x, embedding = normal(0, 64, 64), adapter_of(attn_q=(normal(1, 4, 64), normal(2, 64, 4)))
    pair = replace(next(iter(embedding.pairs.values())), target="token_embd.weight")
    metadata = {"general.architecture": Value.string("llama"), "llama.block_count": Value.u32(1)}
    tensors = {"token_embd.weight": x, "output.scale": np.full(1, 0.5, np.float32)}
    base = write_gguf(tmp_path / "base.gguf", metadata, tensors)
    adapter = replace(embedding, pairs={pair.target: pair})
    merge(base, [(adapter, 1.0)], tmp_path / "out.gguf", type="F32")
    out = bits(tmp_path / "out.gguf")
    assert set(out) == {"token_embd.weight", "output.weight", "output.scale"}
    assert np.array_equal(out["output.weight"].view(np.float32), x)
    assert out["output.scale"].view(np.float32) == [0.5]
    expected = add_deltas(x * np.float32(0.5), [the_delta(adapter)])
    assert np.array_equal(out["token_embd.weight"].view(np.float32), expected)


def test_bf16_weights_round_through_f16(tmp_path: Path) -> None:
    """As converting to F16 and quantizing that file does, though nothing is merged."""
    merge(data("llama-kjv"), [], tmp_path / "bf16.gguf", type="BF16")
    merge(tmp_path / "bf16.gguf", [], tmp_path / "one.gguf", type="Q8_0")
    merge(tmp_path / "bf16.gguf", [], tmp_path / "f16.gguf", type="F16")
    quantize(tmp_path / "f16.gguf", tmp_path / "two.gguf", "Q8_0")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_the_output_must_not_be_an_input(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(data("llama-kjv.shakespeare"), folder)
    before = (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="the output is also an input"):
        merge(data("llama-kjv"), [(folder, 1.0)], folder / "adapter_model.safetensors")
    assert (folder / "adapter_model.safetensors").read_bytes() == before


def test_deltas_that_go_with_pruned_layers_are_counted(tmp_path: Path) -> None:
    options = QuantizeOptions(prune_layers=[1])
    report = merge(data("llama-kjv"), data("llama-kjv.shakespeare"), tmp_path / "out.gguf", options=options)
    assert report.notes == ["7 of 28 adapted weights lie in pruned layers and go with them"]


def test_keep_split_is_for_gguf(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="--keep-split is for GGUF models"):
        merge(data("llama-kjv"), [], tmp_path / "out.gguf", options=QuantizeOptions(keep_split=True))


def test_adapters_with_and_without_their_strength(tmp_path: Path) -> None:
    paths = []
    base, adapter = data("llama-kjv"), data("llama-kjv.shakespeare")
    for adapters in ([(adapter, 1.0)], [adapter], str(adapter), [load_adapter(adapter, open_model(base))]):
        paths.append(tmp_path / f"{len(paths)}.gguf")
        merge(base, adapters, paths[-1], type="Q4_0")
    assert len({path.read_bytes() for path in paths}) == 1
    for strength in (float("nan"), float("inf")):
        with pytest.raises(AdapterError, match=f"bad strength: found {strength}, expected a finite number"):
            merge(base, [(adapter, strength)], tmp_path / "x.gguf")
        with pytest.raises(AdapterError, match="bad strength"):
            load(base, [(adapter, strength)])


# ---- quantized weights that GGUF cannot carry


def awq_base(folder: Path) -> tuple[Path, np.ndarray]:
    """ModelOpt's NVFP4_AWQ as it leaves grouped-query attention: factors before o_proj, which no norm can take. And
    the weight as its formula has it, float64: E2M1 * weight_scale * weight_scale_2 * pre_quant_scale."""
    stem = "model.layers.1.self_attn.o_proj"
    kept: dict[str, Raw] = {}
    factors = np.linspace(0.5, 2, 256, dtype=np.float32)

    def edit(config: dict[str, Any], tensors: dict[str, Raw]) -> None:
        tensors[f"{stem}.pre_quant_scale"] = Raw.f32(factors)
        config["quantization_config"]["quant_algo"] = "NVFP4_AWQ"
        kept.update(tensors)

    changed(folder, edit, "llama-kjv-nvfp4")
    return folder, nvfp4_formula(kept, stem) * factors


def test_awq_factors_are_merged_as_floats_on_request(tmp_path: Path) -> None:
    base, weight = awq_base(tmp_path / "base")
    adapter = data("llama-kjv.shakespeare")
    with pytest.raises(
        UnsupportedError, match=r"o_proj\.weight cannot be carried .*pre_quant_scale.*--dequantize"
    ):
        merge(base, [adapter], tmp_path / "out.gguf")
    merge(base, [(adapter, 0.5)], tmp_path / "out.gguf", type="F32", dequantize=True)
    name = "blk.1.attn_output.weight"
    pair = load_adapter(adapter, open_model(base, dequantize=True)).pairs[name]
    expected = weight + 0.5 * pair.scale * pair.b.astype(np.float64) @ pair.a.astype(np.float64)
    found = bits(tmp_path / "out.gguf")
    np.testing.assert_allclose(found[name].view(np.float32), expected, rtol=1e-5, atol=1e-7)
    assert "blk.1.attn_output.scale" not in found
    # And into NVFP4, the base's own type, if none is asked for: under a scale of its own.
    merge(base, [(adapter, 0.5)], tmp_path / "four.gguf", dequantize=True)
    found = bits(tmp_path / "four.gguf")
    again = dequantize_nvfp4(found[name], float(found["blk.1.attn_output.scale"].view(np.float32)[0, 0]))
    assert nmse(again, expected) < 0.008
