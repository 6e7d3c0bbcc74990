"""The law: every rule has a graph that breaks it, and the message names the tensor, what was found and expected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from loragraft.errors import GraphError
from loragraft.graph.build import GraphBuilder
from loragraft.graph.chains import find_chains, with_epilogues
from loragraft.graph.lora import attach
from loragraft.graph.misorder import Mistake, misorder
from loragraft.graph.ops import Graph, Node, Op, TensorFact
from loragraft.graph.spec import verify, violations
from small_models import linears, random_adapter, small_model

UP = "blk.0.ffn_up"


def whole() -> Graph:
    """Starcoder2 with scale, adapter and bias on ffn_up and ffn_down."""
    rng = np.random.default_rng(1)
    down = "blk.0.ffn_down"
    small = small_model("starcoder2", rng, biased=(UP, down), scaled=(UP, down))
    shapes = linears("starcoder2")
    return attach(small.graph(), [(random_adapter(rng, {UP: shapes[UP], down: shapes[down]}), 1.0)], {})[0]


def mixture() -> Graph:
    rng = np.random.default_rng(1)
    base = "blk.0.ffn_up_exps"
    small = small_model("qwen3moe", rng, biased=(base,), scaled=(base, "blk.0.ffn_down_exps"))
    return attach(small.graph(), [(random_adapter(rng, {base: linears("qwen3moe")[base]}), 1.0)], {})[0]


def only(graph: Graph) -> str:
    """The one violation's message."""
    (error,) = violations(graph)
    return str(error)


def changed(graph: Graph, index: int, **parts: object) -> Graph:
    nodes = list(graph.nodes)
    nodes[index] = replace(nodes[index], **parts)  # type: ignore[arg-type]
    return replace(graph, nodes=tuple(nodes))


def find(graph: Graph, op: Op, label: str = "") -> int:
    return next(i for i, node in enumerate(graph.nodes) if node.op is op and node.label.startswith(label))


def test_legal_graphs_pass() -> None:
    assert list(violations(whole())) == []
    assert list(violations(mixture())) == []


@pytest.mark.parametrize(
    ("mistake", "problem", "found"),
    [
        (Mistake.LORA_BEFORE_SCALE, "LoRA comes before weight scale", "GEMM, LoRA, weight scale, bias"),
        (Mistake.BIAS_BEFORE_SCALE, "bias comes before weight scale", "GEMM, bias, weight scale, LoRA"),
        (Mistake.BOTH_BEFORE_SCALE, "bias comes before weight scale", "GEMM, LoRA, bias, weight scale"),
        (Mistake.SCALE_OMITTED, "its scale blk.0.ffn_up.scale is dropped", "GEMM, LoRA, bias"),
        (
            Mistake.SCALE_TWICE,
            "its weight scale is applied more than once",
            "GEMM, weight scale, weight scale, LoRA, bias",
        ),
    ],
)
def test_wrong_orders_name_the_tensor_and_both_orders(mistake: Mistake, problem: str, found: str) -> None:
    wrong = misorder(whole(), mistake, only=UP)
    assert wrong is not None
    with pytest.raises(GraphError) as caught:
        verify(wrong)
    expected = "GEMM, weight scale, LoRA, bias"
    assert str(caught.value) == f"blk.0.ffn_up.weight: {problem}: found {found}, expected {expected}"


def test_lora_after_bias_is_another_order() -> None:
    graph = whole()
    chain = next(chain for chain in find_chains(graph) if chain.base == UP)
    scale, lora, bias = (graph.nodes[i] for i in chain.nodes[1:])
    message = only(with_epilogues(graph, {chain.product: [scale, bias, lora]}))
    assert message.endswith("found GEMM, weight scale, bias, LoRA, expected GEMM, weight scale, LoRA, bias")


