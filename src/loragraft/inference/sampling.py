"""From logits to the next token.

The filters and their order are llama.cpp's (common/sampling.cpp): top-k, top-p, min-p on the model's own
probabilities, then temperature on what is left. Top-p: Holtzman et al. 2020 (arXiv 1904.09751); min-p: Nguyen et al.
2024 (arXiv 2407.01082).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loragraft.errors import LoragraftError, check_number

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose. Temperature 0 takes the likeliest token, and nothing else then matters.

    `top_k` 0, `top_p` 1 and `min_p` 0 switch a filter off. `seed` None draws one.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p"):
            check_number(name, getattr(self, name), float)
        for name in ("top_k", "seed"):
            if name != "seed" or self.seed is not None:
                check_number(name, getattr(self, name), int)
        _demand(0 <= self.temperature < np.inf, "temperature", self.temperature, "0 or more")
        _demand(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _demand(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, at most 1 (off)")
        _demand(0 <= self.min_p <= 1, "min_p", self.min_p, "0 (off) to 1")
        _demand(self.seed is None or self.seed >= 0, "seed", self.seed, "0 or more")


def _demand(fine: bool, name: str, found: object, expected: str) -> None:
    if not fine:
        raise LoragraftError(name, "out of range", found=found, expected=expected)


class Sampler:
    """Draws tokens; the same `Sampling` with the same seed draws the same. `seed` is the one in use; `stream` tells
    several replies to one prompt apart."""

    def __init__(self, options: Sampling | None = None, stream: int = 0) -> None:
        self.options = options or Sampling()
        self.seed = secrets.randbits(32) if self.options.seed is None else self.options.seed
        self._random = np.random.default_rng([self.seed, stream] if stream else self.seed)

    def pick(self, logits: Floats) -> int:
        """The next token, for logits float32 [vocab]."""
        if self.options.temperature == 0:
            return int(logits.argmax())
        candidates, kept = self.candidates(logits)
        probabilities = _softmax(kept / self.options.temperature)
        return int(self._random.choice(candidates, p=probabilities))

    def candidates(self, logits: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """What the filters leave: ids, likeliest first (ties to the lower id), and their logits; at least one."""
        options = self.options
        order = _largest(logits, options.top_k)
        kept = logits[order].astype(np.float64)
        probabilities = _softmax(kept)
        n = len(order)
        if options.top_p < 1:  # the smallest set whose probabilities reach top_p
            n = min(n, int(np.searchsorted(probabilities.cumsum(), options.top_p)) + 1)
        if options.min_p > 0:  # relative to the likeliest
            n = min(n, int((probabilities >= options.min_p * probabilities[0]).sum()))
        return order[:n], kept[:n]


def _largest(logits: Floats, k: int) -> npt.NDArray[np.intp]:
    if not 0 < k < len(logits):
        return np.argsort(-logits, kind="stable")
    least = np.partition(logits, -k)[-k]
    chosen = np.flatnonzero(logits >= least)
    return chosen[np.argsort(-logits[chosen], kind="stable")][:k]


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())
