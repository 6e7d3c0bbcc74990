"""gpt-oss' experts as they are published: MXFP4 blocks and scales, against the same weights as floats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import loragraft as lg
from hf_configs import records, weights, write_tokenizer
from loragraft.formats.gguf.model import open_gguf
from tolerances import NATIVE_F32, nmse

EXPERTS, WIDTH, FF = 4, 32, 64
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
IDS = np.arange(2, 40, dtype=np.int32)


def drawn(out: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks, scales, and the floats [experts, in, out] that transformers makes of them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (EXPERTS, out, columns // 32, 16)).astype(np.uint8)
    scales = rng.integers(120, 126, (EXPERTS, out, columns // 32)).astype(np.uint8)
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(EXPERTS, out, columns // 32, 32)
    floats = np.ldexp(VALUES[codes], scales[..., None].astype(int) - 127).reshape(EXPERTS, out, columns)
    return blocks, scales, np.ascontiguousarray(floats.swapaxes(1, 2))


def folders(tmp_path: Path, **other: np.ndarray) -> tuple[Path, Path]:
    """The model with its experts in MXFP4, and as floats. `other`: tensors that differ in the first, by what their
    names end with."""
    record = records()["gpt_oss"]
    config: dict[str, Any] = {**record["config"], "intermediate_size": FF}
    sizes = {"gate_up_proj_bias": [EXPERTS, 2 * FF]}
    shapes = {name: sizes.get(name.rpartition(".")[2], shape) for name, shape in record["shapes"].items()}
    packed = {name: array for name, array in weights(shapes).items() if not name.endswith("_proj")}
    floats = dict(packed)
    for layer in range(2):
        for seed, (name, out, columns) in enumerate(
            [("gate_up_proj", 2 * FF, WIDTH), ("down_proj", WIDTH, FF)]
        ):
            blocks, scales, values = drawn(out, columns, 2 * layer + seed)
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            packed |= {f"{stem}_blocks": blocks, f"{stem}_scales": scales}
            floats[stem] = values
    for name in packed:
        packed[name] = next((array for end, array in other.items() if name.endswith(end)), packed[name])
    made = []
    for name, tensors, more in (
        ("packed", packed, {"quantization_config": {"quant_method": "mxfp4"}}),
        ("floats", floats, {}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config | more))
        write_tokenizer(folder)
        made.append(folder)
    return made[0], made[1]


def test_the_experts_are_carried_over_as_they_are(tmp_path: Path) -> None:
    packed, floats = folders(tmp_path)
    lg.convert(packed, tmp_path / "m.gguf", type="F32")
    model = open_gguf(tmp_path / "m.gguf")
    kinds = {name: tensor.type.name for name, tensor in model.tensors.items() if "exps.weight" in name}
    assert set(kinds.values()) == {"MXFP4"}
    assert list(model.tensors)[:3] == [f"blk.0.ffn_{part}_exps.weight" for part in ("down", "gate", "up")]
    expected = lg.load(floats, backend="reference", threads=1).logits(IDS)
    for path in (packed, tmp_path / "m.gguf"):
        for backend in ("reference", "native"):
            found = lg.load(path, backend=backend, threads=1, activations="f32").logits(IDS)  # type: ignore[arg-type]
            assert nmse(found, expected) < NATIVE_F32, (path.name, backend)


def test_scales_that_do_not_fit(tmp_path: Path) -> None:
    packed, _ = folders(tmp_path, down_proj_scales=np.zeros((EXPERTS, WIDTH, 1), np.uint8))
    with pytest.raises(
        lg.LoragraftError,
        match=r"the scales of .*down_proj_blocks do not fit: found U8 \(4, 32, 1\), expected",
    ):
        lg.convert(packed, tmp_path / "m.gguf")
