"""Small random models by their config.json, for what a configuration means: `golden/hf-configs.json` and `.npz`.

The JSON holds config.json and the checkpoint's tensors as transformers 5.23 saves them; the weights are drawn here,
the same for it and for us; the npz holds the float32 logits that it computes (attention "eager", on the CPU) for `ids`,
every `STEP`th row. `tests/make_hf_configs.py` made both, and those of `SETS`.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

VOCABULARY = 64
STEP = 3
PEFT_STEP = 6
#: Model types whose norms multiply by 1 + weight.
STORED_LESS_ONE = ("gemma3_text", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
SETS = ("hf-configs", "hf-recurrent")
"""The files, by what their names begin with: models that only attend, and those with recurrent layers."""
CONVERTED = {"hf-configs": "hf-convert", "hf-recurrent": "hf-recurrent-convert"}
"""And what llama.cpp's converter makes of them."""
ADAPTED = {"hf-configs": "hf-peft", "hf-recurrent": "hf-recurrent-peft"}
"""And what PEFT makes of an adapter on every linear of one of each type."""
Shapes = dict[str, list[int]]
Edit = Callable[[dict[str, Any]], None]


def records() -> dict[str, dict[str, Any]]:
    """By case: `config` and `shapes` (tensor name to shape)."""
    from paths import data  # it needs pytest, which what makes the data does not

    found: dict[str, dict[str, Any]] = {}
    for name in SETS:
        found |= json.loads(data(f"golden/{name}.json").read_text())
    return found


def logits() -> dict[str, npt.NDArray[Any]]:
    """By case, and the tokens under "ids"."""
    from paths import data

    found: dict[str, npt.NDArray[Any]] = {}
    for name in SETS:
        found |= np.load(data(f"golden/{name}.npz"))
    return found


def converted() -> dict[str, dict[str, Any]]:
    """By case: `keys` and `tensors` of the converter's file."""
    from paths import data

    found: dict[str, dict[str, Any]] = {}
    for name in CONVERTED.values():
        found |= json.loads(data(f"golden/{name}.json").read_text())
    return found


def first_of_each() -> list[str]:
    """One case of each type."""
    found: dict[str, str] = {}
    for case, record in records().items():
        found.setdefault(record["config"]["model_type"], case)
    return list(found.values())


def digest(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    """Of all that a model's logits depend on in a GGUF: its architecture's keys and its tensors."""
    found = hashlib.sha256()
    arch = metadata["general.architecture"].data
    for key, value in metadata.items():
        if key.startswith(f"{arch}."):
            found.update(f"{key} {np.asarray(value.data).tolist()}\n".encode())
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.type.name} {tensor.shape}\n".encode())
        found.update(bytes(tensor.rows(0, tensor.n_rows)))
    return found.hexdigest()[:16]


def export_layout(config: dict[str, Any]) -> str:
    """The layout of its exports that transformers loads, or whose weights compressed-tensors takes out."""
    return "mxfp4" if kind(config) == "gpt_oss" else "compressed-tensors"


def exported(folder: Path, out: Path) -> dict[str, str]:
    """Exports the model at `folder` to `out / "out"` by way of a GGUF, or from the folder where that is refused: `from`
    which, and the `digest` of config.json and the weights."""
    import loragraft as lg
    from loragraft.errors import LoragraftError
    from loragraft.huggingface.intake import Intake

    layout = export_layout(json.loads((folder / "config.json").read_text()))
    lg.convert(folder, out / "m.gguf", type="F32", intake=Intake(text_only=True))
    source = "GGUF"
    try:
        lg.export(out / "m.gguf", out / "out", format=layout)
    except LoragraftError:
        source = "folder"
        lg.export(folder, out / "out", format=layout)
    files = [out / "out" / name for name in ("config.json", "model.safetensors")]
    return {
        "from": source,
        "digest": hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16],
    }


def write_packed(folder: Path) -> Path:
    """gpt-oss whose experts are 64 wide, so that MXFP4 has whole blocks of them."""
    from archs.test_hf_configs import write

    def wider(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["intermediate_size"] = 64
        wide = {48: 64, 96: 128}
        shapes = {name: [wide.get(size, size) for size in tensor.shape] for name, tensor in tensors.items()}
        tensors.update(weights(shapes, "gpt_oss"))

    return write(folder, "gpt_oss", wider)


def kind(config: dict[str, Any]) -> str:
    """The model_type of the language model."""
    return str(config.get("text_config", config)["model_type"])


def weights(shapes: Shapes, model_type: str = "llama") -> dict[str, npt.NDArray[np.float32]]:
    """float32 tensors, uniform: norms around 1, or around 0 where they are stored less 1; biases and matrices around 0.
    The same on every version of NumPy."""
    norms = (-0.5, 0.5) if model_type in STORED_LESS_ONE else (0.5, 1.5)
    drawn = {}
    for name, shape in shapes.items():
        low, high = norms if "norm" in name and name.endswith(".weight") else (-0.35, 0.35)
        if name.endswith(".layer_scalar"):
            low, high = 0.5, 1.5
        if name.endswith(".A_log"):  # decays from slow to fast
            low, high = -3.5, 0.5
        bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
        unit = (bits >> np.uint64(40)).astype(np.float64) / 2**24
        values = low + (high - low) * unit
        if model_type == "bitnet":  # whose sums are exact in float32, in any order
            values = np.rint(values * 1024) / 1024
        drawn[name] = values.astype(np.float32).reshape(shape)
    return drawn


def as_published(
    tensors: dict[str, npt.NDArray[np.float32]], model_type: str
) -> dict[str, npt.NDArray[np.float32]]:
    """As the files on the hub have them, which llama.cpp's converter reads: Qwen3-VL's experts [experts, in, out],
    BitNet's norms under the names of the first BitNet."""
    if model_type == "bitnet":
        old = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"}
        return {
            name.replace(part, old.get(part, part)): values
            for name, values in tensors.items()
            for part in [name.split(".")[-2]]
        }
    if model_type != "qwen3_vl_moe_text":
        return tensors
    turned = ("experts.gate_up_proj", "experts.down_proj")
    return {
        name: np.ascontiguousarray(values.swapaxes(1, 2)) if name.endswith(turned) else values
        for name, values in tensors.items()
    }


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json with one token per printable character."""
    vocabulary = {chr(0x21 + id_): id_ for id_ in range(VOCABULARY)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    tokenizer = {"added_tokens": [], "model": model, "pre_tokenizer": byte_level}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
