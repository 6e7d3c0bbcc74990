"""The WGSL sources in `kernels/`, put together: what every kernel sees, the type of the weights, the kernel itself."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

_PARTS = {
    "linear": ("common", "blocks"),
    "embed": ("common", "blocks"),
    "store": ("common", "pages"),
    "copy": ("common", "pages"),
    "attention": ("common", "pages"),
    "scan": ("common", "states"),
    "convolve": ("common", "states", "taps"),
    "keep": ("common", "states", "taps"),
}
_DATA = {"blocks": "read", "pages": "write", "states": "write"}
_FIELD = re.compile(r"^\s*(\w+): (u32|f32),", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Shader:
    """One kernel. `data`: how it binds what it works on besides values: weights "read", what sequences keep "write", or
    None. `fields`: the names of its parameters and whether they are floats, in order."""

    name: str
    source: str
    data: str | None
    fields: tuple[tuple[str, bool], ...]

    def parameters(self, values: Mapping[str, int | float]) -> bytes:
        """The parameters as the kernel reads them. Every one of them must be given, and no other."""
        if values.keys() != {name for name, _ in self.fields}:
            raise KeyError(f"{self.name}: {sorted(values.keys() ^ {name for name, _ in self.fields})}")
        return struct.pack(
            "<" + "".join("f" if is_float else "I" for _, is_float in self.fields),
            *(values[name] for name, _ in self.fields),
        )


@cache
def shader(name: str, kind: str | None = None, rows: int | None = None) -> Shader:
    """The kernel `name`, for weights of the type `kind`, `rows` rows at a time, where it has to do with them."""
    parts = [_text(part) for part in _PARTS.get(name, ("common",))]
    if kind is not None:
        parts.append(octets()[kind])
    if rows is not None:
        parts.append(f"const ROWS = {rows}u;\n")
    source = "\n".join([*parts, unrolled(_text(name), rows or 1)])
    fields = _FIELD.findall(source[source.index("struct Params") : source.index("@group(1)")])
    data = next((_DATA[part] for part in _PARTS.get(name, ()) if part in _DATA), None)
    return Shader(name, source, data, tuple((field, type_ == "f32") for field, type_ in fields))


def unrolled(source: str, rows: int) -> str:
    """Lines that end in //@, once for every @r below `rows` and @c below 2, where they name these."""
    lines: list[str] = []
    for line in source.splitlines():
        body, mark, _ = line.partition(" //@")
        if not mark:
            lines.append(line)
            continue
        for c in range(2 if "@c" in body else 1):
            lines += (
                body.replace("@c", str(c)).replace("@r", str(r)) for r in range(rows if "@r" in body else 1)
            )
    return "\n".join(lines)


@cache
def octets() -> dict[str, str]:
    """By type, the source that dequantizes eight of its weights."""
    _, *sections = re.split(r"^//: ", _text("octets"), flags=re.MULTILINE)
    split = (section.split("\n", 1) for section in sections)
    return {name.strip(): source for name, source in split}


@cache
def _text(name: str) -> str:
    return resources.files(__package__).joinpath("kernels", f"{name}.wgsl").read_text()
