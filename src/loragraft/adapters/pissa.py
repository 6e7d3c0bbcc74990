"""PiSSA: adapters that were trained beside a base without its principal part.

Meng et al. 2024 (arXiv 2404.02948), peft/tuners/lora/layer.py `pissa_init`: with W = U S V^T, B A starts as the first r
singular triplets over s, and W becomes W - U_r S_r V_r^T, which is W - W V_r V_r^T: the directions V_r alone are
needed, and they do not depend on the order of W's rows. They are found by block Krylov iteration, restarted until the
subspace stands still."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from loragraft.adapters.lora import LoraPair
from loragraft.errors import AdapterError
from loragraft.formats.source import TensorSource
from loragraft.formats.views import widened

_DENSE = 1024
"""The smaller side of a weight up to which all of its directions are computed at once."""
_DEPTH, _RESTARTS, _STILL = 6, 200, 1e-5


def for_the_original(pair: LoraPair, weight: TensorSource) -> LoraPair:
    """The pair of rank 2r that does to `weight` [out, in] what `pair` does to W - U_r S_r V_r^T. Holds the weight."""
    floats = widened(weight)
    w = floats.rows(0, floats.n_rows).view(np.float32).reshape(weight.shape)
    v = principal_directions(w, pair.rank, str(pair.target))
    taken = np.asarray((w @ v) / pair.scale, np.float32)
    a = np.concatenate([pair.a, np.asarray(v.T, np.float32)])
    return replace(pair, a=np.ascontiguousarray(a), b=np.concatenate([pair.b, -taken], axis=1))


def principal_directions(
    w: npt.NDArray[np.float32], rank: int, subject: str = "weight"
) -> npt.NDArray[np.float64]:
    """The right singular vectors of w [out, in] with the `rank` largest singular values: float64 [in, rank]."""
    if min(w.shape) <= max(_DENSE, 4 * rank):
        wide = w.astype(np.float64)
        if w.shape[0] >= w.shape[1]:
            return np.asarray(np.linalg.eigh(wide.T @ wide)[1][:, ::-1][:, :rank])
        left = np.linalg.eigh(wide @ wide.T)[1][:, ::-1][:, :rank]
        return np.asarray(np.linalg.qr(wide.T @ left)[0])
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((w.shape[1], rank + 8)))[0]
    for _ in range(_RESTARTS):
        blocks = [basis]
        for _ in range(_DEPTH):
            blocks.append(np.linalg.qr(_gram(w, blocks[-1]))[0])
        space = np.linalg.qr(np.concatenate(blocks, axis=1))[0]
        small = np.linalg.eigh(space.T @ _gram(w, space))[1][:, ::-1][:, : rank + 8]
        after = space @ small
        moved = np.linalg.norm(after[:, :rank] - basis[:, :rank] @ (basis[:, :rank].T @ after[:, :rank]))
        basis = after
        if moved < _STILL:
            return np.asarray(basis[:, :rank])
    raise AdapterError(
        subject,
        "PiSSA's start cannot be recomputed: the weight's singular values are too close at the adapter's rank",
        expected="directions that can be told apart",
        hint="save the adapter where it was trained with path_initial_model_for_weight_conversion",
    )


def _gram(w: npt.NDArray[np.float32], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """w^T w x, its products in float32 as PEFT's."""
    return np.asarray((w.T @ (w @ x.astype(np.float32))).astype(np.float64))
