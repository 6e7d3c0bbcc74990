"""Reading quantized weights, against the `gguf` package's own readers."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize

from loragraft.quants import reference
from loragraft.quants.types import BY_NAME

#: gguf 0.19 reads neither of these; the golden files and the native core hold them.
UNKNOWN_TO_GGUF = {"Q1_0", "Q2_0"}


@pytest.mark.parametrize("name", [name for name in reference.CODECS if name not in UNKNOWN_TO_GGUF])
def test_random_bytes_read_as_gguf_reads_them(name: str) -> None:
    kind = BY_NAME[name]
    data = np.random.default_rng(4).integers(0, 256, (8, 6 * kind.bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        wanted = gguf_dequantize(data, GGMLQuantizationType(kind.id))
    np.testing.assert_array_equal(reference.dequantize(data, kind), wanted)
