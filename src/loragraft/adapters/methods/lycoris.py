"""LoHa and LoKr (Yeh et al. 2023, arXiv 2309.14859; Hyeon-Woo et al. 2021, arXiv 2108.06098), as exact pairs.

LoHa: delta = s (w1a w1b) * (w2a w2b), element by element. A product of elements of rank r and rank r has rank r^2:
column (i, j) of B is w1a[:, i] * w2a[:, j]. LoKr: delta = s kron(w1, w2), where each factor may itself be a product;
the pair is the Kronecker product of the factors' pairs. Where the rank would exceed the weight's, B is the delta
itself. Sources: peft/tuners/loha/layer.py, lokr/layer.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.adapters.methods.method import Context, Method, ModuleDelta, need
from loragraft.arrays import Floats

_HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_KRONECKER = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")


def _hadamard(context: Context, module: str, parts: Mapping[str, Floats]) -> ModuleDelta:
    w1a, w1b, w2a, w2b = need(context, module, parts, *_HADAMARD)
    rank = context.number("r", module, whole=True)
    shapes = [part.shape for part in (w1a, w1b, w2a, w2b)]
    if any(len(shape) != 2 for shape in shapes) or shapes[:2] != shapes[2:] or shapes[0][1] != shapes[1][0]:
        raise context.misfit(module, shapes, "two products of (out, r) and (r, in)")
    if shapes[0][1] != rank:
        raise context.misfit(module, f"rank {shapes[0][1]}", f"rank {rank}, as the configuration says")
    out, columns = len(w1a), w1b.shape[1]
    context.bound(module, out, columns)
    scale = context.number("alpha", module) / rank
    if rank * rank > min(out, columns):
        wide = [part.astype(np.float64) for part in (w1a, w1b, w2a, w2b)]
        return _whole(module, (wide[0] @ wide[1]) * (wide[2] @ wide[3]), scale, _HADAMARD)
    b = (w1a[:, :, None] * w2a[:, None, :]).reshape(len(w1a), -1)
    a = (w1b[:, None, :] * w2b[None, :, :]).reshape(-1, w1b.shape[1])
    return _pair(module, a, b, scale, _HADAMARD)


def _kronecker(context: Context, module: str, parts: Mapping[str, Floats]) -> ModuleDelta:
    left, right = (_factors(context, module, parts, name) for name in ("lokr_w1", "lokr_w2"))
    out, columns = (left[i].shape[i] * right[i].shape[i] for i in (0, 1))
    context.bound(module, out, columns)
    scale = context.number("alpha", module) / context.number("r", module, whole=True)
    names = tuple(sorted(parts))
    if left[0].shape[1] * right[0].shape[1] > min(out, columns):
        wide = [b.astype(np.float64) @ a for b, a in (left, right)]
        return _whole(module, np.kron(*wide), scale, names)
    return _pair(module, np.kron(left[1], right[1]), np.kron(left[0], right[0]), scale, names)


def _factors(context: Context, module: str, parts: Mapping[str, Floats], name: str) -> tuple[Floats, Floats]:
    """B and A of one of the two factors: its pair, or the matrix itself beside the identity on its smaller side."""
    own = {key for key in parts if key == name or key.startswith(f"{name}_")}
    if own == {f"{name}_a", f"{name}_b"}:
        b, a = parts[f"{name}_a"], parts[f"{name}_b"]
        if b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0]:
            raise context.misfit(module, f"{b.shape} and {a.shape}", "(out, r) and (r, in)")
        return b, a
    if own != {name} or parts[name].ndim != 2:
        raise context.misfit(module, ", ".join(sorted(parts)), f"{name}, or {name}_a and {name}_b, matrices")
    whole = parts[name]
    if whole.shape[0] < whole.shape[1]:
        return np.eye(whole.shape[0], dtype=np.float32), whole
    return whole, np.eye(whole.shape[1], dtype=np.float32)


def _pair(module: str, a: Floats, b: Floats, scale: float, parts: tuple[str, ...]) -> ModuleDelta:
    return ModuleDelta(module, np.ascontiguousarray(a), np.ascontiguousarray(b), scale=scale, parts=parts)


def _whole(module: str, delta: npt.NDArray[Any], scale: float, parts: tuple[str, ...]) -> ModuleDelta:
    """The delta itself as one matrix of the pair, beside the identity on its smaller side."""
    out, columns = delta.shape
    ones = np.eye(min(out, columns), dtype=np.float32)
    whole = np.asarray(delta, np.float32)
    a, b = (whole, ones) if out < columns else (ones, whole)
    return _pair(module, a, b, scale, parts)


_SETTINGS = frozenset(["r", "alpha", "rank_pattern", "alpha_pattern"])
_TRAINING = frozenset(
    """
    init_weights module_dropout rank_dropout rank_dropout_scale use_effective_conv2d decompose_both decompose_factor
    """.split()  # noqa: SIM905
)
LOHA = Method("LOHA", frozenset(_HADAMARD), _hadamard, _SETTINGS, harmless=_TRAINING)
LOKR = Method("LOKR", frozenset(_KRONECKER), _kronecker, _SETTINGS, harmless=_TRAINING)
