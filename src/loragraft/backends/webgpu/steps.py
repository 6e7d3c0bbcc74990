"""From a plan to dispatches: one short function for each kind of step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from loragraft.backends.gpu.tables import NONE, RopeTable
from loragraft.backends.plan import EmbedStep, GatedStep, Linear, LinearStep, NodeStep, Plan
from loragraft.backends.webgpu.dispatches import (
    FOLD,
    ROWS,
    Dispatch,
    Dispatches,
    Grid,
    Layer,
    Observed,
    Steps,
    folded,
)
from loragraft.backends.webgpu.passes import Pass
from loragraft.backends.webgpu.recurrent import scan, short_conv
from loragraft.backends.webgpu.shaders import shader
from loragraft.errors import UnsupportedError
from loragraft.graph.ops import RECURRENT, Node, Op

_MOST_GROUPS = 32
"""Of experts; kernels/experts.wgsl has a bit for each."""
_MOST_VALUES = 512
"""Elements of a head's value that kernels/attention.wgsl has room for."""
_MAX = float(np.finfo(np.float32).max)


class Builder(Dispatches):
    """Makes `Steps`."""

    def build(self) -> Steps:
        for number, step in enumerate(self.plan.steps):
            match step:
                case LinearStep():
                    names = tuple(linear.weight for linear in step.linears)
                    self.made.observed[number] = Observed(names, step.x, step.ids)
                    made = [dispatch for linear in step.linears for dispatch in self._linear(step, linear)]
                case EmbedStep():
                    made = list(self._embed(step))
                case GatedStep():
                    made = [self.pointwise("SILU_MUL", step.result, step.gate, step.up)]
                case NodeStep():
                    made = list(self._node(step))
            self.made.steps.append(made)
        width = {"width": self.width(self.plan.output)}
        self.made.largest.append(self.dispatch(shader("largest"), lambda p: folded(p.output_rows), width))
        self.made.parameters = b"".join(self._parameters)
        return self.made

    def _embed(self, step: EmbedStep) -> Iterator[Dispatch]:
        matrix = self.weights.matrix(step.weight)
        for part in matrix.parts:
            yield self.dispatch(
                shader("embed", matrix.kind.name),
                self.threads(step.result, -(-matrix.columns // 8)),
                {
                    "y": self.place(step.result),
                    "columns": matrix.columns,
                    "part_first": part.first,
                    "part_rows": part.rows,
                    "row_bytes": matrix.row_bytes,
                    "scale": self.weights.one(step.scale),
                    "arch": self.weights.one(step.arch_scale),
                    "linear": self.made.numbers,
                    "by_position": int(step.by_position),
                },
                data=part.group,
            )
        self.made.numbers += 1

    def _linear(self, step: LinearStep, linear: Linear) -> Iterator[Dispatch]:
        matrix = self.weights.matrix(linear.weight)
        number = self.made.numbers
        self.made.numbers += 1
        used = 0 if step.ids is None else self.shapes[step.ids][-1]
        self.made.experts_used = max(self.made.experts_used, used)
        each = int(used > 0 and len(self.shapes[step.x]) > 1)
        rows, slots = self.rows(linear.result), max(used, 1)
        shared = {
            "x": self.place(step.x),
            "columns": matrix.columns,
            "wanted": self.wanted(linear.result),
            "linear": number,
            "used": used,
            "ids": NONE if step.ids is None else self.place(step.ids),
            "each": each,
        }

        def ranks(p: Pass) -> Grid:
            count = rows(p) * slots
            return p.ranks[number], min(count, FOLD), -(-count // FOLD)

        yield self.dispatch(shader("lora"), ranks, {**shared})
        outputs = self.shapes[linear.result][-1]
        kind = matrix.kind.name
        for part in matrix.parts:
            groups = -(-(outputs if used else part.rows) // 4)
            yield self.dispatch(
                shader("linear", kind, 1 if used else ROWS),
                lambda p, groups=groups: (*folded(groups)[:2], rows(p) * slots),  # type: ignore[misc]
                {
                    **shared,
                    "y": self.place(linear.result),
                    "outputs": outputs,
                    "part_first": part.first,
                    "part_rows": part.rows,
                    "row_bytes": matrix.row_bytes,
                    "scale": self.offset(linear.scale),
                    "bias": self.offset(linear.bias),
                    "arch": self.weights.one(linear.arch_scale),
                },
                data=part.group,
                few=None if used else self.device.pipeline(shader("linear", kind, 1)),
            )

    def _node(self, step: NodeStep) -> Iterator[Dispatch]:
        node, y, at = step.node, step.result, step.node.attrs
        inputs = step.inputs
        match node.op:
            case Op.HIDDEN:
                pass  # the program writes it
            case Op.RMS_NORM | Op.LAYER_NORM:
                yield self._norm(node, inputs[0], y)
            case Op.GAUSSIAN_TOP_K | Op.MATCH_RMS:
                yield self._sized(node, y)
            case Op.CHANNEL_SCALE:
                width = self.shapes[inputs[0]][-1]
                yield self.pointwise(
                    "CHANNEL_SCALE", y, inputs[0], start=self.offset(node.weights[0]), part=width
                )
            case Op.ROPE:
                yield self._rope(node, inputs[0], y)
            case Op.ATTENTION:
                yield from self._attention(node, y)
            case Op.SHORT_CONV:
                yield from short_conv(self, node, y)
            case Op.GATED_DELTA | Op.STATE_SPACE:
                yield from scan(self, node, y)
            case Op.TIME_STEP:
                yield self.pointwise(
                    "TIME_STEP",
                    y,
                    inputs[0],
                    start=self.offset(node.weights[0]),
                    a=at["low"],
                    b=min(at["high"], _MAX),
                )
            case Op.TOP_K | Op.ROUTE | Op.EXPERTS_SUM:
                yield self._experts(node, y)
            case Op.ADD:
                yield self.pointwise("ADD", y, *inputs)
            case Op.MUL if self.shapes[inputs[0]] == self.shapes[inputs[1]]:
                yield self.pointwise("MUL", y, *inputs)
            case Op.MUL:
                yield self.pointwise("BROADCAST", y, *inputs, part=self.shapes[inputs[0]][-1])
            case Op.SPLIT:
                yield self.pointwise(
                    "SPLIT",
                    y,
                    inputs[0],
                    part=at["stop"] - at["start"],
                    stride=at.get("group") or self.shapes[inputs[0]][-1],
                    start=at["start"],
                )
            case Op.CONCAT:
                yield self.pointwise(
                    "CONCAT", y, *inputs, part=self.shapes[y][-1], start=self.shapes[inputs[0]][-1]
                )
            case Op.RESHAPE:
                yield self.pointwise("AFFINE", y, inputs[0], a=1.0)
            case Op.ALL_EXPERTS:
                yield self.pointwise("COUNT", y, inputs[0])
            case Op.POSITION_SCALE:
                yield self.pointwise(
                    "POSITION_SCALE", y, inputs[0], a=at["length"], b=at["offset"], c=at["slope"]
                )
            case Op.XIELU:
                yield self.pointwise(
                    "XIELU", y, inputs[0], a=at["alpha_p"], b=at["alpha_n"], c=at["beta"], d=at["eps"]
                )
            case Op.GELU:
                yield self.pointwise("GELU_TANH" if at["approximate"] == "tanh" else "GELU_ERF", y, inputs[0])
            case Op.TANH:
                yield self.pointwise("SOFT_CAP", y, inputs[0], a=1.0)
            case Op.SOFT_CAP:
                yield self.pointwise("SOFT_CAP", y, inputs[0], a=at["cap"])
            case Op.CLAMP:
                low, high = at["low"], at["high"]
                yield self.pointwise(
                    "CLAMP", y, inputs[0], a=-_MAX if low is None else low, b=_MAX if high is None else high
                )
            case Op.ARCH_SCALE:
                factor = self.weights.one(node.weights[0]) if node.weights else at["value"]
                yield self.pointwise("AFFINE", y, inputs[0], a=factor)
            case Op.SHIFT:
                yield self.pointwise("AFFINE", y, inputs[0], a=1.0, b=at["value"])
            case Op.SILU | Op.SIGMOID | Op.RELU | Op.SOFTPLUS | Op.LAST:
                yield self.pointwise(node.op.name, y, inputs[0])
            case _:
                raise _unsupported(node)

    def _norm(self, node: Node, x: int, y: int) -> Dispatch:
        centred = node.op is Op.LAYER_NORM
        if centred:
            size = self.shapes[x][-1]
        else:
            size = self.graph.tensors[node.weights[0]].shape[-1] if node.weights else node.attrs["group"]
        of_weight = self.graph.tensors[node.weights[0]].shape if node.weights else (1,)
        return self._of_groups(
            x,
            y,
            size,
            kind=int(centred),
            weight=self.offset(node.weights[0] if node.weights else None),
            weights=of_weight[0] if len(of_weight) > 1 else 1,
            bias=self.offset(node.weights[1] if len(node.weights) > 1 else None),
            eps=node.attrs["eps"],
        )

    def _sized(self, node: Node, y: int) -> Dispatch:
        x, other, at = node.inputs[0], node.inputs[-1], node.attrs
        matched = node.op is Op.MATCH_RMS
        return self._of_groups(
            x,
            y,
            self.shapes[x][-1],
            kind=3 if matched else 2,
            other=self.place(other),
            other_size=self.width(other),
            eps=at["least"] if matched else at["deviations"],
        )

    def _of_groups(self, x: int, y: int, size: int, **values: int | float) -> Dispatch:
        """kernels/norms.wgsl on every `size` elements of x; it has the numbers of kinds."""
        groups, rows = self.width(x) // size, self.rows(y)
        usual: dict[str, int | float] = {
            "x": self.place(x),
            "y": self.place(y),
            "size": size,
            "groups": groups,
            "wanted": self.wanted(y),
            "weight": NONE,
            "weights": 1,
            "bias": NONE,
            "other": 0,
            "other_size": 1,
        }
        return self.dispatch(shader("norms"), lambda p: folded(rows(p) * groups), {**usual, **values})

    def _rope(self, node: Node, x: int, y: int) -> Dispatch:
        at = node.attrs
        key = (at["frequencies"], node.weights, at["magnitude"])
        if key not in self.ropes:
            self.ropes[key] = len(self.made.ropes)
            self.made.ropes.append(RopeTable.of(node, self.context, self.weights.floats))
        return self.dispatch(
            shader("rope"),
            self.threads(y, self.width(y)),
            {
                "x": self.place(x),
                "y": self.place(y),
                "heads": at["heads"],
                "head_dim": at["head_dim"],
                "rotary": at["rotary"],
                "adjacent": int(at["pairs"] == "adjacent"),
                "table": self.ropes[key],
            },
        )

    def _attention(self, node: Node, y: int) -> Iterator[Dispatch]:
        at = node.attrs
        q, k, v = node.inputs
        value_dim = at.get("value_dim") or at["head_dim"]
        if value_dim > _MOST_VALUES:
            raise UnsupportedError(
                node.label or "attention",
                "the heads are too wide for WebGPU's kernel",
                found=value_dim,
                expected=f"up to {_MOST_VALUES}",
                hint="use --device cpu",
            )
        slopes = at.get("slopes")
        number = len(self.made.layers)
        layer = Layer(at["kv_heads"] * at["head_dim"], at["kv_heads"] * value_dim, self.halves)
        self.made.layers.append(layer)
        held = {"key_words": layer.key_words, "value_words": layer.value_words, "halves": int(layer.halves)}
        self.made.copies.append(
            self.dispatch(
                shader("copy"),
                lambda p: (-(-layer.words * 16 // 64), len(p.copies), 1),
                {"words": layer.words},
                layer=number,
            )
        )
        yield self.dispatch(
            shader("store"),
            self.threads(y, layer.words),
            {
                **held,
                "k": self.place(k),
                "v": self.place(v),
                "key_width": layer.key_width,
                "value_width": layer.value_width,
            },
            layer=number,
        )
        yield self.dispatch(
            shader("attention"),
            lambda p: (at["heads"], min(p.rows, FOLD), -(-p.rows // FOLD)),
            {
                **held,
                "q": self.place(q),
                "y": self.place(y),
                "heads": at["heads"],
                "kv_heads": at["kv_heads"],
                "head_dim": at["head_dim"],
                "value_dim": value_dim,
                "window": at["window"] or 0,
                "chunk": at.get("chunk") or 0,
                "slopes": self.constants.add(np.array(slopes, np.float32)) if slopes else NONE,
                "sinks": self.offset(node.weights[0] if node.weights else None),
                "scale": at["scale"],
                "softcap": at.get("softcap") or 0.0,
            },
            layer=number,
        )

    def _experts(self, node: Node, y: int) -> Dispatch:
        at, x = node.attrs, node.inputs[0]
        ops = (Op.TOP_K, Op.ROUTE, Op.EXPERTS_SUM)
        groups = at.get("groups") or 1
        if groups > _MOST_GROUPS:
            raise UnsupportedError(
                node.label,
                "has more groups of experts than WebGPU's kernel has room for",
                found=groups,
                expected=f"up to {_MOST_GROUPS}",
                hint="use --device cpu",
            )
        summed = node.op is Op.EXPERTS_SUM
        return self.dispatch(
            shader("experts"),
            self.threads(y, self.width(y) if summed else 1),
            {
                "op": ops.index(node.op),
                "x": self.place(x),
                "other": self.place(node.inputs[-1]),
                "y": self.place(y),
                "experts": self.shapes[x][-1],
                "used": self.shapes[x][0] if summed else self.shapes[y][-1],
                "width": self.width(y),
                "wanted": self.wanted(y),
                "gating": (None, "softmax", "sigmoid", "sparse_mixer").index(at.get("gating")),
                "margin": at.get("margin") or 0.0,
                "bias": self.offset(node.weights[0] if node.weights else None),
                "groups": groups,
                "groups_used": at.get("groups_used") or 1,
                "group_best": at.get("group_best") or 1,
                "normalize": int(bool(at.get("normalize"))),
                "scale": float(at.get("scale", 1.0)),
            },
        )


_KNOWN = {
    *(
        Op.HIDDEN,
        Op.LAST,
        Op.RMS_NORM,
        Op.LAYER_NORM,
        *(Op.MATCH_RMS, Op.GAUSSIAN_TOP_K, Op.CHANNEL_SCALE),
        Op.ROPE,
        Op.ATTENTION,
        Op.TOP_K,
        Op.ROUTE,
        Op.EXPERTS_SUM,
    ),
    *(Op.ADD, Op.MUL, Op.SPLIT, Op.GELU, Op.TANH, Op.SOFT_CAP, Op.CLAMP, Op.ARCH_SCALE, Op.SHIFT),
    *(Op.SILU, Op.SIGMOID, Op.RELU, Op.SOFTPLUS, Op.XIELU, Op.CONCAT, Op.RESHAPE, Op.ALL_EXPERTS),
    *(Op.POSITION_SCALE, Op.TIME_STEP, *RECURRENT),
}


def check_steps(plan: Plan) -> None:
    """Raises UnsupportedError for the first step that has no kernel."""
    for step in plan.steps:
        if isinstance(step, NodeStep) and step.node.op not in _KNOWN:
            raise _unsupported(step.node)


def _unsupported(node: Node) -> UnsupportedError:
    return UnsupportedError(
        node.label or node.op, f"no kernel for {node.op} on WebGPU", hint="use --device cpu"
    )
