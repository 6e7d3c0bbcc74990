"""An adapter's pairs by transformers' modules: the way back from GGUF's tensors, as `adapter_placement` is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loragraft.adapters.lora import EMBEDDING, Adapter, LoraPair
from loragraft.archs import ARCHS
from loragraft.archs.tensors import Order
from loragraft.arrays import Floats
from loragraft.errors import AdapterError, UnsupportedError
from loragraft.formats.source import ModelSource
from loragraft.formats.views import values_of
from loragraft.huggingface.tensor_names import CheckpointNames, Place
from loragraft.huggingface.wrappers import TextNames


@dataclass(frozen=True, slots=True)
class ModulePair:
    """The pair of one module, delta = scale * b a: a [r, in], b [out, r]. Of a parameter that is a stack of experts
    (`name` ends in `.experts.down_proj`): a [E, r, in], b [E, out, r]. Of an embedding the delta is [vocab, d]."""

    name: str
    a: Floats
    b: Floats
    scale: float
    magnitude: Floats | None = None
    embedding: bool = False

    @property
    def stacked(self) -> bool:
        return self.a.ndim == 3

    @property
    def rank(self) -> int:
        return int(self.a.shape[-2])


def module_names(base: ModelSource) -> TextNames:
    """transformers' names of the base's tensors. Raises UnsupportedError where GGUF's names do not tell them."""
    if not ARCHS.has_name(base.arch):
        raise UnsupportedError(
            base.path,
            f"transformers' names of {base.arch}'s modules are not known here",
            found=f"architecture {base.arch!r}",
            expected="one that loragraft runs",
            hint="keep the GGUF adapter: loragraft merge BASE.gguf --lora ADAPTER.gguf -o MERGED.gguf",
        )
    return TextNames(base.metadata)


def module_pairs(adapter: Adapter, base: ModelSource) -> list[ModulePair]:
    """All pairs of `adapter`, which is on the tensors of `base`, by module.

    Raises AdapterError for what no pair of a module can be, UnsupportedError for an architecture whose names are not
    known.
    """
    names = module_names(base)
    own = CheckpointNames(names)
    found: list[ModulePair] = []
    left = dict(adapter.pairs)
    for name, places in names.by_name().items():
        stack = places[0].tensor.exact and name.endswith(("experts.gate_up_proj", "experts.down_proj"))
        several = len(places) > 1 and name.endswith(".weight") and not places[0].tensor.exact
        if (stack or several) and any(place.name in left for place in places):
            module = name if stack else name.removesuffix(".weight")
            found.append(_joined(adapter, base, module, places, left))
            for place in places:
                left.pop(place.name, None)
    for target, pair in left.items():
        origins = own.origins(target)
        if not origins:
            raise AdapterError(
                adapter.path, f"adapts {target}, which has no module in transformers", found=base.arch
            )
        if origins[0].expert is not None:
            found += [
                one
                for origin in origins
                for one in _expert(adapter, origin.name, origin.place, pair, origin.expert or 0)
            ]
        elif origins[0].place.span is not None:
            found += [one for origin in origins for one in _part(origin.name, origin.place, pair)]
        else:
            found.append(_single(origins[0].name, origins[0].place, pair))
    return sorted(found, key=lambda one: one.name)


def replaced_modules(adapter: Adapter, base: ModelSource) -> dict[str, Floats]:
    """Tensors that the adapter replaces as a whole, by their names in transformers, float32."""
    if not adapter.replaced:
        return {}
    own = CheckpointNames(module_names(base))
    found = {}
    for name, source in adapter.replaced.items():
        origins = own.origins(name)
        if len(origins) != 1 or origins[0].expert is not None or origins[0].place.span is not None:
            raise AdapterError(
                adapter.path, f"replaces {name}, which is not one parameter of a module", found=base.arch
            )
        place, values = origins[0].place, values_of(source).reshape(source.shape)
        if place.tensor.columns is not None or place.tensor.transposed:
            raise AdapterError(adapter.path, f"replaces {name}, whose columns GGUF reorders", found=base.arch)
        values = values[place.rows_in_gguf(len(values))]
        if (factor := place.factor) is not None:
            values = values / factor.reshape(-1, *[1] * (values.ndim - 1))
        found[origins[0].name] = values if place.values is None else place.values.inverse(values)
    return found


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _back(order: Order | None, values: Floats, axis: int, size: int | None = None) -> Floats:
    """`values`, whose element i along `axis` is element order[i] of the result; zeros where none is."""
    if order is None:
        return values
    shape = list(values.shape)
    shape[axis] = size or len(order)
    result = np.zeros(shape, np.float32)
    index: list[object] = [slice(None)] * values.ndim
    index[axis] = order
    result[tuple(index)] = values  # type: ignore[index]
    return result


