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

from loragraft.arrays import Floats
from loragraft.errors import LoragraftError, check_number

#: Below it a temperature is 0: quotients by it would overflow, and the likeliest token is certain long before.
_COLDEST = 1e-30


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

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token, always."""
        return self.temperature < _COLDEST


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

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token, always."""
        return self.options.greedy

    def pick(self, logits: Floats) -> int:
        """The next token, for logits float32 [vocab]."""
        options = self.options
        if self.greedy:
            return int(logits.argmax())
        if options.top_k == 0 and options.top_p == 1 and options.min_p == 0:
            return _drawn(logits, options.temperature, self._random.random())
        candidates, kept = self.candidates(logits)
        probabilities = _softmax(kept / options.temperature)
        return int(self._random.choice(candidates, p=probabilities))

    def candidates(self, logits: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """What the filters leave: ids, likeliest first (ties to the lower id), and their logits; at least one."""
        options = self.options
        if 0 < options.top_k < len(logits):
            order = _largest(logits, options.top_k)
            total = float(_powers(logits[order], logits.max()).sum())
        else:
            order, total = _head(logits, options.top_p, options.min_p)
        kept = logits[order].astype(np.float64)
        probabilities = np.exp(kept - kept[0]) / total
        n = len(order)
        if options.top_p < 1:  # the smallest set whose probabilities reach top_p
            n = min(n, int(np.searchsorted(probabilities.cumsum(), options.top_p)) + 1)
        if options.min_p > 0:  # relative to the likeliest
            n = min(n, int((probabilities >= options.min_p * probabilities[0]).sum()))
        return order[:n], kept[:n]


_BLOCK = 256


def _drawn(logits: Floats, temperature: float, place: float) -> int:
    """The token at `place` (0 to 1) of all probabilities in the order of the ids: first its block, then itself. Nothing
    is sorted, which for a vocabulary of 49,152 takes a hundred times as long."""
    with np.errstate(over="ignore"):  # a temperature near 0: all but the likeliest are nothing
        powers = np.exp((logits - logits.max()) / np.float32(temperature))
    whole = len(powers) // _BLOCK * _BLOCK
    sums = powers[:whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64)
    ends = np.append(sums, powers[whole:].sum(dtype=np.float64)).cumsum()
    block = min(int(np.searchsorted(ends, place * ends[-1], side="right")), len(ends) - 1)
    first = block * _BLOCK
    inside = powers[first : first + _BLOCK].cumsum(dtype=np.float64)
    rest = place * ends[-1] - (ends[block - 1] if block else 0.0)
    token = first + min(int(np.searchsorted(inside, rest, side="right")), len(inside) - 1)
    return token if powers[token] > 0 else int(logits.argmax())


def _head(logits: Floats, top_p: float, min_p: float) -> tuple[npt.NDArray[np.intp], float]:
    """Ids, likeliest first, of at least those that top-p and min-p leave, and the sum of all powers exp(logit - max).
    Sorts only those within a distance of the likeliest, which grows until it holds enough."""
    top = logits.max()
    total = float(_powers(logits, top).sum())
    distance = np.float32(min(8.0, -np.log(min_p) + 1.0) if min_p > 0 else 8.0)
    while True:
        near = np.flatnonzero(logits >= top - distance)
        enough = len(near) == len(logits) or (min_p > 0 and np.exp(-distance) < min_p)
        if enough or (top_p < 1 and _powers(logits[near], top).sum() > 1.000001 * top_p * total):
            return near[np.argsort(-logits[near], kind="stable")], total
        distance *= np.float32(1.5)


def _powers(logits: Floats, top: np.float32) -> npt.NDArray[np.float64]:
    return np.exp(logits.astype(np.float64) - top)


def _largest(logits: Floats, k: int) -> npt.NDArray[np.intp]:
    least = np.partition(logits, -k)[-k]
    chosen = np.flatnonzero(logits >= least)
    return chosen[np.argsort(-logits[chosen], kind="stable")][:k]


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())
