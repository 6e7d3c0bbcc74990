"""Typed reads of a GGUF's `<arch>.*` keys, which remember what was asked for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loragraft.errors import FormatError, UnsupportedError
from loragraft.formats.gguf.values import Value

#: No size is larger: as in llama.cpp, they are 32-bit numbers there.
MAX_COUNT = 2**31 - 1
MAX_LAYERS = 512
"""As in llama.cpp; a file that says more is refused before anything is sized by it."""
#: Float32's largest.
_MAX_NUMBER = 3.4028234663852886e38


class MetadataKeys:
    """Typed reads of `<arch>.<key>`; FormatError for one that is missing, of another type or out of range.

    `asked`: every key that was read or looked for. What a file says beyond them, the graph does without
    (`archs.unread_keys`).
    """

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self._metadata = metadata
        self.asked: set[str] = set()
        arch = metadata.get("general.architecture")
        if arch is None or not isinstance(arch.data, str):
            raise FormatError("general.architecture", "the metadata does not name the model's architecture")
        self.arch = arch.data

    def get(self, key: str) -> object:
        """The value as it is, or None."""
        self.asked.add(key)
        value = self._metadata.get(f"{self.arch}.{key}")
        return None if value is None else value.data

    def cover(self, *keys: str) -> None:
        """Count `keys` as asked for: they say something only beside others that were read."""
        self.asked.update(keys)

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def count(self, key: str, default: int | None = None, *, least: int = 1, most: int = MAX_COUNT) -> int:
        """An integer in [least, most]; an array (per layer) is accepted where all its items agree."""
        data = self.get(key)
        if isinstance(data, np.ndarray) and len(data):
            if (data != data[0]).any():
                raise UnsupportedError(
                    f"{self.arch}.{key}",
                    "layers of different sizes",
                    found=sorted(set(data.tolist())),
                    expected="one value",
                )
            data = data[0].item()
        return self._count(key, default if data is None else data, least, most)

    def counts(self, key: str, layers: int, default: int | None = None, *, least: int = 1) -> tuple[int, ...]:
        """An integer for each layer, from one for all or from an array."""
        data = self.get(key)
        if not isinstance(data, np.ndarray):
            return (self.count(key, default, least=least),) * layers
        if len(data) < layers:
            raise FormatError(
                f"{self.arch}.{key}",
                "does not give a size for every layer",
                found=len(data),
                expected=f"{layers} numbers",
            )
        return tuple(self._count(key, item, least, MAX_COUNT) for item in data[:layers].tolist())

    def _count(self, key: str, data: object, least: int, most: int) -> int:
        if data is None:
            raise FormatError(f"{self.arch}.{key}", "the metadata lacks this key", expected="an integer")
        if not isinstance(data, int) or isinstance(data, bool) or not least <= data <= most:
            raise FormatError(
                f"{self.arch}.{key}",
                "bad metadata value",
                found=repr(data),
                expected=f"an integer from {least} to {most}",
            )
        return data

    def number(self, key: str, default: float | None = None, *, least: float = -_MAX_NUMBER) -> float:
        """A finite number >= `least`."""
        data = self.get(key)
        if data is None:
            data = default
        if data is None:
            raise FormatError(f"{self.arch}.{key}", "the metadata lacks this key", expected="a number")
        if not isinstance(data, int | float) or isinstance(data, bool) or not least <= data <= _MAX_NUMBER:
            from_ = "" if least == -_MAX_NUMBER else f" >= {least:g}"
            raise FormatError(
                f"{self.arch}.{key}",
                "bad metadata value",
                found=repr(data),
                expected=f"a finite number{from_}",
            )
        return float(data)

    def optional_number(self, key: str) -> float | None:
        """A number above 0; None where the key is absent or 0, which is how GGUF says that there is none."""
        return self.number(key, 0.0, least=0.0) or None

    def flag(self, key: str, default: bool) -> bool:
        data = self.get(key)
        if data is None:
            return default
        if not isinstance(data, bool):
            raise FormatError(
                f"{self.arch}.{key}", "bad metadata value", found=repr(data), expected="true or false"
            )
        return data

    def flags(self, key: str, layers: int) -> tuple[bool, ...] | None:
        """One flag for each layer, from an array of booleans; None where the key is absent."""
        data = self.get(key)
        if data is None:
            return None
        if not isinstance(data, np.ndarray) or len(data) != layers or not {*data.tolist()} <= {0, 1}:
            raise UnsupportedError(
                f"{self.arch}.{key}",
                "a pattern of this kind",
                found=repr(data)[:80],
                expected=f"{layers} booleans",
            )
        return tuple(bool(item) for item in data)

    def global_numbers(self, key: str, count: int) -> tuple[float, ...]:
        """`count` finite numbers under a key without the architecture's prefix."""
        value = self._metadata.get(key)
        data = None if value is None else value.data
        if (
            not isinstance(data, np.ndarray)
            or data.dtype.kind not in "fiu"
            or len(data) != count
            or not np.isfinite(data).all()
        ):
            raise FormatError(
                key, "bad metadata value", found=repr(data)[:80], expected=f"{count} finite numbers"
            )
        return tuple(float(item) for item in data)

    def text(self, key: str, default: str) -> str:
        data = self.get(key)
        if data is None:
            return default
        if not isinstance(data, str):
            raise FormatError(
                f"{self.arch}.{key}", "bad metadata value", found=repr(data), expected="a string"
            )
        return data

    def first_number(self, *keys: str) -> float:
        """The first of the keys that is there; not negative."""
        present = [key for key in keys if self.has(key)]
        return self.number((present or keys)[0], least=0.0)
