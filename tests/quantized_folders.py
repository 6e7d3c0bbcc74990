"""A small Llama with a few weights quantized as GPTQ and compressed-tensors store them; the same on every machine."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from hf_configs import records, weights, write_tokenizer

MODULES = (
    "model.layers.0.self_attn.q_proj",  # rows that are permuted
    "model.layers.0.self_attn.k_proj",
    "model.layers.0.mlp.gate_proj",
    "model.layers.1.mlp.down_proj",
)
GROUP = 16
Arrays = dict[str, npt.NDArray[Any]]


def _gptq(bits: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, **more}


def _compressed(form: str, **arguments: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": "int", **arguments}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


#: By case, its `quantization_config`.
CASES: dict[str, dict[str, Any]] = {
    "gptq-2": _gptq(2),
    "gptq-4": _gptq(4, desc_act=True),
    "gptq-4-v2": _gptq(4, checkpoint_format="gptq_v2"),
    "gptq-8": _gptq(8),
    "packed-4": _compressed("pack-quantized", num_bits=4, strategy="group", group_size=GROUP, symmetric=True),
    "packed-4-zeros": _compressed(
        "pack-quantized", num_bits=4, strategy="group", group_size=GROUP, symmetric=False
    ),
    "packed-8": _compressed("pack-quantized", num_bits=8, strategy="group", group_size=GROUP, symmetric=True),
    "bytes": _compressed("int-quantized", num_bits=8, strategy="channel", symmetric=True),
}


def _drawn(name: str, below: int, *shape: int) -> npt.NDArray[np.int64]:
    """Whole numbers from 0 on."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(33)) % np.uint64(below)).astype(np.int64).reshape(shape)


def _scales(name: str, *shape: int) -> npt.NDArray[np.float16]:
    return ((_drawn(name, 1000, *shape) + 200) / 20000).astype(np.float16)


def _words(codes: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int32]:
    """[n, count] as [n, words]: the lowest bits first."""
    each = 32 // bits
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % each))).reshape(len(codes), -1, each)
    return (codes << np.arange(each) * bits).sum(-1).astype(np.uint32).view(np.int32)


def _of_gptq(stem: str, out: int, columns: int, config: dict[str, Any]) -> Arrays:
    bits, groups = config["bits"], columns // GROUP
    codes = _drawn(f"{stem}.codes", 1 << bits, out, columns)
    zeros = _drawn(f"{stem}.zeros", (1 << bits) - 1, groups, out)
    order = np.arange(columns) // GROUP
    if config.get("desc_act"):
        order = order[np.argsort(_drawn(f"{stem}.order", 1 << 30, columns), kind="stable")]
    return {
        f"{stem}.qweight": np.ascontiguousarray(_words(codes, bits).T),
        f"{stem}.qzeros": _words(zeros, bits),
        f"{stem}.scales": _scales(f"{stem}.scales", groups, out),
        f"{stem}.g_idx": order.astype(np.int32),
    }


def _of_compressed(stem: str, out: int, columns: int, config: dict[str, Any]) -> Arrays:
    arguments = config["config_groups"]["group_0"]["weights"]
    bits = arguments["num_bits"]
    codes = _drawn(f"{stem}.codes", 1 << bits, out, columns)
    if config["format"] == "int-quantized":
        return {
            f"{stem}.weight": (codes - 128).astype(np.int8),
            f"{stem}.weight_scale": _scales(f"{stem}.scales", out, 1),
        }
    found: Arrays = {
        f"{stem}.weight_packed": _words(codes, bits),
        f"{stem}.weight_scale": _scales(f"{stem}.scales", out, columns // GROUP),
        f"{stem}.weight_shape": np.array([out, columns]),
    }
    if not arguments["symmetric"]:
        zeros = _drawn(f"{stem}.zeros", 1 << bits, columns // GROUP, out)
        found[f"{stem}.weight_zero_point"] = np.ascontiguousarray(_words(zeros, bits).T)
    return found


def write_quantized(folder: Path, case: str) -> Path:
    """The folder of one of `CASES`."""
    record, config = records()["llama"], CASES[case]
    tensors: Arrays = dict(weights(record["shapes"]))
    for module in MODULES:
        out, columns = tensors.pop(f"{module}.weight").shape
        make = _of_gptq if config["quant_method"] == "gptq" else _of_compressed
        tensors |= make(module, out, columns, config)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**record["config"], "quantization_config": config}))
    write_tokenizer(folder)
    return folder
