"""A PEFT folder's tensors, module by module (names: PEFT's tuners/lora/layer.py, utils/save_and_load.py, other.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loragraft.adapters.lora import Floats
from loragraft.errors import AdapterError
from loragraft.formats.peft import PeftFolder
from loragraft.formats.safetensors import CheckpointTensor
from loragraft.formats.views import float_rows
from loragraft.quants.types import BY_NAME

#: Parts of a name that wrappers put in (torch.compile, FSDP, activation checkpointing).
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
#: Behind what belongs to one of several adapters stands its name, which save_pretrained leaves out.
_NAMED = r"(?:\.(?!(?:weight|bias)$)(?P<adapter>[^.]+))?(?:\.(?P<part>weight|bias))?"
_PART = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    + _NAMED
)
_ROWS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta" + _NAMED)
_TRAINED = re.compile(r"(?P<module>.+?)(?:\.modules_to_save(?P<adapter>\.[^.]+)?)?\.(?P<part>weight|bias)")
_FROZEN = re.compile(
    r"(?P<module>.+?)(?:\.token_adapter)?(?:\.base_layer|\.original_module)+\.(?P<part>weight|bias)"
)


NOT_GATHERED = (
    "was it saved from shards (ZeRO-3, FSDP) that were not gathered? Gather them: python zero_to_fp32.py CHECKPOINT "
    "OUT --safe_serialization, or set stage3_gather_16bit_weights_on_model_save and save again"
)


@dataclass(frozen=True, slots=True)
class ModuleDelta:
    """The pair of one module as stored: A [r, in], B [out, r]; for an embedding A [r, vocab], B [d, r]; for stacked
    experts A [E * r, in] with the expert slowest, B [out, r * E] with the expert fastest."""

    module: str
    a: Floats
    b: Floats
    embedding: bool = False
    bias: Floats | None = None
    """Of B, float32 [out] (`lora_bias`)."""
    magnitude: Floats | None = None
    """DoRA's, float32 [out]."""

    @property
    def of_parameter(self) -> bool:
        """Whether it adapts a parameter that is no module's weight: one of a stack of experts."""
        return self.module.removesuffix(".base_layer").endswith(".experts") or ".base_layer" in self.module


@dataclass(frozen=True, slots=True)
class PeftTensors:
    """Modules and parameters by their Hugging Face names."""

    deltas: list[ModuleDelta]
    trained: dict[str, CheckpointTensor] = field(default_factory=dict)
    """Parameters that were trained, or resized, as a whole."""
    frozen: dict[str, CheckpointTensor] = field(default_factory=dict)
    """Copies of weights of the base, as the adapter was trained beside them."""
    rows: dict[str, Floats] = field(default_factory=dict)
    """By module: rows trained alone, [n, d]; their numbers are in the configuration."""

    @property
    def names(self) -> list[str]:
        """One per tensor that was trained."""
        found = [*self.trained, *self.rows]
        for delta in self.deltas:
            parts = {"A": True, "B": True, "bias": delta.bias is not None, "m": delta.magnitude is not None}
            found += [f"{delta.module}.{part}" for part, there in parts.items() if there]
        return found

    @property
    def count(self) -> int:
        """How many tensors were trained."""
        return len(self.names)


def part_of(stored: str) -> str:
    """What the tensor called `stored` is, in words."""
    name = _plain_name(stored)
    if match := _PART.fullmatch(name):
        if match["kind"] == "lora_magnitude_vector":
            return "DoRA magnitudes"
        return "biases of LoRA" if match["part"] == "bias" else "halves of LoRA pairs"
    if _ROWS.fullmatch(name):
        return "rows of tokens"
    match = _FROZEN.fullmatch(name) or _TRAINED.fullmatch(name)
    if match is None:
        return "not honoured"
    return "copies of the base's" if match.re is _FROZEN and match["part"] == "weight" else "whole tensors"


