"""LoRA adapters in GGUF: what llama.cpp's src/llama-adapter.cpp reads.

`X.weight.lora_a` is A [r, in] and `X.weight.lora_b` is B [out, r], with the experts' axis before; for
`token_embd.weight`, whose rows are looked up instead of multiplied, `lora_a` is [vocab, r] and `lora_b` is [d, r].
The scale is `adapter.lora.alpha` / r, or 1 if that is 0 or absent.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np

from loragraft.adapters.lora import EMBEDDING, OUTPUT, Adapter, Floats, LoraPair
from loragraft.errors import AdapterError
from loragraft.formats.gguf.reader import GGUFFile, GGUFTensor
from loragraft.formats.gguf.values import Metadata, ValueType
from loragraft.formats.gguf.writer import GGUFWriter, TensorSpec
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.quants.reference import dequantize
from loragraft.quants.types import F32

ALPHA = "adapter.lora.alpha"
_INVOCATION = "adapter.alora.invocation_tokens"
ROPE_FREQS = "rope_freqs.weight"
_CHUNK_WEIGHTS = 1 << 20


def read_gguf_adapter(path: Path, base: ModelSource) -> Adapter:
    """The adapter in the GGUF file at `path`, checked against the `base` it is for. Raises GGUFError, AdapterError."""
    with GGUFFile.open(path) as file:
        _check_kind(file, base)
        alpha = file.metadata[ALPHA].data if ALPHA in file.metadata else 0.0
        if not isinstance(alpha, int | float) or not np.isfinite(alpha):
            raise AdapterError(path, f"{ALPHA} is not a number", found=repr(alpha))
        pairs, notes = {}, list[str]()
        halves, others = _sorted(file)
        replaced = {name: tensor for name, tensor in others.items() if _replaces(path, base, tensor, notes)}
        for target, (a, b) in halves.items():
            tied = target == OUTPUT and EMBEDDING in base.tensors
            if target not in base.tensors and not tied:
                raise AdapterError(
                    path,
                    f"adapts {target}, but the base model has no such tensor",
                    found=base.path.name,
                    expected=f"a {base.arch} with it",
                )
            like = base.tensors[target if target in base.tensors else EMBEDDING]
            pair = _pair(path, target, like.shape, _values(path, a), _values(path, b), float(alpha))
            pairs[target] = pair
        count = 2 * len(pairs) + len(replaced)
        left_out = tuple(name for name in others if name not in replaced)
        return Adapter(
            path,
            pairs,
            base.arch,
            float(alpha) or None,
            notes,
            count,
            replaced,
            left_out=left_out,
            name=path.stem,
            files=(path,),
        )


def write_gguf_adapter(adapter: Adapter, metadata: Metadata, out: Path, inputs: Iterable[Path]) -> None:
    """Write `adapter` as F32 to `out`. `metadata` must carry `adapter.lora.alpha` exactly if `adapter.alpha` is set;
    without it every pair's scale is multiplied into its B."""
    arrays = _arrays(adapter, bake=ALPHA not in metadata)
    specs = [TensorSpec(name, array.shape, F32) for name, array in arrays.items()]
    with GGUFWriter(out, metadata, specs, inputs=inputs) as writer:
        for name, array in arrays.items():
            writer.write(name, 0, np.ascontiguousarray(array, dtype="<f4"))


