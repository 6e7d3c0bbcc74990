"""What a backend is: it opens a verified graph over weights, and gives a session that turns tokens into logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from loragraft.formats.source import TensorSource
from loragraft.graph.ops import Graph

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

Weights = Mapping[str, TensorSource | Floats]
"""Every tensor that the graph names: the model's as rows in their stored type, the adapters' as float32 arrays."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run, the same for every backend; one that cannot honour a setting raises UnsupportedError."""

    context: int | None = None
    """Positions to make room for; None: as many as come, up to what memory holds."""
    threads: int | None = None
    """None: one for each processor that the process may use."""
    activations: Literal["auto", "f32", "q8", "nvfp4"] = "auto"
    """What activations are rounded to before a product with a quantized weight; auto is the backend's own choice."""
    unchecked: bool = False
    """Run a graph that `graph.spec` rejects. Only `check` wants this, to measure what a wrong order costs."""


class Session(Protocol):
    """One sequence of tokens and its key-value cache. Not for use from two threads at a time."""

    @property
    def n_past(self) -> int:
        """How many tokens the cache holds; the next token's position."""

    def forward(self, ids: Ids, *, last_only: bool = False) -> Floats:
        """Append `ids` (int32 [T], T >= 1) to the sequence.

        Returns logits float32 [T, vocab], or [1, vocab] for the last token alone. Raises GraphError if a token is
        outside the vocabulary or the context is full.
        """

    def reset(self, n_past: int = 0) -> None:
        """Forget everything after the first `n_past` tokens."""


class Backend(ABC):
    """Runs graphs. Several sessions may be opened over the same weights."""

    name: str

    @abstractmethod
    def open(self, graph: Graph, weights: Weights, options: Options | None = None) -> Session:
        """Verify the graph (`graph.spec.verify`) and prepare to run it.

        Raises GraphError if the graph breaks a rule, UnsupportedError for a type or setting that this backend lacks.
        """