def test_architectural_scale_is_another_kind_of_node() -> None:
    facts = {
        "w.weight": TensorFact((4, 8), "NVFP4"),
        "w.scale": TensorFact((1,), "F32"),
        "w.bias": TensorFact((4,), "F32"),
        "w.own": TensorFact((1,), "F32"),
        "e.weight": TensorFact((10, 8), "F32"),
    }

    def build(arch_scale: str) -> Graph:
        g = GraphBuilder("some", facts)
        return g.finish(g.linear(g.embed(g.tokens(), "e"), "w", arch_scale=arch_scale))

    graph = build("w.own")
    verify(graph)
    early = misorder(graph, Mistake.ARCH_SCALE_BEFORE_BIAS)
    assert early is not None
    assert only(early) == (
        "w.weight: architectural scale comes before bias: found GEMM, weight scale, architectural scale, bias, "
        "expected GEMM, weight scale, bias, architectural scale"
    )
    messages = [str(error) for error in violations(build("w.scale"))]
    assert messages[0].startswith(
        "w.weight: its own weight scale is applied as an architectural scale: found w.scale"
    )


def test_a_scale_that_the_file_lacks() -> None:
    graph = whole()
    bare = {name: fact for name, fact in graph.tensors.items() if name != f"{UP}.scale"}
    bare["other.scale"] = TensorFact((1,), "F32")
    index = find(graph, Op.WEIGHT_SCALE, UP)
    message = only(replace(changed(graph, index, weights=("other.scale",)), tensors=bare))
    assert message.startswith("blk.0.ffn_up.weight: a weight scale is applied, but the model has none for it")


def test_another_linears_scale() -> None:
    graph = changed(whole(), find(whole(), Op.WEIGHT_SCALE, UP), weights=("blk.0.ffn_down.scale",))
    messages = [str(error) for error in violations(graph)]
    assert messages == [
        "blk.0.ffn_up.weight: scaled by another tensor's scale: "
        "found blk.0.ffn_down.scale, expected blk.0.ffn_up.scale",
        "blk.0.ffn_up.scale: the graph of architecture starcoder2 never uses this tensor; "
        "ignoring it would change the model silently",
    ]


def test_another_linears_bias() -> None:
    graph = changed(whole(), find(whole(), Op.BIAS, "blk.0.ffn_down"), weights=("blk.0.attn_norm.bias",))
    first = next(violations(graph))
    assert str(first) == (
        "blk.0.ffn_down.weight: takes another linear's bias: found blk.0.attn_norm.bias, expected blk.0.ffn_down.bias"
    )


def test_lora_must_see_its_own_linears_input() -> None:
    graph = whole()
    index = find(graph, Op.LORA, UP)
    value, _ = graph.nodes[index].inputs
    embedding = find(graph, Op.EMBED)
    assert only(changed(graph, index, inputs=(value, embedding))) == (
        "blk.0.ffn_up.weight: the adapter must see the linear's own input: "
        f"found token_embd (embed, node {embedding}), "
        f"expected blk.0.ffn_norm (layer_norm, node {graph.nodes[find(graph, Op.MATMUL, UP)].inputs[0]})"
    )


def test_an_adapter_of_another_weight() -> None:
    graph = whole()
    lora = graph.nodes[find(graph, Op.LORA, UP)]
    names = tuple(name.replace("ffn_up", "ffn_other") for name in lora.weights)
    tensors = dict(graph.tensors) | {
        name: graph.tensors[old] for name, old in zip(names, lora.weights, strict=True)
    }
    for old in lora.weights:
        del tensors[old]
    message = only(replace(changed(graph, find(graph, Op.LORA, UP), weights=names), tensors=tensors))
    assert message.startswith(
        "blk.0.ffn_up.weight: takes an adapter made for another weight: found blk.0.ffn_other"
    )


def test_an_adapter_weight_that_is_never_reached() -> None:
    graph = whole()
    tensors = dict(graph.tensors) | {"blk.0.attn_q.weight.lora_a.0": TensorFact((3, 32), "F32")}
    assert only(replace(graph, tensors=tensors)) == (
        "blk.0.attn_q.weight.lora_a.0: the graph of architecture starcoder2 never uses this adapter tensor; "
        "ignoring it would change the model silently"
    )


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.input_scale", "blk.0.attn_extra.weight", "blk.7.ffn_up.weight"]
)
def test_a_model_tensor_is_used_or_declared_unused(name: str) -> None:
    graph = whole()
    tensors = dict(graph.tensors) | {name: TensorFact((1,), "F32")}
    assert only(replace(graph, tensors=tensors)).startswith(
        f"{name}: the graph of architecture starcoder2 never uses"
    )
    verify(replace(graph, tensors=tensors, unused=frozenset({name})))
    assert "declared unused, yet" in only(replace(graph, unused=frozenset({f"{UP}.bias"})))


