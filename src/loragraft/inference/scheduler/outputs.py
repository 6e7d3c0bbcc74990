"""What a pass gives of each row that a reply goes on from: its logits, or where those stay on a device, the likeliest
token alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loragraft.arrays import Floats
from loragraft.backends.batch import Batch
from loragraft.backends.program import Program
from loragraft.inference.scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The token with the largest logit, and that."""

    token: int
    peak: float


Output = Floats | Likeliest
"""The logits [vocab] of a row, or of them the largest."""


def outputs(program: Program, batch: Batch, requests: Sequence[Request]) -> Sequence[Output]:
    """Run `batch`, the rows of `requests`; what it gives of each wanted row. Logits are brought back where one of the
    requests draws from them or tells of them."""
    if program.reduces and batch.wants.any() and all(request.likeliest_only for request in requests):
        tokens, peaks = program.likeliest(batch)
        return [Likeliest(*each) for each in zip(tokens.tolist(), peaks.tolist(), strict=True)]
    return list(program.forward(batch))


def peak_of(output: Output) -> float:
    """The largest logit; NaN if one of them is."""
    return output.peak if isinstance(output, Likeliest) else float(np.max(output))
