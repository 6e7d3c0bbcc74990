"""VeRA (Kopiczko et al. 2023, arXiv 2310.11454): delta = diag(b) B diag(d) A, with A and B random and the same for all
layers, cut to each one's size (peft/tuners/vera/model.py).

Without `save_projection` they are drawn again from `projection_prng_key` as torch draws them: a Mersenne Twister on the
CPU, 24 bits to a number, between bounds of Kaiming's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loragraft.adapters.methods.method import Context, Method, ModuleDelta, need
from loragraft.arrays import Floats


def _build(context: Context, module: str, parts: Mapping[str, Floats]) -> ModuleDelta:
    rows, ranks = need(context, module, parts, "vera_lambda_b", "vera_lambda_d")
    a, b = context.shared["vera_A"], context.shared["vera_B"]
    if rows.ndim != 1 or ranks.shape != (len(a),) or len(rows) > len(b) or b.shape[1] != len(a):
        raise context.misfit(
            module, f"lambda_b {rows.shape}, lambda_d {ranks.shape}", f"at most {len(b)} and exactly {len(a)}"
        )
    made = np.asarray(rows[:, None] * b[: len(rows)], np.float32)
    return ModuleDelta(
        module,
        np.asarray(ranks[:, None] * a, np.float32),
        made,
        scale=1.0,
        cut=True,
        parts=("vera_lambda_b", "vera_lambda_d"),
    )


def projections(context: Context, rows: int, columns: int) -> dict[str, Floats]:
    """vera_A [r, columns] and vera_B [rows, r], drawn as PEFT draws them for the largest of the adapted weights."""
    rank, key = context.number("r", whole=True), context.number("projection_prng_key", least=-1, whole=True)
    twister = np.random.RandomState(key & 0xFFFFFFFF)
    return {
        "vera_A": _kaiming(twister, (rank, columns)),
        "vera_B": _kaiming(twister, (rows, rank)),
    }


def _kaiming(twister: np.random.RandomState, shape: tuple[int, int]) -> Floats:
    """Uniform between plus and minus sqrt(6 / fan_in), as torch's `uniform_` for float32."""
    bound = np.sqrt(3.0) * (np.sqrt(2.0) / np.sqrt(shape[1]))
    words = twister.randint(0, 1 << 32, size=shape[0] * shape[1], dtype=np.uint32)
    unit = (words & np.uint32((1 << 24) - 1)).astype(np.float32) * np.float32(2.0**-24)
    low, high = np.float32(-bound), np.float32(bound)
    return np.asarray(unit * (high - low) + low, np.float32).reshape(shape)


VERA = Method(
    "VERA",
    frozenset(["vera_lambda_b", "vera_lambda_d"]),
    _build,
    honoured=frozenset(["r", "save_projection", "projection_prng_key"]),
    shared=frozenset(["vera_A", "vera_B"]),
    harmless=frozenset(["vera_dropout", "d_initial", "init_weights"]),
)
