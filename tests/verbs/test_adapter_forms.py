"""Adapters from PEFT to GGUF or mlx-lm and back: the same tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import loragraft as lg
from loragraft.cli import app
from loragraft.errors import AdapterError, OutputError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.huggingface.peft_writer import SCALES
from loragraft.opening import load_adapter, open_model
from paths import data
from peft_golden import adapter_folder, base_folder, golden, recorded
from tolerances import REFERENCE, nmse

WEIGHTS = "adapter_model.safetensors"
SHARED = {
    "plain": ("llama-kjv", "llama-kjv.shakespeare"),
    "rsLoRA": ("qwen2-bias", "qwen2-bias.rslora"),
    "patterns": ("starcoder2-bias", "starcoder2-bias.pattern"),
    "experts": ("qwen3moe-8x", "qwen3moe-8x.experts"),
    "DoRA": ("llama-kjv", "llama-kjv.dora"),
    "embedding, saved module": ("llama-kjv", "llama-kjv.embed"),
}
#: Of peft-adapters.npz: small, and with everything that a GGUF adapter can hold.
RECORDED = [
    *("llama+embedding", "llama+saved", "llama+dora", "llama+dora-rslora", "llama+mica", "llama+olora"),
    *("qwen2+embedding", "qwen2+embedding-tied", "qwen2+dora", "qwen2+head", "qwen2+saved-head"),
]


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """What was trained; copies of the base's tensors beside it are not."""
    return {
        name: array for name, array in load_file(folder / WEIGHTS).items() if ".base_layer.weight" not in name
    }


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array.astype(np.float32), name)


@pytest.mark.parametrize("kind", SHARED)
def test_peft_to_gguf_and_back(kind: str, tmp_path: Path) -> None:
    base, adapter = map(data, SHARED[kind])
    lg.convert_adapter(adapter, base, tmp_path / "a.gguf")
    lg.convert_adapter(tmp_path / "a.gguf", base, tmp_path / "back", to="peft")
    same(tensors(tmp_path / "back"), tensors(adapter))
    old, new = (
        json.loads((path / "adapter_config.json").read_text()) for path in (adapter, tmp_path / "back")
    )
    for key in (*SCALES, "use_dora", "modules_to_save"):
        assert (new[key] or None) == (old[key] or None), key
    for key in ("target_modules", "target_parameters"):
        assert sorted(new[key] or []) == sorted(old[key] or []), key


@pytest.mark.parametrize("case", RECORDED)
@pytest.mark.parametrize("way", ["gguf", "mlx"])
def test_there_and_back_runs_as_before(case: str, way: str, tmp_path: Path) -> None:
    """PEFT's own logits are the oracle of what came back."""
    base, adapter = base_folder(case, tmp_path / "base"), adapter_folder(case, tmp_path / "adapter")
    middle = tmp_path / ("a.gguf" if way == "gguf" else "mlx")
    lg.convert_adapter(adapter, base, middle, to=way)
    lg.convert_adapter(middle, base, tmp_path / "back", to="peft")
    one_scale = way == "mlx" and "rslora" in case  # for all modules: the others' are in B then
    if "olora" not in case and not one_scale:  # OLoRA comes back as a plain LoRA of the original base
        same(tensors(tmp_path / "back"), tensors(adapter))
    for path in (middle, tmp_path / "back"):
        logits = lg.load(base, [path], backend="reference").logits(golden()["ids"])
        assert nmse(logits, recorded(case)[f"{case}/logits"]) < REFERENCE


@pytest.mark.parametrize("kind", [kind for kind in SHARED if kind != "patterns"])
def test_peft_to_mlx_and_back(kind: str, tmp_path: Path) -> None:
    base, adapter = map(data, SHARED[kind])
    lg.convert_adapter(adapter, base, tmp_path / "mlx", to="mlx")
    assert sorted(path.name for path in (tmp_path / "mlx").iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
    ]
    lg.convert_adapter(tmp_path / "mlx", base, tmp_path / "back", to="peft")
    same(tensors(tmp_path / "back"), tensors(adapter))


def test_one_scale_is_for_all_of_mlx(tmp_path: Path) -> None:
    """What alpha_pattern adds is in B: the same deltas."""
    base, adapter = map(data, SHARED["patterns"])
    lg.convert_adapter(adapter, base, tmp_path / "mlx", to="mlx")
    model = open_model(base)
    before, after = load_adapter(adapter, model), load_adapter(tmp_path / "mlx", model)
    assert len({pair.scale for pair in after.pairs.values()}) == 1
    for name, pair in before.pairs.items():
        other = after.pairs[name]
        np.testing.assert_array_equal(
            other.b * np.float32(other.scale), pair.b * np.float32(pair.scale), name
        )


