"""The second moments of the inputs of linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats
from loragraft.errors import LoragraftError
from loragraft.quants import native
from loragraft.quants.accelerator import at_hand
from loragraft.streaming.walk import Product
from loragraft.system.threads import in_threads

#: Rows of a sum that a thread works on.
BLOCK = 192


@dataclass
class InputMoments:
    """Of what the weights `names` were multiplied by: `sums` of x x^T, float32 [matrices, in, in] (one matrix, or one
    for each expert), `mean_squares` float32 [matrices, in], and how many x there were, int64 [matrices]."""

    names: tuple[str, ...]
    sums: Floats
    mean_squares: Floats
    counts: npt.NDArray[np.int64]

    def forget_sums(self) -> None:
        """They are the largest thing in memory."""
        self.sums = np.empty((len(self.counts), 0, 0), np.float32)


Rows = list[tuple[Floats, Floats | None]]
"""Inputs [rows, in], and how much each of them counts [rows]."""


def input_moments(
    product: Product, counting: Mapping[str, Floats], experts: int = 1, threads: int = 1
) -> InputMoments:
    """Of the inputs of `product`, whose weights have `experts` matrices. `counting`: how much each token counts,
    float32 [tokens] or [tokens, experts used], for weights that do not count all alike; several with one input take
    the mean of theirs. Raises LoragraftError for inputs that are not finite."""
    known = [counting[name] for name in product.names if name in counting]
    counts = np.asarray(sum(known) / np.float32(len(known)), np.float32) if known else None
    columns = product.inputs[0].shape[-1]
    sums = np.zeros((experts, columns, columns), np.float32)
    squares, seen = np.zeros((experts, columns), np.float32), np.zeros(experts, np.int64)
    for expert, total in enumerate(sums):
        rows = _rows(product, counts, None if product.ids is None else expert)
        seen[expert] = sum(len(x) for x, _ in rows)
        _sum(total, rows, threads)
        squares[expert] = np.diagonal(total) / max(int(seen[expert]), 1)
    if not np.isfinite(squares).all():
        raise LoragraftError(
            product.names[0], "activations that are not finite reach it", hint="is the model intact?"
        )
    return InputMoments(product.names, sums, squares, seen)


def _rows(product: Product, counts: Floats | None, expert: int | None) -> Rows:
    """Those that reach an expert, if that is not None."""
    rows, first = [], 0
    for number, x in enumerate(product.inputs):
        own = None if counts is None else counts[first : first + len(x)]
        first += len(x)
        if expert is None or product.ids is None:
            rows.append((x.reshape(-1, x.shape[-1]), own))
            continue
        token, place = np.nonzero(product.ids[number] == expert)
        chosen = x[token, place] if x.ndim == 3 else x[token]
        rows.append((chosen, None if own is None else own[token, place]))
    return [(x, own) for x, own in rows if len(x)]


def _sum(total: Floats, rows: Rows, threads: int) -> None:
    """Add to `total`, symmetric: half of it is computed, blocks of rows side by side."""
    if (accelerator := at_hand()) is not None:
        accelerator.second_moments(total, rows)
        return

    def block(first: int) -> None:
        stop = min(first + BLOCK, len(total))
        with np.errstate(all="ignore"):  # whether sums are finite is looked at afterwards
            for x, counts in rows:
                left = x[:, first:stop] if counts is None else x[:, first:stop] * counts[:, None]
                native.product(left.T, x[:, first:], total[first:stop, first:], add=True, upper=True)

    in_threads(block, range(0, len(total), BLOCK), threads)
    mirror(total)


def mirror(total: Floats) -> None:
    """Make the lower half of a square matrix that of the upper."""
    for first in range(0, len(total), BLOCK):
        stop = first + BLOCK
        total[stop:, first:stop] = total[first:stop, stop:].T
        own = total[first:stop, first:stop]
        own[:] = np.triu(own) + np.triu(own, 1).T
