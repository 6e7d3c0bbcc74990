"""The records of a LoRA adapter, whatever file it came from (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


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

    @property
    def rank(self) -> int:
        return int(self.a.shape[-2])


@dataclass(frozen=True)
class Adapter:
    """One adapter: pairs by target name. `arch` is the GGUF architecture it was made for, if the file says."""

    path: Path
    pairs: Mapping[str, LoraPair]
    arch: str | None = None
    alpha: float | None = None
    """The file's global alpha, for a GGUF adapter written from this one; None if modules differ."""
    notes: list[str] = field(default_factory=list)
    n_tensors: int = 0
    """How many tensors of the file carry adapter weights; all of them must be used."""
