"""Several adapters as one, as PEFT's `add_weighted_adapter` makes it (peft/tuners/lora/model.py, utils/merge_utils.py).

    cat               the sum of the deltas, exactly: ranks add up
    svd               that sum, cut to a rank
    linear            A and B summed each for itself, with the square roots of the weights: no sum of deltas
    magnitude_prune   the same, of the largest values alone
    ties              TIES (Yadav et al. 2023, arXiv 2306.01708): of the largest values those whose sign most agree on
    dare_linear, dare_ties   DARE (Yu et al. 2023, arXiv 2311.03099): values dropped at random, the others grown

`..._svd`: done to the deltas, whose sum is then cut to a rank. A weight is the user's strength times the pair's scale.

What is dropped at random is told by a seed: of half h (0: A, 1: B, 2: the delta) of adapter i for the GGUF tensor t,
what `numpy.random.default_rng([seed, crc32(t), i, h]).random(shape)`, in GGUF's order of rows, has below the density
stays. So results depend neither on threads nor on what else is combined.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from loragraft.adapters.lora import EMBEDDING, Adapter, LoraPair
from loragraft.adapters.parts import refuse_parts
from loragraft.adapters.spectrum import low_rank, low_rank_product
from loragraft.arrays import Floats
from loragraft.errors import AdapterError, LoragraftError
from loragraft.formats.source import TensorSource

METHODS = (
    "linear",
    "cat",
    "svd",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_linear_svd",
    "dare_ties",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
)
_WITH_DENSITY = tuple(method for method in METHODS if method.split("_")[0] in ("ties", "dare", "magnitude"))


@dataclass(frozen=True, slots=True)
class Combination:
    """How to combine. `density`: the part of the values that stays, for the methods that drop some. `rank`: of the
    result, for svd; None: the largest of the adapters'. `seed`: of what is dropped at random."""

    method: str = "cat"
    density: float | None = None
    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise LoragraftError(self.method, "no such way to combine adapters", expected=", ".join(METHODS))
        if self.method in _WITH_DENSITY:
            if self.density is None or not 0 < self.density <= 1:
                raise LoragraftError(
                    self.method,
                    "needs a density, the part of the values that stays",
                    found=self.density,
                    expected="a number above 0, up to 1",
                    hint="add --density 0.5",
                )
        elif self.density is not None:
            raise LoragraftError(self.method, "drops no values", found=f"density {self.density}")
        if self.rank is not None and (not self.method.endswith("svd") or self.rank < 1):
            raise LoragraftError(
                self.method,
                "takes no rank" if self.rank > 0 else "bad rank",
                found=self.rank,
                hint="only svd and ..._svd cut to a rank",
            )


def combine(adapters: Sequence[tuple[Adapter, float]], how: Combination, name: str = "combined") -> Adapter:
    """One adapter in place of several, each with its weight; its scales are in its pairs, so they are 1.

    Raises AdapterError for adapters that hold more than pairs (DoRA's lengths, rows, biases, factors), for a tensor
    that two of them replace, and for ranks that differ where the method needs them alike.
    """
    if not adapters:
        raise LoragraftError("combine", "needs adapters", found="none", expected="one or more")
    for adapter, weight in adapters:
        _check_pairs(adapter, weight)
    if len(adapters) == 1:
        how = Combination("linear")  # as PEFT does
    targets = list(dict.fromkeys(chain.from_iterable(adapter.pairs for adapter, _ in adapters)))
    ranks = [pair.rank for adapter, _ in adapters for pair in adapter.pairs.values()]
    rank = how.rank or max(ranks, default=1)
    pairs = {}
    for target in targets:
        terms = [
            _Term(number, adapter, adapter.pairs[target], weight * adapter.pairs[target].scale)
            for number, (adapter, weight) in enumerate(adapters)
            if target in adapter.pairs
        ]
        pairs[target] = _combined(target, terms, how, rank)
    first = adapters[0][0]
    return Adapter(
        first.path,
        pairs,
        first.arch,
        None,
        list(dict.fromkeys(note for adapter, _ in adapters for note in adapter.notes)),
        sum(adapter.n_tensors for adapter, _ in adapters),
        replaced=_replaced(adapters),
        name=name,
        files=tuple(file for adapter, _ in adapters for file in adapter.files),
    )


