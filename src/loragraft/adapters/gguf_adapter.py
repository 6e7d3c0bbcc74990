"""LoRA adapters in GGUF: what llama.cpp's src/llama-adapter.cpp reads.

`X.weight.lora_a` is A [r, in] and `X.weight.lora_b` is B [out, r], with the experts' axis before; for
`token_embd.weight`, whose rows are looked up instead of multiplied, `lora_a` is [vocab, r] and `lora_b` is [d, r].
The scale is `adapter.lora.alpha` / r, or 1 if that is 0 or absent.

Where one alpha does not tell the scale of every pair (PEFT's alpha_pattern), what is missing is multiplied into B, so
that every reader gets the same delta; keys of our own tell the scales, and B is read as it was. DoRA's lengths are
`X.weight.lora_magnitude` [out] in a file whose `adapter.type` is `dora`, which llama.cpp refuses.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loragraft.adapters.invocation import invocation_tokens
from loragraft.adapters.lora import EMBEDDING, OUTPUT, Adapter, LoraPair
from loragraft.arrays import Floats
from loragraft.errors import AdapterError
from loragraft.formats.gguf.reader import GGUFFile, GGUFTensor
from loragraft.formats.gguf.values import Metadata, Value, ValueType
from loragraft.formats.gguf.writer import GGUFWriter, TensorSpec
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.formats.views import values_of
from loragraft.quants.reference import dequantize
from loragraft.quants.types import F32

ALPHA = "adapter.lora.alpha"
TYPE = "adapter.type"
#: Of our own: the scale of every pair, in the file's order; PEFT's settings that they come from; the dtype of B; and
#: where dividing by what was multiplied into a B does not give it back, by how many places of float32 it is off.
SCALES, SETTINGS, DTYPE, PLACES = (
    f"loragraft.adapter.{key}" for key in ("scales", "settings", "dtype", "places")
)
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
        pairs, notes, done = {}, list[str](), 0
        halves, others = _sorted(file)
        scales = _scales(file, len(halves))
        replaced = {name: tensor for name, tensor in others.items() if _replaces(path, base, tensor, notes)}
        for number, (target, parts) in enumerate(halves.items()):
            tied = target == OUTPUT and EMBEDDING in base.tensors
            if target not in base.tensors and not tied:
                raise AdapterError(
                    path,
                    f"adapts {target}, but the base model has no such tensor",
                    found=base.path.name,
                    expected=f"a {base.arch} with it",
                )
            like = base.tensors[target if target in base.tensors else EMBEDDING]
            a, b = _values(path, parts["lora_a"]), _values(path, parts["lora_b"])
            pair = _pair(path, target, like.shape, a, b, float(alpha))
            if scales is not None:
                pair = _as_trained(file, pair, float(scales[number]), done)
                done += pair.b.size
            if "lora_magnitude" in parts:
                lengths = _values(path, parts["lora_magnitude"])
                if lengths.shape != like.shape[:-1]:
                    raise AdapterError(
                        path,
                        f"the magnitudes of {target} do not fit",
                        found=lengths.shape,
                        expected=like.shape[:-1],
                    )
                pair = replace(pair, magnitude=lengths)
            pairs[target] = pair
        count = sum(map(len, halves.values())) + len(replaced)
        left_out = tuple(name for name in others if name not in replaced)
        return Adapter(
            path,
            pairs,
            base.arch,
            float(alpha) or None if scales is None else None,
            notes,
            count,
            replaced,
            left_out=left_out,
            name=path.stem,
            files=(path,),
            settings=_settings(file),
            invocation=_invocation(file),
        )


def write_gguf_adapter(adapter: Adapter, metadata: Metadata, out: Path, inputs: Iterable[Path]) -> None:
    """Write `adapter` as F32 to `out`. What the alpha in `metadata` does not tell of scales is multiplied into B."""
    arrays = _arrays(adapter, metadata[ALPHA].data if ALPHA in metadata else 0.0)
    specs = [TensorSpec(name, array.shape, F32) for name, array in arrays.items()]
    with GGUFWriter(out, metadata, specs, inputs=inputs) as writer:
        for name, array in arrays.items():
            writer.write(name, 0, np.ascontiguousarray(array, dtype="<f4"))


def gguf_shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that `write_gguf_adapter` writes, by name."""
    return {name: array.shape for name, array in _arrays(adapter, None).items()}