def gguf_shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that `write_gguf_adapter` writes, by name."""
    return {name: array.shape for name, array in _arrays(adapter, bake=False).items()}


def _arrays(adapter: Adapter, *, bake: bool) -> dict[str, Floats]:
    arrays: dict[str, Floats] = {}
    for target, pair in adapter.pairs.items():
        b = pair.b * np.float32(pair.scale) if bake else pair.b
        first, second = (b, pair.a.T) if target == EMBEDDING else (pair.a, b)
        arrays[f"{target}.lora_a"], arrays[f"{target}.lora_b"] = first, second
    return arrays


def _check_kind(file: GGUFFile, base: ModelSource) -> None:
    facts = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": base.arch}
    for key, expected in facts.items():
        value = file.metadata.get(key)
        found = value.data if value is not None and value.type is ValueType.STRING else None
        if found != expected:
            problem = "is for another architecture" if key == "general.architecture" else "is no LoRA adapter"
            raise AdapterError(file.path, problem, found=f"{key} {found!r}", expected=repr(expected))
    if _INVOCATION in file.metadata:
        raise AdapterError(
            file.path, f"{_INVOCATION} is not supported", hint="it switches on only behind these tokens"
        )


def _sorted(file: GGUFFile) -> tuple[dict[str, tuple[GGUFTensor, GGUFTensor]], dict[str, GGUFTensor]]:
    """The pairs by their targets, and the other tensors."""
    halves: dict[str, dict[str, GGUFTensor]] = {}
    others = {}
    for name, tensor in file.tensors.items():
        target, _, kind = name.rpartition(".")
        if kind in ("lora_a", "lora_b"):
            halves.setdefault(target, {})[kind] = tensor
        else:
            others[name] = tensor
    for target, kinds in halves.items():
        if len(kinds) != 2:
            raise AdapterError(file.path, f"{target} has no complete pair", found=next(iter(kinds)))
    if not halves and not others:
        raise AdapterError(
            file.path,
            "holds no tensors",
            hint="convert it again from its folder: loragraft convert ADAPTER --base BASE -o NEW.gguf",
        )
    return {target: (kinds["lora_a"], kinds["lora_b"]) for target, kinds in halves.items()}, others


def _replaces(path: Path, base: ModelSource, tensor: GGUFTensor, notes: list[str]) -> bool:
    """Whether `tensor` stands in place of the base's, as llama.cpp's converter writes norms of modules_to_save. Not so
    the frequencies of RoPE, which older converters wrote into every adapter of Llama 3: they are the base's own."""
    name, own = tensor.name, base.tensors.get(tensor.name)
    if name == ROPE_FREQS:
        same = own is not None and np.array_equal(_values(path, tensor).reshape(-1), _first_row(own))
        why = "the base has the same" if same else "frequencies of RoPE do not belong in an adapter"
        notes.append(f"{path}: its {name} is left out: {why}")
        return False
    if own is None or own.shape != tensor.shape:
        raise AdapterError(
            path,
            f"its tensor {name!r} is not half of an A/B pair, and does not fit any tensor of the base",
            found=f"{tensor.shape}",
            expected=f"{own.shape} as in {base.path.name}"
            if own is not None
            else "a name with .lora_a or .lora_b",
            hint="merge from the folder that it was converted from: loragraft merge BASE --lora FOLDER",
        )
    step = max(1, _CHUNK_WEIGHTS // tensor.columns)
    for start in range(0, tensor.n_rows, step):
        rows = tensor.rows(start, min(start + step, tensor.n_rows))
        if not np.isfinite(dequantize(rows, tensor.type)).all():
            raise AdapterError(path, f"its {name} holds NaN or infinity", hint="its training diverged")
    return True


def _first_row(source: TensorSource) -> Floats:
    return dequantize(source.rows(0, 1), source.type).reshape(-1)


def _values(path: Path, tensor: GGUFTensor) -> Floats:
    values = dequantize(tensor.data(), tensor.type)
    if not np.isfinite(values).all():
        raise AdapterError(path, f"tensor {tensor.name!r} holds NaN or infinity")
    return values.reshape(tensor.shape)


def _pair(path: Path, target: str, shape: tuple[int, ...], a: Floats, b: Floats, alpha: float) -> LoraPair:
    """The pair for `target` of that shape, from arrays whose leading axes of length 1 GGUF has dropped."""
    *experts, out, columns = shape
    count = prod(experts)
    if target == EMBEDDING:
        a, b = b.T, a
    rank = b.size // (count * out)
    shapes = (*experts, rank, columns), (*experts, out, rank)
    if rank == 0 or a.size != prod(shapes[0]) or b.size != prod(shapes[1]) or not _same_axes((a, b), shapes):
        raise AdapterError(
            path,
            f"the shapes of its pair for {target} do not fit the base",
            found=f"{a.shape} and {b.shape}",
            expected=f"(.., r, {columns}) and (.., {out}, r) for {shape}",
        )
    return LoraPair(target, a.reshape(shapes[0]), b.reshape(shapes[1]), alpha / rank if alpha else 1.0)


def _same_axes(arrays: tuple[Floats, Floats], shapes: Iterable[tuple[int, ...]]) -> bool:
    return all(
        [n for n in array.shape if n != 1] == [n for n in shape if n != 1]
        for array, shape in zip(arrays, shapes, strict=True)
    )
