"""Windows that nothing is fitted to: what rounding does to them says what it does to text that calibration did not see.

They are read by the model as it was, as it is rounded, and as it would be with every weight rounded to nearest, all
three layer by layer beside the calibration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats, Ids
from loragraft.graph.ops import Graph
from loragraft.quants import native
from loragraft.quants.feedback import OutputFactor
from loragraft.streaming.layers import Layers
from loragraft.streaming.walk import Walk
from loragraft.system.threads import in_threads

Divergences = npt.NDArray[np.float64]

#: Rows of inputs that a matrix is judged on, at most.
MOST_ROWS = 256
#: Predictions that are compared at once: in 64 bits those of a window would be the largest thing in memory.
JUDGED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """The mean KL divergence from the model as it was, in nats, over the second halves of the windows, with one
    standard error; and what it would be with rounding to nearest."""

    label: str
    windows: int
    kl: float
    error: float
    nearest: float

    def __str__(self) -> str:
        return (
            f"KL {self.kl:.4f} ± {self.error:.4f} from the model before rounding on {self.windows} windows of "
            f"{self.label}; rounding to nearest: {self.nearest:.4f}"
        )


@dataclass
class HeldOutState:
    """Before a slice: hidden states [n * length, d] of the windows, by the model as it was, as it is rounded and
    as it would be; after the last slice, the divergences [n, length / 2] of the other two from the first."""

    true: Floats | None = None
    rounded: Floats | None = None
    nearest: Floats | None = None
    found: dict[str, list[Divergences]] = field(default_factory=dict)


class HeldOut:
    """`texts`: windows int32 [n, length] by label, all of one length; matrices are judged on the first text's. `state`:
    how they come to a slice, and then how they leave it.

    Of the slice: `enter`, `inputs` of its products one after another, `leave`, `leave_nearest`.
    """

    def __init__(self, layers: Layers, texts: Mapping[str, Ids], state: HeldOutState) -> None:
        self._layers, self._texts = layers, texts
        self._windows = np.concatenate(list(texts.values()))
        self._judges = len(next(iter(texts.values())))
        self.state = state
        self._walk: Walk | None = None
        self._wanted: list[Floats] = []

    def enter(self, part: Graph, weights: Mapping[str, Floats], *, last: bool) -> None:
        """Go through a slice with its weights as they were."""
        if last:
            self._wanted = list(self._predictions(part, weights, self.state.true))
        else:
            self.state.true = self._layers.run(part, weights, self._windows, self.state.true)
        self._walk = None

    def inputs(self, part: Graph, weights: Mapping[str, Floats], names: tuple[str, ...]) -> dict[str, Floats]:
        """Some of the inputs [rows, in] of the product of `names`, which is yet to come, where it is one of all tokens;
        what came before is rounded."""
        if self._walk is None:
            self._walk = Walk(part, weights, self._windows, self.state.rounded, self._layers.threads)
        product = self._walk.product_of(names)
        if product.ids is not None:
            return {}
        judges, rows = [], self._judges * self._windows.shape[1]
        for x in product.inputs:
            judges.append(x[:rows])
            rows -= len(judges[-1])
        return dict.fromkeys(product.names, evenly(judges, MOST_ROWS))

    def leave(self, part: Graph, weights: Mapping[str, Floats], *, last: bool) -> None:
        """Go through the slice as it is rounded."""
        if last:
            self._compare("rounded", part, weights, self.state.rounded)
        elif self._walk is not None:
            self.state.rounded = self._walk.output()
        else:
            self.state.rounded = Walk(
                part, weights, self._windows, self.state.rounded, self._layers.threads
            ).output()
        self._walk = None

    def leave_nearest(self, part: Graph, weights: Mapping[str, Floats], *, last: bool) -> None:
        """Go through the slice with its weights rounded to nearest."""
        if last:
            self._compare("nearest", part, weights, self.state.nearest)
        else:
            self.state.nearest = self._layers.run(part, weights, self._windows, self.state.nearest)

    def _predictions(
        self, part: Graph, weights: Mapping[str, Floats], hidden: Floats | None
    ) -> Iterator[Floats]:
        """Logits [rows, vocab] of the second half of each window."""
        half = self._windows.shape[1] // 2
        for logits in self._layers.batches(part, weights, self._windows, hidden, 1, wants="all"):
            yield logits[half:].copy()  # the other half may go

    def _compare(self, way: str, part: Graph, weights: Mapping[str, Floats], hidden: Floats | None) -> None:
        found, threads = self._predictions(part, weights, hidden), self._layers.threads
        self.state.found[way] = [divergence(*both, threads) for both in zip(self._wanted, found, strict=True)]


def losses_of(texts: Mapping[str, Ids], state: HeldOutState) -> list[HeldOutLoss]:
    """Of each text, after the last slice."""
    found, first = [], 0
    for label, windows in texts.items():
        ours, usual = (
            np.stack(state.found[way][first : first + len(windows)]) for way in ("rounded", "nearest")
        )
        first += len(windows)
        error = ours.std() / np.sqrt(max(ours.size - 1, 1))
        if len(windows) > 1:  # tokens of one window go together
            error = max(error, ours.mean(axis=1).std() / np.sqrt(len(windows) - 1))
        found.append(HeldOutLoss(label, len(windows), float(ours.mean()), float(error), float(usual.mean())))
    return found


def evenly(parts: Sequence[Floats], most: int) -> Floats:
    """At most `most` of the rows of `parts`, evenly spread."""
    every = -(-sum(map(len, parts)) // most)
    found, at = [], 0
    for part in parts:
        found.append(part[-at % every :: every])
        at += len(part)
    return np.ascontiguousarray(np.concatenate(found))


def output_error(error: Floats, x: Floats, outputs: OutputFactor | None) -> float:
    """What weights that are off by `error` [out, in] do to the outputs of x [rows, in]: the squares, by G if given."""
    y = native.product(x, error.T)
    return float(np.vdot(y, y if outputs is None else native.product(y, outputs.g)))


def divergence(logits: Floats, others: Floats, threads: int = 1) -> Divergences:
    """KL [rows] of the predictions of `others` from those of `logits`, both [rows, vocab]."""

    def of_rows(first: int) -> Divergences:
        ours, theirs = (_log_softmax(x[first : first + JUDGED_AT_ONCE]) for x in (logits, others))
        return np.asarray((np.exp(ours) * (ours - theirs)).sum(axis=-1))

    return np.concatenate(in_threads(of_rows, range(0, len(logits), JUDGED_AT_ONCE), threads))


def _log_softmax(x: Floats) -> npt.NDArray[np.float64]:
    wide = x.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))
