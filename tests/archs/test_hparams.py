"""Hyperparameters from metadata: defaults, errors that name the key, and rotary frequencies."""

from __future__ import annotations

import numpy as np
import pytest

from loragraft.archs.graphs import build_graph, read_hparams
from loragraft.errors import FormatError, UnsupportedError
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.graph.ops import TensorFact
from small_models import small_model


def metadata(**changes: Value | None) -> dict[str, Value]:
    """A Llama's, with keys (dots written as __) changed or, with None, removed."""
    keys = dict(small_model("llama", np.random.default_rng(0)).metadata)
    for key, value in changes.items():
        name = f"llama.{key.replace('__', '.')}"
        keys.pop(name, None)
        if value is not None:
            keys[name] = value
    return keys


def test_what_is_absent_has_the_formats_default() -> None:
    h = read_hparams(metadata(attention__head_count_kv=None, rope__freq_base=None))
    [layer] = h.layers
    assert (layer.kv_heads, layer.key_dim, layer.value_dim, layer.window, h.experts) == (4, 8, 8, None, 0)
    assert layer.rope is not None
    assert layer.rope.frequencies == pytest.approx([1.0, 0.1, 0.01, 0.001])


def test_sizes_by_layer() -> None:
    both = metadata(
        block_count=Value.u32(2),
        attention__head_count_kv=Value.numbers(ValueType.INT32, [2, 4]),
        feed_forward_length=Value.numbers(ValueType.INT32, [64, 96]),
    )
    assert [(layer.kv_heads, layer.ff) for layer in read_hparams(both).layers] == [(2, 64), (4, 96)]
    both["llama.attention.head_count_kv"] = Value.numbers(ValueType.INT32, [2])
    with pytest.raises(
        FormatError, match=r"head_count_kv: does not give a size for every layer: found 1, expected 2"
    ):
        read_hparams(both)
    lengths = Value.numbers(ValueType.INT32, [8, 16])
    with pytest.raises(UnsupportedError, match=r"llama.attention.key_length: layers of different sizes"):
        read_hparams(metadata(attention__key_length=lengths))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", None, "llama.block_count: the metadata lacks this key: expected an integer"),
        (
            "block_count",
            Value.u32(0),
            "llama.block_count: bad metadata value: found 0, expected an integer from 1 to 512",
        ),
        (
            "block_count",
            Value.u32(2**31),
            "block_count: bad metadata value: found 2147483648, expected an integer from 1 to 512",
        ),
        ("rope__scaling__factor", Value.f32(-1.0), "rope.scaling.factor: bad metadata value: found -1.0"),
        ("rope__freq_base", Value.f32(0.0), "rope.freq_base: bad metadata value: found 0.0"),
        ("embedding_length", Value.string("x"), "llama.embedding_length: bad metadata value: found 'x'"),
        ("attention__layer_norm_rms_epsilon", None, "layer_norm_rms_epsilon: the metadata lacks this key"),
        (
            "attention__head_count_kv",
            Value.u32(3),
            "query heads must be a multiple of key-value heads: found 4 and 3",
        ),
        ("rope__dimension_count", Value.u32(10), "rope.dimension_count: bad metadata value: found 10"),
        ("rope__freq_base", Value.f32(float("nan")), "rope.freq_base: bad metadata value: found nan"),
        (
            "rope__scaling__type",
            Value.string("longrope"),
            "this kind of context extension is not supported: found longrope",
        ),
        ("expert_count", Value.u32(8), "llama.expert_used_count: the metadata lacks this key"),
    ],
)
def test_errors_name_the_key(key: str, value: Value | None, message: str) -> None:
    with pytest.raises((FormatError, UnsupportedError), match=message):
        read_hparams(metadata(**{key: value}))


def test_no_architecture_and_an_unknown_one() -> None:
    with pytest.raises(FormatError, match=r"general.architecture: the metadata does not name"):
        read_hparams({})
    keys = {key.replace("llama", "gpt9"): value for key, value in metadata().items()}
    keys["general.architecture"] = Value.string("gpt9")
    with pytest.raises(
        UnsupportedError, match="unknown architecture: found 'gpt9', expected one of apertus, arcee, "
    ):
        build_graph(keys, {})


def test_a_missing_tensor_is_named() -> None:
    small = small_model("llama", np.random.default_rng(0))
    del small.arrays["blk.0.ffn_down.weight"]
    with pytest.raises(FormatError, match=r"^blk.0.ffn_down.weight: the model lacks this tensor"):
        small.graph()


def test_linear_scaling_slows_every_pair() -> None:
    h = read_hparams(
        metadata(rope__scaling__type=Value.string("linear"), rope__scaling__factor=Value.f32(4.0))
    )
    rope = h.layers[0].rope
    assert rope is not None
    assert rope.frequencies == pytest.approx([0.25, 0.025, 0.0025, 0.00025])
    assert rope.magnitude == 1.0


def test_yarn_agrees_with_transformers() -> None:
    """`_compute_yarn_parameters` of transformers 5.17 for head_dim 16, theta 10000, factor 4, original length 2048."""
    h = read_hparams(
        metadata(
            attention__key_length=Value.u32(16),
            attention__value_length=Value.u32(16),
            rope__scaling__type=Value.string("yarn"),
            rope__scaling__factor=Value.f32(4.0),
            rope__scaling__original_context_length=Value.u32(2048),
        )
    )
    wanted = [1.0, 0.3162277638912201, 0.10000000149011612, 0.025693506002426147, 0.00624999962747097]
    wanted += [0.0013834965648129582, 0.0002500000118743628, 7.905694656074047e-05, 1.138629436111989]
    rope = h.layers[0].rope
    assert rope is not None
    np.testing.assert_allclose(rope.frequencies, wanted[:-1], rtol=1e-6)
    assert rope.magnitude == pytest.approx(wanted[-1], rel=1e-6)


def test_frequency_factors_reach_the_rotation() -> None:
    small = small_model("llama", np.random.default_rng(0))
    small.arrays["rope_freqs.weight"] = np.array([1, 2, 4, 8], dtype=np.float32)
    ropes = [node for node in small.graph().nodes if node.op == "rope"]
    assert [node.weights for node in ropes] == [("rope_freqs.weight",)] * 2


def test_tied_output_uses_the_embedding_and_its_scale() -> None:
    small = small_model("qwen2", np.random.default_rng(0), tied=True, scaled=("token_embd",))
    output = [node for node in small.graph().nodes if node.label == "output"]
    assert [node.weights for node in output] == [("token_embd.weight",), ("token_embd.scale",)]
    small.arrays["output.scale"] = small.arrays.pop("token_embd.scale")
    graph = small.graph()
    assert [node.weights for node in graph.nodes if node.label in ("output", "token_embd")] == [
        ("token_embd.weight",),
        ("output.scale",),
        ("token_embd.weight",),
        ("output.scale",),
    ]
    assert isinstance(graph.tensors["output.scale"], TensorFact)
