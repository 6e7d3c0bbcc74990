"""PEFT's methods beside LoRA, against the logits of transformers and PEFT: at run time if they can be, and merged."""

from __future__ import annotations

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loragraft.adapters import pissa
from loragraft.adapters.lora import LoraPair
from loragraft.adapters.norms import target_norms
from loragraft.adapters.transform import Blocks, Reflections, Transform
from loragraft.errors import AdapterError
from loragraft.formats.views import in_memory
from loragraft.inference.model import load
from loragraft.opening import load_adapter, open_model
from loragraft.streaming.options import QuantizeOptions
from loragraft.verbs.convert import convert_adapter
from loragraft.verbs.merge import merge
from paths import ROOT
from peft_golden import adapter_folder, base_folder, golden, methods
from peft_matrix import MERGED_ALONE, RECORDED, RUN, TAKEN, as_measured, tolerance
from tolerances import NATIVE_F32, REFERENCE, nmse


def written(case: str, tmp_path: Path) -> tuple[Path, Path]:
    return base_folder(case, tmp_path / "base"), adapter_folder(case, tmp_path / "adapter")


@pytest.mark.parametrize("case", RUN)
def test_logits_at_run_time(case: str, tmp_path: Path) -> None:
    base, adapter = written(case, tmp_path)
    ids, expected = golden()["ids"], methods()[f"{case}/logits"]
    reference = load(base, [adapter], backend="reference").logits(ids)
    assert nmse(reference, expected) < tolerance(case)
    assert as_measured(case, "run", nmse(reference, expected))
    assert nmse(load(base, [adapter], activations="f32").logits(ids), reference) < NATIVE_F32
    assert nmse(load(base, backend="reference").logits(ids), expected) > 1e-4


@pytest.mark.parametrize("case", RUN + MERGED_ALONE)
def test_logits_merged(case: str, tmp_path: Path) -> None:
    base, adapter = written(case, tmp_path)
    merge(base, [adapter], tmp_path / "merged.gguf", type="F32")
    found = load(tmp_path / "merged.gguf", backend="reference").logits(golden()["ids"])
    assert nmse(found, methods()[f"{case}/merged"]) < tolerance(case)
    assert nmse(found, methods()[f"{case}/logits"]) < 10 * tolerance(case)
    assert as_measured(case, "merged", nmse(found, methods()[f"{case}/logits"]))


@pytest.mark.parametrize("case", MERGED_ALONE)
def test_what_runs_only_merged_says_so(case: str, tmp_path: Path) -> None:
    base, adapter = written(case, tmp_path)
    for backend in ("reference", "native"):
        with pytest.raises(
            AdapterError, match=r"the inputs of blk\.\d.*merge it instead: loragraft merge BASE --lora"
        ):
            load(base, [adapter], backend=backend)  # type: ignore[arg-type]


def test_a_strength_is_the_part_of_the_way(tmp_path: Path) -> None:
    """W + f (W' - W), merged and at run time, for factors of rows and columns, and rotations."""
    ids = golden()["ids"]
    for case in ("llama+ia3", "qwen2+ia3", "llama+oft"):
        folder = tmp_path / case
        base, adapter = base_folder(case, folder / "base"), adapter_folder(case, folder / "adapter")
        weights = {}
        for strength in (0.0, 1.0, 0.3):
            path = folder / f"{strength}.gguf"
            merge(base, [(adapter, strength)], path, type="F32")
            weights[strength] = {
                n: t.rows(0, t.n_rows).view(np.float32) for n, t in open_model(path).tensors.items()
            }
        plain = weights[0.0]
        for name, own in weights[0.3].items():
            expected = plain[name] + np.float32(0.3) * (weights[1.0][name] - plain[name])
            assert np.allclose(own, expected, rtol=0, atol=1e-6), name
        if "ia3" in case:
            merged = load(folder / "0.3.gguf", backend="reference").logits(ids)
            for backend in ("reference", "native"):
                model = load(base, [(adapter, 0.3)], backend=backend, activations="f32")  # type: ignore[arg-type]
                assert nmse(model.logits(ids), merged) < REFERENCE


