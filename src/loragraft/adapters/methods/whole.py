"""Methods that train tensors as they are: norms (LN tuning, Zhao et al. 2023, arXiv 2312.11420), and rows of the
embedding (trainable tokens). Their tensors stand in place of the base's."""

from __future__ import annotations

from collections.abc import Mapping

from loragraft.adapters.methods.method import Context, Method, ModuleTransform
from loragraft.arrays import Floats


def _none(context: Context, module: str, parts: Mapping[str, Floats]) -> ModuleTransform:
    raise context.misfit(module, ", ".join(parts), "no tensors of pairs")


LN_TUNING = Method("LN_TUNING", frozenset(), _none)
TRAINABLE_TOKENS = Method(
    "TRAINABLE_TOKENS",
    frozenset(),
    _none,
    honoured=frozenset(["token_indices"]),
    harmless=frozenset(["init_weights"]),
)