def scale_metadata(adapter: Adapter) -> Metadata:
    """The keys that tell the scales: an alpha, and where it does not tell all of them as they were, the rest."""
    if adapter.alpha is not None:
        return {ALPHA: Value.f32(adapter.alpha)}
    if not adapter.pairs:
        return {}
    alphas = [float(np.float32(pair.scale * pair.rank)) for pair in adapter.pairs.values()]
    alpha = Counter(alphas).most_common(1)[0][0]
    keys: Metadata = {ALPHA: Value.f32(alpha)}
    if all(_left_over(pair, alpha) == 1 for pair in adapter.pairs.values()) and not adapter.settings:
        return keys
    keys[SCALES] = Value.numbers(ValueType.FLOAT64, [pair.scale for pair in adapter.pairs.values()])
    if adapter.settings:
        keys[SETTINGS] = Value.string(json.dumps(dict(adapter.settings)))
    dtype = _narrowest([pair.b for pair in adapter.pairs.values()])
    keys[DTYPE] = Value.string(dtype)
    places = [_places_off(pair, _left_over(pair, alpha), dtype) for pair in adapter.pairs.values()]
    if any(each.any() for each in places):
        keys[PLACES] = Value.numbers(ValueType.INT8, np.concatenate(places))  # type: ignore[arg-type]
    return keys


def invocation_metadata(adapter: Adapter) -> Metadata:
    """The key that tells aLoRA's tokens, as llama.cpp's converter writes it."""
    tokens = list(adapter.invocation)
    return {_INVOCATION: Value.numbers(ValueType.UINT32, tokens)} if tokens else {}


def is_baked(adapter: Adapter) -> bool:
    """Whether no single alpha tells the scale of every pair."""
    if adapter.alpha is not None:
        return False
    keys = scale_metadata(adapter)
    alpha = keys[ALPHA].data if ALPHA in keys else 0.0
    return any(_left_over(pair, float(alpha)) != 1 for pair in adapter.pairs.values())


def _left_over(pair: LoraPair, alpha: float) -> np.float32:
    """What the scale is beside alpha / r, as float32 has both."""
    return (
        np.float32(pair.scale) / (np.float32(alpha) / np.float32(pair.rank))
        if alpha
        else np.float32(pair.scale)
    )


def _arrays(adapter: Adapter, alpha: object) -> dict[str, Floats]:
    """What is written; `alpha`: the file's (0: none), or None where values do not matter."""
    arrays: dict[str, Floats] = {}
    told = alpha is None or (adapter.alpha is not None and adapter.alpha == alpha)
    for target, pair in adapter.pairs.items():
        factor = np.float32(1) if told else _left_over(pair, float(alpha))  # type: ignore[arg-type]
        b = pair.b if factor == 1 else pair.b * factor
        first, second = (b, pair.a.T) if target == EMBEDDING else (pair.a, b)
        arrays[f"{target}.lora_a"], arrays[f"{target}.lora_b"] = first, second
        if pair.magnitude is not None:
            arrays[f"{target}.lora_magnitude"] = pair.magnitude
    for name, source in adapter.replaced.items():
        arrays[name] = values_of(source).reshape(source.shape)
    return arrays


def _divided(baked: Floats, factor: np.float32, dtype: str) -> Floats:
    """What was multiplied by `factor`, as far as dividing tells."""
    if factor == 1:
        return baked
    b = np.asarray(baked / factor, np.float32)
    if dtype == "F16":
        return b.astype(np.float16).astype(np.float32)
    return _as_bf16(b) if dtype == "BF16" else b


def _places_off(pair: LoraPair, factor: np.float32, dtype: str) -> npt.NDArray[np.int8]:
    b = np.ascontiguousarray(pair.b)
    found = np.ascontiguousarray(_divided(b * factor, factor, dtype))
    return np.clip(b.view(np.int32) - found.view(np.int32), -127, 127).astype(np.int8).reshape(-1)


def _narrowest(arrays: Sequence[Floats]) -> str:
    """The narrowest dtype that holds all values."""
    if all((array.view(np.uint32) & 0xFFFF == 0).all() for array in map(np.ascontiguousarray, arrays)):
        return "BF16"
    with np.errstate(over="ignore"):
        half = all((array.astype(np.float16).astype(np.float32) == array).all() for array in arrays)
    return "F16" if half else "F32"


