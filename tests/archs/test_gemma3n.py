"""Gemma 3n beyond its logits: wrappers, rows of no token, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import loragraft as lg
from archs.test_hf_configs import TEXT_ONLY, write
from hf_configs import VOCABULARY, logits, records, weights, write_tokenizer
from loragraft.archs.gemma3n import _deviations
from loragraft.archs.graphs import read_hparams
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.formats.views import values_of
from tolerances import NATIVE_F32, nmse

PER_LAYER = "model.embed_tokens_per_layer.weight"


def test_the_language_model_of_a_wrapper(tmp_path: Path) -> None:
    """Of Gemma3nForConditionalGeneration's names, without what sees and hears."""
    record = records()["gemma3n"]
    tensors = weights(record["shapes"])
    inside = {name.replace("model.", "model.language_model.", 1): array for name, array in tensors.items()}
    others = {
        f"model.{name}.weight": np.zeros((4, 4), np.float32)
        for name in ("vision_tower.a", "audio_tower.b", "embed_vision.c", "embed_audio.d")
    }
    folder = tmp_path / "m"
    folder.mkdir()
    save_file(inside | others, folder / "model.safetensors")
    config = {"model_type": "gemma3n", "text_config": record["config"], "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    lg.convert(folder, tmp_path / "whole.gguf", type="F32", intake=TEXT_ONLY)
    lg.convert(write(tmp_path / "alone", "gemma3n"), tmp_path / "alone.gguf", type="F32")
    whole, alone = (open_gguf(tmp_path / f"{name}.gguf") for name in ("whole", "alone"))
    assert set(whole.tensors) == set(alone.tensors)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(values_of(tensor), values_of(alone.tensors[name]))


def test_tokens_without_an_embedding_for_each_layer_have_zeros(tmp_path: Path) -> None:
    def shorten(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["vocab_size_per_layer_input"] = 60
        tensors[PER_LAYER] = tensors[PER_LAYER][:60].copy()

    folder = write(tmp_path / "m", "gemma3n", shorten)
    lg.convert(folder, tmp_path / "m.gguf", type="F32")
    rows = values_of(open_gguf(tmp_path / "m.gguf").tensors["per_layer_token_embd.weight"])
    assert rows.size == VOCABULARY * 30
    rows = rows.reshape(VOCABULARY, -1)
    np.testing.assert_array_equal(rows[:60], weights(records()["gemma3n"]["shapes"])[PER_LAYER][:60])
    assert not rows[60:].any()


def test_deviations_are_torchs() -> None:
    """`Normal(0, 1).icdf`, in float32."""
    shares = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
    torchs = (
        *(-np.inf, -1.2815515995025635, -0.6744897365570068, 0.0, 0.6744897365570068),
        *(1.281551480293274, 1.6448535919189453, 2.326348304748535, 3.090236186981201),
    )
    assert tuple(_deviations(share) for share in shares) == torchs


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_kv_shared_layers", 5, "bad num_kv_shared_layers: found 5, expected less than 5"),
        ("activation_sparsity_pattern", [0.95], "bad activation_sparsity_pattern"),
        ("activation_sparsity_pattern", [1.0] * 5, "expected 5 numbers from 0 to below 1"),
        ("intermediate_size", [48, 48], "bad intermediate_size: found \\[48, 48\\], expected 5 whole"),
        ("altup_correct_scale", False, "altup_correct_scale"),
        ("altup_num_inputs", 1, "bad altup_num_inputs: found 1, expected 2 to 16"),
        ("altup_active_idx", 4, "gemma3n.altup.active_idx: bad metadata value: found 4"),
        ("altup_num_inputs", 5, "altup_proj.weight lacks experts"),
    ],
)
def test_what_is_refused(tmp_path: Path, key: str, value: Any, said: str) -> None:
    with pytest.raises(lg.LoragraftError, match=said):
        lg.load(write(tmp_path / "m", "gemma3n", lambda config, tensors: config.update({key: value})))


@pytest.mark.parametrize("values", [[0.5], [np.inf] * 5, [np.nan] * 5])
def test_deviations_of_a_file_are_checked(tmp_path: Path, values: list[float]) -> None:
    model = lg.load(write(tmp_path / "m", "gemma3n"))
    model.source.metadata["gemma3n.activation_sparsity_scale"] = Value.numbers(ValueType.FLOAT32, values)
    with pytest.raises(lg.LoragraftError, match=r"activation_sparsity_scale: bad metadata value"):
        read_hparams(model.source.metadata)


def test_quantized_it_runs_as_its_weights_say(tmp_path: Path) -> None:
    """AltUp's and LAuReL's tensors stay floats, as in llama-quantize."""
    folder = write(tmp_path / "m", "gemma3n-published")
    lg.convert(folder, tmp_path / "m.gguf", type="F32")
    lg.quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", type="Q4_0")
    file = open_gguf(tmp_path / "q.gguf")
    types = {name: tensor.type.name for name, tensor in file.tensors.items()}
    assert types["blk.0.attn_q.weight"] == types["blk.1.ffn_down.weight"] == "Q4_0"
    kept = [name for name in types if "altup" in name or "laurel" in name]
    assert len(kept) == 18
    assert {types[name] for name in kept} == {"F32"}
    ids = logits()["ids"]
    found = [
        lg.load(tmp_path / "q.gguf", backend=backend, threads=1, activations="f32").logits(ids)
        for backend in ("reference", "native")
    ]
    assert nmse(found[1], found[0]) < NATIVE_F32