def test_scales_that_are_no_powers_of_two(tmp_path: Path) -> None:
    """B comes back to the bit, in F16 and in F32."""
    adapter = tmp_path / "a"
    shutil.copytree(data("llama-kjv.shakespeare"), adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"alpha_pattern": {"q_proj": 7, "down_proj": 11}, "use_rslora": True}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    wide = load_file(adapter / WEIGHTS)
    for dtype in (np.float16, np.float32):
        save_file({name: array.astype(dtype) for name, array in wide.items()}, adapter / WEIGHTS)
        out, back = tmp_path / f"{dtype.__name__}.gguf", tmp_path / dtype.__name__
        assert lg.convert_adapter(adapter, data("llama-kjv"), out).baked
        lg.convert_adapter(out, data("llama-kjv"), back, to="peft")
        for name, array in tensors(back).items():
            expected = wide[name].astype(dtype).astype(np.float32)
            np.testing.assert_array_equal(array, expected, name)


def test_an_adapter_of_llama_cpps_converter(tmp_path: Path) -> None:
    """Without keys of ours: ranks and alpha are read off the tensors."""
    lg.convert_adapter(
        data("gguf/llama-kjv.shakespeare-lora.gguf"), data("llama-kjv"), tmp_path / "back", to="peft"
    )
    same(tensors(tmp_path / "back"), tensors(data("llama-kjv.shakespeare")))
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 16)


def test_dora_in_a_gguf_says_that_it_is(tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    result = CliRunner().invoke(
        app, ["convert", str(data("llama-kjv.dora")), "--base", str(data("llama-kjv")), "-o", str(out)]
    )
    assert result.exit_code == 0
    assert "llama.cpp does not load DoRA" in result.output
    with GGUFFile.open(out) as file:
        assert file.metadata["adapter.type"].data == "dora"


def test_modules_that_only_some_layers_adapt_are_named_in_full(tmp_path: Path) -> None:
    adapter = tmp_path / "a"
    shutil.copytree(data("llama-kjv.shakespeare"), adapter)
    kept = {
        name: array
        for name, array in load_file(adapter / WEIGHTS).items()
        if ".2." in name or "q_proj" in name
    }
    save_file(kept, adapter / WEIGHTS)
    lg.convert_adapter(adapter, data("llama-kjv"), tmp_path / "back", to="peft")
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    names = config["target_modules"]
    assert "q_proj" in names
    assert "model.layers.2.mlp.up_proj" in names
    assert "up_proj" not in names
    same(tensors(tmp_path / "back"), kept)


def test_experts_adapted_one_by_one(tmp_path: Path) -> None:
    """As an older transformers names them: they become the stacks of today's, with the same deltas."""
    base = data("qwen3moe-8x")
    adapter = tmp_path / "a"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["gate_proj", "down_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    shapes = {name: tensor.shape for name, tensor in open_model(base).tensors.items()}
    rng, arrays = np.random.default_rng(0), {}
    for expert in (0, 3):
        for module, gguf in (("gate_proj", "ffn_gate_exps"), ("down_proj", "ffn_down_exps")):
            _, out, columns = shapes[f"blk.1.{gguf}.weight"]
            name = f"base_model.model.model.layers.1.mlp.experts.{expert}.{module}"
            arrays[f"{name}.lora_A.weight"] = rng.standard_normal((2, columns)).astype("f4")
            arrays[f"{name}.lora_B.weight"] = rng.standard_normal((out, 2)).astype("f4")
    save_file(arrays, adapter / WEIGHTS)
    lg.convert_adapter(adapter, base, tmp_path / "back", to="peft")
    assert {name.rpartition("experts.")[2] for name in tensors(tmp_path / "back")} == {
        f"{inner}lora_{half}.weight" for inner in ("", "base_layer.") for half in "AB"
    }
    model = open_model(base)
    before, after = load_adapter(adapter, model), load_adapter(tmp_path / "back", model)
    for name, pair in before.pairs.items():
        other = after.pairs[name]
        np.testing.assert_allclose(
            other.scale * (other.b @ other.a), pair.scale * (pair.b @ pair.a), atol=1e-5
        )
    assert not (after.pairs["blk.1.ffn_up_exps.weight"].b).any()


def test_what_has_no_other_form(tmp_path: Path) -> None:
    for case, what in (("llama+tokens", "rows of the embedding"), ("qwen2+lora-bias", "biases")):
        base, adapter = base_folder(case, tmp_path / f"{case}-b"), adapter_folder(case, tmp_path / case)
        for to in ("peft", "mlx"):
            with pytest.raises(AdapterError, match=f"holds {what}, which are not written to"):
                lg.convert_adapter(adapter, base, tmp_path / "out", to=to)
    with pytest.raises(OutputError, match="is there already"):
        lg.convert_adapter(data("llama-kjv.shakespeare"), data("llama-kjv"), data("llama-kjv"), to="peft")
    assert not (tmp_path / "out").exists()
