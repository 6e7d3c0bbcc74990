"""Recurrent layers over whole windows, forward and backward: NumPy, float32, for `backends.gradients`.

`backends.reference_ops` defines them token by token. Here a scan goes chunk by chunk, as products of matrices (Yang et
al. 2024, arXiv 2412.06464, section 3.3; Dao and Gu 2024, arXiv 2405.21060, section 6). Of one chunk and head, with S
the state that enters it and c_t the product of the decays up to token t:

    U = (I + L)^-1 rate (V - c K S)    L_ti = rate_t c_t / c_i k_t . k_i for i < t  (the delta rule)
    U = rate V                                                                      (Mamba-2)
    Y = c Q S + P U                    P_ti = c_t / c_i q_t . k_i for i <= t
    S' = c_last S + K^T (c_last / c) U
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from loragraft.arrays import Array, Floats
from loragraft.graph.ops import Node

#: Tokens of a chunk: the work within grows with it, the work on states shrinks.
CHUNK = 64


def convolved(x: Floats, w: Floats, b: Floats | None, windows: int) -> Array:
    """SHORT_CONV of x [rows, c] with w [c, width]."""
    rows = x.reshape(windows, -1, x.shape[-1])
    length, width = rows.shape[1], w.shape[1]
    y = np.zeros_like(rows)
    for back in range(min(width, length)):
        y[:, back:] += rows[:, : length - back] * w[:, width - 1 - back]
    return (y if b is None else y + b).reshape(x.shape)


def from_convolved(g: Floats, w: Floats, windows: int) -> Array:
    """What a gradient of SHORT_CONV's value is to its input."""
    rows = g.reshape(windows, -1, g.shape[-1])
    length, width = rows.shape[1], w.shape[1]
    x = np.zeros_like(rows)
    for back in range(min(width, length)):
        x[:, : length - back] += rows[:, back:] * w[:, width - 1 - back]
    return x.reshape(g.shape)


@dataclass(frozen=True)
class _Chunk:
    """Arrays [windows, heads, tokens, ...] of some tokens, and what the formulas above call them."""

    q: Array
    k: Array
    v: Array
    rate: Array
    c: Array
    """[..., tokens, 1]"""
    ratios: Array
    """c_t / c_i [..., tokens, tokens], 0 for i > t"""
    left: Array
    """c_last / c [..., tokens, 1]"""
    delta: bool

    @property
    def solver(self) -> Array:
        """I + L."""
        found = self.rate * np.tril(self.ratios * (self.k @ _turned(self.k)), -1)
        return np.asarray(found + np.eye(found.shape[-1], dtype=np.float32))

    def updates(self, state: Array) -> Array:
        """U"""
        if not self.delta:
            return self.rate * self.v
        return np.linalg.solve(self.solver, self.rate * (self.v - self.c * (self.k @ state)))

    def values(self, state: Array, updates: Array) -> Array:
        """Y"""
        scores = self.ratios * (self.q @ _turned(self.k))
        return np.asarray(self.c * (self.q @ state) + scores @ updates)

    def state_after(self, state: Array, updates: Array) -> Array:
        return np.asarray(self.c[..., -1:, :] * state + _turned(self.k) @ (self.left * updates))

    def back(
        self, state: Array, updates: Array, g: Array, after: Array
    ) -> tuple[Array, Array, Array, Array, Array, Array]:
        """What the gradients `g` of Y and `after` of the state that leaves are to q, k, v, the rate, the logarithms of
        c, and the state that enters."""
        q, k, c, ratios, left = self.q, self.k, self.c, self.ratios, self.left
        reached, scores, leaving = q @ state, q @ _turned(k), k @ after
        to_updates = _turned(ratios * scores) @ g + left * leaving
        # Y = c Q S + P U, and S' = c_last S + K^T left U
        to_scores = g @ _turned(updates) * ratios
        to_q = (c * g) @ _turned(state) + to_scores @ k
        to_k = _turned(to_scores) @ q + left * (updates @ _turned(after))
        to_state = c[..., -1:, :] * after + _turned(q) @ (c * g)
        to_logs = c * _dot(g, reached)
        between = to_scores * scores
        kept = left * _dot(leaving, updates)
        to_logs -= kept
        to_logs[..., -1:, :] += kept.sum(axis=-2, keepdims=True)
        to_logs[..., -1, 0] += c[..., -1, 0] * (after * state).sum(axis=(-2, -1))
        if not self.delta:
            to_v, to_rate = self.rate * to_updates, _dot(to_updates, self.v)
        else:
            solver, known = self.solver, k @ state
            inner = np.linalg.solve(_turned(solver), to_updates)
            products = k @ _turned(k)
            to_solver = np.tril(-inner @ _turned(updates), -1) * ratios
            to_rate = _dot(inner, self.v - c * known) + (to_solver * products).sum(axis=-1, keepdims=True)
            to_products = to_solver * self.rate
            to_k += to_products @ k + _turned(to_products) @ k
            between += to_products * products
            to_v = self.rate * inner
            to_known = -c * to_v
            to_k += to_known @ _turned(state)
            to_state += _turned(k) @ to_known
            to_logs += _dot(to_known, known)
        to_logs += between.sum(axis=-1, keepdims=True) - _turned(between.sum(axis=-2, keepdims=True))
        return to_q, to_k, to_v, to_rate, to_logs, to_state


