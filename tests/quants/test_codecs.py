"""Both implementations of every type agree, and refuse what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from loragraft.errors import LoragraftError, QuantizeError, UnsupportedError
from loragraft.quants import native, reference
from loragraft.quants.types import BY_NAME

NATIVE = [name for name in reference.CODECS if native.supports(BY_NAME[name])]
RNG = np.random.default_rng(5)


def test_every_type_that_holds_weights_is_implemented_twice() -> None:
    wanted = {name for name, kind in BY_NAME.items() if kind.holds_weights}
    assert set(reference.CODECS) == wanted
    assert {name for name, kind in BY_NAME.items() if native.supports(kind)} == wanted


@pytest.mark.parametrize("name", NATIVE)
def test_native_equals_reference_on_plain_weights(name: str) -> None:
    kind = BY_NAME[name]
    x = RNG.standard_normal((7, 3 * kind.block if kind.block > 1 else 61), dtype=np.float32)
    wanted = reference.quantize(x, kind)
    for isa in native.isas():
        assert np.array_equal(native.quantize(x, kind, isa=isa), wanted), isa
    back = reference.dequantize(wanted, kind)
    for isa in native.isas():
        assert np.array_equal(native.dequantize(wanted, kind, isa=isa), back), isa


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_half_formats_round_every_pattern_alike(name: str) -> None:
    kind = BY_NAME[name]
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    x = (upper[:, None] | lower).view(np.float32)
    wanted = reference.quantize(x, kind)
    for isa in native.isas():
        assert np.array_equal(native.quantize(x, kind, isa=isa), wanted), isa


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_half_formats_read_every_pattern_alike(name: str) -> None:
    kind = BY_NAME[name]
    data = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(64, -1)
    wanted = reference.dequantize(data, kind).view(np.uint32)
    for isa in native.isas():
        assert np.array_equal(native.dequantize(data, kind, isa=isa).view(np.uint32), wanted), isa


@pytest.mark.parametrize("module", [reference, native])
def test_refuses_what_does_not_fit(module) -> None:
    q8 = BY_NAME["Q8_0"]
    with pytest.raises(UnsupportedError, match="whole number of blocks"):
        module.quantize(np.zeros((2, 33), dtype=np.float32), q8)
    with pytest.raises(QuantizeError, match="one weight per column"):
        module.quantize(np.zeros((2, 64), dtype=np.float32), q8, np.ones(32, dtype=np.float32))
    with pytest.raises(QuantizeError, match="rows"):
        module.quantize(np.zeros(64, dtype=np.float32), q8)
    with pytest.raises(QuantizeError, match="whole blocks"):
        module.dequantize(np.zeros((2, 35), dtype=np.uint8), q8)
    with pytest.raises(LoragraftError):
        module.quantize(np.zeros((2, 64), dtype=np.float32), BY_NAME["I32"])


def test_two_implementations_of_a_type_are_an_error() -> None:
    with pytest.raises(AssertionError, match="two implementations of F32"):
        reference._join({"F32": reference.CODECS["F32"]}, {"F32": reference.CODECS["F32"]})


def test_blocks_of_the_native_table_are_the_type_table_s() -> None:
    for name in NATIVE:
        kind = BY_NAME[name]
        assert native._native.block(kind.id) == (kind.block, kind.bytes), name
