"""What one forward pass works on: tokens of any number of sequences, each row with its own adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Ids
from loragraft.errors import GraphError

AdapterSet = tuple[tuple[int, float], ...]
"""Adapters that work together: (slot, strength) pairs, in the order in which `graph.lora.attach` takes them."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens int32 [n], n >= 1, that continue one sequence, with the adapters that they run under.

    `wants`: whose logits to return: of the last token, all, none, or all from that index on. `start`: the position of
    the first token; None: wherever the sequence ends.
    """

    sequence: int
    tokens: Ids
    adapters: AdapterSet = ()
    wants: Literal["last", "all", "none"] | int = "last"
    start: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring rows [first, stop) of one sequence."""

    sequence: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of tokens. The rows of a sequence lie together, in order, and continue it.

    `tokens` int32 [T], `sequences` int64 [T], `positions` int32 [T], `wants` bool [T]: whether a row's logits are
    wanted. `adapters` int32 [T]: which of `sets` each row runs under; -1: none. Raises GraphError for arrays of
    different lengths, or no rows.
    """

    tokens: Ids
    sequences: npt.NDArray[np.int64]
    positions: Ids
    wants: npt.NDArray[np.bool_]
    adapters: Ids
    sets: tuple[AdapterSet, ...] = ()

    def __post_init__(self) -> None:
        kinds = ("tokens", np.int32), ("sequences", np.int64), ("positions", np.int32)
        for name, kind in (*kinds, ("wants", np.bool_), ("adapters", np.int32)):
            array = np.ascontiguousarray(getattr(self, name), kind)
            if array.ndim != 1 or not len(array) or len(array) != len(self.tokens):
                raise GraphError(
                    "batch",
                    f"{name} must be a list, one for each token, of at least one",
                    found=f"shape {array.shape} for {np.shape(self.tokens)}",
                )
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, pieces: Sequence[Piece], length: Callable[[int], int] | None = None) -> Batch:
        """One batch of `pieces`. `length` tells how many tokens a sequence holds (`Program.length`), for pieces that
        do not say where they start; several pieces of a sequence follow one another."""
        if not pieces:
            raise GraphError("batch", "has no rows", expected="at least one piece")
        sets: dict[AdapterSet, int] = {}
        ends: dict[int, int] = {}
        parts: list[Ids] = []
        starts: list[int] = []
        indices: list[int] = []
        for piece in pieces:
            tokens = np.ascontiguousarray(piece.tokens, np.int32)
            if tokens.ndim != 1 or not len(tokens):
                raise GraphError(
                    "batch", "tokens must be a list of at least one", found=f"shape {tokens.shape}"
                )
            start = ends.get(piece.sequence) if piece.start is None else piece.start
            if start is None:
                if length is None:
                    raise GraphError(
                        "batch", "a piece must say where it starts", hint="pass the program's length as well"
                    )
                start = length(piece.sequence)
            ends[piece.sequence] = start + len(tokens)
            parts.append(tokens)
            starts.append(start)
            indices.append(sets.setdefault(tuple(piece.adapters), len(sets)) if piece.adapters else -1)
        # One call for each array, not for each piece: a batch of replies is many pieces of one row.
        counts = [len(tokens) for tokens in parts]
        if max(counts) == 1 and all(piece.wants in ("last", "all") for piece in pieces):
            return cls(  # every token of every reply comes here
                np.concatenate(parts),
                np.array([piece.sequence for piece in pieces], np.int64),
                np.array(starts, np.int32),
                np.ones(len(parts), np.bool_),
                np.array(indices, np.int32),
                tuple(sets),
            )
        first = np.cumsum([0, *counts])
        return cls(
            np.concatenate(parts),
            np.repeat(np.array([piece.sequence for piece in pieces], np.int64), counts),
            (np.arange(first[-1]) - np.repeat(first[:-1] - starts, counts)).astype(np.int32),
            _wanted([piece.wants for piece in pieces], counts, first),
            np.repeat(np.array(indices, np.int32), counts),
            tuple(sets),
        )

    def runs(self) -> list[Run]:
        """The rows of each sequence."""
        if len(self) == 1:
            return [Run(int(self.sequences[0]), 0, 1)]
        borders = np.flatnonzero(np.diff(self.sequences)) + 1
        edges = [0, *borders.tolist(), len(self)]
        return [Run(int(self.sequences[a]), a, b) for a, b in pairwise(edges)]

    def segments(self) -> Iterator[tuple[Run, AdapterSet]]:
        """The rows of each sequence, cut where the adapters change."""
        for run in self.runs():
            borders = np.flatnonzero(np.diff(self.adapters[run.first : run.stop])) + run.first + 1
            edges = [run.first, *borders.tolist(), run.stop]
            for first, stop in pairwise(edges):
                index = int(self.adapters[first])
                yield Run(run.sequence, first, stop), self.sets[index] if index >= 0 else ()


def _wanted(
    wants: Sequence[str | int], counts: Sequence[int], first: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Of each row whether its logits are wanted. `first`: of each piece the first row, and the end of the last."""
    wanted = np.zeros(int(first[-1]), np.bool_)
    for want, count, at in zip(wants, counts, first, strict=False):
        match want:
            case "last":
                wanted[at + count - 1] = True
            case "all":
                wanted[at : at + count] = True
            case "none":
                pass
            case int() | np.integer() if 0 <= want < count:
                wanted[at + want : at + count] = True
            case _:
                raise GraphError(
                    "batch",
                    "no such rows to want",
                    found=want,
                    expected=f"last, all, none or 0 to {count - 1}",
                )
    return wanted
