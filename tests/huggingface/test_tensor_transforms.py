"""What changes between a checkpoint's tensors and GGUF's: values that are moved, against NumPy, and the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loragraft.adapters.peft import ModuleDelta
from loragraft.archs.hparams import Hparams, Layer
from loragraft.archs.tensors import Fused, Order, Part, Reordered, Tensor
from loragraft.arrays import Floats
from loragraft.errors import AdapterError, CheckpointError, LoragraftError, UnsupportedError
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.formats.views import Computed, float_rows, in_memory
from loragraft.huggingface.adapter_placement import AdapterPlacement
from loragraft.huggingface.placement import place_weights
from loragraft.huggingface.tensor_names import CheckpointNames, TensorNames
from loragraft.huggingface.weights import Weight
from loragraft.huggingface.wrappers import TextNames
from loragraft.quants.types import BY_NAME

WIDTH, HEADS, KV_HEADS, HEAD_DIM, FF, EXPERTS = 6, 4, 2, 3, 5, 3
Q, KV = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
H = Hparams(
    arch="toy",
    layers=(Layer(HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM, None, None, FF),) * 2,
    context=8,
    width=WIDTH,
    norm_eps=1e-5,
    experts=EXPERTS,
    experts_used=1,
)


def qkv_rows(h: Hparams, layer: int) -> tuple[int, ...]:
    own = h.layers[layer]
    return own.heads * own.key_dim, own.kv_heads * own.key_dim, own.kv_heads * own.value_dim


def every_other(first: int) -> Reordered:
    def find(h: Hparams, layer: int, rows: int) -> Order:
        return np.arange(first, rows, 2)

    return Reordered(find)


BACKWARDS = Reordered(lambda h, layer, count: np.arange(count)[::-1])
TABLE = (
    *(
        Tensor(f"h.{{i}}.{part}", "blk.{i}.attn_qkv", fused=Fused(n, qkv_rows))
        for n, part in enumerate("qkv")
    ),
    Tensor("h.{i}.c_proj", "blk.{i}.attn_output", transposed=True),
    Tensor("h.{i}.c_fc", "blk.{i}.ffn_up", columns=BACKWARDS),
    Tensor(
        "h.{i}.experts.gate_up", "blk.{i}.ffn_gate_exps.weight", every_other(0), exact=True, transposed=True
    ),
    Tensor(
        "h.{i}.experts.gate_up", "blk.{i}.ffn_up_exps.weight", every_other(1), exact=True, transposed=True
    ),
    Tensor("h.{i}.both", "blk.{i}.ffn_gate", Part(0)),
    Tensor("h.{i}.both", "blk.{i}.ffn_down", Part(1)),
)


class Names(TextNames):
    """Of the toy."""

    def __init__(self) -> None:
        self._fill(H, TABLE)


def weight(name: str, values: Floats) -> Weight:
    return Weight(name, in_memory(name, values))


def placed(*weights: Weight) -> dict[str, Floats]:
    found = place_weights(Path("folder"), Names(), weights)
    return {name: values_of(tensor) for name, tensor in found.items()}


def values_of(tensor: TensorSource) -> Floats:
    """Read a few rows at a time, as conversion does."""
    rows = [tensor.rows(start, min(start + 4, tensor.n_rows)) for start in range(0, tensor.n_rows, 4)]
    return float_rows(np.concatenate(rows), tensor.type).reshape(tensor.shape)


def drawn(*shape: int) -> Floats:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def test_a_weight_that_is_stored_transposed() -> None:
    w = drawn(WIDTH, FF)
    found = placed(weight("h.1.c_proj.weight", w), weight("h.1.c_proj.bias", w[0]))
    np.testing.assert_array_equal(found["blk.1.attn_output.weight"], w.T)
    np.testing.assert_array_equal(found["blk.1.attn_output.bias"], w[0])


def test_halves_of_a_transposed_stack_that_alternate() -> None:
    stack = drawn(EXPERTS, WIDTH, 2 * FF)
    found = placed(weight("h.0.experts.gate_up", stack))
    np.testing.assert_array_equal(found["blk.0.ffn_gate_exps.weight"], stack.transpose(0, 2, 1)[:, ::2])
    np.testing.assert_array_equal(found["blk.0.ffn_up_exps.weight"], stack.transpose(0, 2, 1)[:, 1::2])


def test_halves_of_a_matrix_and_of_its_bias() -> None:
    w = drawn(2 * FF, WIDTH)
    found = placed(weight("h.0.both.weight", w), weight("h.0.both.bias", w[:, 0]))
    np.testing.assert_array_equal(found["blk.0.ffn_gate.weight"], w[:FF])
    np.testing.assert_array_equal(found["blk.0.ffn_down.weight"], w[FF:])
    np.testing.assert_array_equal(found["blk.0.ffn_down.bias"], w[FF:, 0])


def test_columns_in_another_order() -> None:
    w = drawn(FF, WIDTH)
    found = placed(weight("h.0.c_fc.weight", w), weight("h.0.c_fc.bias", w[:, 0]))
    np.testing.assert_array_equal(found["blk.0.ffn_up.weight"], w[:, ::-1])
    np.testing.assert_array_equal(found["blk.0.ffn_up.bias"], w[:, 0])


def parts() -> dict[str, Floats]:
    return {"q": drawn(Q, WIDTH), "k": drawn(KV, WIDTH), "v": drawn(KV, WIDTH) * 2}


def test_modules_that_are_fused() -> None:
    """In whatever order they come; and what an export takes apart again."""
    own = parts()
    found = placed(
        *(weight(f"h.0.{part}.weight", own[part]) for part in "vqk"),
        *(weight(f"h.0.{part}.bias", own[part][:, 0]) for part in "kvq"),
    )
    whole = np.concatenate(list(own.values()))
    np.testing.assert_array_equal(found["blk.0.attn_qkv.weight"], whole)
    np.testing.assert_array_equal(found["blk.0.attn_qkv.bias"], whole[:, 0])
    origins = CheckpointNames(Names()).origins("blk.0.attn_qkv.weight")
    assert [origin.name for origin in origins] == [f"h.0.{part}.weight" for part in "qkv"]
    for origin, values in zip(origins, own.values(), strict=True):
        np.testing.assert_array_equal(whole[origin.place.rows_in_gguf(len(whole))], values)


def test_what_is_whole_only_together_has_no_name_of_its_own() -> None:
    assert CheckpointNames(Names()).origins("blk.0.ffn_gate.weight") == []
    assert CheckpointNames(Names()).origins("blk.0.c_fc.weight") == []


def quantized(name: str, rows: int, columns: int) -> Weight:
    kind = BY_NAME["Q8_0"]
    return Weight(name, Computed(name, (rows, columns), kind, lambda start, stop: np.zeros((0, 0), np.uint8)))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (
            [weight("h.0.q.weight", drawn(Q, WIDTH))],
            CheckpointError,
            r"attn_qkv.weight lacks parts: found 1 of them",
        ),
        (
            [weight(f"h.0.{part}.weight", drawn(Q, WIDTH)) for part in "qkv"],
            CheckpointError,
            r"h.0.k.weight does not have the number of rows .*: found 12, expected 6",
        ),
        (
            [weight("h.0.q.weight", drawn(Q, WIDTH)), *[weight("h.0.k.weight", drawn(KV, 2))] * 2],
            CheckpointError,
            "'h.0.k.weight' is no",
        ),
        ([weight("h.0.both.weight", drawn(3, WIDTH))], CheckpointError, "3 rows do not divide into 2 parts"),
        ([quantized("h.0.c_proj.weight", 32, 32)], UnsupportedError, "c_proj.weight is quantized, and GGUF"),
        ([quantized("h.0.c_fc.weight", 32, 32)], UnsupportedError, "c_fc.weight is quantized, and GGUF"),
    ],
)
def test_refused(weights: list[Weight], error: type[LoragraftError], message: str) -> None:
    with pytest.raises(error, match=message) as refusal:
        placed(*weights)
    assert "\n" not in str(refusal.value)


# ---- adapters ----


class Settings:
    """LoRA of any rank, scaled by the module's last letter."""

    saved: tuple[str, ...] = ()

    def rank_of(self, name: str) -> int:
        return {"q": 2, "v": 3}.get(name.rpartition(".")[2], 2)

    def scale_of(self, name: str) -> float:
        return {"q": 0.5, "v": 2.0}.get(name.rpartition(".")[2], 1.0)