@pytest.mark.parametrize("turns", [(0, 1), (1, 0)], ids=["first", "last"])
@pytest.mark.parametrize("other", ["llama+mica", "llama+dora-rslora"])
def test_factors_beside_another_adapter(turns: tuple[int, int], other: str, tmp_path: Path) -> None:
    """Factors of rows multiply what came before them, and nothing that comes later: as merged."""
    base = base_folder("llama", tmp_path / "base")
    pair = [
        (adapter_folder("llama+ia3", tmp_path / "ia3"), 1.0),
        (adapter_folder(other, tmp_path / "o"), 0.7),
    ]
    adapters = [pair[turn] for turn in turns]
    loaded = load_adapter(pair[1][0], open_model(base))
    if turns[0] == 0 and any(".ffn_down." in target for target in loaded.pairs):
        with pytest.raises(AdapterError, match=r"whose inputs an adapter before it scales.*name it last"):
            load(base, adapters)
        return
    merge(base, adapters, tmp_path / "merged.gguf", type="F32")
    merged = load(tmp_path / "merged.gguf", backend="reference").logits(golden()["ids"])
    for backend in ("reference", "native"):
        model = load(base, adapters, backend=backend, activations="f32")  # type: ignore[arg-type]
        assert nmse(model.logits(golden()["ids"]), merged) < REFERENCE


def test_factors_are_put_on_a_model_that_runs(tmp_path: Path) -> None:
    """By another request, at another strength, and taken off again."""
    base, adapter = written("llama+ia3", tmp_path)
    ids, expected = golden()["ids"], methods()["llama+ia3/logits"]
    for backend in ("reference", "native"):
        model = load(base, backend=backend, activations="f32")  # type: ignore[arg-type]
        plain = model.logits(ids)
        model.set_adapters([(adapter, 0.5)])
        assert nmse(model.logits(ids), expected) > 1e-5
        model.set_adapters([adapter])
        assert nmse(model.logits(ids), expected) < REFERENCE
        model.set_adapters([])
        assert np.array_equal(model.logits(ids), plain)


def test_two_adapters_multiply_in_turn(tmp_path: Path) -> None:
    """Weights and biases: what comes later meets what those before it made."""
    base, adapter = written("qwen2+ia3", tmp_path)
    once, twice, both = (tmp_path / f"{name}.gguf" for name in ("once", "twice", "both"))
    merge(base, [adapter], once, type="F32")
    merge(once, [(adapter, 0.5)], twice, type="F32")
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    merge(base, [adapter, (other, 0.5)], both, type="F32")
    first, second = (open_model(path).tensors for path in (twice, both))
    assert "blk.0.attn_q.bias" in first
    for name, tensor in first.items():
        found, expected = (t.rows(0, t.n_rows).view(np.float32) for t in (second[name], tensor))
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("case", ["llama+ia3", "llama+oft", "qwen2+lokr-full", "llama+lntuning"])
def test_on_a_quantized_base(case: str, tmp_path: Path) -> None:
    base, adapter = written(case, tmp_path)
    merge(base, [], tmp_path / "base.gguf", type="Q8_0")
    options = QuantizeOptions(allow_requantize=True)
    merge(tmp_path / "base.gguf", [adapter], tmp_path / "merged.gguf", type="F32", options=options)
    found = load(tmp_path / "merged.gguf", backend="reference").logits(golden()["ids"])
    assert nmse(found, methods()[f"{case}/merged"]) < 5e-3


