"""What a product with a quantized weight sees of its input: the definition of `Options.activations`.

Only the product sees rounded values; weights stored as floats get the input as it is. Beside a product of 8-bit
activations the adapter's own numbers, A and B, are rounded too, to 8 or 11 bits (`Options.adapter_type`); in 8 bits A
gets the input as the product does, else as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from loragraft.arrays import Floats
from loragraft.graph.chains import Stage, find_chains
from loragraft.graph.ops import Graph, Op
from loragraft.quants import e4m3

_E2M1_MAX = np.float32(6.0)


def round_q8(x: Floats) -> Floats:
    """To 8 bits in blocks of 32 along the last axis: the nearest multiples, ties to even, of largest / 127. As ggml's
    Q8_0, but the block's scale stays a float32. A block with a value that is not a number has none; a block with a
    subnormal scale counts as zeros."""
    blocks = _blocks(x, 32)
    scale = _of_numbers(np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127))
    normal = scale >= np.finfo(np.float32).tiny
    inverse = np.where(normal, np.float32(1) / np.where(normal, scale, 1), np.float32(0))
    with np.errstate(invalid="ignore"):
        return _joined(np.rint(blocks * inverse) * scale, x)


def round_nvfp4(x: Floats, input_scale: Floats | None) -> Floats:
    """To NVFP4 in blocks of 16 along the last axis, as a W4A4 kernel sees it: an E4M3 scale of largest / 6 in units of
    `input_scale`, then E2M1 values, ties to even. `input_scale` broadcasts to [..., 1]; None takes each row's own
    largest / 2688. A block with a value that is not a number has none.
    Source: NVIDIA Model-Optimizer, nvfp4 quantizer of activations."""
    if input_scale is None:
        input_scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(6 * 448)
    blocks, unit = _blocks(x, 16), np.asarray(input_scale, np.float32)[..., None]
    unit = np.broadcast_to(unit, (*blocks.shape[:-1], 1))
    largest = _of_numbers(np.abs(blocks).max(axis=-1, keepdims=True))
    unit = _of_numbers(unit)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = e4m3.decode(e4m3.encode(np.where(unit > 0, largest / _E2M1_MAX / unit, 0))) * unit
        codes = _round_e2m1(np.where(scale > 0, blocks / scale, np.float32(0)))
        numbers = np.isfinite(largest) & np.isfinite(unit)
        return _joined(np.where(numbers, codes * scale, np.float32(np.nan)), x)


class Factor(NamedTuple):
    """How an A or B is rounded: to 8 or 11 bits, and which axis its ranks are."""

    axis: int
    bits: int


LEAST_Q8_RANK = 8
"""Pairs of fewer ranks are not rounded to 8 bits: 16 ranks of A are kept together, however few there are."""


def rounded_factors(
    graph: Graph, rounds: Callable[[str], bool], adapter_type: str = "auto"
) -> dict[str, Factor]:
    """The A and B in `graph` that `round_factor` is for, by name. `rounds` tells for a weight whether its products
    round activations to 8 bits; `adapter_type` is that of `Options`. A of 8 bits gets x by `round_q8`, as the product
    does."""
    found: dict[str, Factor] = {}
    for chain in find_chains(graph):
        if graph.nodes[chain.product].op is not Op.EMBED and rounds(chain.weight):
            for index in chain.at(Stage.LORA):
                a, b = graph.nodes[index].weights[:2]
                q8 = adapter_type != "f16" and graph.tensors[a].shape[-2] >= LEAST_Q8_RANK
                bits = 8 if q8 else 11
                found |= {a: Factor(-2, bits), b: Factor(-1, bits)}
    return found


def round_factor(matrix: Floats, factor: Factor) -> Floats:
    """A [..., r, in] or B [..., out, r] as it is run beside a product of 8-bit activations."""
    return (round_ranks if factor.bits == 11 else round_codes)(matrix, factor.axis)


def round_codes(matrix: Floats, axis: int) -> Floats:
    """A [..., r, in] (axis -2) or B [..., out, r] (axis -1) in 8 bits: the nearest multiples, ties to even, of
    largest / 127 in blocks of 32 numbers of a row of A, or of 16 of a column of B. That is a half float, in the units
    of `round_ranks`. The squares of what this changes are at most 1.7e-4 of the numbers' own (B: 8e-5). A block with a
    value that is not a number has none."""
    largest = _largest(matrix, axis)
    exponent = 15 - np.frexp(largest)[1]
    unit = np.where(largest > 0, np.ldexp(np.float32(1), np.clip(exponent, -113, _MOST_EXPONENT)), 1)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = matrix * unit.astype(np.float32)
        along = scaled if axis == -2 else np.swapaxes(scaled, -1, -2)
        blocks = _blocks(along, 32 if axis == -2 else 16)
        scale = _of_numbers(np.abs(blocks).max(axis=-1, keepdims=True)) / np.float32(127)
        scale = scale.astype(np.float16).astype(np.float32)
        codes = np.where(scale == 0, 0, np.rint(blocks / np.where(scale == 0, 1, scale)).clip(-127, 127))
        rounded = _joined((codes * scale).astype(np.float32), along)
        return np.asarray((rounded if axis == -2 else np.swapaxes(rounded, -1, -2)) / unit, np.float32)


def round_ranks(matrix: Floats, axis: int) -> Floats:
    """A [..., r, in] (axis -2) or B [..., out, r] (axis -1) as half floats hold it: to 11 bits, in units of a power of
    two for each rank, which makes its largest number lie between 2^14 and 2^15. Numbers of 16-bit adapters, BF16 too,
    stay as they are, but for those 2^28 times smaller than their rank's largest. Ranks beyond any such unit do too."""
    largest = _largest(matrix, axis)
    exponent = 15 - np.frexp(largest)[1]
    unit = np.ldexp(np.float32(1), np.clip(exponent, -_MOST_EXPONENT, _MOST_EXPONENT))
    with np.errstate(over="ignore", invalid="ignore"):
        halves = (matrix * unit).astype(np.float16).astype(np.float32) / unit
    return np.asarray(
        np.where((largest > 0) & (np.abs(exponent) <= _MOST_EXPONENT), halves, matrix), np.float32
    )


_MOST_EXPONENT = 100


def _largest(matrix: Floats, axis: int) -> Floats:
    """Of the numbers of each rank, where they are finite."""
    others = tuple(i for i in range(matrix.ndim) if i != matrix.ndim + axis)
    finite = np.where(np.isfinite(matrix), np.abs(matrix), 0)
    return np.asarray(finite.max(axis=others, keepdims=True, initial=0), np.float32)


def _of_numbers(scale: Floats) -> Floats:
    """NaN in place of an infinity: what it scales is not a number either."""
    return np.where(np.isfinite(scale), scale, np.float32(np.nan))


def _round_e2m1(x: Floats) -> Floats:
    size = np.abs(x)
    near = np.where(
        size <= 2, np.rint(size * 2) / 2, np.where(size <= 4, np.rint(size), np.where(size <= 5, 4, 6))
    )
    return np.asarray(np.copysign(near, x), np.float32)


def _blocks(x: Floats, length: int) -> Floats:
    """[..., n] as [..., blocks, length], the last block filled up with zeros."""
    missing = -x.shape[-1] % length
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return padded.reshape(*x.shape[:-1], -1, length)


def _joined(blocks: Floats, like: Floats) -> Floats:
    return np.asarray(blocks.reshape(*like.shape[:-1], -1)[..., : like.shape[-1]], np.float32)
