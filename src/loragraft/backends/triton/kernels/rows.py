"""What sums over a row: norms and softmax, one program for each group of a row."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm(
    x,  # float32 [groups, size]
    weight,  # float32 [weights, size]: of a row's groups, one after the other
    bias,
    y,
    size,
    weights,
    eps,
    CENTRED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """RMS norm of a group; CENTRED: layer norm."""
    c = tl.arange(0, BLOCK)
    known = c < size
    start = tl.program_id(0).to(tl.int64) * size
    values = tl.load(x + start + c, mask=known, other=0.0)
    if CENTRED:
        values = tl.where(known, values - tl.sum(values, axis=0) / size, 0.0)
    values = values / tl.sqrt(tl.sum(values * values, axis=0) / size + eps)
    if WEIGHTED:
        values = values * tl.load(weight + tl.program_id(0) % weights * size + c, mask=known, other=0.0)
    if BIASED:
        values = values + tl.load(bias + c, mask=known, other=0.0)
    tl.store(y + start + c, values, mask=known)


@triton.jit
def gaussian_top_k(x, y, size, deviations, BLOCK: tl.constexpr):
    """What of a group lies so many deviations above its mean."""
    c = tl.arange(0, BLOCK)
    known = c < size
    start = tl.program_id(0).to(tl.int64) * size
    values = tl.load(x + start + c, mask=known, other=0.0)
    above = tl.where(known, values - tl.sum(values, axis=0) / size, 0.0)
    cut = deviations * tl.sqrt(tl.sum(above * above, axis=0) / size)
    tl.store(y + start + c, tl.maximum(above - cut, 0.0), mask=known)


@triton.jit
def match_rms(
    x,  # float32 [rows, groups, size]
    model,  # float32 [rows, width]
    y,
    size,
    groups,
    width,
    least,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A group as large as its row of the model."""
    c = tl.arange(0, BLOCK)
    w = tl.arange(0, WIDE)
    row = (tl.program_id(0) // groups).to(tl.int64)
    start = tl.program_id(0).to(tl.int64) * size
    values = tl.load(x + start + c, mask=c < size, other=0.0)
    others = tl.load(model + row * width + w, mask=w < width, other=0.0)
    own = tl.maximum(tl.sum(values * values, axis=0) / size, least)
    factor = tl.sqrt(tl.sum(others * others, axis=0) / width) / tl.sqrt(own)
    tl.store(y + start + c, values * factor, mask=c < size)


@triton.jit
def softmax(x, y, size, BLOCK: tl.constexpr):
    """Of a row [size]."""
    c = tl.arange(0, BLOCK)
    start = tl.program_id(0).to(tl.int64) * size
    values = tl.load(x + start + c, mask=c < size, other=float("-inf"))
    powers = tl.exp(values - tl.max(values, axis=0))
    tl.store(y + start + c, powers / tl.sum(powers, axis=0), mask=c < size)
