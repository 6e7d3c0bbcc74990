"""Adapters on their bases: the logits of transformers + peft, the reference converter's tensors, refusals by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loragraft.adapters.delta import Delta, add_deltas
from loragraft.adapters.gguf_adapter import write_gguf_adapter
from loragraft.adapters.lora import Adapter
from loragraft.archs.graphs import build_graph, tensor_facts
from loragraft.backends.reference import ReferenceBackend
from loragraft.errors import AdapterError
from loragraft.formats.gguf.values import Metadata, Value
from loragraft.graph.lora import attach
from loragraft.opening import load_adapter, open_model
from paths import arrays, data
from running import logits_of
from tolerances import REFERENCE, nmse


@pytest.mark.parametrize(
    ("base", "adapter", "case"),
    [
        ("llama-kjv", "llama-kjv.shakespeare", "llama+lora"),
        ("llama-kjv", "llama-kjv.dora", "llama+dora"),
        ("qwen2-bias", "qwen2-bias.rslora", "qwen2+rslora"),
        ("starcoder2-bias", "starcoder2-bias.pattern", "starcoder2+pattern"),
        ("qwen3moe-8x", "qwen3moe-8x.experts", "qwen3moe+experts"),
    ],
)
def test_logits_of_peft(base: str, adapter: str, case: str) -> None:
    golden = arrays("golden/hf-logits.npz")
    model = open_model(data(base))
    graph, more = attach(
        build_graph(model.metadata, tensor_facts(model.tensors)),
        [(load_adapter(data(adapter), model), 1.0)],
        model.tensors,
    )
    logits = logits_of(ReferenceBackend(), graph, {**model.tensors, **more}, golden["ids"])
    assert nmse(logits, golden[case]) < REFERENCE


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("base", "adapter", "name"),
    [
        ("llama-kjv", "llama-kjv.shakespeare", "llama-kjv.shakespeare-lora"),
        ("starcoder2-bias", "starcoder2-bias.pattern", "starcoder2-bias.pattern-lora"),
    ],
)
def test_pairs_are_the_reference_converters(base: str, adapter: str, name: str) -> None:
    golden = json.loads(data("golden/convert.json").read_text())[name]["tensors"]
    loaded = load_adapter(data(adapter), open_model(data(base)))
    found = {}
    for target, pair in loaded.pairs.items():
        for part, array in (("a", pair.a), ("b", pair.b)):
            found[f"{target}.lora_{part}"] = {
                "type": "F32",
                "shape": list(reversed(array.shape)),
                "sha256": sha256(array),
            }
    assert list(found.items()) == list(golden.items())
    assert loaded.n_tensors == len(golden)


def test_scales_follow_the_patterns() -> None:
    """lora_alpha 16, r 4; alpha_pattern and rank_pattern say 8 for c_fc."""
    loaded = load_adapter(data("starcoder2-bias.pattern"), open_model(data("starcoder2-bias")))
    assert {(t.split(".")[2], p.rank, p.scale) for t, p in loaded.pairs.items()} == {
        ("ffn_up", 8, 1.0),
        ("ffn_down", 4, 4.0),
        ("attn_q", 4, 4.0),
        ("attn_k", 4, 4.0),
        ("attn_v", 4, 4.0),
        ("attn_output", 4, 4.0),
    }
    assert loaded.alpha is None
    rslora = load_adapter(data("qwen2-bias.rslora"), open_model(data("qwen2-bias")))
    assert {pair.scale for pair in rslora.pairs.values()} == {8 / 8**0.5}


# ---- GGUF adapters


def adapter_metadata(arch: str, alpha: float | None) -> Metadata:
    metadata = {
        "general.architecture": Value.string(arch),
        "general.type": Value.string("adapter"),
        "adapter.type": Value.string("lora"),
    }
    return metadata if alpha is None else {**metadata, "adapter.lora.alpha": Value.f32(alpha)}


def deltas(adapter: Adapter) -> dict[str, np.ndarray]:
    return {
        name: add_deltas(
            np.zeros((*pair.b.shape[:-1], pair.a.shape[-1]), np.float32), [Delta(pair.a, pair.b, pair.scale)]
        )
        for name, pair in adapter.pairs.items()
    }


@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        ("llama-kjv", "llama-kjv.shakespeare"),
        ("qwen2-bias", "qwen2-bias.rslora"),
        ("starcoder2-bias", "starcoder2-bias.pattern"),
        ("qwen3moe-8x", "qwen3moe-8x.experts"),
    ],
)
def test_through_gguf_and_back(tmp_path: Path, base: str, adapter: str) -> None:
    model = open_model(data(base))
    original = load_adapter(data(adapter), model)
    out = tmp_path / "adapter.gguf"
    write_gguf_adapter(original, adapter_metadata(model.arch, original.alpha), out, [data(adapter)])
    again = load_adapter(out, model)
    assert list(again.pairs) == list(original.pairs)
    for name, delta in deltas(again).items():
        expected = deltas(original)[name]  # where the scale is multiplied into B, B is rounded once
        np.testing.assert_allclose(delta, expected, rtol=0, atol=1e-6 * np.abs(expected).max(), err_msg=name)


def test_a_gguf_adapter_of_llama_cpp() -> None:
    model = open_model(data("llama-kjv"))
    theirs = load_adapter(data("gguf/llama-kjv.shakespeare-lora.gguf"), model)
    ours = load_adapter(data("llama-kjv.shakespeare"), model)
    assert theirs.pairs.keys() == ours.pairs.keys()
    for name, pair in ours.pairs.items():
        np.testing.assert_array_equal(theirs.pairs[name].a, pair.a)
        np.testing.assert_array_equal(theirs.pairs[name].b, pair.b)
        assert theirs.pairs[name].scale == pair.scale == 2.0


# ---- what PEFT can save, made by hand: on a base of our own


def change(folder: Path, edit: Callable[[dict[str, Any], dict[str, np.ndarray]], object]) -> Path:
    """A copy of the shakespeare adapter, with its configuration and tensors edited."""
    source = data("llama-kjv.shakespeare")
    config = json.loads((source / "adapter_config.json").read_text())
    tensors = load_file(source / "adapter_model.safetensors")
    edit(config, tensors)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_an_embedding_lora(tmp_path: Path) -> None:
    """delta(W) = s (B A)^T for W [vocab, d]: PEFT's Embedding layer transposes (peft/tuners/lora/layer.py)."""
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((8, 2048), np.float32), rng.standard_normal((256, 8), np.float32)

    def edit(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        config["target_modules"].append("embed_tokens")
        tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = a
        tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = b

    model = open_model(data("llama-kjv"))
    adapter = load_adapter(change(tmp_path / "adapter", edit), model)
    expected = 2.0 * (b.astype(np.float64) @ a).T
    np.testing.assert_allclose(deltas(adapter)["token_embd.weight"], expected, rtol=1e-4, atol=1e-4)
    out = tmp_path / "adapter.gguf"
    write_gguf_adapter(adapter, adapter_metadata("llama", 16.0), out, [])
    again = load_adapter(out, model).pairs["token_embd.weight"]
    np.testing.assert_array_equal(again.a, b.T)
    np.testing.assert_array_equal(again.b, a.T)


def test_stacks_of_an_older_peft(tmp_path: Path) -> None:
    """PEFT before 0.19 took [E, out, in] for [E, in, out]: its delta is `o r e, e r i -> e i o`."""
    source = data("qwen3moe-8x.experts")
    tensors = load_file(source / "adapter_model.safetensors")
    rng = np.random.default_rng(6)
    stem = "base_model.model.model.layers.0.mlp.experts"
    a, b = rng.standard_normal((32, 512), np.float32), rng.standard_normal((256, 32), np.float32)
    tensors[f"{stem}.base_layer.lora_A.weight"], tensors[f"{stem}.base_layer.lora_B.weight"] = a, b
    config = json.loads((source / "adapter_config.json").read_text())
    config["peft_version"] = "0.18.0"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    found = deltas(load_adapter(tmp_path, open_model(data("qwen3moe-8x"))))
    b3, a3 = b.astype(np.float64).reshape(256, 4, 8), a.astype(np.float64).reshape(8, 4, 512)
    expected = 2.0 * np.einsum("ore,eri->eio", b3, a3)
    np.testing.assert_allclose(found["blk.0.ffn_gate_exps.weight"], expected[:, :256], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["blk.0.ffn_up_exps.weight"], expected[:, 256:], rtol=1e-4, atol=1e-4)


def test_experts_adapted_one_by_one(tmp_path: Path) -> None:
    """Modules `experts.<n>.gate_proj` of an older transformers; experts without a pair have a delta of zero."""
    rng = np.random.default_rng(7)
    pairs = {
        n: (rng.standard_normal((r, 256), np.float32), rng.standard_normal((256, r), np.float32))
        for n, r in ((1, 4), (6, 2))
    }
    stem = "base_model.model.model.layers.2.mlp.experts"
    tensors = {}
    for n, (a, b) in pairs.items():
        tensors[f"{stem}.{n}.gate_proj.lora_A.weight"], tensors[f"{stem}.{n}.gate_proj.lora_B.weight"] = a, b
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "rank_pattern": {r"experts\.6\.gate_proj": 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    adapter = load_adapter(tmp_path, open_model(data("qwen3moe-8x")))
    expected = np.zeros((8, 256, 256))
    for n, (a, b) in pairs.items():
        expected[n] = (4 / a.shape[0]) * (b.astype(np.float64) @ a)
    np.testing.assert_allclose(deltas(adapter)["blk.2.ffn_gate_exps.weight"], expected, rtol=1e-4, atol=1e-4)
    assert adapter.n_tensors == 4


REFUSALS = {
    "use_dora": True,  # of which the tensors know nothing
    "lora_bias": True,
    "bias": "some",
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1, 2],
    "velora_config": {"rank": 1},
    "layer_replication": [[0, 2]],
    "alora_invocation_tokens": [5],
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 1},
    "kasa_config": {"beta": 1},
    "init_lora_weights": "pissa_niter_4",
    "some_future_option": 3,
    "peft_type": "XLORA",
    "r": 0,
    "lora_alpha": "16",
    "rank_pattern": {"(": 4},
}


