"""What each of several types would cost each tensor, rounded with error feedback: from second moments, not measured one
tensor at a time.

To second order the predictions move by KL = 1/2 E[(g^T E x)^2] for weights off by E, inputs x and gradients g at the
outputs, labels drawn from the predictions (that expectation is the Fisher information). With g taken to point anywhere
alike, that is |g|^2 / (2 out) tr(E H E^T) over the tokens, H the second moments of inputs weighted by |g|^2. Where
attention mixes the outputs, x is what it mixes of the inputs, and g the gradient of what it makes. The
squared error of weights, which says little of a fine-tune that lies within a step of the base's own grid, is not looked
at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loragraft.arrays import Floats
from loragraft.backends.gradients import missing
from loragraft.backends.program import Backend
from loragraft.errors import UnsupportedError, naming
from loragraft.progress import SILENT, Progress
from loragraft.quants import feedback, native, rounding
from loragraft.quants.arranged import Moments
from loragraft.quants.types import QuantType
from loragraft.streaming.calibration import Calibration
from loragraft.streaming.layers import Layers, multiplied
from loragraft.streaming.moments import InputMoments, input_moments
from loragraft.streaming.output_gradients import MIXED, Gradients
from loragraft.streaming.plan import WritePlan
from loragraft.streaming.rounding_site import together
from loragraft.streaming.walk import Walk
from loragraft.system.threads import in_threads

Costs = dict[tuple[str, QuantType], float]


def calibrated_costs(
    plan: WritePlan,
    types: Mapping[str, Sequence[QuantType]],
    calibration: Calibration,
    backend: Backend,
    *,
    threads: int,
    progress: Progress = SILENT,
) -> Costs:
    """The KL divergence a token, in nats, that each tensor of `types` is expected to cause as each of its types,
    rounded alone. An embedding, which nothing is multiplied by, is rounded to nearest.

    Raises UnsupportedError for a model that gradients do not pass, QuantizeError as `round_layers`.
    """
    layers = Layers(plan, backend, threads)
    lacking = missing(layers.graph)
    if lacking is not None:
        raise UnsupportedError(
            layers.graph.arch, f"gradients do not pass its op {lacking}", hint="leave out --calibrate"
        )
    windows = calibration.windows
    costs: Costs = {}
    with Gradients(layers, windows, calibration.folder, every=calibration.every) as gradients:
        gradients.measure(progress)
        progress.start("Trying types", layers.count + 1)
        hidden: Floats | None = None
        for layer in range(layers.count + 1):
            part = layers.part(layer)
            weights = layers.weights(part)
            counting = gradients.counting(part, calibration.plain)
            walk = Walk(part, weights, windows, hidden, threads)
            while (product := walk.product()) is not None:
                if not set(product.names) & set(types):
                    continue
                shape = weights[product.names[0]].shape
                moments = input_moments(product, counting, shape[0] if len(shape) == 3 else 1, threads)
                own = _of_input(
                    weights, moments, types, gradients, windows.size, calibration.damping, threads
                )
                _add(costs, own)
            for name in set(weights) & set(types) - set(multiplied(part)):
                _add(costs, _of_embedding(name, weights[name], types[name], gradients))
            if layer < layers.count:
                hidden = walk.output()
            progress.advance(1)
    return costs


def _add(costs: Costs, more: Costs) -> None:
    for key, value in more.items():
        costs[key] = costs.get(key, 0.0) + value


def _of_input(
    weights: Mapping[str, Floats],
    moments: InputMoments,
    types: Mapping[str, Sequence[QuantType]],
    gradients: Gradients,
    tokens: int,
    damping: float,
    threads: int,
) -> Costs:
    """Of the weights that share an input."""
    jobs = [
        (name, kind, matrix)
        for name in moments.names
        for kind in types.get(name, ())
        for matrix in range(len(moments.sums))
        if moments.counts[matrix]
    ]
    found_mixed = {name: gradients.mixed(name) for name in moments.names if name in types}
    mixed = {name: own for name, own in found_mixed.items() if own is not None}
    keys = {
        (rounding.sub_of(kind), matrix, name if name in mixed else "")
        for name, kind, matrix in jobs
        if rounding.supports(kind)
    }

    def prepare(key: tuple[int, int, str]) -> Moments:
        sub, matrix, name = key
        h = moments.sums[matrix]
        return feedback.prepare(together(mixed[name], h) if name else h, sub, damping)

    prepared = {key: prepare(key) for key in sorted(keys)}

    def cost(job: tuple[str, QuantType, int]) -> float:
        name, kind, matrix = job
        stack = weights[name].reshape(-1, *weights[name].shape[-2:])
        w, importance = stack[matrix], moments.mean_squares[matrix]
        if not rounding.supports(kind):
            data = native.quantize(w, kind, importance)
        else:
            with naming(name):
                own = prepared[rounding.sub_of(kind), matrix, name if name in mixed else ""]
                rounded = rounding.round_matrix(w, kind, own, importance)
            if name not in mixed:
                return rounded.cost
            data = rounded.data
        error = w - native.dequantize(data, kind)
        return float(np.vdot(native.product(error, mixed.get(name, moments.sums[matrix])), error))

    found = in_threads(cost, jobs, threads)
    costs: Costs = {}
    for (name, kind, _), value in zip(jobs, found, strict=True):
        gradient = gradients.of(name)
        if gradient is not None:
            scale = gradient.mean / tokens if name not in mixed else MIXED / gradients.windows.size
            scale /= 2 * weights[name].shape[-2]
            costs[name, kind] = costs.get((name, kind), 0.0) + scale * value
    return costs


def _of_embedding(name: str, w: Floats, kinds: Sequence[QuantType], gradients: Gradients) -> Costs:
    """Of rows that tokens are looked up in."""
    squares, windows = gradients.embedding, gradients.windows
    if squares is None:
        return {}
    rows, place = np.unique(windows.reshape(-1), return_inverse=True)
    weights = np.bincount(place.reshape(-1), squares, len(rows)) / (2 * w.shape[1] * windows.size)
    found, costs = np.ascontiguousarray(w[rows]), Costs()
    for kind in kinds:
        error = found - native.dequantize(native.quantize(found, kind), kind)
        costs[name, kind] = float(weights @ np.einsum("ij,ij->i", error, error))
    return costs
