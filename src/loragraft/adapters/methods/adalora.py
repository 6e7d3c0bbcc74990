"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): delta = s / (R + 1e-5) B (E A), E a factor for each rank.

Ranks that training took away are not in the file; R stays the rank that it began with (peft/tuners/adalora/layer.py,
model.py `resize_modules_by_rank_pattern`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loragraft.adapters.methods.method import Context, Method, ModuleDelta, need
from loragraft.arrays import Floats


def _build(context: Context, module: str, parts: Mapping[str, Floats]) -> ModuleDelta:
    a, b, e = need(context, module, parts, "lora_A", "lora_B", "lora_E")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or e.shape != (a.shape[0], 1):
        raise context.misfit(
            module, f"A {a.shape}, B {b.shape}, E {e.shape}", "A (r, in), B (out, r), E (r, 1)"
        )
    start = context.number("init_r", whole=True)
    alpha = context.config.get("lora_alpha")
    scale = float(alpha) if isinstance(alpha, int | float) and alpha > 0 else float(start)
    if a.shape[0] == 0:  # all of its ranks were taken away
        a, b, e = (
            np.zeros((1, a.shape[1]), np.float32),
            np.zeros((b.shape[0], 1), np.float32),
            np.zeros((1, 1), np.float32),
        )
    total = float(np.float32(start) + np.float32(1e-5))
    scaled = np.asarray(a * e, np.float32)
    return ModuleDelta(module, scaled, b, scale=scale / total, parts=("lora_A", "lora_B", "lora_E"))


ADALORA = Method(
    "ADALORA",
    frozenset(["lora_A", "lora_B", "lora_E"]),
    _build,
    honoured=frozenset(["init_r", "lora_alpha"]),
    harmless=frozenset(
        """
        beta1 beta2 deltaT megatron_core qalora_group_size orth_reg_weight
        target_r tfinal tinit total_step rank_pattern r alpha_pattern lora_dropout
        init_lora_weights
        """.split()  # noqa: SIM905
    ),
)
