"""Adapters that Tinker wrote: the output and stacks of experts under names of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from loragraft.errors import AdapterError
from loragraft.opening import load_adapter, open_model
from paths import data

RANK, ALPHA = 2, 6
SEED = np.random.default_rng(11)


def written(folder: Path, arrays: dict[str, Any], **config: Any) -> Path:
    folder.mkdir()
    named = {f"base_model.model.model.{name}.weight": array for name, array in arrays.items()}
    save_file(named, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def random(*shape: int) -> np.ndarray:
    return SEED.standard_normal(shape, np.float32)


def test_the_output(tmp_path: Path) -> None:
    a, b = random(RANK, 256), random(2048, RANK)
    arrays = {"unembed_tokens.lora_A": a, "unembed_tokens.lora_B": b}
    adapter = load_adapter(written(tmp_path / "a", arrays), open_model(data("llama-kjv")))
    pair = adapter.pairs["output.weight"]
    np.testing.assert_array_equal(pair.scale * pair.b @ pair.a, 3 * b @ a)
    assert (list(adapter.pairs), adapter.n_tensors, adapter.left_out) == (["output.weight"], 2, ())


def test_a_tied_output_is_refused(tmp_path: Path) -> None:
    base = open_model(data("qwen2-bias"))
    columns = base.tensors["token_embd.weight"].columns
    arrays = {"unembed_tokens.lora_A": random(RANK, columns), "unembed_tokens.lora_B": random(2048, RANK)}
    with pytest.raises(AdapterError, match=r"the base's output is its embedding.*build_hf_model"):
        load_adapter(written(tmp_path / "a", arrays), base)


def test_experts(tmp_path: Path) -> None:
    """w1 shares A, w2 shares B. Layer 1 has a w3 without elements: then nothing gates, and w1 is up."""
    base = open_model(data("qwen3moe-8x"))
    experts, width, columns = base.tensors["blk.0.ffn_gate_exps.weight"].shape
    halves = {
        "w1": (random(1, RANK, columns), random(experts, width, RANK)),
        "w3": (random(experts, RANK, columns), random(experts, width, RANK)),
        "w2": (random(experts, RANK, width), random(1, columns, RANK)),
    }
    arrays = {
        f"layers.0.mlp.experts.{name}.lora_{half}": array
        for name, pair in halves.items()
        for half, array in zip("AB", pair, strict=True)
    }
    arrays |= {f"layers.1.mlp.experts.w3.lora_{half}": np.zeros((0, 0, 0), np.float32) for half in "AB"}
    arrays |= {
        f"layers.1.mlp.experts.w1.lora_{half}": arrays[f"layers.0.mlp.experts.w3.lora_{half}"]
        for half in "AB"
    }
    adapter = load_adapter(written(tmp_path / "a", arrays), base)
    assert len(adapter.pairs) == 4
    assert adapter.n_tensors == 8
    np.testing.assert_array_equal(
        adapter.pairs["blk.1.ffn_up_exps.weight"].b, adapter.pairs["blk.0.ffn_up_exps.weight"].b
    )
    for name, gguf in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
        pair = adapter.pairs[f"blk.0.ffn_{gguf}_exps.weight"]
        a, b = halves[name]
        assert pair.scale == 3
        np.testing.assert_array_equal(pair.a, np.broadcast_to(a, (experts, *a.shape[1:])))
        np.testing.assert_array_equal(pair.b, np.broadcast_to(b, (experts, *b.shape[1:])))


@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 2, 64), (4, 32, 2)), ((1, 2, 64), (1, 32, 2)), ((2, 64), (4, 32, 2)), ((5000, 2, 1), (1, 1, 2))],
)
def test_stacks_that_do_not_fit(a: tuple[int, ...], b: tuple[int, ...], tmp_path: Path) -> None:
    arrays = {f"layers.0.mlp.experts.w1.lora_{half}": random(*shape) for half, shape in (("A", a), ("B", b))}
    with pytest.raises(AdapterError, match=r"the pairs of model.layers.0.mlp.experts.w1 do not fit together"):
        load_adapter(written(tmp_path / "a", arrays), open_model(data("llama-kjv")))


def test_attention_of_gpt_oss(tmp_path: Path) -> None:
    arrays = {
        "unembed_tokens.lora_A": random(RANK, 256),
        "unembed_tokens.lora_B": random(2048, RANK),
        "layers.2.attn.q_proj.lora_A": random(RANK, 256),
        "layers.2.attn.q_proj.lora_B": random(256, RANK),
    }
    adapter = load_adapter(written(tmp_path / "a", arrays), open_model(data("llama-kjv")))
    assert adapter.pairs.keys() == {"output.weight", "blk.2.attn_q.weight"}
