"""Multi-head latent attention: the checkpoint's one matrix of keys and values, which GGUF has as two stacks by head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import loragraft as lg
from archs.test_hf_configs import write
from archs.test_hf_peft import GOLDEN, write_adapter
from hf_configs import records, weights
from loragraft.adapters.collect import collect_deltas
from loragraft.archs.tensors import OfHeads
from loragraft.backends.batch import Piece
from loragraft.errors import AdapterError
from loragraft.formats.views import values_of
from loragraft.opening import load_adapters, open_model
from loragraft.streaming.checkpoint.contents import Contents
from paths import data

KV_B = "model.layers.1.self_attn.kv_b_proj"


def changed(config: dict[str, Any]) -> Any:
    return lambda own, tensors: own.update(config)


def test_the_matrix_comes_back_with_its_adapter(tmp_path: Path) -> None:
    base, adapter = write(tmp_path / "m", "deepseek2"), write_adapter(tmp_path / "a", "deepseek2")
    lg.convert(base, tmp_path / "m.gguf", type="F32")
    model, loaded = load_adapters([adapter], open_model(tmp_path / "m.gguf"))
    contents = Contents(*collect_deltas(model, loaded), [], keep_f16=False)
    matrices = [*contents.floats.values(), *(one for group in contents.groups.values() for one in group)]
    [matrix] = [one for one in matrices if one.name == f"{KV_B}.weight"]
    own = weights(records()["deepseek2"]["shapes"])[f"{KV_B}.weight"]
    lora = weights(GOLDEN["deepseek2"]["shapes"])
    a, b = (lora[f"base_model.model.{KV_B}.lora_{part}.weight"] for part in "AB")
    assert matrix.shape == own.shape
    np.testing.assert_allclose(values_of(matrix.source), own + b @ a, rtol=0, atol=1e-6)
    some = matrix.source.rows(17, 45).view(np.float32)
    np.testing.assert_array_equal(some, values_of(matrix.source)[17:45])


def test_an_adapter_goes_to_gguf_and_back(tmp_path: Path) -> None:
    base, adapter = write(tmp_path / "m", "deepseek2"), write_adapter(tmp_path / "a", "deepseek2")
    lg.convert_adapter(adapter, base, tmp_path / "a.gguf")
    lg.convert_adapter(tmp_path / "a.gguf", base, tmp_path / "back", to="peft")
    ids = np.load(data("golden/hf-configs.npz"))["ids"]
    first, *others = (
        lg.load(base, adapters=[one], threads=1, activations="f32").logits(ids)
        for one in (adapter, tmp_path / "a.gguf", tmp_path / "back")
    )
    for other in others:
        np.testing.assert_allclose(other, first, rtol=0, atol=1e-5)


def test_dora_of_rows_that_are_columns_is_refused(tmp_path: Path) -> None:
    base, folder = write(tmp_path / "m", "deepseek2"), write_adapter(tmp_path / "a", "deepseek2")
    shapes = GOLDEN["deepseek2"]["shapes"] | {
        f"base_model.model.{KV_B}.lora_magnitude_vector": [4 * (8 + 12)],
    }
    shapes = {name: shape for name, shape in shapes.items() if KV_B in name}
    save_file(weights(shapes), folder / "adapter_model.safetensors")
    config = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(config.replace("{", '{"use_dora": true, ', 1))
    with pytest.raises(AdapterError, match=r"DoRA of \S+kv_b_proj is not supported: its rows are columns"):
        lg.load(base, adapters=[folder])


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_pieces_of_a_text_are_as_the_whole(tmp_path: Path, backend: Any) -> None:
    model = lg.load(write(tmp_path / "m", "deepseek3-yarn"), backend=backend, threads=2)
    ids = np.load(data("golden/hf-configs.npz"))["ids"]
    program = model.program
    whole = program.run([Piece(program.open_sequence(), ids, wants="all")])
    sequence = program.open_sequence()
    for first, stop in ((0, 1), (1, 30), (30, 31), (31, 48)):
        part = Piece(sequence, ids[first:stop], wants="all")
        np.testing.assert_array_equal(program.run([part]), whole[first:stop])


def test_layers_that_predict_further_are_left_out(tmp_path: Path) -> None:
    def more(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["model.layers.2.eh_proj.weight"] = np.zeros((32, 64), np.float32)
        tensors["model.layers.2.enorm.weight"] = np.zeros(32, np.float32)

    model = lg.load(write(tmp_path / "m", "deepseek3", more))
    [note] = [note for note in model.source.notes if "predict" in note]
    assert "2 tensors of layers that predict further tokens are left out" in note
    assert not any(name.startswith("blk.2.") for name in model.source.tensors)


@pytest.mark.parametrize(
    ("case", "config", "message"),
    [
        ("deepseek3", {"rope_interleave": False}, "no rope_interleave other than True"),
        ("deepseek3", {"num_key_value_heads": 2}, "bad num_key_value_heads: found 2, expected 4, as heads"),
        ("deepseek2", {"norm_topk_prob": True}, "no norm_topk_prob other than False"),
        (
            "deepseek2",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "mscale_all_dim": 1.0}},
            "mscale_all_dim beside RoPE scaling linear",
        ),
        ("glm4_moe_lite", {"mlp_layer_types": ["sparse", "dense"]}, "dense layers above those with experts"),
        ("deepseek2", {"v_head_dim": 10}, "80 rows do not divide into 4 heads of 18"),
    ],
)
def test_refused(tmp_path: Path, case: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(lg.LoragraftError, match=message):
        lg.load(write(tmp_path / "m", case, changed(config)))


def test_rows_of_heads() -> None:
    rows = OfHeads(lambda h, layer: (2, 1, 3, 4))
    np.testing.assert_array_equal(rows.order(None, 0, 8), [1, 2, 5, 6])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="7 rows do not divide into 2 heads of 4"):
        rows.order(None, 0, 7)  # type: ignore[arg-type]
