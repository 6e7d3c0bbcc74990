"""What several adapters together add to each tensor of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from loragraft.adapters.delta import Change, Delta, same_deltas
from loragraft.adapters.lora import EMBEDDING, OUTPUT, Adapter, LoraPair
from loragraft.adapters.rebase import UNTIED, untied
from loragraft.errors import AdapterError
from loragraft.formats.source import ModelSource
from loragraft.units import names_text

#: Linears that may have one row, whose axis GGUF then drops.
_ROUTERS = (".ffn_gate_inp.weight", ".ffn_gate_inp_shexp.weight")


def collect_deltas(
    model: ModelSource, adapters: Sequence[tuple[Adapter, float]]
) -> tuple[ModelSource, Mapping[str, tuple[Change, ...]]]:
    """The changes of every adapted tensor, in the order of `adapters`, and the model that they are for: `model`, but
    where adapters change a tied weight in one of its uses only, as PEFT lets them, with a tensor for each use.

    An adapter's pair comes before what it multiplies the weight by. Raises `AdapterError` for a pair without a tensor,
    or with one of another shape.
    """
    deltas: dict[str, tuple[Change, ...]] = {}
    for adapter, scale in adapters:
        for name, pair in adapter.pairs.items():
            plain = pair.magnitude is None
            delta = Delta(
                pair.a, pair.b, pair.scale * (scale if plain else 1), pair.magnitude, 1 if plain else scale
            )
            deltas[name] = (*deltas.get(name, ()), delta)
        for name, transform in adapter.transforms.items():
            deltas[name] = (*deltas.get(name, ()), replace(transform, strength=scale))
    if OUTPUT not in model.tensors and EMBEDDING in model.tensors:
        own = deltas.pop(OUTPUT, ())
        if not same_deltas(own, deltas.get(EMBEDDING, ())):
            deltas[OUTPUT] = own
            model = replace(model, tensors=untied(dict(model.tensors)), notes=[*model.notes, UNTIED])
    for adapter, _ in adapters:
        named = [*adapter.pairs, *adapter.transforms]
        unused = [name for name in named if name not in model.tensors and name != OUTPUT]
        if unused:
            raise AdapterError(
                adapter.path,
                f"{len(unused)} of its {len(named)} targets are not in the base",
                found=names_text(unused),
                expected=f"tensors of {model.path}",
            )
        for name, pair in adapter.pairs.items():
            _check_shape(adapter, pair, model.tensors[name if name in model.tensors else EMBEDDING].shape)
    return model, {name: own for name, own in deltas.items() if own}


def _check_shape(adapter: Adapter, pair: LoraPair, shape: tuple[int, ...]) -> None:
    if len(shape) == 1 and pair.target.endswith(_ROUTERS):
        shape = (1, *shape)
    expected = (*shape[:-2], pair.rank, shape[-1]), (*shape[:-1], pair.rank)
    if len(shape) < 2 or (pair.a.shape, pair.b.shape) != expected:
        raise AdapterError(
            adapter.path,
            f"does not fit tensor {pair.target!r} of shape {list(shape)}",
            found=f"A {list(pair.a.shape)} and B {list(pair.b.shape)}",
            expected=f"A {list(expected[0])} and B {list(expected[1])}",
        )