def test_what_changes_is_counted(tmp_path: Path) -> None:
    base, adapter = written("llama+ia3", tmp_path)
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if "layers.0" in name and "k_proj" in name)
    save_file({**tensors, name: np.ones_like(tensors[name])}, adapter / "adapter_model.safetensors")
    report = merge(base, [adapter], tmp_path / "merged.gguf").adapters[0]
    assert (report.tensors, report.targets, report.changing) == (6, 6, 5)
    loaded = load_adapter(adapter, open_model(base))
    assert any(
        "1 of its 6 factors change nothing, as they are 1 (blk.0.attn_k.weight)" in note
        for note in loaded.notes
    )
    norms = {norm.target: norm for norm in target_norms(open_model(base), loaded, 1.0)}
    assert norms["blk.0.attn_k.weight"].delta == 0
    assert norms["blk.1.attn_k.weight"].relative > 1e-3


def test_modules_that_the_configuration_does_not_name_are_left_out(tmp_path: Path) -> None:
    base, adapter = written("llama+more-than-named", tmp_path)
    loaded = load_adapter(adapter, open_model(base))
    assert {target.split(".")[2] for target in loaded.pairs} == {"attn_q", "ffn_down"}
    assert len(loaded.left_out) == 20
    assert any("10 of 14 adapted modules" in note for note in loaded.notes)


@pytest.mark.parametrize("beside", [True, False], ids=["beside it", "in it"])
def test_a_start_that_lies_there_is_taken_out(beside: bool, tmp_path: Path) -> None:
    """PEFT's own conversion is the oracle; the settings say CorDA, whose start cannot be computed again."""
    base, adapter = written("llama+with-start", tmp_path)
    with pytest.raises(AdapterError, match=r"'corda'.*path_initial_model_for_weight_conversion"):
        load(base, [adapter])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "loftq"}))
    with pytest.raises(
        AdapterError, match=r"LoftQ quantized the base .* put it on the base that LoftQ saved"
    ):
        load(base, [adapter])
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    start = (tmp_path if beside else adapter) / "init"
    start.mkdir()
    own = methods()
    weights = {key.split("/", 2)[2]: own[key] for key in own if key.startswith("llama+with-start/start/")}
    (start / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": True}))
    save_file(weights, start / "adapter_model.safetensors")
    found = load(base, [adapter], backend="reference").logits(golden()["ids"])
    assert nmse(found, own["llama+with-start/logits"]) < REFERENCE
    other = {name: np.ones((2, 2), np.float32) for name in weights}
    save_file(other, start / "adapter_model.safetensors")
    with pytest.raises(AdapterError):
        load(base, [adapter])


def test_pissa_of_large_weights(tmp_path: Path) -> None:
    """The iteration for large weights finds what the decomposition does."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((1500, 1200)) * np.linspace(2, 0.5, 1200)).astype(np.float32)
    found = pissa.principal_directions(w, 16)
    _, _, v = np.linalg.svd(w.astype(np.float64), full_matrices=False)
    assert np.abs(found @ found.T - v[:16].T @ v[:16]).max() < 1e-6
    pair = LoraPair("w", np.zeros((16, 1200), np.float32), np.zeros((1500, 16), np.float32), 0.5)
    original = pissa.for_the_original(pair, in_memory("w", w))
    delta = original.scale * original.b @ original.a
    assert np.abs(delta + (w @ v[:16].T) @ v[:16]).max() < 1e-4


def test_qalora_is_what_peft_computes(tmp_path: Path) -> None:
    """Of one layer: the adapter's delta on the layer's input against PEFT's forward."""
    own = methods()
    base, adapter = written("qwen2+lokr-full", tmp_path)
    a, b = own["qalora/a"], own["qalora/b"]
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6.0, "use_qalora": True, "qalora_group_size": 8}
    config["target_modules"] = ["v_proj"]
    shape = open_model(base).tensors["blk.0.attn_v.weight"].shape
    assert shape[1] == 32
    b = b[: shape[0]]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.0.self_attn.v_proj.lora_{}.weight"
    save_file(
        {name.format("A"): a, name.format("B"): np.ascontiguousarray(b)},
        adapter / "adapter_model.safetensors",
    )
    pair = load_adapter(adapter, open_model(base)).pairs["blk.0.attn_v.weight"]
    y = pair.scale * own["qalora/x"] @ (pair.b @ pair.a).T
    assert nmse(y, own["qalora/y"][:, : shape[0]]) < REFERENCE