class Scan:
    """GATED_DELTA or STATE_SPACE over windows: `decay` [rows, heads] are the logarithms of the decays."""

    def __init__(
        self,
        node: Node,
        windows: int,
        q: Floats,
        k: Floats,
        v: Floats,
        rate: Floats,
        decay: Floats,
        *,
        delta: bool,
    ) -> None:
        at = node.attrs
        self._windows, self._heads, self._groups = windows, at["heads"], at["key_heads"]
        self._tiled, self._delta = bool(at.get("tiled")), delta
        self._shapes = q.shape, v.shape
        self._q, self._k = (self._for_heads(self._apart(a, self._groups)) for a in (q, k))
        self._v = self._apart(v, self._heads)
        self._rate, self._decay = (self._apart(a, self._heads) for a in (rate, decay))
        self._state = np.zeros((windows, self._heads, at["key_dim"], at["value_dim"]), np.float32)
        length = self._v.shape[2]
        self._spans = [slice(first, min(first + CHUNK, length)) for first in range(0, length, CHUNK)]

    def forward(self) -> Array:
        """Y [rows, heads * value_dim]."""
        return self._together(np.concatenate([y for _, _, _, y in self._passes()], axis=2))

    def backward(self, g: Floats) -> tuple[Array, Array, Array, Array, Array]:
        """What g [rows, heads * value_dim] is to q, k, v, the rate and the logarithms of the decays."""
        wanted = self._apart(g, self._heads)
        passed = [(chunk, state, updates) for chunk, state, updates, _ in self._passes()]
        parts: list[list[Array]] = [[] for _ in range(5)]
        after = np.zeros_like(self._state)
        for span, (chunk, state, updates) in zip(reversed(self._spans), reversed(passed), strict=True):
            *found, after = chunk.back(state, updates, wanted[:, :, span], after)
            found[4] = np.flip(np.cumsum(np.flip(found[4], 2), axis=2), 2)  # a decay is in all c that follow
            for part, one in zip(parts, found, strict=True):
                part.insert(0, one)
        q, k, v, rate, decay = (np.concatenate(part, axis=2) for part in parts)
        keys = (self._together(self._of_groups(a)) for a in (q, k))
        return (*keys, *(self._together(a) for a in (v, rate, decay)))  # type: ignore[return-value]

    def _passes(self) -> Any:
        """Chunk, the state that enters it, U and Y, chunk after chunk."""
        state = self._state
        for span in self._spans:
            logs = np.cumsum(self._decay[:, :, span], axis=2)
            ahead = np.tril(np.ones((logs.shape[2], logs.shape[2]), np.bool_))
            ratios = np.exp(np.where(ahead, logs - _turned(logs), -np.inf))
            left = np.exp(logs[:, :, -1:] - logs)
            q, k, v, rate = (a[:, :, span] for a in (self._q, self._k, self._v, self._rate))
            chunk = _Chunk(q, k, v, rate, np.exp(logs), ratios, left, self._delta)
            updates = chunk.updates(state)
            yield chunk, state, updates, chunk.values(state, updates)
            state = chunk.state_after(state, updates)

    def _apart(self, x: Array, heads: int) -> Array:
        """[rows, heads * n] -> [windows, heads, length, n]"""
        return np.ascontiguousarray(
            x.reshape(self._windows, -1, heads, x.shape[-1] // heads).transpose(0, 2, 1, 3)
        )

    def _together(self, x: Array) -> Array:
        windows, heads, length, n = x.shape
        return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(windows * length, heads * n)

    def _for_heads(self, x: Array) -> Array:
        """Keys or queries of each head, of those of each group."""
        each = self._heads // self._groups
        return np.tile(x, (1, each, 1, 1)) if self._tiled else np.repeat(x, each, axis=1)

    def _of_groups(self, x: Array) -> Array:
        """The sums over the heads of each group."""
        windows, _, *rest = x.shape
        each = self._heads // self._groups
        if self._tiled:
            return np.asarray(x.reshape(windows, each, self._groups, *rest).sum(axis=1))
        return np.asarray(x.reshape(windows, self._groups, each, *rest).sum(axis=2))


def _turned(x: Array) -> Array:
    return np.swapaxes(x, -1, -2)


def _dot(a: Array, b: Array) -> Array:
    return np.asarray((a * b).sum(axis=-1, keepdims=True))
