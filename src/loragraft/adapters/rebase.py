"""Whole tensors that adapters change: done to the base once, before anything is merged or run.

A strength f is the part of the way from the base's tensor W to the adapter's W': W + f (W' - W); 1 is the adapter's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from loragraft.adapters.lora import EMBEDDING, OUTPUT, Adapter, TokenRows
from loragraft.adapters.transform import Transform
from loragraft.arrays import Bytes, Floats
from loragraft.errors import AdapterError
from loragraft.formats.gguf.scales import companion, scale_of
from loragraft.formats.gguf.values import Value
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.formats.views import Computed, float_rows, in_memory, widened
from loragraft.quants.types import F32

_PARTS = ("scale", "input_scale")
UNTIED = (
    "the output is no longer tied to the embedding: as trained, one of them changes and the other does not"
)


def rebase(base: ModelSource, adapters: Sequence[tuple[Adapter, float]]) -> ModelSource:
    """`base` with the tensors, rows and biases of `adapters` (each with its strength); pairs are not looked at.

    A tied output stays tied as long as both its uses change alike; else it becomes a tensor of its own. Raises
    AdapterError where two adapters replace the same tensor, or the embedding and the output no longer agree.
    """
    tensors, notes = dict(base.tensors), list(base.notes)
    if OUTPUT not in tensors and any(_parts_ways(adapter) for adapter, _ in adapters):
        tensors = untied(tensors)
        notes.append(UNTIED)
    owner: dict[str, Adapter] = {}
    for adapter, strength in adapters:
        shared = OUTPUT not in tensors  # both uses read the embedding
        for name in {*adapter.replaced, *adapter.rows}:
            if name in owner and (name in adapter.replaced or name in owner[name].replaced):
                raise AdapterError(
                    adapter.path,
                    f"replaces {name}, as {owner[name].path.name} does",
                    expected="one of the two",
                )
            owner[name] = adapter
        for name, source in adapter.replaced.items():
            if not (shared and name == OUTPUT):
                tensors = _replaced(adapter, tensors, name, source, strength)
        for name, rows in adapter.rows.items():
            if not (shared and name == OUTPUT):
                tensors[name] = _with_rows(adapter, tensors, name, rows, strength)
        for name, delta in adapter.biases.items():
            tensors = _with_bias(adapter, tensors, name, np.float32(strength) * delta)
        for transform in adapter.transforms.values():
            tensors = _scaled_bias(tensors, transform, strength)
    new = sorted({name for adapter, _ in adapters for name in adapter.biases} - base.tensors.keys())
    if new:
        notes.append(
            f"biases are added that the base does not have ({len(new)}, such as {new[0]}): few engines load them"
        )
    metadata, speaker = dict(base.metadata), None
    for adapter, _ in adapters:
        differs = any(metadata.get(key) != value for key, value in adapter.tokenizer.items())
        if speaker is not None and differs:
            notes.append(f"{adapter.path}: its tokenizer is used, not the one beside {speaker}")
        metadata.update(adapter.tokenizer)
        speaker = adapter.path if adapter.tokenizer else speaker
    _check_vocabulary(adapters, tensors)
    key = f"{base.arch}.vocab_size"
    if key in metadata and EMBEDDING in tensors:
        metadata[key] = Value.u32(tensors[EMBEDDING].shape[0])
    return replace(base, tensors=tensors, metadata=metadata, notes=notes)


def untied(tensors: dict[str, TensorSource]) -> dict[str, TensorSource]:
    """`tensors` with the embedding's weight a second time, as the output's: with its scale, under both names."""
    result: dict[str, TensorSource] = {}
    for name, tensor in tensors.items():
        if name == EMBEDDING:
            result[OUTPUT] = _renamed(tensor, OUTPUT)
        result[name] = tensor
    for part in _PARTS:
        names = companion(EMBEDDING, part), companion(OUTPUT, part)
        scale = tensors.get(names[0]) or tensors.get(names[1])
        if scale is not None:
            result |= {name: _renamed(scale, name) for name in names}
    return result


def _parts_ways(adapter: Adapter) -> bool:
    """Whether it changes a tied weight in one of its uses only, or differently in both."""
    embedding, output = adapter.replaced.get(EMBEDDING), adapter.replaced.get(OUTPUT)
    ours, theirs = adapter.rows.get(EMBEDDING), adapter.rows.get(OUTPUT)
    if theirs is not None and not _same_rows(ours, theirs):  # PEFT ties rows, and may save them once
        return True
    if embedding is None or output is None:
        return embedding is not output
    return not _same_values(embedding, output)


def _same_rows(a: TokenRows | None, b: TokenRows) -> bool:
    return a is not None and np.array_equal(a.ids, b.ids) and np.array_equal(a.values, b.values)


def _same_values(a: TensorSource, b: TensorSource) -> bool:
    if (a.shape, a.type) != (b.shape, b.type):
        return False
    step = max(1, (1 << 22) // a.row_bytes)
    spans = [(start, min(start + step, a.n_rows)) for start in range(0, a.n_rows, step)]
    return all(np.array_equal(a.rows(*span), b.rows(*span)) for span in spans)


def _renamed(source: TensorSource, name: str) -> TensorSource:
    return Computed(name, source.shape, source.type, source.rows, [source])


def _replaced(
    adapter: Adapter, tensors: dict[str, TensorSource], name: str, source: TensorSource, strength: float
) -> dict[str, TensorSource]:
    base = tensors[name]
    if strength != 1.0:
        if source.shape != base.shape:
            raise AdapterError(
                adapter.path,
                f"replaces {name} by one of another size, so its strength cannot be changed",
                found=strength,
                expected=1,
            )
        source = _blend(unscaled(tensors, name), widened(source), strength)
    companions = {scale_of(name, tensors), companion(name, "input_scale")}
    kept = {other: tensor for other, tensor in tensors.items() if other not in companions}
    kept[name] = source
    return kept


def unscaled(tensors: Mapping[str, TensorSource], name: str) -> TensorSource:
    """The values of a tensor as F32, with its scale (one, or one per expert) multiplied in."""
    plain = widened(tensors[name])
    found = scale_of(name, tensors)
    if found is None:
        return plain
    scale = tensors[found]
    factors = float_rows(scale.rows(0, scale.n_rows), scale.type).reshape(-1)
    each = plain.n_rows // len(factors)

    def compute(start: int, stop: int) -> Bytes:
        factor = factors[np.arange(start, stop) // each]
        return np.ascontiguousarray(plain.rows(start, stop).view(np.float32) * factor[:, None]).view(np.uint8)

    return Computed(name, plain.shape, F32, compute, [plain])


def _blend(base: TensorSource, other: TensorSource, strength: float) -> TensorSource:
    """base + strength * (other - base), of two F32 sources."""

    def compute(start: int, stop: int) -> Bytes:
        w, new = (source.rows(start, stop).view(np.float32) for source in (base, other))
        return np.ascontiguousarray(w + np.float32(strength) * (new - w)).view(np.uint8)

    return Computed(base.name, base.shape, F32, compute, [base, other])


def _with_rows(
    adapter: Adapter, tensors: dict[str, TensorSource], name: str, rows: TokenRows, strength: float
) -> TensorSource:
    """`name` with some rows other, in its own type: what is not touched keeps its bytes."""
    base = tensors[name]
    scale = tensors.get(companion(name, "scale"))
    if scale is not None or rows.ids.max(initial=0) >= base.n_rows:
        raise AdapterError(
            adapter.path,
            f"replaces rows of {name}, which cannot be",
            found=f"{base.type} with a scale" if scale is not None else f"{base.n_rows} rows",
        )
    values = rows.values
    if strength != 1.0:
        plain = widened(base)
        old = np.stack([plain.rows(i, i + 1).view(np.float32)[0] for i in rows.ids.tolist()])
        values = old + np.float32(strength) * (values - old)
    order = np.argsort(rows.ids)
    ids, data = rows.ids[order], _stored(values[order], base)

    def compute(start: int, stop: int) -> Bytes:
        first, last = np.searchsorted(ids, (start, stop))
        taken = base.rows(start, stop)
        if first == last:
            return taken
        taken = taken.copy()
        taken[ids[first:last] - start] = data[first:last]
        return taken

    return Computed(name, base.shape, base.type, compute, [base])


def _stored(values: Floats, like: TensorSource) -> Bytes:
    """Rows as `like` stores its own."""
    from loragraft.quants import native  # and with it every NumPy quantizer: slow to import

    return native.quantize(np.ascontiguousarray(values, np.float32), like.type)


def _with_bias(
    adapter: Adapter, tensors: dict[str, TensorSource], name: str, delta: Floats
) -> dict[str, TensorSource]:
    base = tensors.get(name)
    if base is None:
        weight = f"{name.removesuffix('.bias')}.weight"
        if weight not in tensors or tensors[weight].shape[:-1] != delta.shape:
            raise AdapterError(adapter.path, f"has a bias for {name}, but the base model has no such layer")
        return {**tensors, name: in_memory(name, delta)}
    if base.shape != delta.shape:
        raise AdapterError(
            adapter.path, f"its bias does not fit {name}", found=delta.shape, expected=base.shape
        )
    values = float_rows(base.rows(0, base.n_rows), base.type).reshape(base.shape)
    return {**tensors, name: in_memory(name, values + delta)}


def _scaled_bias(
    tensors: dict[str, TensorSource], transform: Transform, strength: float
) -> dict[str, TensorSource]:
    """`tensors` with the bias of a weight whose outputs are scaled, scaled too."""
    bias = tensors.get(transform.bias or "")
    if bias is None or transform.lengths is None:
        return tensors
    factors = np.float32(1) + np.float32(strength) * (transform.lengths - np.float32(1))
    values = float_rows(widened(bias).rows(0, bias.n_rows), F32).reshape(-1)
    return {**tensors, bias.name: in_memory(bias.name, np.asarray(values * factors, np.float32))}


def _check_vocabulary(adapters: Sequence[tuple[Adapter, float]], tensors: dict[str, TensorSource]) -> None:
    embedding, output = tensors.get(EMBEDDING), tensors.get(OUTPUT)
    if embedding is None or output is None or embedding.shape[0] == output.shape[0]:
        return
    path = next((a.path for a, _ in adapters if {EMBEDDING, OUTPUT} & a.replaced.keys()), None)
    if path is not None:
        raise AdapterError(
            path,
            "changes the vocabulary of the embedding or of the output alone",
            found=f"{embedding.shape[0]} rows in the embedding, {output.shape[0]} in the output",
            expected="as many in both",
            hint="the adapter must hold both: modules_to_save=['embed_tokens', 'lm_head']",
        )
