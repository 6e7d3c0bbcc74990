"""BitNet beyond its logits: packed weights, masters that are rounded as they are used, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loragraft as lg
from archs.test_hf_configs import notes_of, write
from hf_configs import STEP, logits, records, weights
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.views import in_memory, values_of
from loragraft.huggingface.bitnet_weights import rounded_weight
from paths import data
from tolerances import NATIVE_F32, REFERENCE, nmse

GOLDEN = np.load(data("golden/bitnet.npz"))
#: Two bytes in a row of transformers' documentation of `unpack_weights`, and the eight rows that they are.
PUBLISHED = (
    np.array([[0b10100001, 0b00011000], [0b10010000, 0b00001010]], np.uint8),
    np.array([[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]], np.float32),
)
ONE = "model.layers.0.self_attn.k_proj.weight"


def packed(levels: np.ndarray) -> np.ndarray:
    """int8 [out, in] of -1, 0, 1 -> uint8 [out/4, in]."""
    parts = (levels.astype(np.int8) + 1).astype(np.uint8).reshape(4, -1, levels.shape[1])
    return np.bitwise_or.reduce([part << (2 * place) for place, part in enumerate(parts)])


def offline(linear_class: str) -> Any:
    """An edit of `write`: weights are packed, as make_bitnet.py has them."""

    def edit(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": linear_class,
            "quantization_mode": "offline",
        }
        for name, values in list(tensors.items()):
            if name.endswith("_proj.weight"):
                scale = np.float32(np.abs(values).mean(dtype=np.float64))
                tensors[name] = packed(np.clip(np.rint(values / scale), -1, 1))
                unit = scale if linear_class == "autobitlinear" else 1 / scale
                tensors[f"{name}_scale"] = np.array([unit], np.float32)

    return edit


@pytest.mark.parametrize("linear_class", ["autobitlinear", "bitlinear"])
def test_logits_of_packed_weights_are_those_of_transformers(tmp_path: Path, linear_class: str) -> None:
    """Without rounded activations to 1e-11; with them they are near."""
    folder = write(tmp_path / "m", "bitnet", offline(linear_class))
    lg.convert(folder, tmp_path / "m.gguf", type="F32")
    for path, backend, tolerance in (
        (folder, "reference", REFERENCE),
        (tmp_path / "m.gguf", "native", NATIVE_F32),
    ):
        model = lg.load(path, backend=backend, threads=1, activations="f32")  # type: ignore[arg-type]
        found = model.logits(logits()["ids"])[::STEP]
        assert nmse(found, GOLDEN[linear_class]) < tolerance
        assert 1e-6 < nmse(found, GOLDEN[f"{linear_class}-rounded"]) < 1e-3
    assert any("have three levels (BitNet)" in note for note in lg.load(folder).notes)


def test_a_llama_in_packed_weights_is_what_they_unpack_to(tmp_path: Path) -> None:
    packed_folder = write(tmp_path / "m", "llama", offline("bitlinear"))
    levels = {
        name: values_of(one)
        for name, one in lg.load(packed_folder, backend="reference").source.tensors.items()
        if name.endswith((".ffn_up.weight", ".ffn_down.weight"))
    }
    drawn = weights(records()["llama"]["shapes"])
    for name, found in levels.items():
        part = name.split(".")[2].removeprefix("ffn_")
        master = drawn[f"model.layers.{name.split('.')[1]}.mlp.{part}_proj.weight"]
        scale = np.abs(master).mean(dtype=np.float64)
        wanted = np.clip(np.rint(master / scale), -1, 1) * scale
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert len(levels) == 4


def test_bytes_are_transformers(tmp_path: Path) -> None:
    values = weights(records()["bitnet"]["shapes"], "bitnet")[ONE]
    scale = np.abs(values).mean()
    np.testing.assert_array_equal(packed(np.clip(np.rint(values / scale), -1, 1)), GOLDEN["packed"])
    np.testing.assert_array_equal(packed(PUBLISHED[1]), PUBLISHED[0])


def test_a_row_is_read_alone(tmp_path: Path) -> None:
    """And across the borders of the four parts."""
    folder = write(tmp_path / "m", "bitnet", offline("bitlinear"))
    tensor = lg.load(folder, backend="reference").source.tensors["blk.0.attn_k.weight"]
    whole = values_of(tensor)
    assert len(np.unique(whole)) == 3
    for start, stop in ((0, 1), (3, 4), (3, 13), (15, 16), (4, 8)):
        rows = tensor.rows(start, stop).view(np.float32)
        np.testing.assert_array_equal(rows, whole[start:stop])


def test_masters_are_rounded_to_the_mean(tmp_path: Path) -> None:
    """0.5 is rounded to even, as in torch; the output and the embedding stay."""
    master = np.array([[0.25, -0.75, 0.0, 0.1], [1.5, -0.5, 0.9, 0.0]], np.float32)
    master *= np.float32(0.5) / np.abs(master).mean()
    found = values_of(rounded_weight(in_memory("w", master)))
    np.testing.assert_allclose(found, [[0, -0.5, 0, 0], [0.5, -0.5, 0.5, 0]], rtol=1e-6)
    lg.convert(write(tmp_path / "m", "bitnet-online"), tmp_path / "m.gguf", type="F32")
    tensors = {name: values_of(one) for name, one in open_gguf(tmp_path / "m.gguf").tensors.items()}
    for name, values in tensors.items():
        levels = len(np.unique(np.abs(values)))
        assert (levels == 2) is (values.ndim == 2 and name != "token_embd.weight"), name


def test_in_a_type_of_three_levels_nothing_is_lost_but_the_scale(tmp_path: Path) -> None:
    """TQ2_0 has blocks of 256 under a number in F16."""

    def wide(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config.update(hidden_size=256, intermediate_size=256, num_attention_heads=4, head_dim=64)
        config.update(num_key_value_heads=4, num_hidden_layers=1)
        shapes = {
            name: [256 if size in (16, 32, 48) else size for size in values.shape]
            for name, values in tensors.items()
            if ".layers.1." not in name
        }
        tensors.clear()
        tensors.update(weights(shapes, "bitnet"))

    folder = write(tmp_path / "m", "bitnet-online", wide)
    lg.convert(folder, tmp_path / "F32.gguf", type="F32")
    lg.quantize(tmp_path / "F32.gguf", tmp_path / "TQ2_0.gguf", type="TQ2_0")
    floats, levels = (open_gguf(tmp_path / f"{kind}.gguf").tensors for kind in ("F32", "TQ2_0"))
    name = "blk.0.ffn_up.weight"
    assert levels[name].type.name == "TQ2_0"
    wanted = values_of(floats[name])
    np.testing.assert_array_equal(values_of(levels[name]), wanted.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"use_rms_norm": True}, "bitnet's use_rms_norm: found True"),
        ({"linear_class": "bitbit"}, "bitnet's linear_class: found 'bitbit'"),
        ({"modules_to_not_convert": ["q_proj"]}, r"bitnet's modules_to_not_convert: found \['q_proj'\]"),
    ],
)
def test_what_is_refused(tmp_path: Path, setting: dict[str, Any], said: str) -> None:
    def edit(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        offline("bitlinear")(config, tensors)
        config["quantization_config"].update(setting)

    with pytest.raises(lg.LoragraftError, match=said):
        lg.load(write(tmp_path / "m", "bitnet", edit))


def test_a_packed_weight_has_its_scale(tmp_path: Path) -> None:
    def edit(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        offline("bitlinear")(config, tensors)
        del tensors[f"{ONE}_scale"]

    with pytest.raises(
        lg.LoragraftError, match=r"k_proj.weight is not a weight of BitNet: found U8.*no scale"
    ):
        lg.load(write(tmp_path / "m", "bitnet", edit))


def test_notes(tmp_path: Path) -> None:
    assert notes_of(write(tmp_path / "m", "bitnet")) == [
        "hidden_act = 'relu2' is kept, but llama.cpp computes bitnet with silu"
    ]
