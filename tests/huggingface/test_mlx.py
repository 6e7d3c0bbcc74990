"""mlx-lm's adapters, by its formulas: y = W x + scale (x a) b."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import loragraft as lg
from intake_table import shows
from loragraft.errors import AdapterError
from loragraft.formats.views import float_rows, widened
from loragraft.opening import load_adapter, open_model
from loragraft.quants.types import F32
from paths import data

BASE = data("llama-kjv")
RNG = np.random.default_rng(5)
CONFIG = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 3.5, "dropout": 0.0}}


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32) / 16


def folder(path: Path, tensors: dict[str, np.ndarray], config: dict[str, Any] | None = None) -> Path:
    path.mkdir()
    save_file(tensors, path / "adapters.safetensors")
    if config is not None:
        (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def weight(model: Path, name: str) -> np.ndarray:
    source = widened(open_model(model).tensors[name])
    return float_rows(source.rows(0, source.n_rows), F32).reshape(source.shape).astype(np.float64)


@shows("03", "an embedding, DoRA", "read")
def test_a_linear_an_embedding_and_dora(tmp_path: Path) -> None:
    v, embed = "model.layers.1.self_attn.v_proj", "model.embed_tokens"
    tensors = {f"{v}.lora_a": floats(256, 4), f"{v}.lora_b": floats(4, 128)}
    before = weight(BASE, "blk.1.attn_v.weight")
    delta = 3.5 * (tensors[f"{v}.lora_a"].astype(np.float64) @ tensors[f"{v}.lora_b"]).T
    more = {f"{embed}.lora_a": floats(2048, 4), f"{embed}.lora_b": floats(4, 256)}
    lg.merge(BASE, folder(tmp_path / "a", {**tensors, **more}, CONFIG), tmp_path / "o.gguf", type="F32")
    np.testing.assert_allclose(weight(tmp_path / "o.gguf", "blk.1.attn_v.weight"), before + delta, atol=1e-6)
    rows = 3.5 * more[f"{embed}.lora_a"].astype(np.float64) @ more[f"{embed}.lora_b"]
    found = weight(tmp_path / "o.gguf", "token_embd.weight")
    np.testing.assert_allclose(found, weight(BASE, "token_embd.weight") + rows, atol=1e-6)

    m = np.abs(floats(128)) + 1
    dora = folder(tmp_path / "d", {**tensors, f"{v}.m": m}, {**CONFIG, "fine_tune_type": "dora"})
    lg.merge(BASE, dora, tmp_path / "o.gguf", type="F32")
    adapted = before + delta
    expected = adapted * (m / np.linalg.norm(adapted, axis=1))[:, None]
    np.testing.assert_allclose(weight(tmp_path / "o.gguf", "blk.1.attn_v.weight"), expected, atol=1e-5)


@shows("03", "stacked experts", "read")
def test_stacked_experts(tmp_path: Path) -> None:
    base = data("qwen3moe-8x-nvfp4")
    stack = "model.layers.0.mlp.switch_mlp.down_proj"
    shape = open_model(base).tensors["blk.0.ffn_down_exps.weight"].shape
    a, b = floats(shape[0], 4, shape[2]), floats(shape[0], shape[1], 4)
    adapter = load_adapter(
        folder(tmp_path / "a", {f"{stack}.lora_a": a, f"{stack}.lora_b": b}, CONFIG), open_model(base)
    )
    pair = adapter.pairs["blk.0.ffn_down_exps.weight"]
    np.testing.assert_array_equal(pair.a, a)
    np.testing.assert_array_equal(pair.b, b)
    assert pair.scale == 3.5


@shows("03", "whole tensors", "read")
def test_whole_tensors_of_a_full_fine_tune(tmp_path: Path) -> None:
    norm = floats(256)
    full = folder(tmp_path / "a", {"model.norm.weight": norm}, {"fine_tune_type": "full"})
    lg.merge(BASE, full, tmp_path / "o.gguf", type="F32")
    np.testing.assert_array_equal(weight(tmp_path / "o.gguf", "output_norm.weight").reshape(-1), norm)


PAIR = {
    "model.layers.0.mlp.up_proj.lora_a": floats(256, 4),
    "model.layers.0.mlp.up_proj.lora_b": floats(4, 768),
}


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        (PAIR, None, "without adapter_config.json, which says its scale"),
        (PAIR, {"fine_tune_type": "lora"}, "does not say the adapter's scale"),
        (PAIR, {"lora_parameters": {"scale": 0}}, "does not say the adapter's scale: found 0"),
        (PAIR, {"fine_tune_type": "soft"}, "unknown fine_tune_type"),
        (dict([next(iter(PAIR.items()))]), CONFIG, "has no complete pair"),
        ({**PAIR, "model.layers.0.mlp.up_proj.lora_b": floats(5, 768)}, CONFIG, "does not fit together"),
        (
            {
                "model.layers.9.mlp.up_proj.lora_a": floats(256, 4),
                "model.layers.9.mlp.up_proj.lora_b": floats(4, 768),
            },
            CONFIG,
            "adapts model.layers.9.mlp.up_proj, but the base model has no such tensor",
        ),
        (
            PAIR,
            {**CONFIG, "fine_tune_type": "dora"},
            "use_dora of adapter_config.json disagrees with its tensors",
        ),
        ({}, CONFIG, "holds no LoRA tensors"),
    ],
)
@shows("03", "a scale that is missing, halves, other shapes", "refused")
def test_what_is_refused(tmp_path: Path, tensors: dict[str, np.ndarray], config: Any, says: str) -> None:
    with pytest.raises(AdapterError, match=says):
        load_adapter(folder(tmp_path / "a", tensors, config), open_model(BASE))