def test_input_scales_are_used() -> None:
    small = small_model("llama", np.random.default_rng(1))
    small.arrays[f"{UP}.input_scale"] = np.ones(1, np.float32)
    graph = small.graph()
    verify(graph)
    assert graph.nodes[find(graph, Op.MATMUL, UP)].weights == (f"{UP}.weight", f"{UP}.input_scale")


def test_a_value_tapped_before_its_epilogue_is_over() -> None:
    graph = whole()
    product = find(graph, Op.MATMUL, UP)
    gelu = find(graph, Op.GELU)
    message = str(next(violations(changed(graph, gelu, inputs=(product,)))))
    assert message == (
        "blk.0.ffn_up.scale: weight_scale must follow its product, and its value may have no other use: "
        "found weight_scale after matmul (blk.0.ffn_up)"
    )


def test_a_node_that_leads_nowhere() -> None:
    graph = whole()
    extra = Node(Op.SILU, (graph.output,), label="blk.9.stray")
    message = only(replace(graph, nodes=(*graph.nodes, extra)))
    assert message == f"blk.9.stray (silu, node {len(graph.nodes)}): its value never reaches the output"


def test_per_expert_companions() -> None:
    graph = mixture()
    tensors = dict(graph.tensors) | {"blk.0.ffn_up_exps.scale": TensorFact((3,), "F32")}
    assert only(replace(graph, tensors=tensors)) == (
        "blk.0.ffn_up_exps.weight: weight scale of a different number of experts: found 3, expected 4"
    )


@pytest.mark.parametrize(
    ("op", "parts", "message"),
    [
        (Op.MATMUL, {"inputs": (10**6,)}, "inputs must be earlier nodes"),
        (Op.MATMUL, {"weights": ("nowhere",)}, "no such tensor: found nowhere"),
        (Op.MATMUL, {"weights": ()}, "number of weights: found 0, expected 1 to 2"),
        (Op.MATMUL, {"weights": ("blk.0.ffn_down.weight",)}, "columns of the weight: found 64, expected 32"),
        (Op.MATMUL, {"inputs": (0,)}, r"kinds of the inputs \(f float, i integer\): found i, expected f"),
        (
            Op.BIAS,
            {"weights": ("blk.0.ffn_up.bias",)},
            r"shape of the weight: found \(64,\), expected \(32,\)",
        ),
        (Op.LAYER_NORM, {"attrs": {}}, "attribute eps: found None, expected float"),
        (Op.GELU, {"attrs": {"approximate": "no"}}, "approximate: found no, expected tanh or none"),
    ],
)
def test_ill_formed_nodes(op: Op, parts: dict[str, object], message: str) -> None:
    graph = whole()
    index = find(graph, op, "blk.0.ffn_down" if op is Op.BIAS else "")
    with pytest.raises(GraphError, match=message):
        verify(changed(graph, index, **parts))


def test_two_layers_may_not_share_a_cache() -> None:
    graph = small_model("llama", np.random.default_rng(1), layers=2).graph()
    index = find(graph, Op.ATTENTION, "blk.1")
    attrs = {**graph.nodes[index].attrs, "layer": 0}
    with pytest.raises(GraphError, match="two attentions share a cache: found layer 0"):
        verify(changed(graph, index, attrs=attrs))


def test_the_output_is_a_vector_of_logits() -> None:
    graph = whole()
    with pytest.raises(GraphError, match="not a vector of logits"):
        verify(replace(graph, output=0))
    with pytest.raises(GraphError, match="the output is not a node"):
        verify(replace(graph, output=len(graph.nodes)))