@pytest.mark.parametrize("kind", sorted(RECORDED.keys() - TAKEN))
def test_other_methods_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    """With an advice that works: where peft itself merges, to do that; else to run it with peft."""
    base, adapter = written("llama+ia3", tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "peft_type": kind}))
    with pytest.raises(AdapterError) as refusal:
        load(base, [adapter])
    text = str(refusal.value)
    assert f"a method that is not supported, {kind}" in text
    merges = RECORDED[kind]["merges"] or "ImportError" in RECORDED[kind].get("error", "")
    assert ("merge_and_unload" in text) == merges
    assert ("run it with transformers and peft" in text) != merges


def test_an_unknown_setting_of_a_method_is_refused(tmp_path: Path) -> None:
    base, adapter = written("llama+hra", tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "twice_as_much": True}))
    with pytest.raises(AdapterError, match="twice_as_much is not supported: loragraft does not know"):
        load(base, [adapter])


@pytest.mark.parametrize(
    "case", ["llama+adalora", "llama+ia3", "llama+lokr", "llama+vera", "llama+oft", "llama+boft", "llama+hra"]
)
def test_a_tensor_of_another_shape_is_refused(case: str, tmp_path: Path) -> None:
    base, adapter = written(case, tmp_path)
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name in list(tensors)[:3]:
        short = np.ascontiguousarray(tensors[name][..., :-1])
        save_file({**tensors, name: short}, adapter / "adapter_model.safetensors")
        with pytest.raises(AdapterError):
            merge(base, [adapter], tmp_path / "merged.gguf")
    name = next(iter(tensors))
    save_file(
        {other: t for other, t in tensors.items() if other != name}, adapter / "adapter_model.safetensors"
    )
    if len({name.rsplit(".", 1)[-1] for name in tensors}) > 1:
        with pytest.raises(AdapterError):
            merge(base, [adapter], tmp_path / "merged.gguf")


def test_a_gguf_adapter_holds_no_factors(tmp_path: Path) -> None:
    base, adapter = written("llama+ia3", tmp_path)
    with pytest.raises(AdapterError, match="holds factors and rotations, which a GGUF adapter cannot"):
        convert_adapter(adapter, base, tmp_path / "adapter.gguf")
    base, adapter = base_folder("llama", tmp_path / "b"), adapter_folder("llama+loha", tmp_path / "loha")
    convert_adapter(adapter, base, tmp_path / "adapter.gguf")
    found = load(base, [tmp_path / "adapter.gguf"], backend="reference").logits(golden()["ids"])
    assert nmse(found, methods()["llama+loha/logits"]) < REFERENCE


def test_transforms_of_blocks_and_reflections() -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((3, 8)).astype(np.float32)
    blocks = rng.standard_normal((2, 4, 4)).astype(np.float32)
    dense = np.zeros((8, 8), np.float32)
    dense[:4, :4], dense[4:, 4:] = blocks
    assert np.allclose(Transform(rotation=Blocks(blocks)).apply(w), w @ dense, atol=1e-5)
    units = rng.standard_normal((2, 8)).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    turned = (
        w @ (np.eye(8) - 2 * np.outer(units[0], units[0])) @ (np.eye(8) - 2 * np.outer(units[1], units[1]))
    )
    assert np.allclose(Transform(rotation=Reflections(units)).apply(w), turned, atol=1e-5)
    own = Transform(lengths=np.float32([1, 2, 3]), columns=np.ones(8, np.float32))
    assert np.allclose(own.rows(0, slice(1, 3)).apply(w[1:]), w[1:] * np.float32([[2], [3]]))
    assert own.changes
    assert not replace(own, lengths=np.ones(3, np.float32)).changes


def test_the_page_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_adapters.py"))["page"]()
    assert (ROOT / "docs" / "adapters.md").read_text() == page, "run `make docs`"
