"""Receipts: what of an adapter was used, what changes, how much, and what the merged file says of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import loragraft as lg
from intake_table import shows
from loragraft.adapters.norms import target_norms
from loragraft.adapters.receipt import receipt_of
from loragraft.cli import app
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.views import float_rows, widened
from loragraft.opening import load_adapter, open_model
from loragraft.quants.roles import layer_of
from loragraft.quants.types import F32
from paths import data
from peft_golden import adapter_folder, base_folder

BASE, ADAPTER = data("llama-kjv"), data("llama-kjv.shakespeare")
DIGEST = hashlib.sha256((ADAPTER / "adapter_model.safetensors").read_bytes()).hexdigest()
GGUF_ADAPTER = data("gguf/llama-kjv.shakespeare-lora.gguf")


def test_a_receipt() -> None:
    receipt = receipt_of(load_adapter(ADAPTER, open_model(BASE)), 0.5)
    assert (receipt.found, receipt.tensors, receipt.targets, receipt.changing) == (56, 56, 28, 28)
    assert (receipt.name, receipt.scale, receipt.rank) == ("llama-kjv.shakespeare", 0.5, 8)
    assert receipt.sha256 == DIGEST
    assert receipt_of(load_adapter(ADAPTER, open_model(BASE)), 0.0).changing == 0


@shows("10", "B zero in some modules", "said, with names")
def test_some_pairs_change_nothing(tmp_path: Path) -> None:
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    for name, array in tensors.items():
        if "lora_B" in name and ("layers.2" in name or "k_proj" in name):
            array[:] = 0
    (tmp_path / "adapter_config.json").write_bytes((ADAPTER / "adapter_config.json").read_bytes())
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    adapter = load_adapter(tmp_path, open_model(BASE))
    assert "10 of its 28 pairs change nothing, as B or A is zero (blk." in adapter.notes[-1]
    assert receipt_of(adapter, 1.0).changing == 18
    report = lg.merge(BASE, tmp_path, tmp_path / "o.gguf")
    assert (report.adapters[0].targets, report.adapters[0].changing) == (28, 18)


def test_the_merged_file_says_what_went_in(tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    lg.merge(BASE, [(ADAPTER, 0.5), (GGUF_ADAPTER, 2.0)], out, type="Q8_0")
    found = {key: GGUFFile.open(out).metadata[f"loragraft.adapters.{key}"].data for key in ("name", "sha256")}
    assert found["name"] == ["llama-kjv.shakespeare", "llama-kjv.shakespeare-lora"]
    assert found["sha256"] == [DIGEST, hashlib.sha256(GGUF_ADAPTER.read_bytes()).hexdigest()]
    metadata = GGUFFile.open(out).metadata
    assert metadata["loragraft.adapters.scale"].data.tolist() == [0.5, 2.0]
    assert metadata["loragraft.adapters.rank"].data.tolist() == [8, 8]
    lg.load(out)  # keys of ours are no surprise to a model
    lg.merge(out, (ADAPTER, -0.5), tmp_path / "again.gguf", type="F16")
    again = GGUFFile.open(tmp_path / "again.gguf").metadata
    assert again["loragraft.adapters.scale"].data.tolist() == [0.5, 2.0, -0.5]
    assert again["loragraft.adapters.name"].data[2] == "llama-kjv.shakespeare"
    lg.convert(BASE, tmp_path / "plain.gguf")
    assert not any(key.startswith("loragraft") for key in GGUFFile.open(tmp_path / "plain.gguf").metadata)


def values(path: Path, name: str) -> np.ndarray:
    source = widened(open_model(path).tensors[name])
    return float_rows(source.rows(0, source.n_rows), F32).astype(np.float64).reshape(source.shape)


@pytest.mark.parametrize(
    "case", ["llama+dora", "llama+saved", "llama+tokens", "qwen2+biases", "qwen2+saved-head"]
)
def test_norms_are_those_of_the_merged_weights(case: str, tmp_path: Path) -> None:
    base, folder = base_folder(case, tmp_path / "base"), adapter_folder(case, tmp_path / "adapter")
    lg.merge(base, (folder, 0.5), tmp_path / "o.gguf", type="F32")
    model = open_model(base)
    norms = target_norms(model, load_adapter(folder, model), 0.5)
    changed = set()
    assert [norm.target for norm in norms] == sorted(
        (norm.target for norm in norms), key=lambda name: layer_of(name)
    )
    for norm in norms:
        after = values(tmp_path / "o.gguf", norm.target)
        before = values(base, norm.target) if norm.target in model.tensors else np.zeros_like(after)
        if norm.target == "output.weight" and norm.target not in model.tensors:
            before = values(base, "token_embd.weight")
        assert norm.delta == pytest.approx(np.linalg.norm(after - before), rel=1e-5), norm.target
        assert norm.weight == pytest.approx(np.linalg.norm(before), rel=1e-6), norm.target
        changed.add(norm.target)
    for name in open_model(tmp_path / "o.gguf").tensors:
        if name not in changed and name in model.tensors:
            np.testing.assert_array_equal(values(tmp_path / "o.gguf", name), values(base, name), name)


def test_inspect_shows_it() -> None:
    words = ["inspect", str(BASE), "--lora", f"{ADAPTER}=0.5"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"{ADAPTER}: 56 of 56 tensors used, on 28 weights of the base, at scale 0.5" in result.output
    assert f"sha256 {DIGEST}" in result.output
    facts = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)["adapters"][0]
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.model.layers.3.mlp.down_proj.lora_{half}.weight"] for half in "AB")
    target = next(each for each in facts["targets"] if each["target"] == "blk.3.ffn_down.weight")
    assert (target["rank"], target["scale"]) == (8, 2.0)
    assert target["delta"] == pytest.approx(0.5 * 2 * np.linalg.norm(b.astype(np.float64) @ a), rel=1e-6)
    assert target["weight"] == pytest.approx(np.linalg.norm(values(BASE, "blk.3.ffn_down.weight")), rel=1e-6)
    assert facts["sha256"] == DIGEST