def read_tensors(folder: PeftFolder) -> PeftTensors:
    """All tensors of the folder. Raises AdapterError for one that is not understood, or a pair that is not whole."""
    file = folder.weights
    parts: dict[str, dict[str, Floats]] = {}
    found = PeftTensors([])
    for stored, tensor in sorted(folder.tensors.items()):
        name = _plain_name(stored)
        if match := _PART.fullmatch(name):
            kind = match["kind"] + (".bias" if match["part"] == "bias" else "")
            _add_once(file, stored, parts.setdefault(match["module"], {}), kind, tensor_floats(file, tensor))
        elif match := _ROWS.fullmatch(name):
            _add_once(file, stored, found.rows, match["module"], _matrix(file, tensor))
        elif match := _FROZEN.fullmatch(name) or _TRAINED.fullmatch(name):
            frozen = (
                match.re is _FROZEN and match["part"] == "weight"
            )  # a bias is saved only if it was trained
            table = found.frozen if frozen else found.trained
            table.setdefault(f"{match['module']}.{match['part']}", tensor)
        else:
            raise AdapterError(file, f"tensor {stored!r} is not honoured", found=tensor.shape)
    for name in found.trained:
        found.frozen.pop(name, None)
    found.deltas.extend(_deltas(file, parts))
    if not (found.deltas or found.trained or found.rows):
        raise AdapterError(
            file,
            "holds no LoRA tensors",
            found=f"{len(folder.tensors)} others" if folder.tensors else "no tensor at all",
            hint=None if folder.tensors else NOT_GATHERED,
        )
    return found


def _plain_name(name: str) -> str:
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    if parts[0] == "module":  # DistributedDataParallel
        parts = parts[1:]
    name = ".".join(parts)
    while name.startswith("base_model.model."):  # twice, where a model was wrapped twice
        name = name.removeprefix("base_model.model.")
    return name


def _add_once(file: Path, stored: str, table: dict[str, Floats], key: str, value: Floats) -> None:
    if key in table:
        raise AdapterError(
            file,
            f"{stored} is there a second time",
            expected="one adapter",
            hint="save each one to its own folder",
        )
    table[key] = value


def _deltas(file: Path, parts: dict[str, dict[str, Floats]]) -> Iterator[ModuleDelta]:
    for module, kinds in parts.items():
        embedding = "lora_embedding_A" in kinds
        wanted = {"lora_embedding_A", "lora_embedding_B"} if embedding else {"lora_A", "lora_B"}
        bias = None if embedding else kinds.pop("lora_B.bias", None)
        magnitude = kinds.pop("lora_magnitude_vector", None)
        if kinds.keys() != wanted:
            raise AdapterError(
                file,
                f"{module} has no complete pair",
                found=sorted(kinds),
                expected=" and ".join(sorted(wanted)),
            )
        a, b = (kinds[kind] for kind in sorted(wanted))
        for matrix in (a, b):
            if matrix.ndim != 2 or 0 in matrix.shape:
                raise AdapterError(
                    file,
                    f"a pair of {module} is no matrix",
                    found=matrix.shape,
                    hint=NOT_GATHERED,
                )
        if a.shape[0] != b.shape[1]:
            raise AdapterError(
                file, f"the ranks of {module}'s A and B differ", found=f"{a.shape} and {b.shape}"
            )
        for vector in (bias, magnitude):
            if vector is not None and vector.shape != b.shape[:1]:
                raise AdapterError(
                    file, f"a vector of {module} does not fit its B", found=vector.shape, expected=b.shape[:1]
                )
        yield ModuleDelta(module, a, b, embedding, bias, magnitude)


def _matrix(file: Path, tensor: CheckpointTensor) -> Floats:
    values = tensor_floats(file, tensor)
    if values.ndim != 2:
        raise AdapterError(file, f"{tensor.name} is no matrix", found=tensor.shape)
    return values


def tensor_floats(file: Path, tensor: CheckpointTensor) -> Floats:
    if tensor.dtype not in ("F32", "F16", "BF16"):
        raise AdapterError(
            file, f"tensor {tensor.name!r} has a dtype that is no adapter's", found=tensor.dtype
        )
    values = float_rows(tensor.data().reshape(1, -1), BY_NAME[tensor.dtype]).reshape(tensor.shape)
    if not np.isfinite(values).all():
        raise AdapterError(file, f"tensor {tensor.name!r} holds NaN or infinity")
    return values
