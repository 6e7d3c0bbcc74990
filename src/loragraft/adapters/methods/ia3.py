"""(IA)^3 (Liu et al. 2022, arXiv 2205.05638): a learned factor for every output of a layer, bias included, or for every
input of a feed-forward layer (peft/tuners/ia3/layer.py)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loragraft.adapters.methods.method import Context, Method, ModuleTransform, need
from loragraft.arrays import Floats


def _build(context: Context, module: str, parts: Mapping[str, Floats]) -> ModuleTransform:
    (factors,) = need(context, module, parts, "ia3_l")
    if factors.ndim != 2 or 1 not in factors.shape:
        raise context.misfit(module, factors.shape, "(out, 1) or (1, in)")
    flat = np.ascontiguousarray(factors.reshape(-1))
    if factors.shape[0] == 1 and factors.shape[1] > 1:
        return ModuleTransform(module, ("ia3_l",), columns=flat)
    return ModuleTransform(module, ("ia3_l",), lengths=flat, of_bias=True)


IA3 = Method(
    "IA3", frozenset(["ia3_l"]), _build, harmless=frozenset(["feedforward_modules", "init_ia3_weights"])
)