@pytest.mark.parametrize("key", REFUSALS)
def test_what_is_not_honoured_is_refused_by_name(tmp_path: Path, key: str) -> None:
    path = change(tmp_path / "adapter", lambda config, _: config.update({key: REFUSALS[key]}))
    with pytest.raises(AdapterError, match=key) as refusal:
        load_adapter(path, open_model(data("llama-kjv")))
    assert "\n" not in str(refusal.value)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c, t: t.pop(f"{Q}.lora_B.weight"), "q_proj has no complete pair"),
        (
            lambda c, t: t.update({f"{Q}.lora_magnitude_vector": np.ones(256, np.float32)}),
            "use_dora .* found a lora_magnitude_vector for .*, expected use_dora False",
        ),
        (
            lambda c, t: t.update({f"{Q}.lora_magnitude_vector": np.ones(128, np.float32)}),
            r"a vector of .*q_proj does not fit its B: found \(128,\), expected \(256,\)",
        ),
        (
            lambda c, t: t.update({"base_model.model.model.norm.weight": np.ones(128, np.float32)}),
            r"output_norm\.weight does not fit the base: found \(128,\), expected \(256,\)",
        ),
        (
            lambda c, t: t.update({"base_model.model.model.norm.weight": np.full(256, np.inf, np.float32)}),
            r"output_norm\.weight holds NaN or infinity",
        ),
        (
            lambda c, t: t.update({"base_model.model.score.weight": np.ones((2, 256), np.float32)}),
            r"is a classifier \(task_type CAUSAL_LM, score\.weight\)",
        ),
        (lambda c, t: t.update({f"{Q}.lora_E": np.ones(8, np.float32)}), "lora_E' is not supported"),
        (
            lambda c, t: t.update({f"{Q}.base_layer.weight": np.ones((32768, 1), np.uint8)}),
            "not a floating-point tensor: found U8 .* merge_and_unload",
        ),
        (lambda c, t: t.update({f"{Q}.lora_B.bias": np.ones(256, np.float32)}), "lora_bias .* a bias of"),
        (lambda c, t: t.update({f"{Q}.lora_A.other.weight": t[f"{Q}.lora_A.weight"]}), "a second time"),
        (lambda c, t: t.update({f"{Q}.lora_A.weight": np.ones(0, np.float32)}), "not gathered"),
        (lambda c, t: c.update(trainable_token_indices=[1, 1]), "names a token twice"),
        (lambda c, t: c.update(trainable_token_indices={"embed_tokens": "x"}), "bad trainable_token_indices"),
        (lambda c, t: c.update(modules_to_save="lm_head"), "bad modules_to_save"),
        (
            lambda c, t: t.update({f"{Q}.lora_A.weight": np.ones((8, 128), np.float32)}),
            "the shape of its delta",
        ),
        (lambda c, t: t.update({f"{Q}.lora_A.weight": np.ones((4, 256), np.float32)}), "ranks of .* differ"),
        (lambda c, t: t.update({f"{Q}.lora_A.weight": np.full((8, 256), np.nan, np.float32)}), "NaN"),
        (lambda c, t: c.update(r=16), "rank of .* is not the one"),
        (
            lambda c, t: t.update(
                {k.replace("layers.0", "layers.7"): v for k, v in t.items() if "layers.0" in k}
            ),
            "layers.7.* but the base model has no such tensor: found llama-kjv: llama, 4 layers",
        ),
        (lambda c, t: t.clear(), "holds no LoRA tensors"),
    ],
)
def test_malformed_adapters(tmp_path: Path, edit: Callable[..., object], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        load_adapter(change(tmp_path / "adapter", edit), open_model(data("llama-kjv")))


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace("self_attn", "_fsdp_wrapped_module.self_attn"),
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: "module." + name,
        lambda name: name.replace("layers.", "_checkpoint_wrapped_module.layers."),
    ],
)
def test_names_as_wrappers_leave_them(tmp_path: Path, renamed: Callable[[str], str]) -> None:
    def edit(_: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        before = dict(tensors)
        tensors.clear()
        tensors.update({renamed(name): array for name, array in before.items()})

    model = open_model(data("llama-kjv"))
    expected = load_adapter(data("llama-kjv.shakespeare"), model)
    found = load_adapter(change(tmp_path / "adapter", edit), model)
    assert found.pairs.keys() == expected.pairs.keys()
    for name, pair in expected.pairs.items():
        np.testing.assert_array_equal(found.pairs[name].a, pair.a)
        np.testing.assert_array_equal(found.pairs[name].b, pair.b)


def test_adapters_of_other_models() -> None:
    llama = open_model(data("llama-kjv"))
    with pytest.raises(
        AdapterError, match=r"adapts model\.layers\.0\.mlp\.c_fc, but the base model has no such tensor"
    ):
        load_adapter(data("starcoder2-bias.pattern"), llama)
    with pytest.raises(AdapterError, match=r"general\.architecture 'llama', expected 'qwen2'"):
        load_adapter(data("gguf/llama-kjv.shakespeare-lora.gguf"), open_model(data("qwen2-bias")))
