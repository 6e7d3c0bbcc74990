"""A model as a stream of rows: what the verbs read from, whatever file the weights come from.

Shapes are in NumPy's order everywhere in loragraft (slowest first: a linear weight is (out, in), fused experts
(n_expert, out, in)); only the GGUF reader and writer reverse them. A tensor's *rows* are its fastest axis; their
count is the product of the other axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from loragraft.arrays import Bytes
from loragraft.formats.gguf.values import Value
from loragraft.quants.types import QuantType


class TensorSource(ABC):
    """One tensor whose rows can be read in any order, from any thread, without holding the rest in memory."""

    name: str
    """The GGUF name."""
    shape: tuple[int, ...]
    """NumPy order; at least one axis."""
    type: QuantType
    """How the rows are stored."""

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.type.row_bytes(self.columns)

    @abstractmethod
    def rows(self, start: int, stop: int) -> Bytes:
        """Rows [start, stop) as uint8 [stop - start, row_bytes], C-contiguous.

        A view of the mapped file where the file holds them so; treat it as read-only.
        """

    def prefetch(self, start: int, stop: int) -> None:  # noqa: B027 (a hint: doing nothing is right for most)
        """Rows [start, stop) will be asked for soon: the system may read them ahead."""

    def release(self, start: int, stop: int) -> None:  # noqa: B027
        """Rows [start, stop) will not be asked for again soon: their pages may leave this process's memory."""


@dataclass
class ModelSource:
    """A model to read: GGUF metadata and tensors, in the order in which a conversion writes them."""

    path: Path
    arch: str
    metadata: dict[str, Value]
    tensors: Mapping[str, TensorSource]
    notes: list[str] = field(default_factory=list)
    """What the reader wants the user to know (an ignored file, a guess made), one line each."""
    dequantized: str = ""
    """What quantized the weights that were read as floats, if any were."""

    @property
    def context_length(self) -> int | None:
        """The longest sequence that the model was trained for, if the file says."""
        value = self.metadata.get(f"{self.arch}.context_length")
        return value.data if value is not None and isinstance(value.data, int) else None
