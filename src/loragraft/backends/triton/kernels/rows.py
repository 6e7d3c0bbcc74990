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
def softmax(x, y, size, BLOCK: tl.constexpr):
    """Of a row [size]."""
    c = tl.arange(0, BLOCK)
    start = tl.program_id(0).to(tl.int64) * size
    values = tl.load(x + start + c, mask=c < size, other=float("-inf"))
    powers = tl.exp(values - tl.max(values, axis=0))
    tl.store(y + start + c, powers / tl.sum(powers, axis=0), mask=c < size)
