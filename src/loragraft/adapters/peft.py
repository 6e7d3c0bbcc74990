"""A PEFT folder's tensors, module by module (names: peft/tuners/lora/layer.py, utils/save_and_load.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from loragraft.adapters.lora import Floats
from loragraft.errors import AdapterError
from loragraft.formats.peft import WEIGHTS, PeftFolder
from loragraft.formats.safetensors import CheckpointTensor
from loragraft.formats.views import float_rows
from loragraft.quants.types import BY_NAME

_PREFIX = "base_model.model."
_PART = re.compile(r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.weight)?")
_COPY = re.compile(r"(?P<module>.+)\.base_layer\.weight")


@dataclass(frozen=True, slots=True)
class ModuleDelta:
    """The pair of one module as stored: A [r, in], B [out, r]; for an embedding A [r, vocab], B [d, r]; for stacked
    experts A [E * r, in] with the expert slowest, B [out, r * E] with the expert fastest."""

    module: str
    a: Floats
    b: Floats
    embedding: bool = False


@dataclass(frozen=True, slots=True)
class PeftTensors:
    deltas: list[ModuleDelta]
    copies: dict[str, CheckpointTensor]
    """Copies of the base's embeddings that PEFT saves beside an adapter of them, by module."""


def read_tensors(folder: PeftFolder) -> PeftTensors:
    """All tensors of the folder, in the order of their names. Raises AdapterError for one that is no part of a pair."""
    file = folder.path / WEIGHTS
    parts: dict[str, dict[str, Floats]] = {}
    copies = {}
    for name, tensor in sorted(folder.tensors.items()):
        short = name.removeprefix(_PREFIX)
        if match := _PART.fullmatch(short):
            if len(tensor.shape) != 2 or 0 in tensor.shape:
                raise AdapterError(file, f"{name} is no matrix", found=tensor.shape)
            parts.setdefault(match["module"], {})[match["kind"]] = _floats(file, tensor)
        elif (match := _COPY.fullmatch(short)) and match["module"].endswith(
            ("embed_tokens", "lm_head", "wte")
        ):
            copies[match["module"]] = tensor
        else:
            raise AdapterError(
                file,
                f"tensor {name!r} is not honoured",
                found=tensor.shape,
                expected="only lora_A and lora_B",
            )
    deltas = []
    for module, kinds in parts.items():
        embedding = "lora_embedding_A" in kinds
        wanted = {"lora_embedding_A", "lora_embedding_B"} if embedding else {"lora_A", "lora_B"}
        if kinds.keys() != wanted:
            raise AdapterError(
                file,
                f"{module} has no complete pair",
                found=sorted(kinds),
                expected=" and ".join(sorted(wanted)),
            )
        a, b = (kinds[kind] for kind in sorted(wanted))
        if a.shape[0] != b.shape[1]:
            raise AdapterError(
                file, f"the ranks of {module}'s A and B differ", found=f"{a.shape} and {b.shape}"
            )
        deltas.append(ModuleDelta(module, a, b, embedding))
    if not deltas:
        raise AdapterError(file, "holds no LoRA tensors", found=f"{len(copies)} others")
    return PeftTensors(deltas, copies)


def _floats(file: object, tensor: CheckpointTensor) -> Floats:
    if tensor.dtype not in ("F32", "F16", "BF16"):
        raise AdapterError(
            str(file), f"tensor {tensor.name!r} has a dtype that is no adapter's", found=tensor.dtype
        )
    rows = float_rows(tensor.data().reshape(tensor.shape[0], -1), BY_NAME[tensor.dtype])
    if not np.isfinite(rows).all():
        raise AdapterError(str(file), f"tensor {tensor.name!r} holds NaN or infinity")
    return rows
