"""What a run of `quantize` or `merge` has to tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loragraft.adapters.receipt import AdapterReceipt
from loragraft.quants.filetypes import FileType
from loragraft.units import bytes_text, plural

if TYPE_CHECKING:
    from loragraft.streaming.verify import TensorError


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor of the output. `shape` in NumPy order; sizes in bytes."""

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    source_size: int
    size: int
    weights: int


@dataclass(frozen=True, repr=False)
class WriteReport:
    """What a run of `quantize` or `merge` wrote (or, for a dry run, would write)."""

    target: FileType
    paths: list[Path]
    tensors: list[TensorReport]
    seconds: float = 0.0
    fallbacks: int = 0
    lacking_importance: list[tuple[str, str]] = field(default_factory=list)
    """Of a dry run: tensors that will need an importance matrix, and their types."""
    adapters: tuple[AdapterReceipt, ...] = ()
    errors: list[TensorError] = field(default_factory=list)
    """With `verify`: how far each tensor of the file is from what was to be stored."""
    notes: list[str] = field(default_factory=list)
    """What the user should know: what was left out, taken instead, or looks wrong."""

    def __str__(self) -> str:
        place = str(self.paths[0]) if len(self.paths) == 1 else f"{len(self.paths)} files"
        return (
            f"{place if self.paths else 'dry run'}: {self.target}, {plural(len(self.tensors), 'tensor')}, "
            f"{bytes_text(self.size)}, {self.bits_per_weight:.2f} bits per weight"
        )

    def __repr__(self) -> str:
        return f"<WriteReport {self}>"

    @property
    def source_size(self) -> int:
        return sum(tensor.source_size for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Of all tensors, in bytes."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def weights(self) -> int:
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.size / self.weights if self.weights else 0.0
