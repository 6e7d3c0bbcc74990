"""The second moments of the inputs of linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats
from loragraft.errors import LoragraftError
from loragraft.quants import native
from loragraft.quants.accelerator import at_hand
from loragraft.streaming.tree import Node, Tree
from loragraft.streaming.walk import Product
from loragraft.system.threads import in_threads

#: Rows of a sum that a thread works on.
BLOCK = 192
#: Batches of windows that are summed one after another, a leaf of the tree of sums.
LEAF = 2


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


@dataclass(frozen=True, slots=True)
class MomentSums:
    """What some of the windows add to `InputMoments`: `nodes` of the sums, their upper halves, for each matrix, and
    `counts` int64 [matrices]."""

    names: tuple[str, ...]
    nodes: list[list[Node]]
    counts: npt.NDArray[np.int64]


def input_moments(
    product: Product, counting: Mapping[str, Floats], experts: int = 1, threads: int = 1
) -> InputMoments:
    """Of the inputs of `product`, whose weights have `experts` matrices. `counting`: how much each token counts,
    float32 [tokens] or [tokens, experts used], for weights that do not count all alike; several with one input take
    the mean of theirs. Raises LoragraftError for inputs that are not finite."""
    return whole_moments([moment_sums(product, counting, experts, threads)])


def moment_sums(
    product: Product,
    counting: Mapping[str, Floats],
    experts: int = 1,
    threads: int = 1,
    first: int | None = None,
) -> MomentSums:
    """What the windows of `product` add. `first`: the number of their first leaf, if they are not all there are."""
    known = [counting[name] for name in product.names if name in counting]
    counts = np.asarray(sum(known) / np.float32(len(known)), np.float32) if known else None
    nodes, seen = [], np.zeros(experts, np.int64)
    for expert in range(experts):
        rows = _rows(product, counts, None if product.ids is None else expert)
        seen[expert] = sum(len(x) for x, _ in rows)
        nodes.append(_summed(rows, threads, first))
    return MomentSums(product.names, nodes, seen)


def whole_moments(parts: Sequence[MomentSums]) -> InputMoments:
    """What all windows add up to; `parts`, in the windows' order, give their nodes up. Raises as `input_moments`."""
    names, counts = parts[0].names, np.sum([part.counts for part in parts], axis=0)
    columns = len(parts[0].nodes[0][0].arrays[0])
    one = len(counts) == 1
    sums = np.empty((0 if one else len(counts), columns, columns), np.float32)
    squares = np.empty((len(counts), columns), np.float32)
    for matrix in range(len(counts)):
        tree = Tree()
        for part in parts:
            tree.extend(part.nodes[matrix])
            part.nodes[matrix] = []
        (total,) = tree.total()
        total = mirror(total)
        if one:
            sums = total[None]  # not copied: it may be the largest thing in memory
        else:
            sums[matrix] = total
        squares[matrix] = np.diagonal(total) / max(int(counts[matrix]), 1)
    if not np.isfinite(squares).all():
        raise LoragraftError(
            names[0], "activations that are not finite reach it", hint="is the model intact?"
        )
    return InputMoments(names, sums, squares, counts)


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


def _summed(rows: Rows, threads: int, first: int | None) -> list[Node]:
    """The upper half of the sum of c x x^T: of all windows in one node, or of some in the nodes of their leaves, of
    which `first` is the number of the first."""
    columns = rows[0][0].shape[-1]
    if (accelerator := at_hand()) is not None:
        total = np.zeros((columns, columns), np.float32)
        accelerator.second_moments(total, rows)
        return [Node(0, 1, [total])]
    start = first or 0
    leaves = [rows[at : at + LEAF] for at in range(0, len(rows), LEAF)]
    nodes = [Node(0, 1, [np.empty((columns, columns), np.float32)])]
    if first is not None:
        shape = Tree()
        for number in range(len(leaves)):
            shape.add(start + number, [])
        nodes = [Node(n.start, n.size, [np.empty((columns, columns), np.float32)]) for n in shape.nodes]

    def block(top: int) -> None:
        stop, tree = min(top + BLOCK, columns), Tree()
        with np.errstate(all="ignore"):  # whether sums are finite is looked at afterwards
            for number, leaf in enumerate(leaves):
                own = np.zeros((stop - top, columns - top), np.float32)
                for x, counts in leaf:
                    left = x[:, top:stop] if counts is None else x[:, top:stop] * counts[:, None]
                    native.product(left.T, x[:, top:], own, add=True, upper=True)
                tree.add(start + number, [own])
            found = [tree.total()] if first is None else [node.arrays for node in tree.nodes]
        for node, (own,) in zip(nodes, found, strict=True):
            node.arrays[0][top:stop, top:] = own

    in_threads(block, range(0, columns, BLOCK), threads)
    return nodes


def mirror(total: Floats) -> Floats:
    """Make the lower half of a square matrix that of the upper; `total`, or a copy where it may not be written."""
    total = total if total.flags.writeable else total.copy()
    for first in range(0, len(total), BLOCK):
        stop = first + BLOCK
        total[stop:, first:stop] = total[first:stop, stop:].T
        own = total[first:stop, first:stop]
        own[:] = np.triu(own) + np.triu(own, 1).T
    return total
