"""A PEFT folder's tensors, module by module (names: PEFT's tuners/lora/layer.py, utils/save_and_load.py, other.py)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from loragraft.adapters.methods import METHODS
from loragraft.adapters.methods.method import Context, Method, ModuleDelta, ModuleTransform
from loragraft.adapters.peft_config import LoraSettings
from loragraft.adapters.tinker import expert_deltas, made_by_tinker, plain_parts
from loragraft.arrays import Floats
from loragraft.errors import AdapterError
from loragraft.formats.peft import PeftFolder
from loragraft.formats.safetensors import CheckpointTensor
from loragraft.formats.views import float_rows
from loragraft.quants.types import BY_NAME

#: Parts of a name that wrappers put in (torch.compile, FSDP, activation checkpointing).
_PREFIX = "base_model.model."
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
#: Behind what belongs to one of several adapters stands its name, which save_pretrained leaves out.
_NAMED = r"(?:\.(?!(?:weight|bias)$)(?P<adapter>[^.]+))?(?:\.(?P<part>weight|bias))?"
_PART = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    + _NAMED
)
_ROWS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta" + _NAMED)
_TRAINED = re.compile(
    r"(?P<module>.+?)(?:\.(?:modules_to_save|ln_tuning_layers)(?P<adapter>\.[^.]+)?)?\.(?P<part>weight|bias)"
)
_FROZEN = re.compile(
    r"(?P<module>.+?)(?:\.token_adapter)?(?:\.base_layer|\.original_module)+\.(?P<part>weight|bias)"
)


NOT_GATHERED = (
    "was it saved from shards (ZeRO-3, FSDP) that were not gathered? Gather them: python zero_to_fp32.py CHECKPOINT "
    "OUT --safe_serialization, or set stage3_gather_16bit_weights_on_model_save and save again"
)


@dataclass(frozen=True, slots=True)
class PeftTensors:
    """Modules and parameters by their Hugging Face names."""

    deltas: list[ModuleDelta]
    transforms: list[ModuleTransform] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    """Tensors that belong to all modules."""
    trained: dict[str, CheckpointTensor] = field(default_factory=dict)
    """Parameters that were trained, or resized, as a whole."""
    frozen: dict[str, CheckpointTensor] = field(default_factory=dict)
    """Copies of weights of the base, as the adapter was trained beside them."""
    rows: dict[str, Floats] = field(default_factory=dict)
    """By module: rows trained alone, [n, d]; their numbers are in the configuration."""

    pending: dict[str, Mapping[str, Floats]] = field(default_factory=dict)
    """Tensors by module that cannot be made anything of before the base is known."""
    by_tinker: bool = False
    """Whether Tinker wrote it, whose target_modules name nothing."""

    @property
    def names(self) -> list[str]:
        """One per tensor that was trained."""
        found = [*self.trained, *self.rows, *self.shared]
        for delta in self.deltas:
            parts = dict.fromkeys(delta.parts, True)
            parts |= {"bias": delta.bias is not None, "magnitude": delta.magnitude is not None}
            found += [f"{delta.module}.{part}" for part, there in parts.items() if there]
        found += [f"{one.module}.{part}" for one in self.transforms for part in one.parts]
        return found + [f"{module}.{part}" for module, own in self.pending.items() for part in own]

    @property
    def modules(self) -> list[str]:
        """Those that are adapted, whatever by."""
        own = [delta.module for delta in self.deltas] + [one.module for one in self.transforms]
        return own + list(self.pending)

    def without(self, modules: Collection[str]) -> PeftTensors:
        """All but what adapts these modules."""
        return replace(
            self,
            deltas=[delta for delta in self.deltas if delta.module not in modules],
            transforms=[one for one in self.transforms if one.module not in modules],
            pending={module: own for module, own in self.pending.items() if module not in modules},
        )

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
    if match is None or name.split(".")[-2:-1] == ["oft_R"]:
        for method in METHODS.values():
            pattern = _pattern_of(method)
            if pattern is not None and pattern.fullmatch(name):
                return f"tensors of {method.peft_type}"
        return "not honoured"
    return "copies of the base's" if match.re is _FROZEN and match["part"] == "weight" else "whole tensors"


def read_tensors(folder: PeftFolder, settings: LoraSettings, most: int = 1 << 30) -> PeftTensors:
    """All tensors of the folder, for a base whose largest tensor has `most` elements. Raises AdapterError for one that
    is not understood, or a pair that is not whole."""
    file, method = folder.weights, settings.method
    pattern = _PART if method is None else _pattern_of(method)
    parts: dict[str, dict[str, Floats]] = {}
    shared: dict[str, Floats] = {}
    found = PeftTensors([])
    for stored, tensor in sorted(folder.tensors.items()):
        name = _plain_name(stored)
        if pattern is not None and (match := pattern.fullmatch(name)):
            kind = match["kind"] + (".bias" if match["part"] == "bias" else "")
            _add_once(file, stored, parts.setdefault(match["module"], {}), kind, tensor_floats(file, tensor))
        elif method is not None and (own := name.removeprefix("base_model.").split(".")[0]) in method.shared:
            _add_once(file, stored, shared, own, _matrix(file, tensor))
        elif match := _ROWS.fullmatch(name):
            _add_once(file, stored, found.rows, match["module"], _matrix(file, tensor))
        elif match := _FROZEN.fullmatch(name) or _TRAINED.fullmatch(name):
            frozen = (
                match.re is _FROZEN and match["part"] == "weight"
            )  # a bias is saved only if it was trained
            table = found.frozen if frozen else found.trained
            table.setdefault(f"{match['module']}.{match['part']}", tensor)
        else:
            raise AdapterError(file, f"tensor {stored!r} is not supported", found=tensor.shape)
    for name in found.trained:
        found.frozen.pop(name, None)
    if method is None:
        if made_by_tinker(parts):
            found = replace(found, deltas=list(expert_deltas(file, parts)), by_tinker=True)
            parts = plain_parts(parts)
        found.deltas.extend(_deltas(file, parts))
    else:
        found.shared.extend(shared)
        context = Context(settings.path, folder.config, shared, most)
        _build(folder, context, method, parts, found)
    if not found.names:
        raise AdapterError(
            file,
            "holds no LoRA tensors" if method is None else f"holds no tensors of {method.peft_type}",
            found=f"{len(folder.tensors)} others" if folder.tensors else "no tensor at all",
            hint=None if folder.tensors else NOT_GATHERED,
        )
    return found


def _pattern_of(method: Method) -> re.Pattern[str] | None:
    if not method.parts:
        return None
    kinds = "|".join(sorted(method.parts, key=len, reverse=True))
    return re.compile(rf"(?P<module>.+)\.(?P<kind>{kinds})" + _NAMED)


def _build(
    folder: PeftFolder,
    context: Context,
    method: Method,
    parts: Mapping[str, Mapping[str, Floats]],
    found: PeftTensors,
) -> None:
    shared = context.shared
    if method.shared and parts:
        missing = method.shared - shared.keys()
        if missing and folder.config.get("save_projection", True):
            raise AdapterError(
                folder.weights,
                f"lacks {' and '.join(sorted(missing))}, which save_projection of the configuration promises",
                expected="the projections that all modules share",
                hint="save it again with peft",
            )
        if missing:
            shared |= dict.fromkeys(
                missing, np.zeros((0, 0), np.float32)
            )  # drawn again, once the base is known
            found.pending.update(parts)
            return
    for module, own in parts.items():
        made = method.build(context, module, own)
        (found.deltas if isinstance(made, ModuleDelta) else found.transforms).append(made)  # type: ignore[arg-type]


def _plain_name(name: str) -> str:
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while parts[0] == "module":  # DistributedDataParallel, DeepSpeed's engine
        parts = parts[1:]
    name = ".".join(parts)
    # What a trainer wrapped around the adapted model stands before (Lightning's _forward_module, TRL's
    # pretrained_model and policy); a model that was wrapped twice has PEFT's own prefix twice.
    return name.rpartition(f".{_PREFIX}")[2].removeprefix(_PREFIX)


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
                found=", ".join(sorted(kinds)),
                expected=" and ".join(sorted(wanted)),
                hint="save the adapter again: a shard, or a part of the parameters, is missing",
            )
        a, b = (kinds[kind] for kind in sorted(wanted))
        for matrix in (a, b):
            if matrix.ndim != 2 or 0 in matrix.shape:
                raise AdapterError(
                    file,
                    f"a pair of {module} is not a matrix",
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
        raise AdapterError(file, f"{tensor.name} is not a matrix", found=tensor.shape)
    return values


def tensor_floats(file: Path, tensor: CheckpointTensor) -> Floats:
    if tensor.dtype not in ("F64", "F32", "F16", "BF16"):
        raise AdapterError(
            file,
            f"tensor {tensor.name!r} has a dtype that adapters do not use",
            found=tensor.dtype,
            expected="F32, F16, BF16 or F64",
            hint="save the adapter in one of these: model.to(torch.float32).save_pretrained(OUT)",
        )
    values = float_rows(tensor.data().reshape(1, -1), BY_NAME[tensor.dtype]).reshape(tensor.shape)
    if not np.isfinite(values).all():
        raise AdapterError(
            file,
            f"tensor {tensor.name!r} holds NaN or infinity",
            hint="its training diverged: take an earlier checkpoint",
        )
    return values
