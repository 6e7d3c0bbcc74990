"""Architectures that no record describes: what is refused, what works all the same, and what the message says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import loragraft as lg
from gguf_files import write_gguf
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Value
from loragraft.opening import open_model
from small_models import small_model


def unknown(path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A GGUF of a llama that calls itself gpt9."""
    small = small_model("llama", np.random.default_rng(0))
    metadata = {key.replace("llama.", "gpt9."): value for key, value in small.metadata.items()}
    metadata["general.architecture"] = Value.string("gpt9")
    return write_gguf(path, metadata, small.arrays), small.arrays


def test_a_gguf_merges_with_a_gguf_adapter(tmp_path: Path) -> None:
    """As the message for a folder says."""
    base, arrays = unknown(tmp_path / "base.gguf")
    name = "blk.0.attn_q.weight"
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (2, 32)), rng.normal(0, 1, (32, 2))
    metadata = {
        "general.type": Value.string("adapter"),
        "general.architecture": Value.string("gpt9"),
        "adapter.type": Value.string("lora"),
        "adapter.lora.alpha": Value.f32(4.0),
    }
    write_gguf(tmp_path / "adapter.gguf", metadata, {f"{name}.lora_a": a, f"{name}.lora_b": b})
    lg.merge(base, tmp_path / "adapter.gguf", tmp_path / "out.gguf", type="F32")
    merged = open_model(tmp_path / "out.gguf").tensors[name].rows(0, 32).view("<f4")
    np.testing.assert_allclose(merged, arrays[name] + 2.0 * (b @ a), rtol=1e-5, atol=1e-5)


def test_a_gguf_is_not_run(tmp_path: Path) -> None:
    base, _ = unknown(tmp_path / "base.gguf")
    with pytest.raises(
        UnsupportedError, match=r"base\.gguf: .*unknown architecture: found 'gpt9', .* base.gguf --lora"
    ) as refusal:
        lg.load(base)
    assert "\n" not in str(refusal.value)


def test_peft_adapters_need_the_record(tmp_path: Path) -> None:
    """Which names become which."""
    base, _ = unknown(tmp_path / "base.gguf")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    from safetensors.numpy import save_file

    module = "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {
        f"{module}.lora_A.weight": np.ones((2, 32), np.float32),
        f"{module}.lora_B.weight": np.ones((32, 2), np.float32),
    }
    save_file(pair, adapter / "adapter_model.safetensors")
    with pytest.raises(UnsupportedError, match=r"base\.gguf: .*unknown architecture: found 'gpt9'"):
        lg.merge(base, adapter, tmp_path / "out.gguf", type="F32")
    assert not (tmp_path / "out.gguf").exists()


def test_a_folder_names_its_file_and_the_way_round(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt9"}))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(
        UnsupportedError,
        match=r"config\.json: unknown architecture: found 'gpt9', .*; make GGUFs .* convert_hf_to_gguf\.py .*"
        r"loragraft merge base\.gguf --lora adapter\.gguf",
    ):
        lg.convert(tmp_path, tmp_path / "out.gguf")
