"""The records of an adapter, whatever file it came from: low-rank pairs (Hu et al. 2021, arXiv 2106.09685), and what
else fine-tuning frameworks save beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.adapters.transform import Transform
from loragraft.arrays import Floats
from loragraft.formats.gguf.values import Metadata
from loragraft.formats.source import TensorSource

#: The two weights whose rows are the vocabulary; a model without the second multiplies by the first ("tied").
EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"


@dataclass(frozen=True, slots=True)
class LoraPair:
    """delta(W) = scale * B A for the weight called `target` (a GGUF name, `blk.0.attn_q.weight`).

    Dense: a [r, in], b [out, r]. Fused experts: a [E, r, in], b [E, out, r]. Embedding (`token_embd.weight`, whose
    rows are the vocabulary): the pair is stored so that delta = scale * B A has the weight's shape [vocab, d], that is
    a [r, d], b [vocab, r]. Rows of `b` are already permuted as the GGUF base's rows are.
    """

    target: str
    a: Floats
    b: Floats
    scale: float
    """The adapter's own scale (alpha/r, alpha/sqrt(r) for rsLoRA); the user's factor is not in it."""
    magnitude: Floats | None = None
    """DoRA's length of every row of the adapted weight, [out] or [E, out] (`adapters.dora`)."""

    @property
    def rank(self) -> int:
        return int(self.a.shape[-2])


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of the embedding or the output that were trained alone: row `ids[i]` becomes `values[i]`, float32 [n, d]."""

    ids: npt.NDArray[np.intp]
    values: Floats


@dataclass(frozen=True)
class Adapter:
    """One adapter. Everything is by the GGUF name of the tensor that it changes, its rows in the base's order.

    `pairs` are added to weights, and `transforms` multiply them; `replaced`, `rows` and `biases` change whole tensors
    of the base, which `adapters.rebase` does once for every use, before pairs are looked at."""

    path: Path
    pairs: Mapping[str, LoraPair]
    arch: str | None = None
    """The GGUF architecture it was made for, if the file says."""
    alpha: float | None = None
    """The file's global alpha, for a GGUF adapter written from this one; None if modules differ."""
    notes: list[str] = field(default_factory=list)
    n_tensors: int = 0
    """How many tensors of the file carry adapter weights and are used."""
    replaced: Mapping[str, TensorSource] = field(default_factory=dict)
    """Tensors trained as a whole (PEFT's modules_to_save, trained biases, a resized embedding)."""
    rows: Mapping[str, TokenRows] = field(default_factory=dict)
    biases: Mapping[str, Floats] = field(default_factory=dict)
    """What is added to a bias, the adapter's scale in it; the base may have none."""
    tokenizer: Metadata = field(default_factory=dict)
    """`tokenizer.*` keys that differ from the base's, as saved beside the adapter."""
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    """What multiplies weights, by target."""
    left_out: tuple[str, ...] = ()
    """Tensors of the file that are not used, as PEFT does not use them, or the user does not want them."""
    name: str = ""
    """What to call it: its repository's name, or its folder's or file's."""
    files: tuple[Path, ...] = ()
    """That hold its tensors."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What adapter_config.json says of ranks and scales, where it is known."""
    invocation: tuple[int, ...] = ()
    """aLoRA (Greenewald et al. 2025, arXiv 2504.12397): the tokens from which on it works; before them the base is
    alone. Empty for an adapter that always works."""

    @property
    def targets(self) -> frozenset[str]:
        """Every tensor of the base that it changes."""
        return frozenset({*self.pairs, *self.replaced, *self.rows, *self.biases, *self.transforms})

    @property
    def is_plain(self) -> bool:
        """Whether it leaves every tensor of the base as it is, and works beside them."""
        return not self.whole

    @property
    def whole(self) -> frozenset[str]:
        """The tensors of the base that change as a whole, which `adapters.rebase` does."""
        scaled = {one.bias for one in self.transforms.values() if one.bias is not None}
        return frozenset({*self.replaced, *self.rows, *self.biases, *scaled})

    @property
    def nbytes(self) -> int:
        """What works beside the base's tensors takes as float32."""
        arrays = [array for pair in self.pairs.values() for array in (pair.a, pair.b, pair.magnitude)]
        arrays += [array for transform in self.transforms.values() for array in transform.arrays]
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def beside(self) -> Adapter:
        """What is left of it once `adapters.rebase` has changed the base's tensors."""
        transforms = {name: replace(one, bias=None) for name, one in self.transforms.items()}
        return replace(self, replaced={}, rows={}, biases={}, transforms=transforms)