def pairs(base: dict[str, tuple[int, ...]], *deltas: ModuleDelta) -> dict[str, Floats]:
    """The changes of the base's weights, by name."""
    tensors = {name: in_memory(name, np.zeros(shape, np.float32)) for name, shape in base.items()}
    tensors["token_embd.weight"] = in_memory("token_embd.weight", np.zeros((2, WIDTH), np.float32))
    source = ModelSource(Path("base.gguf"), "toy", {}, tensors)
    placement = AdapterPlacement(Path("adapter"), source, Names(), Settings(), {})  # type: ignore[arg-type]
    for delta in deltas:
        placement.add(delta)
    return {name: np.float32(pair.scale) * (pair.b @ pair.a) for name, pair in placement.pairs().items()}


def pair(module: str, rank: int, rows: int, columns: int = WIDTH) -> ModuleDelta:
    return ModuleDelta(module, drawn(rank, columns), drawn(rows, rank))


def test_adapters_of_parts_become_one_of_the_fused_weight() -> None:
    q, v = pair("h.0.q", 2, Q), pair("h.0.v", 3, KV)
    [(name, delta)] = pairs({"blk.0.attn_qkv.weight": (Q + 2 * KV, WIDTH)}, v, q).items()
    assert name == "blk.0.attn_qkv.weight"
    expected = np.concatenate([0.5 * (q.b @ q.a), np.zeros((KV, WIDTH)), 2.0 * (v.b @ v.a)])
    np.testing.assert_allclose(delta, expected, rtol=1e-5, atol=1e-6)


def test_adapters_follow_columns_and_know_no_transposing() -> None:
    """PEFT's A and B are [r, in] and [out, r] however the weight is stored."""
    up, down = pair("h.0.c_fc", 2, FF), pair("h.0.c_proj", 2, WIDTH, FF)
    found = pairs({"blk.0.ffn_up.weight": (FF, WIDTH), "blk.0.attn_output.weight": (WIDTH, FF)}, up, down)
    np.testing.assert_allclose(found["blk.0.ffn_up.weight"], (up.b @ up.a)[:, ::-1], rtol=1e-6)
    np.testing.assert_allclose(found["blk.0.attn_output.weight"], down.b @ down.a, rtol=1e-6)


def test_a_part_of_another_size_does_not_fit() -> None:
    with pytest.raises(
        AdapterError, match=r"h.0.q is not that of .*attn_qkv.weight: found \(11, 6\), .*\(12, 6\)"
    ):
        pairs({"blk.0.attn_qkv.weight": (Q + 2 * KV, WIDTH)}, pair("h.0.q", 2, Q - 1))


def test_names_of_parts_are_found() -> None:
    names: TensorNames = Names()
    assert [place.span for part in "qkv" for place in names.places(f"h.1.{part}.weight")] == [
        (0, 12),
        (12, 18),
        (18, 24),
    ]
