"""Which slots hold the states of recurrent layers. A pass leaves what it makes of them in slots that nobody else holds,
so one that fails changes no state, and sequences that were forked share a slot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import heappop, heappush

from loragraft.errors import PoolError
from loragraft.graph.ops import RECURRENT, Graph, Op
from loragraft.graph.spec import value_shapes
from loragraft.units import bytes_text

Move = tuple[int | None, int]
"""The slot that a sequence's states come from, None at its beginning; and the one that they go to."""


def state_shapes(graph: Graph) -> dict[int, tuple[int, ...]]:
    """Of every recurrent node, by its number: [width - 1, channels] of a SHORT_CONV, oldest row first, or [heads,
    key_dim, value_dim]."""
    shapes = value_shapes(graph)
    found: dict[int, tuple[int, ...]] = {}
    for index, node in enumerate(graph.nodes):
        at = node.attrs
        if node.op is Op.SHORT_CONV:
            found[index] = graph.tensors[node.weights[0]].shape[-1] - 1, shapes[index][-1]
        elif node.op in RECURRENT:
            found[index] = at["heads"], at["key_dim"], at["value_dim"]
    return found


class States:
    """Slots by sequence; the states themselves are elsewhere, `nbytes` a slot. Without any, nothing is held."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._held: dict[int, int] = {}
        self._users: list[int] = []  # of each slot
        self._free: list[int] = []

    @property
    def slots(self) -> int:
        """How many there must be room for."""
        return len(self._users)

    @property
    def used(self) -> int:
        return len(self._users) - len(self._free)

    def fork(self, sequence: int, fork: int, length: int) -> None:
        """`length`: all that the sequence holds, or 0."""
        if length and sequence in self._held:
            self._held[fork] = self._held[sequence]
            self._users[self._held[fork]] += 1

    def truncate(self, sequence: int, length: int) -> None:
        """`length` as in `fork`."""
        if not length:
            self.close(sequence)

    def close(self, sequence: int) -> None:
        self._leave(self._held.pop(sequence, None))

    def begin(self, sequences: Iterable[int], limit: int | None) -> dict[int, Move]:
        """The moves of a pass over these; nothing changes but the slots taken, until `commit` or `abandon`. Raises
        PoolError for more than `limit` slots."""
        if not self.nbytes:
            return {}
        of = list(sequences)
        if limit is not None and self.used + len(of) > limit:
            raise PoolError(
                "states of recurrent layers",
                "no room",
                found=bytes_text((self.used + len(of)) * self.nbytes),
                expected=f"up to {bytes_text(limit * self.nbytes)}",
                hint="close a sequence or raise the bound",
            )
        return {sequence: (self._held.get(sequence), self._take()) for sequence in of}

    def commit(self, moves: Mapping[int, Move]) -> None:
        for sequence, (old, new) in moves.items():
            self._leave(old)
            self._held[sequence] = new

    def abandon(self, moves: Mapping[int, Move]) -> None:
        for _, new in moves.values():
            self._leave(new)

    def _take(self) -> int:
        if self._free:
            slot = heappop(self._free)
            self._users[slot] = 1
            return slot
        self._users.append(1)
        return len(self._users) - 1

    def _leave(self, slot: int | None) -> None:
        if slot is None:
            return
        self._users[slot] -= 1
        if not self._users[slot]:
            heappush(self._free, slot)