def _single(name: str, place: Place, pair: LoraPair) -> ModulePair:
    rows = place.order(pair.b.shape[-2])
    a = _back(place.column_order(pair.a.shape[-1]), pair.a, pair.a.ndim - 1)
    b = _back(rows, pair.b, pair.b.ndim - 2)
    lengths = None if pair.magnitude is None else _back(rows, pair.magnitude, 0)
    if (factor := place.factor) is not None:
        b = b / factor.reshape(-1, 1)
        lengths = None if lengths is None else lengths / factor
    return ModulePair(_module(name), a, b, pair.scale, lengths, embedding=pair.target == EMBEDDING)


def _used(a: Floats, b: Floats) -> npt.NDArray[np.bool_]:
    """Which of the ranks hold anything: the others were put in so that a stack has one rank."""
    return np.asarray(a.any(axis=1) | b.any(axis=0))


def _expert(adapter: Adapter, name: str, place: Place, pair: LoraPair, expert: int) -> Iterator[ModulePair]:
    a, b = pair.a[expert], pair.b[expert]
    used = _used(a, b)
    if not used.any() and pair.magnitude is None:
        return  # this expert was not adapted
    own = LoraPair(
        pair.target,
        a[used],
        b[:, used],
        pair.scale,
        None if pair.magnitude is None else pair.magnitude[expert],
    )
    yield _single(name, place, own)


def _part(name: str, place: Place, pair: LoraPair) -> Iterator[ModulePair]:
    """One of the modules that GGUF has as one tensor: its rows of B, and the ranks that they use."""
    first, last = place.span or (0, 0)
    b = pair.b[first:last]
    used = np.array(b.any(axis=0))
    if not used.any() and pair.magnitude is None:
        return
    if not used.any():
        used[:1] = True
    lengths = None if pair.magnitude is None else pair.magnitude[first:last]
    yield _single(name, place, LoraPair(pair.target, pair.a[used], b[:, used], pair.scale, lengths))


def _of_heads(adapter: Adapter, pair: LoraPair, place: Place) -> LoraPair:
    """The pair of a stack by head as that of the matrix that it was made of."""
    a, b = pair.a, pair.b
    if place.tensor.is_turned:
        a, b = b.swapaxes(1, 2), a.swapaxes(1, 2)
    if (a != a[0]).any():
        raise AdapterError(
            adapter.path,
            f"adapts {pair.target} head by head, which has no form in PEFT",
            found=f"{len(a)} matrices that differ",
            expected="the same A (B, where it is transposed) for all heads",
        )
    return replace(pair, a=a[0], b=b.reshape(-1, b.shape[-1]))


def _joined(
    adapter: Adapter, base: ModelSource, module: str, places: Sequence[Place], pairs: Mapping[str, LoraPair]
) -> ModulePair:
    """The pair of one module whose rows GGUF has in several tensors. Where their A are the same it is that A."""
    parts = [
        (place, _of_heads(adapter, pairs[place.name], place) if place.heads else pairs[place.name])
        for place in places
        if place.name in pairs
    ]
    if any(pair.magnitude is not None for _, pair in parts):
        raise AdapterError(
            adapter.path,
            f"DoRA of {module} has no form in PEFT",
            found=parts[0][0].name,
            expected="plain LoRA",
        )
    shapes = {place.name: base.tensors[place.name].shape for place in places}
    rows = sum(place.rows_of(shapes[place.name]) for place in places)
    first = parts[0][1]
    alike = len(parts) == len(places) and all(
        pair.scale == first.scale and np.array_equal(pair.a, first.a) for _, pair in parts
    )
    if alike:
        b = np.zeros((*first.b.shape[:-2], rows, first.rank), np.float32)
        for place, pair in parts:
            b += _back(place.order(rows), pair.b, pair.b.ndim - 2, rows)
        return ModulePair(module, first.a, b, first.scale)
    blocks = [
        _back(place.order(rows), pair.b * np.float32(pair.scale / first.scale), pair.b.ndim - 2, rows)
        for place, pair in parts
    ]
    a = np.concatenate([pair.a for _, pair in parts], axis=-2)
    return ModulePair(module, a, np.concatenate(blocks, axis=-1), first.scale)
