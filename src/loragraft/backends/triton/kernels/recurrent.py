"""Recurrent layers. A run is the rows of one sequence, which follow one another; what is summed over a state is summed
in one order, whatever the runs: the states of a sequence do not depend on how its tokens came.

`runs` int32 [runs, 4]: the first row, the row behind the last, the slot that the state comes from (-1: zeros), the slot
that it goes to, which may be the same.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _row_or_kept(x, states, row, first, source, c, known, channels, KEPT: tl.constexpr):
    """Channels `c` of a row of x, or, before the run's `first`, of one that the state keeps."""
    rows = row + tl.zeros_like(c)
    within, begun = rows >= first, source + tl.zeros_like(c) >= 0
    old = tl.load(
        states + (source.to(tl.int64) * KEPT + rows - first + KEPT) * channels + c,
        mask=known & begun & (rows < first),
        other=0.0,
    )
    new = tl.load(x + rows.to(tl.int64) * channels + c, mask=known & within, other=0.0)
    return tl.where(within, new, old)


@triton.jit
def convolve(
    x,  # float32 [rows, channels]
    weight,  # float32 [channels, KEPT + 1]
    bias,  # float32 [channels]
    y,  # float32 [rows, channels]
    states,  # float32 [slots, KEPT, channels]: the last rows, oldest first
    runs,
    run_of,  # int32 [rows]
    channels,
    KEPT: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    run = runs + tl.load(run_of + row) * 4
    first, source = tl.load(run), tl.load(run + 2)
    total = tl.zeros((BLOCK,), tl.float32)
    for tap in range(KEPT + 1):
        value = _row_or_kept(x, states, row - KEPT + tap, first, source, c, known, channels, KEPT)
        total += value * tl.load(weight + c * (KEPT + 1) + tap, mask=known, other=0.0)
    if BIASED:
        total += tl.load(bias + c, mask=known, other=0.0)
    tl.store(y + row.to(tl.int64) * channels + c, total, mask=known)


@triton.jit
def keep(
    x,
    states,
    kept,  # float32 [runs, KEPT, channels]
    runs,
    channels,
    KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the state of each run is after it: its last rows."""
    number = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    run = runs + number * 4
    first, stop, source = tl.load(run), tl.load(run + 1), tl.load(run + 2)
    for i in range(KEPT):
        value = _row_or_kept(x, states, stop - KEPT + i, first, source, c, known, channels, KEPT)
        tl.store(kept + (number.to(tl.int64) * KEPT + i) * channels + c, value, mask=known)


@triton.jit
def scan(
    q,  # float32 [rows, key_heads * key_dim]
    k,
    v,  # float32 [rows, heads * value_dim]
    dt,  # float32 [rows, heads]
    beta,  # float32 [rows, heads]; DELTA
    y,  # float32 [rows, heads * value_dim]
    states,  # float32 [slots, heads, key_dim, value_dim]
    decay,  # float32 [heads]
    skip,  # float32 [heads]; not DELTA
    runs,
    heads,
    key_heads,
    key_dim,
    value_dim,
    TILED: tl.constexpr,
    DELTA: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
):
    """S = exp(A dt) S + k u^T, y = S^T q, row by row; one program for VALUE columns of a head's state, which it holds.
    DELTA: u = beta (v - S^T k), the gated delta rule (Yang et al., arXiv:2412.06464). Else u = dt v, and D v is added:
    Mamba-2 (Dao and Gu, arXiv:2405.21060)."""
    run, head = runs + tl.program_id(0) * 4, tl.program_id(1)
    first, stop, source, target = tl.load(run), tl.load(run + 1), tl.load(run + 2), tl.load(run + 3)
    i, j = tl.arange(0, KEY), tl.program_id(2) * VALUE + tl.arange(0, VALUE)
    real_i, real_j = i < key_dim, j < value_dim
    real = real_i[:, None] & real_j[None, :]
    cell = (head * key_dim + i)[:, None] * value_dim + j[None, :]
    held = states + source.to(tl.int64) * heads * key_dim * value_dim
    begun = source + tl.zeros_like(cell) >= 0
    state = tl.load(held + cell, mask=real & begun, other=0.0)
    key_head = head % key_heads if TILED else head // (heads // key_heads)
    rate = tl.load(decay + head)
    for row in range(first, stop):
        at_key = (row * key_heads + key_head).to(tl.int64) * key_dim + i
        at_value = (row * heads + head).to(tl.int64) * value_dim + j
        key = tl.load(k + at_key, mask=real_i, other=0.0)
        query = tl.load(q + at_key, mask=real_i, other=0.0)
        value = tl.load(v + at_value, mask=real_j, other=0.0)
        step = tl.load(dt + row * heads + head)
        state = state * tl.exp(rate * step)
        if DELTA:
            known = tl.sum(state * key[:, None], axis=0)
            added = (value - known) * tl.load(beta + row * heads + head)
        else:
            added = value * step
        state = state + key[:, None] * added[None, :]
        seen = tl.sum(state * query[:, None], axis=0)
        if not DELTA:
            seen = seen + value * tl.load(skip + head)
        tl.store(y + at_value, seen, mask=real_j)
    left = states + target.to(tl.int64) * heads * key_dim * value_dim
    tl.store(left + cell, state, mask=real)