@dataclass(frozen=True, slots=True)
class _Term:
    number: int
    adapter: Adapter
    pair: LoraPair
    weight: float


def _check_pairs(adapter: Adapter, weight: float) -> None:
    refuse_parts(
        adapter,
        (
            ("rows of tokens", adapter.rows),
            ("biases", adapter.biases),
            ("factors and rotations", adapter.transforms),
            ("its own tokenizer", adapter.tokenizer),
            (
                "DoRA's magnitudes",
                [name for name, pair in adapter.pairs.items() if pair.magnitude is not None],
            ),
            ("whole tensors, which have no weight", adapter.replaced if weight != 1 else ()),
        ),
        "so it cannot be combined with others",
        expected="only pairs",
        hint="merge them one after the other instead: loragraft merge BASE --lora A --lora B -o MERGED.gguf",
    )


def _replaced(adapters: Sequence[tuple[Adapter, float]]) -> dict[str, TensorSource]:
    found: dict[str, TensorSource] = {}
    for adapter, _ in adapters:
        if twice := sorted(found.keys() & adapter.replaced.keys()):
            raise AdapterError(
                adapter.path,
                f"replaces {twice[0]}, as another adapter does",
                found=f"{len(twice)} such tensors",
                expected="one of the two",
            )
        found |= adapter.replaced
    return found


def _combined(target: str, terms: Sequence[_Term], how: Combination, rank: int) -> LoraPair:
    if how.method == "cat":
        return _side_by_side(target, terms)
    if how.method == "svd":
        whole = _side_by_side(target, terms)
        return _each_matrix(target, lambda b, a: low_rank_product(b, a, rank), whole)
    if how.method.endswith("_svd"):
        return _cut_sum(target, terms, how, rank)
    return _halves(target, terms, how)


def _side_by_side(target: str, terms: Sequence[_Term]) -> LoraPair:
    """sum_i w_i B_i A_i as one pair, whose rank is the sum of theirs."""
    a = np.concatenate([term.pair.a * np.float32(term.weight) for term in terms], axis=-2)
    return LoraPair(target, a, np.concatenate([term.pair.b for term in terms], axis=-1), 1.0)


def _each_matrix(target: str, cut: Callable[[Floats, Floats], object], pair: LoraPair) -> LoraPair:
    """`cut` of the pair, or of every expert's, as one."""
    stack_a = pair.a.reshape(-1, *pair.a.shape[-2:])
    stack_b = pair.b.reshape(-1, *pair.b.shape[-2:])
    found = [cut(b, a) for b, a in zip(stack_b, stack_a, strict=True)]
    return _stacked(target, [one.a for one in found], [one.b for one in found], pair.a.shape[:-2])  # type: ignore[attr-defined]


def _stacked(target: str, a: Sequence[Floats], b: Sequence[Floats], experts: tuple[int, ...]) -> LoraPair:
    rank = max(len(one) for one in a)
    a = [np.pad(one, ((0, rank - len(one)), (0, 0))) for one in a]
    b = [np.pad(one, ((0, 0), (0, rank - one.shape[1]))) for one in b]
    return LoraPair(
        target,
        np.stack(a).reshape(*experts, *a[0].shape),
        np.stack(b).reshape(*experts, *b[0].shape),
        1.0,
    )