def _scales(file: GGUFFile, count: int) -> npt.NDArray[np.float64] | None:
    """The pairs' own scales, if the file says them."""
    if SCALES not in file.metadata:
        return None
    scales = file.metadata[SCALES].data
    places = file.metadata[PLACES].data if PLACES in file.metadata else None
    size = sum(prod(tensor.shape) for name, tensor in file.tensors.items() if name.endswith(".lora_b"))
    if places is not None and not (isinstance(places, np.ndarray) and places.shape == (size,)):
        raise AdapterError(file.path, f"{PLACES} does not fit its pairs", expected=f"{size} whole numbers")
    if not isinstance(scales, np.ndarray) or scales.shape != (count,) or not np.isfinite(scales).all():
        raise AdapterError(
            file.path,
            f"{SCALES} does not fit its pairs",
            found=repr(scales)[:80],
            expected=f"{count} numbers",
            hint="convert it again from its folder",
        )
    return scales.astype(np.float64)


def _as_trained(file: GGUFFile, pair: LoraPair, scale: float, first: int) -> LoraPair:
    """`pair` with the scale `scale`, and B without what had to be multiplied into it. `first`: how many values the B
    before it have."""
    factor = np.float32(scale) / np.float32(pair.scale)
    if not factor or not np.isfinite(factor):
        raise AdapterError(
            file.path, f"{SCALES} has a scale for {pair.target} that does not fit its B", found=scale
        )
    b = _divided(pair.b, factor, str(file.metadata[DTYPE].data) if DTYPE in file.metadata else "F32")
    if PLACES in file.metadata:
        off = np.asarray(file.metadata[PLACES].data)[first : first + b.size].astype(np.int32).reshape(b.shape)
        b = (np.ascontiguousarray(b).view(np.int32) + off).view(np.float32)
        if not np.isfinite(b).all():
            raise AdapterError(file.path, f"{PLACES} turns the B of {pair.target} into NaN or infinity")
    return replace(pair, b=b, scale=scale)


def _as_bf16(values: Floats) -> Floats:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def _settings(file: GGUFFile) -> dict[str, object]:
    text = file.metadata[SETTINGS].data if SETTINGS in file.metadata else "{}"
    try:
        found = json.loads(text) if isinstance(text, str) and len(text) < 1 << 20 else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise AdapterError(file.path, f"{SETTINGS} is not a JSON object", found=repr(text)[:80])
    return found


def _check_kind(file: GGUFFile, base: ModelSource) -> None:
    dora = TYPE in file.metadata and file.metadata[TYPE].data == "dora"
    kind = "dora" if dora else "lora"
    facts = {"general.type": "adapter", TYPE: kind, "general.architecture": base.arch}
    for key, expected in facts.items():
        value = file.metadata.get(key)
        found = value.data if value is not None and value.type is ValueType.STRING else None
        if found != expected:
            problem = (
                "is for another architecture" if key == "general.architecture" else "is not a LoRA adapter"
            )
            raise AdapterError(file.path, problem, found=f"{key} {found!r}", expected=repr(expected))


def _invocation(file: GGUFFile) -> tuple[int, ...]:
    value = file.metadata.get(_INVOCATION)
    return () if value is None else invocation_tokens(file.path, _INVOCATION, value.data)


def _sorted(file: GGUFFile) -> tuple[dict[str, dict[str, GGUFTensor]], dict[str, GGUFTensor]]:
    """The parts of the pairs by their targets, and the other tensors."""
    halves: dict[str, dict[str, GGUFTensor]] = {}
    others = {}
    for name, tensor in file.tensors.items():
        target, _, kind = name.rpartition(".")
        if kind in ("lora_a", "lora_b", "lora_magnitude"):
            halves.setdefault(target, {})[kind] = tensor
        else:
            others[name] = tensor
    for target, kinds in halves.items():
        if not {"lora_a", "lora_b"} <= kinds.keys():
            raise AdapterError(file.path, f"{target} has no complete pair", found=next(iter(kinds)))
    if not halves and not others:
        raise AdapterError(
            file.path,
            "holds no tensors",
            hint="convert it again from its folder: loragraft convert ADAPTER --base BASE -o NEW.gguf",
        )
    return halves, others


def _replaces(path: Path, base: ModelSource, tensor: GGUFTensor, notes: list[str]) -> bool:
    """Whether `tensor` stands in place of the base's, as llama.cpp's converter writes norms of modules_to_save. Not so
    the frequencies of RoPE, which older converters wrote into every adapter of Llama 3: they are the base's own."""
    name, own = tensor.name, base.tensors.get(tensor.name)
    if name == OUTPUT and own is None:
        own = base.tensors.get(EMBEDDING)  # tied
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
