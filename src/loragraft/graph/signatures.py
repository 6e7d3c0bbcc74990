"""Which nodes are legal by themselves: inputs, weights, attributes, and the shape of the value, one row per op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from loragraft.graph.ops import Node, Op

Dims = tuple[int, ...]
"""A value's or weight's shape; a value's without the token axis: () for TOKENS, (k, out) for EXPERTS_MATMUL."""


class IllegalNode(Exception):
    """Raised by a rule; `graph.spec` turns it into a GraphError that names the node."""

    def __init__(self, problem: str, found: object, expected: object) -> None:
        super().__init__(problem)
        self.problem, self.found, self.expected = problem, found, expected


Infer = Callable[[Sequence[Dims], Sequence[Dims], Any], Dims]
"""(shapes of the inputs, shapes of the weights, the node's attributes) -> shape of the value"""


@dataclass(frozen=True, slots=True)
class Signature:
    """`inputs`: "f" float, "i" integer, each one input. `weights`: fewest and most. `attrs`: name to accepted types."""

    inputs: str
    infer: Infer
    weights: tuple[int, int] = (0, 0)
    attrs: tuple[tuple[str, tuple[type, ...]], ...] = ()
    gives: str = "f"


def _need(problem: str, found: object, expected: object) -> None:
    if found != expected:
        raise IllegalNode(problem, found, expected)


