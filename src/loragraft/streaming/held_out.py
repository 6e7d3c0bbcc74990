"""Windows that nothing is fitted to: what rounding does to them says what it does to text that calibration did not see.

They are read by the model as it was, as it is rounded, and as it would be with every weight rounded to nearest, all
three layer by layer beside the calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loragraft.backends.batch import Floats, Ids
from loragraft.graph.ops import Graph
from loragraft.quants.feedback import OutputFactor
from loragraft.streaming.layers import Layers, SeenError, multiplied

#: Rows of inputs that a matrix is judged on, at most.
MOST_ROWS = 512


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


class HeldOut:
    """`texts`: windows int32 [n, length] by label, all of one length; matrices are judged on the first text's."""

    def __init__(self, layers: Layers, texts: Mapping[str, Ids]) -> None:
        self._layers, self._texts = layers, texts
        self._windows = np.concatenate(list(texts.values()))
        self._judges = len(next(iter(texts.values())))
        self._true: Floats | None = None
        self._rounded: Floats | None = None
        self._nearest: Floats | None = None

    def inputs(self, part: Graph, weights: Mapping[str, Floats]) -> dict[str, Floats]:
        """Some of the inputs [rows, in] of each product of a slice that is not rounded yet, what came before being
        rounded."""
        watch = _Inputs(multiplied(part))
        windows = self._windows[: self._judges]
        rows = windows.size
        hidden = None if self._rounded is None else self._rounded[:rows]
        self._layers.run(part, weights, windows, hidden, wants="all", watch=watch)
        return watch.result()

    def read(
        self,
        part: Graph,
        before: Mapping[str, Floats],
        after: Mapping[str, Floats],
        nearest: Mapping[str, Floats],
    ) -> None:
        """Go through a layer: with its weights as they were, as they are rounded, and rounded to nearest."""
        self._true = self._layers.run(part, before, self._windows, self._true)
        self._rounded = self._layers.run(part, after, self._windows, self._rounded)
        self._nearest = self._layers.run(part, nearest, self._windows, self._nearest)

    def losses(
        self,
        part: Graph,
        before: Mapping[str, Floats],
        after: Mapping[str, Floats],
        nearest: Mapping[str, Floats],
    ) -> list[HeldOutLoss]:
        """Of each text, `part` being what follows the last layer."""
        length = self._windows.shape[1]
        found, first = [], 0
        for label, windows in self._texts.items():
            values = []
            for number in range(first, first + len(windows)):
                rows, window = (
                    slice(number * length, (number + 1) * length),
                    self._windows[number : number + 1],
                )
                logits = [
                    self._layers.run(part, weights, window, hidden[rows], wants="all")[length // 2 :]
                    for weights, hidden in (
                        (before, self._true),
                        (after, self._rounded),
                        (nearest, self._nearest),
                    )
                    if hidden is not None
                ]
                values.append([divergence(logits[0], other) for other in logits[1:]])
            first += len(windows)
            ours, usual = np.array(values, np.float64).swapaxes(0, 1)
            error = ours.std() / np.sqrt(max(ours.size - 1, 1))
            if len(windows) > 1:  # tokens of one window go together
                error = max(error, ours.mean(axis=1).std() / np.sqrt(len(windows) - 1))
            found.append(
                HeldOutLoss(label, len(windows), float(ours.mean()), float(error), float(usual.mean()))
            )
        return found


class _Inputs:
    """Keeps inputs of dense products, evenly spread."""

    def __init__(self, products: list[str]) -> None:
        self._products = products
        self._left: dict[str, int] = {}
        self._found: dict[str, list[Floats]] = {}

    def begin(self, rows: int) -> None:
        self._left = dict.fromkeys(self._products, rows)

    def observe(self, names: tuple[str, ...], x: Floats, ids: Ids | None) -> None:
        for name in names:
            self._left[name] -= len(x)
            if ids is None:
                self._found.setdefault(name, []).append(x.reshape(-1, x.shape[-1]).copy())
        if not any(self._left.values()):
            raise SeenError

    def result(self) -> dict[str, Floats]:
        found = {}
        for name, parts in self._found.items():
            whole = np.concatenate(parts)
            found[name] = np.ascontiguousarray(whole[:: -(-len(whole) // MOST_ROWS)])
        return found


def output_error(error: Floats, x: Floats, outputs: OutputFactor | None) -> float:
    """What weights that are off by `error` [out, in] do to the outputs of x [rows, in]: the squares, by G if given."""
    y = x @ error.T
    return float(np.vdot(y, y if outputs is None else y @ outputs.g))


def divergence(logits: Floats, others: Floats) -> npt.NDArray[np.float64]:
    """KL [rows] of the predictions of `others` from those of `logits`, both [rows, vocab]."""
    ours, theirs = (_log_softmax(x) for x in (logits, others))
    return np.asarray((np.exp(ours) * (ours - theirs)).sum(axis=-1))


def _log_softmax(x: Floats) -> npt.NDArray[np.float64]:
    wide = x.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))
