"""Attention over pages of keys and values, one program for the query heads of a row that share a key-value head.

It goes over positions in blocks that begin at multiples of BLOCK, whatever the window: the order of a row's sums
depends on its position alone. Source: the running softmax of FlashAttention (Dao et al., arXiv:2205.14135).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attention(
    q,  # float32 [rows, kv_heads * group * head_dim]
    keys,  # float16 or float32 [slots, kv_heads * head_dim]
    values,  # [slots, kv_heads * value_dim]
    y,  # float32 [rows, kv_heads * group * value_dim]
    sinks,  # float32 [kv_heads * group]
    slopes,  # float32 [kv_heads * group]
    tables,  # int32: pages of sequences, one list after the other
    lists,  # int32 [rows]: where the list of a row's sequence begins
    positions,  # int32 [rows]
    kv_heads,
    group,
    head_dim,
    value_dim,
    window,  # 0: none
    chunk,  # 0: none
    scale,
    cap,
    SINKS: tl.constexpr,
    CAPPED: tl.constexpr,
    SLOPED: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    VALUE: tl.constexpr,
):
    row, kv_head = tl.program_id(0), tl.program_id(1)
    g, d, e = tl.arange(0, GROUP), tl.arange(0, HEAD), tl.arange(0, VALUE)
    heads = kv_head * group + g
    real = g < group
    at = (row * kv_heads * group + heads).to(tl.int64)
    query = tl.load(
        q + at[:, None] * head_dim + d[None, :],
        mask=real[:, None] & (d < head_dim)[None, :],
        other=0.0,
    )
    if SINKS:
        largest = tl.load(sinks + heads, mask=real, other=0.0)
        total = tl.full((GROUP,), 1.0, tl.float32)
    else:
        largest = tl.full((GROUP,), float("-inf"), tl.float32)
        total = tl.zeros((GROUP,), tl.float32)
    mixed = tl.zeros((GROUP, VALUE), tl.float32)
    position, pages = tl.load(positions + row), tables + tl.load(lists + row)
    first = tl.where(window > 0, tl.maximum(position + 1 - window, 0), 0)
    first = tl.where(chunk > 0, position // tl.maximum(chunk, 1) * chunk, first)
    if SLOPED:
        slope = tl.load(slopes + heads, mask=real, other=0.0)
    for start in range(first // BLOCK * BLOCK, position + 1, BLOCK):
        t = start + tl.arange(0, BLOCK)
        seen = (t >= first) & (t <= position)
        slot = (tl.load(pages + t // PAGE, mask=seen, other=0) * PAGE + t % PAGE).to(tl.int64)
        key = tl.load(
            keys + (slot[:, None] * kv_heads + kv_head) * head_dim + d[None, :],
            mask=seen[:, None] & (d < head_dim)[None, :],
            other=0.0,
        ).to(tl.float32)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if CAPPED:
            scores = cap * _tanh(scores / cap)
        if SLOPED:
            scores = scores - slope[:, None] * (position - t).to(tl.float32)[None, :]
        scores = tl.where(seen[None, :], scores, float("-inf"))
        above = tl.maximum(largest, tl.max(scores, axis=1))
        powers = tl.exp(scores - above[:, None])
        shrunk = tl.exp(largest - above)
        value = tl.load(
            values + (slot[:, None] * kv_heads + kv_head) * value_dim + e[None, :],
            mask=seen[:, None] & (e < value_dim)[None, :],
            other=0.0,
        ).to(tl.float32)
        total = total * shrunk + tl.sum(powers, axis=1)
        mixed = mixed * shrunk[:, None] + tl.dot(powers, value, input_precision="ieee")
        largest = above
    tl.store(
        y + at[:, None] * value_dim + e[None, :],
        mixed / total[:, None],
        mask=real[:, None] & (e < value_dim)[None, :],
    )


@triton.jit
def _tanh(x):
    """Exact to the last bits for large and small x: exp of a number that is not positive."""
    small = tl.exp(-2 * tl.abs(x))
    magnitude = (1 - small) / (1 + small)
    near = tl.abs(x) < 0.03  # where 1 - small loses digits
    magnitude = tl.where(near, tl.abs(x) * (1 - x * x / 3), magnitude)
    return tl.where(x < 0, -magnitude, magnitude)