def _same(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    return ins[0]


def _pairwise(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    if ins[1] != (*ins[0][:-1], 1):
        _need("shapes of the two inputs", ins[1], ins[0])
    return ins[0]


def _add(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    _need("shapes of the two inputs", ins[1], ins[0])
    return ins[0]


def _embed(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    _need("axes of an embedding", len(ws[0]), 2)
    return (ws[0][1],)


def _embed_lora(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    a, b = ws
    _need("shape of A", a, (b[-1], ins[0][-1]))
    return ins[0]


def _scalar(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    _need("shape of the scale", ws[0], (1,))
    return ins[0]


def _matmul(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    if len(ws[0]) not in (1, 2):
        raise IllegalNode("axes of a linear weight", len(ws[0]), "1 or 2")
    _need("columns of the weight", ws[0][-1], ins[0][-1])
    if len(ws) > 1:
        _need("shape of the input scale", ws[1], (1,))
    return (*ins[0][:-1], ws[0][0] if len(ws[0]) == 2 else 1)


def _lora(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    a, b = ws
    _need("shape of A", a, (b[-1], ins[1][-1]))
    _need("shape of B", b, (ins[0][-1], a[0]))
    return ins[0]


def _vector(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    for weight in ws:
        _need("shape of the weight", weight, (ins[0][-1],))
    return ins[0]


def _rms_norm(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    if not ws:
        group = at.get("group")
        if not group or group < 1 or ins[0][-1] % group:
            raise IllegalNode("elements of a group", group, f"a divisor of {ins[0][-1]}")
        return ins[0]
    if len(ws[0]) == 2 and min(ws[0]) > 0:
        _need("elements of the weight", ws[0][0] * ws[0][1], ins[0][-1])
    elif len(ws[0]) != 1 or ws[0][0] < 1 or ins[0][-1] % ws[0][0]:
        raise IllegalNode("shape of the weight", ws[0], f"one axis that divides {ins[0][-1]}")
    return ins[0]


def _match_rms(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    _need("axes of the second input", len(ins[1]), 1)
    if not at["least"] > 0:
        raise IllegalNode("least", at["least"], "a number above 0")
    return ins[0]


def _arch_scale(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    if ws:
        return _scalar(ins, ws, at)
    if not isinstance(at.get("value"), float):
        raise IllegalNode("an architectural scale needs a tensor or a value", at.get("value"), "a number")
    return ins[0]


def _experts_matmul(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    x, ids = ins
    _need("axes of an expert weight", len(ws[0]), 3)
    experts, out, columns = ws[0]
    _need("columns of the weight", columns, x[-1])
    if len(x) > 1:
        _need("experts of the input", x[0], ids[0])
    if len(ws) > 1:
        _need("shape of the input scale", ws[1], (experts,))
    return (ids[0], out)


def _experts_scale(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    _need("axes of a per-expert scale", len(ws[0]), 1)
    _need("experts chosen", ins[0][0], ins[1][0])
    return ins[0]


def _experts_lora(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    y, x, _ = ins
    a, b = ws
    _need("shape of A", a, (b[0], b[-1], x[-1]))
    _need("shape of B", b, (a[0], y[-1], a[1]))
    return y


def _experts_vector(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    _need("shape of the weight", ws[0], (ws[0][0], ins[0][-1]))
    return ins[0]


def _top_k(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    if not 1 <= at["k"] <= ins[0][-1]:
        raise IllegalNode("experts chosen", at["k"], f"1 to {ins[0][-1]}")
    for bias in ws:
        if bias not in ((ins[0][-1],), (1, ins[0][-1])):
            raise IllegalNode("shape of the bias", bias, ins[0])
    _check_gating(at.get("gating"), ("softmax", "sigmoid", None))
    _check_groups(ins[0][-1], at)
    return (at["k"],)


def _check_gating(gating: object, known: tuple[str | None, ...]) -> None:
    if gating not in known:
        raise IllegalNode("gating", gating, " or ".join(name for name in known if name))


def _check_groups(experts: int, at: Any) -> None:
    groups, used = at.get("groups") or 1, at.get("groups_used") or 1
    best = at.get("group_best") or 1
    if groups < 1 or experts % groups or not 1 <= best <= experts // groups:
        raise IllegalNode("groups of experts", groups, f"a divisor of {experts}")
    if not 1 <= used <= groups or at["k"] > used * (experts // groups):
        raise IllegalNode("groups used", used, f"up to {groups}, with {at['k']} experts")


def _route(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    _check_gating(at["gating"], ("softmax", "sigmoid", "sparse_mixer"))
    if (at["gating"] == "sparse_mixer") != (at.get("margin") is not None):
        raise IllegalNode("margin", at.get("margin"), "a number for sparse_mixer, none for others")
    return ins[1]


def _experts_sum(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    _need("experts summed", ins[1], (ins[0][0],))
    return (ins[0][-1],)


def _position_scale(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    if not at["length"] > 0:
        raise IllegalNode("length", at["length"], "a number above 0")
    return ins[0]


def _rope(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    _need("heads * head_dim", at["heads"] * at["head_dim"], ins[0][-1])
    _need("frequencies", len(at["frequencies"]), at["rotary"] // 2)
    if not 0 < at["rotary"] <= at["head_dim"]:
        raise IllegalNode("rotary elements", at["rotary"], f"1 to {at['head_dim']}")
    if at["pairs"] not in ("adjacent", "halves"):
        raise IllegalNode("pairs", at["pairs"], "adjacent or halves")
    for factors in ws:
        _need("shape of the frequency factors", factors, (at["rotary"] // 2,))
    if len(ws) > 1 and not (at.get("context") and at.get("original")):
        raise IllegalNode("contexts of long and short factors", at.get("original"), "two numbers of tokens")
    return ins[0]


def _attention(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    q, k, v = ins
    _need("width of q", q[-1], at["heads"] * at["head_dim"])
    _need("width of k", k[-1], at["kv_heads"] * at["head_dim"])
    value_dim = at.get("value_dim") or at["head_dim"]
    _need("width of v", v[-1], at["kv_heads"] * value_dim)
    if ws:
        _need("shape of the sinks", ws[0], (at["heads"],))
    if at["kv_heads"] < 1 or at["heads"] % at["kv_heads"]:
        raise IllegalNode("heads", at["heads"], f"a multiple of {at['kv_heads']} key-value heads")
    if at.get("slopes"):
        _need("slopes", len(at["slopes"]), at["heads"])
        _need("softcap beside slopes", at.get("softcap"), None)
    if at.get("chunk") is not None and (at["chunk"] < 1 or at["window"] is not None):
        raise IllegalNode("chunk", at["chunk"], "at least 1, and no window")
    return (*q[:-1], at["heads"] * value_dim)


def _short_conv(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    if len(ws[0]) != 2 or ws[0][0] != ins[0][-1] or ws[0][1] < 1:
        raise IllegalNode("shape of the weight", ws[0], f"({ins[0][-1]}, width)")
    for bias in ws[1:]:
        _need("shape of the bias", bias, ins[0])
    return ins[0]


def _time_step(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    if not 0 <= at["low"] <= at["high"]:
        raise IllegalNode(
            "limits", f"{at['low']} to {at['high']}", "two numbers from 0 on, the lower one first"
        )
    return _vector(ins, ws, at)


def _scan(values: Dims, keys: Sequence[Dims], gates: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    heads, key_heads = at["heads"], at["key_heads"]
    if key_heads < 1 or heads < 1 or heads % key_heads or at["key_dim"] < 1 or at["value_dim"] < 1:
        raise IllegalNode("heads", heads, f"a multiple of {key_heads} key heads")
    _need("width of the values", values, (heads * at["value_dim"],))
    for key in keys:
        _need("width of queries and keys", key, (key_heads * at["key_dim"],))
    for gate in (*gates, *(weight[:1] if weight[1:] == (1,) else weight for weight in ws)):
        _need("numbers of the heads", gate, (heads,))
    return values


def _gated_delta(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    return _scan(ins[2], ins[:2], ins[3:], ws, at)


def _state_space(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    return _scan(ins[0], ins[1:3], ins[3:], ws, at)


def _split(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    width = ins[0][-1]
    group = at.get("group") or width
    if group < 1 or width % group:
        raise IllegalNode("elements of a group", group, f"a divisor of {width}")
    if not 0 <= at["start"] < at["stop"] <= group:
        raise IllegalNode("range", f"{at['start']} to {at['stop']}", f"a range within {group}")
    return (*ins[0][:-1], (at["stop"] - at["start"]) * (width // group))


def _concat(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    a, b = ins
    _need("axes before the last", b[:-1], a[:-1])
    return (*a[:-1], a[-1] + b[-1])


def _reshape(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    elements, parts = prod(ins[0]), at["parts"]
    if parts < 0 or (parts and elements % parts):
        raise IllegalNode("parts", parts, f"0, or a divisor of {elements}")
    return (parts, elements // parts) if parts else (elements,)


def _all_experts(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    if at["count"] < 1:
        raise IllegalNode("experts", at["count"], "at least 1")
    return (at["count"],)


def _gelu(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    if at["approximate"] not in ("tanh", "none"):
        raise IllegalNode("approximate", at["approximate"], "tanh or none")
    return ins[0]


def _positions(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    if at["most"] < 1:
        raise IllegalNode("positions", at["most"], "at least 1")
    return ()


def _hidden(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    if at["width"] < 1:
        raise IllegalNode("width", at["width"], "at least 1")
    return (at["width"],)


def _soft_cap(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    if not at["cap"] > 0:
        raise IllegalNode("cap", at["cap"], "a number above 0")
    return ins[0]


def _clamp(ins: Sequence[Dims], ws: Sequence[Dims], at: Any) -> Dims:
    low, high = at.get("low"), at.get("high")
    if low is not None and high is not None and not low <= high:
        raise IllegalNode("limits", f"{low} to {high}", "the lower one first")
    return ins[0]


_INT, _FLOAT, _STR = (int,), (float,), (str,)
_SCALE = (("scale", _FLOAT),)
_CHOICE = (
    ("gating", (str, type(None))),
    *((name, (int, type(None))) for name in ("groups", "groups_used", "group_best")),
)

_HEADS = tuple((name, _INT) for name in ("layer", "heads", "key_heads", "key_dim", "value_dim"))

SIGNATURES: dict[Op, Signature] = {
    Op.TOKENS: Signature("", lambda ins, ws, at: (), gives="i"),
    Op.POSITIONS: Signature("", _positions, attrs=(("most", _INT),), gives="i"),
    Op.HIDDEN: Signature("", _hidden, attrs=(("width", _INT),)),
    Op.EMBED: Signature("i", _embed, (1, 1)),
    Op.EMBED_SCALE: Signature("f", _scalar, (1, 1)),
    Op.EMBED_LORA: Signature("fi", _embed_lora, (2, 2), _SCALE),
    Op.RMS_NORM: Signature("f", _rms_norm, (0, 1), (("eps", _FLOAT), ("group", (int, type(None))))),
    Op.LAYER_NORM: Signature("f", _vector, (0, 2), (("eps", _FLOAT),)),
    Op.MATCH_RMS: Signature("ff", _match_rms, attrs=(("least", _FLOAT),)),
    Op.GAUSSIAN_TOP_K: Signature("f", _same, attrs=(("deviations", _FLOAT),)),
    Op.CHANNEL_SCALE: Signature("f", _vector, (1, 1)),
    Op.MATMUL: Signature("f", _matmul, (1, 2)),
    Op.WEIGHT_SCALE: Signature("f", _scalar, (1, 1)),
    Op.LORA: Signature("ff", _lora, (2, 2), _SCALE),
    Op.DORA_SCALE: Signature("f", _vector, (1, 1)),
    Op.BIAS: Signature("f", _vector, (1, 1)),
    Op.ARCH_SCALE: Signature("f", _arch_scale, (0, 1)),
    Op.EXPERTS_MATMUL: Signature("fi", _experts_matmul, (1, 2)),
    Op.EXPERTS_WEIGHT_SCALE: Signature("fi", _experts_scale, (1, 1)),
    Op.EXPERTS_LORA: Signature("ffi", _experts_lora, (2, 2), _SCALE),
    Op.EXPERTS_DORA_SCALE: Signature("fi", _experts_vector, (1, 1)),
    Op.EXPERTS_BIAS: Signature("fi", _experts_vector, (1, 1)),
    Op.ALL_EXPERTS: Signature("f", _all_experts, attrs=(("count", _INT),), gives="i"),
    Op.TOP_K: Signature("f", _top_k, (0, 1), (("k", _INT), *_CHOICE), gives="i"),
    Op.ROUTE: Signature(
        "fi",
        _route,
        attrs=(
            ("gating", _STR),
            ("normalize", (bool,)),
            ("scale", _FLOAT),
            ("margin", (float, type(None))),
        ),
    ),
    Op.EXPERTS_SUM: Signature("ff", _experts_sum),
    Op.POSITION_SCALE: Signature(
        "f", _position_scale, attrs=(("length", _FLOAT), ("offset", _FLOAT), ("slope", _FLOAT))
    ),
    Op.ROPE: Signature(
        "f",
        _rope,
        (0, 2),
        (
            ("most", (int, type(None))),
            ("context", (int, type(None))),
            ("original", (int, type(None))),
            ("heads", _INT),
            ("head_dim", _INT),
            ("rotary", _INT),
            ("pairs", _STR),
            ("frequencies", (tuple,)),
            ("magnitude", _FLOAT),
        ),
    ),
    Op.ATTENTION: Signature(
        "fff",
        _attention,
        (0, 1),
        (
            ("layer", _INT),
            ("heads", _INT),
            ("kv_heads", _INT),
            ("head_dim", _INT),
            ("scale", _FLOAT),
            ("window", (int, type(None))),
            ("value_dim", (int, type(None))),
            ("softcap", (float, type(None))),
            ("slopes", (tuple, type(None))),
            ("chunk", (int, type(None))),
        ),
    ),
    Op.SHORT_CONV: Signature("f", _short_conv, (1, 2), (("layer", _INT),)),
    Op.TIME_STEP: Signature("f", _time_step, (1, 1), (("low", _FLOAT), ("high", _FLOAT))),
    Op.GATED_DELTA: Signature("fffff", _gated_delta, (1, 1), (*_HEADS, ("tiled", (bool,)))),
    Op.STATE_SPACE: Signature("ffff", _state_space, (2, 2), _HEADS),
    Op.SPLIT: Signature("f", _split, attrs=(("start", _INT), ("stop", _INT), ("group", (int, type(None))))),
    Op.CONCAT: Signature("ff", _concat),
    Op.RESHAPE: Signature("f", _reshape, attrs=(("parts", _INT),)),
    Op.ADD: Signature("ff", _add),
    Op.MUL: Signature("ff", _pairwise),
    Op.SILU: Signature("f", _same),
    Op.SIGMOID: Signature("f", _same),
    Op.GELU: Signature("f", _gelu, attrs=(("approximate", _STR),)),
    Op.RELU: Signature("f", _same),
    Op.TANH: Signature("f", _same),
    Op.SOFTPLUS: Signature("f", _same),
    Op.XIELU: Signature(
        "f", _same, attrs=tuple((name, _FLOAT) for name in ("alpha_p", "alpha_n", "beta", "eps"))
    ),
    Op.SOFT_CAP: Signature("f", _soft_cap, attrs=(("cap", _FLOAT),)),
    Op.CLAMP: Signature("f", _clamp, attrs=(("low", (float, type(None))), ("high", (float, type(None))))),
    Op.SHIFT: Signature("f", _same, attrs=(("value", _FLOAT),)),
    Op.LAST: Signature("f", _same),
}


def check_node(node: Node, kinds: str, shapes: Sequence[Dims], weights: Sequence[Dims]) -> tuple[str, Dims]:
    """The kind ("f" or "i") and shape of the node's value; raises IllegalNode where a rule does not hold."""
    signature = SIGNATURES[node.op]
    _need("kinds of the inputs (f float, i integer)", kinds, signature.inputs)
    fewest, most = signature.weights
    if not fewest <= len(weights) <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
        raise IllegalNode("number of weights", len(weights), wanted)
    for name, types in signature.attrs:
        value = node.attrs.get(name)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise IllegalNode(f"attribute {name}", repr(value), " or ".join(t.__name__ for t in types))
    return signature.gives, signature.infer(shapes, weights, node.attrs)
