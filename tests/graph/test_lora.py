"""Attaching adapters: every pair finds its linear, or the adapter is refused by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from loragraft.errors import AdapterError
from loragraft.graph.chains import Stage, find_chains
from loragraft.graph.lora import attach
from loragraft.graph.spec import verify
from small_models import linears, random_adapter, small_model

UP = "blk.0.ffn_up"


def test_adapters_come_between_scale_and_bias_in_the_order_given() -> None:
    rng = np.random.default_rng(3)
    small = small_model("qwen2", rng, biased=(UP,), scaled=(UP,))
    shapes = {UP: linears("qwen2")[UP]}
    first, second = random_adapter(rng, shapes), random_adapter(rng, shapes)
    graph, tensors = attach(small.graph(), [(first, 2.0), (second, 0.5)], small.arrays)
    verify(graph)
    chain = next(chain for chain in find_chains(graph) if chain.base == UP)
    assert chain.stages == (Stage.PRODUCT, Stage.WEIGHT_SCALE, Stage.LORA, Stage.LORA, Stage.BIAS)
    scales = [graph.nodes[index].attrs["scale"] for index in chain.at(Stage.LORA)]
    pairs = [adapter.pairs[f"{UP}.weight"] for adapter in (first, second)]
    assert scales == [2.0 * pairs[0].scale, 0.5 * pairs[1].scale]
    names = [graph.nodes[index].weights for index in chain.at(Stage.LORA)]
    for (a, b), pair in zip(names, pairs, strict=True):
        assert tensors[a] is pair.a
        assert tensors[b] is pair.b
    assert set(tensors) == {name for both in names for name in both}


def test_attaching_twice_equals_attaching_both_at_once_but_for_names() -> None:
    rng = np.random.default_rng(3)
    small = small_model("qwen3moe", rng)
    adapter = random_adapter(rng, linears("qwen3moe"))
    graph, _ = attach(small.graph(), [(adapter, 1.0), (adapter, 1.0)], small.arrays)
    assert sum(len(chain.at(Stage.LORA)) for chain in find_chains(graph)) == 2 * len(adapter.pairs)


def test_no_adapters_change_nothing() -> None:
    graph = small_model("llama", np.random.default_rng(3)).graph()
    attached, tensors = attach(graph, [], {})
    assert attached == graph
    assert tensors == {}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "blk.5.ffn_up.weight",
            "random: targets blk.5.ffn_up.weight, which is not a linear layer of this model",
        ),
        ("blk.0.attn_norm.weight", "random: targets blk.0.attn_norm.weight, which is not a linear layer"),
        ("blk.0.ffn_gate_exps.weight", "which is not a linear layer"),
    ],
)
def test_a_pair_without_a_linear(target: str, message: str) -> None:
    rng = np.random.default_rng(3)
    adapter = random_adapter(rng, {UP: linears("llama")[UP]})
    pair = replace(adapter.pairs[f"{UP}.weight"], target=target)
    with pytest.raises(AdapterError, match=message):
        attach(small_model("llama", rng).graph(), [(replace(adapter, pairs={target: pair}), 1.0)], {})


@pytest.mark.parametrize("change", ["wide", "tall", "ranks", "experts"])
def test_a_pair_that_does_not_fit(change: str) -> None:
    rng = np.random.default_rng(3)
    base = "blk.0.ffn_up_exps"
    experts, out, columns = linears("qwen3moe")[base]
    shape = {
        "wide": (experts, out, columns + 1),
        "tall": (experts, out - 1, columns),
        "ranks": (experts, out, columns),
        "experts": (experts + 1, out, columns),
    }[change]
    adapter = random_adapter(rng, {base: shape})
    if change == "ranks":
        pair = adapter.pairs[f"{base}.weight"]
        adapter = replace(adapter, pairs={pair.target: replace(pair, a=pair.a[:, :-1])})
    message = (
        rf"^random: the pair for {base}.weight does not fit the model: found A .*, expected a delta of shape"
    )
    with pytest.raises(AdapterError, match=message):
        attach(small_model("qwen3moe", rng).graph(), [(adapter, 1.0)], {})


def test_an_adapter_for_another_architecture() -> None:
    rng = np.random.default_rng(3)
    adapter = replace(random_adapter(rng, {UP: linears("llama")[UP]}), arch="qwen2")
    with pytest.raises(AdapterError, match="made for another architecture: found qwen2, expected llama"):
        attach(small_model("llama", rng).graph(), [(adapter, 1.0)], {})
