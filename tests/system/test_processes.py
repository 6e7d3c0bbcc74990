"""What a worker and its parent say to one another arrives, however the pipe cuts it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from loragraft.system.workers.processes import _read, _write


class Halting(io.RawIOBase):
    """A pipe that takes and gives seven bytes at once."""

    def __init__(self) -> None:
        self.data = bytearray()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data[:7])
        return min(len(data), 7)

    def readinto(self, buffer: Any) -> int:
        part = self.data[: min(7, len(buffer))]
        buffer[: len(part)] = part
        del self.data[: len(part)]
        return len(part)


def message() -> dict[str, Any]:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    return {
        "whole": whole,
        "turned": whole.T,
        "parts": [whole[::2, 1:3], whole[:0], np.float64(2.5), np.arange(3, dtype=np.uint8)],
        "words": ("text", None, b"bytes", range(3)),
    }


@pytest.mark.parametrize("pipe", [io.BytesIO, Halting])
def test_a_message_arrives(pipe: Any) -> None:
    stream, sent = pipe(), message()
    _write(stream, sent)
    _write(stream, "next")
    if isinstance(stream, io.BytesIO):
        stream.seek(0)
    found = _read(stream)
    assert found["words"] == sent["words"]
    for one, other in zip(
        [found["whole"], found["turned"], *found["parts"]],
        [sent["whole"], sent["turned"], *sent["parts"]],
        strict=True,
    ):
        assert np.array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype
    found["whole"] += 1  # sums are added in place
    assert _read(stream) == "next"
    with pytest.raises(EOFError):
        _read(stream)


def test_a_message_that_breaks_off_is_the_end() -> None:
    stream = io.BytesIO()
    _write(stream, message())
    whole = stream.getvalue()
    for length in range(0, len(whole), 11):
        with pytest.raises(EOFError):
            _read(io.BytesIO(whole[:length]))
