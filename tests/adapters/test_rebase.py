"""Whole tensors that adapters change: strengths, conflicts, ties, and what stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loragraft.adapters.lora import Adapter, TokenRows
from loragraft.adapters.rebase import UNTIED, rebase
from loragraft.errors import AdapterError
from loragraft.formats.gguf.values import Value
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.formats.views import Stored, float_rows, in_memory
from loragraft.quants import native, reference
from loragraft.quants.types import BY_NAME

RNG = np.random.default_rng(4)
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def model(**arrays: np.ndarray) -> ModelSource:
    tensors = {name.replace("__", "."): in_memory(name, array) for name, array in arrays.items()}
    return ModelSource(Path("base"), "llama", {}, tensors)


def adapter(name: str = "adapter", **fields: object) -> Adapter:
    return Adapter(Path(name), {}, **fields)  # type: ignore[arg-type]


def values(source: TensorSource) -> np.ndarray:
    return float_rows(source.rows(0, source.n_rows), source.type).reshape(source.shape)


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0, -1.0])
def test_a_strength_goes_part_of_the_way(strength: float) -> None:
    w, new, rows, bias = floats(8, 4), floats(8, 4), floats(2, 4), floats(4)
    base = model(token_embd__weight=w, output__weight=w, x__weight=w, x__bias=bias)
    changes = adapter(
        replaced={"x.weight": in_memory("new", new)},
        rows={EMBEDDING: TokenRows(np.array([5, 2]), rows)},
        biases={"x.bias": bias},
    )
    found = rebase(base, [(changes, strength)]).tensors
    f = np.float32(strength)
    expected = w.copy()
    expected[[5, 2]] += f * (rows - w[[5, 2]])
    np.testing.assert_allclose(values(found[EMBEDDING]), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(values(found["x.weight"]), w + f * (new - w), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(values(found["x.bias"]), bias + f * bias, rtol=1e-6)
    np.testing.assert_array_equal(values(found[OUTPUT]), w)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q6_K", "Q4_K"])
def test_rows_keep_the_type_and_the_bytes_of_the_others(kind: str) -> None:
    type_ = BY_NAME[kind]
    data = reference.quantize(floats(10, 256), type_)
    source = Stored(EMBEDDING, (10, 256), type_, Bytes(data))
    base = ModelSource(Path("base"), "llama", {}, {EMBEDDING: source})
    new = floats(3, 256)
    changes = adapter(rows={EMBEDDING: TokenRows(np.array([9, 0, 4]), new)})
    found = rebase(base, [(changes, 1.0)]).tensors[EMBEDDING]
    assert found.type == type_
    expected = data.copy()
    expected[[9, 0, 4]] = native.quantize(new, type_)
    for span in ((0, 10), (0, 1), (1, 4), (3, 5), (9, 10)):
        np.testing.assert_array_equal(found.rows(*span), expected[slice(*span)])


class Bytes:
    def __init__(self, data: np.ndarray) -> None:
        self._data = data.reshape(-1)

    def part(self, start: int, stop: int) -> np.ndarray:
        return self._data[start:stop]

    def prefetch(self, start: int, stop: int) -> None: ...

    def release(self, start: int, stop: int) -> None: ...


def test_a_replaced_weight_takes_no_scale_of_the_base() -> None:
    base = model(x__weight=floats(4, 4), x__scale=np.array([0.5], np.float32), x__input_scale=floats(1))
    new = floats(4, 4)
    changes = adapter(replaced={"x.weight": in_memory("new", new)})
    assert list(rebase(base, [(changes, 1.0)]).tensors) == ["x.weight"]
    half = rebase(base, [(changes, 0.5)]).tensors["x.weight"]
    scaled = 0.5 * values(base.tensors["x.weight"])
    np.testing.assert_allclose(values(half), (scaled + new) / 2, rtol=1e-5, atol=1e-6)


def test_ties_hold_as_long_as_both_uses_change_alike() -> None:
    base = model(token_embd__weight=floats(6, 4))
    base.tensors = {**base.tensors, "output.scale": in_memory("s", np.array([2.0], np.float32))}
    new = floats(6, 4)
    alike = adapter(replaced={EMBEDDING: in_memory("e", new), OUTPUT: in_memory("o", new)})
    assert OUTPUT not in rebase(base, [(alike, 1.0)]).tensors
    apart = adapter(replaced={EMBEDDING: in_memory("e", new)})
    found = rebase(base, [(apart, 1.0)])
    np.testing.assert_array_equal(values(found.tensors[EMBEDDING]), new)
    np.testing.assert_array_equal(values(found.tensors[OUTPUT]), values(base.tensors[EMBEDDING]))
    assert "output.scale" in found.tensors
    assert "token_embd.scale" not in found.tensors  # it was the replaced weight's
    assert found.notes == [UNTIED]


def test_two_adapters_cannot_replace_one_tensor() -> None:
    base = model(token_embd__weight=floats(6, 4), output__weight=floats(6, 4))
    one, two = (adapter(name, replaced={OUTPUT: in_memory("o", floats(6, 4))}) for name in ("one", "two"))
    with pytest.raises(AdapterError, match=r"two: replaces output\.weight, as one does"):
        rebase(base, [(one, 1.0), (two, 1.0)])
    tokens = adapter("two", rows={OUTPUT: TokenRows(np.array([1]), floats(1, 4))})
    with pytest.raises(AdapterError, match=r"two: replaces output\.weight, as one does"):
        rebase(base, [(one, 1.0), (tokens, 1.0)])


def test_a_resized_vocabulary_knows_no_strength() -> None:
    base = model(token_embd__weight=floats(6, 4), output__weight=floats(6, 4))
    new = {name: in_memory(name, floats(7, 4)) for name in (EMBEDDING, OUTPUT)}
    assert rebase(base, [(adapter(replaced=new), 1.0)]).tensors[OUTPUT].shape == (7, 4)
    with pytest.raises(
        AdapterError, match=r"of another size, so its strength cannot be changed: found 0\.5, expected 1"
    ):
        rebase(base, [(adapter(replaced=new), 0.5)])
    del new[OUTPUT]
    with pytest.raises(AdapterError, match="7 rows in the embedding, 6 in the output"):
        rebase(base, [(adapter(replaced=new), 1.0)])


def test_a_bias_where_the_base_has_none() -> None:
    base = model(x__weight=floats(4, 6))
    found = rebase(base, [(adapter(biases={"x.bias": np.ones(4, np.float32)}), 0.5)]).tensors["x.bias"]
    np.testing.assert_array_equal(values(found), np.full(4, 0.5, np.float32))
    (note,) = rebase(base, [(adapter(biases={"x.bias": np.ones(4, np.float32)}), 1.0)]).notes
    assert "biases are added that the base does not have (1, such as x.bias)" in note
    for bias in ({"x.bias": np.ones(6, np.float32)}, {"y.bias": np.ones(4, np.float32)}):
        with pytest.raises(AdapterError, match="but the base model has no such layer"):
            rebase(base, [(adapter(biases=bias), 1.0)])


def test_the_last_of_several_tokenizers_is_used_and_said_to_be() -> None:
    base, key = model(x__weight=floats(4, 6)), "tokenizer.ggml.eos_token_id"
    base.metadata[key] = Value.u32(1)
    one, two = (adapter(name, tokenizer={key: Value.u32(id_)}) for name, id_ in (("one", 2), ("two", 3)))
    found = rebase(base, [(one, 1.0), (two, 1.0)])
    assert found.metadata[key].data == 3
    assert found.notes == ["two: its tokenizer is used, not the one beside one"]
    assert rebase(base, [(one, 1.0), (adapter("three"), 1.0)]).notes == []
    assert base.metadata[key].data == 1