def _cut_sum(target: str, terms: Sequence[_Term], how: Combination, rank: int) -> LoraPair:
    """What the method makes of whole deltas, matrix by matrix, cut to a rank."""
    experts = terms[0].pair.a.shape[:-2]
    found = []
    for matrix in range(int(np.prod(experts, dtype=int))):
        deltas = []
        for term in terms:
            a, b = (half.reshape(-1, *half.shape[-2:])[matrix] for half in (term.pair.a, term.pair.b))
            deltas.append(np.float32(term.pair.scale) * (b @ a))
        weights = [term.weight / term.pair.scale for term in terms]
        keys = [(how.seed, zlib.crc32(target.encode()), term.number, 2 + matrix) for term in terms]
        found.append(low_rank(_mixed(deltas, weights, how, keys), rank))
    return _stacked(target, [one.a for one in found], [one.b for one in found], experts)


def _halves(target: str, terms: Sequence[_Term], how: Combination) -> LoraPair:
    """The method on A and on B, each for itself, with the square root of the weight in each, its sign in PEFT's A."""
    ranks = {term.pair.rank for term in terms}
    if len(ranks) > 1:
        raise AdapterError(
            terms[-1].adapter.path,
            f"the ranks of the adapters' pairs for {target} differ",
            found=", ".join(map(str, sorted(ranks))),
            expected=f"one rank, as {how.method} needs it",
            hint="add --combine cat or --combine svd" if how.method == "linear" else f"take {how.method}_svd",
        )
    made = []
    signed = 1 if target == EMBEDDING else 0  # PEFT's A of an embedding is our B
    for half, arrays in enumerate(([t.pair.a for t in terms], [t.pair.b for t in terms])):
        roots = [abs(term.weight) ** 0.5 for term in terms]
        if half == signed:
            roots = [root if term.weight >= 0 else -root for root, term in zip(roots, terms, strict=True)]
        keys = [(how.seed, zlib.crc32(target.encode()), term.number, half) for term in terms]
        made.append(_mixed(arrays, roots, how, keys))
    return LoraPair(target, made[0], made[1], 1.0)


def _mixed(
    arrays: Sequence[Floats], weights: Sequence[float], how: Combination, keys: Sequence[tuple[int, ...]]
) -> Floats:
    """The arrays of several adapters as one."""
    density = 1.0 if how.density is None else how.density
    if density < 1:
        if how.method.startswith("dare"):
            arrays = [_dropped(array, density, key) for array, key in zip(arrays, keys, strict=True)]
        elif how.method.startswith(("ties", "magnitude")):
            arrays = [_largest(array, density) for array in arrays]
    stack = np.stack(arrays)
    factors = np.asarray(weights, np.float32).reshape(-1, *[1] * (stack.ndim - 1))
    if "ties" not in how.method:
        return np.asarray((stack * factors).sum(axis=0), np.float32)
    agreed = np.sign(stack) == np.where(stack.sum(axis=0) >= 0, np.float32(1), np.float32(-1))
    count = np.maximum(agreed.sum(axis=0), 1).astype(np.float32)
    return np.asarray((stack * factors * agreed).sum(axis=0) / count, np.float32)


def _largest(array: Floats, density: float) -> Floats:
    """The int(density * n) values of largest magnitude; zeros for the others."""
    keep = int(density * array.size)
    if not keep:
        return np.zeros_like(array)
    flat = array.reshape(-1)
    chosen = np.argpartition(-np.abs(flat), keep - 1)[:keep]
    kept = np.zeros_like(flat)
    kept[chosen] = flat[chosen]
    return kept.reshape(array.shape)


def _dropped(array: Floats, density: float, key: tuple[int, ...]) -> Floats:
    stays = np.random.default_rng(key).random(array.shape) < density
    return np.asarray(array * stays / np.float32(density), np.float32)


def scaled(adapter: Adapter, factor: float) -> Adapter:
    """The adapter with its pairs' scales times `factor`."""
    pairs = {name: replace(pair, scale=pair.scale * factor) for name, pair in adapter.pairs.items()}
    return replace(adapter, pairs=pairs, alpha=None)
