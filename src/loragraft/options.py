"""The options of `quantize` and `merge`, by llama-quantize's names, and how they are written on a command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loragraft.errors import LoragraftError
from loragraft.formats.gguf.values import Value
from loragraft.formats.split import SplitLimits
from loragraft.quants.types import BY_NAME, QuantType, by_name

#: Types that hold weights; the integers and F64 of the table do not.
WEIGHT_TYPES = tuple(name for name in BY_NAME if name not in ("I8", "I16", "I32", "I64", "F64"))


@dataclass(frozen=True)
class QuantizeOptions:
    """What to do beside the plain target; every default is "as usual"."""

    allow_requantize: bool = False
    """Let tensors that are already quantized be quantized to another type."""
    keep_quantized: bool = False
    """Copy tensors that are already quantized, where no adapter changes them, whatever the target."""
    leave_output_tensor: bool = False
    """Keep output.weight as it is."""
    pure: bool = False
    """Every tensor in the target's default type, no mix."""
    imatrix: Path | None = None
    """An importance matrix, GGUF or legacy .dat."""
    include_weights: Sequence[str] = ()
    """Use only the entries of the importance matrix whose names contain one of these."""
    exclude_weights: Sequence[str] = ()
    """Leave out the entries whose names contain one of these."""
    output_tensor_type: QuantType | None = None
    token_embedding_type: QuantType | None = None
    tensor_types: Sequence[tuple[str, QuantType]] = ()
    """(regular expression, type): the first that matches a tensor's name decides."""
    nvfp4_naive: bool = False
    """Quantize to NVFP4 as ggml does: no scale per tensor, no search for the block scales."""
    prune_layers: frozenset[int] = frozenset()
    """Blocks to leave out; those after them are renumbered."""
    override_kv: Mapping[str, Value] = field(default_factory=dict)
    """Metadata to set in the output, and to use in choosing the types."""
    keep_split: bool = False
    """Write as many files as the input has, each with the same tensors."""
    split: SplitLimits | None = None
    """Write several files, each within these limits."""
    max_memory: int | None = None
    """Bytes that the threads' buffers may take together."""
    resume: bool = False
    """Continue a run that was killed."""
    verify: bool = False
    """Read the output back and measure each tensor's error."""


def weight_type(text: str) -> QuantType:
    """A tensor type that weights can have, by ggml's name in any case."""
    found = by_name(text) if text.upper() in WEIGHT_TYPES else None
    if found is None:
        raise LoragraftError(text, "no such type of weights", expected="one of " + ", ".join(WEIGHT_TYPES))
    return found


def tensor_type(text: str) -> tuple[str, QuantType]:
    """`REGEX=TYPE`; as in llama-quantize, the expression is lowercased and may not contain `=`."""
    pattern, sign, kind = text.partition("=")
    if not sign or not pattern or not kind:
        raise LoragraftError(text, "not a tensor type", expected="REGEX=TYPE, for example attn_v=q8_0")
    try:
        re.compile(pattern.lower())
    except re.error as problem:
        raise LoragraftError(text, f"{pattern!r} is no regular expression: {problem}") from None
    return pattern.lower(), weight_type(kind)


def tensor_type_file(path: Path) -> list[tuple[str, QuantType]]:
    """A file of `REGEX=TYPE`, separated by spaces or newlines."""
    try:
        words = path.read_text("utf-8").split()
    except OSError as problem:
        raise LoragraftError(path, f"cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise LoragraftError(path, "is not a text file", expected="REGEX=TYPE, one a line") from None
    return [tensor_type(word) for word in words]


def layers(text: str) -> frozenset[int]:
    """`0,3,4`: numbers of blocks."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise LoragraftError(text, "not a list of layers", expected="numbers, for example 20,21,22")
    return frozenset(int(part) for part in parts)


_OVERRIDE = re.compile(r"(?P<key>[^=]{1,127})=(?P<kind>int|float|bool|str):(?P<value>.*)", re.DOTALL)
#: llama.cpp's fixed buffer for a string, less its terminator.
MAX_OVERRIDE_STRING = 127


def override(text: str) -> tuple[str, Value]:
    """`KEY=TYPE:VALUE` with TYPE one of int, float, bool, str. As in llama-quantize an int becomes UINT32 (its
    absolute value), a float FLOAT32."""
    match = _OVERRIDE.fullmatch(text)
    problem = LoragraftError(
        text, "not an override", expected="KEY=TYPE:VALUE, TYPE one of int, float, bool, str"
    )
    if match is None:
        raise problem
    kind, value = match["kind"], match["value"]
    try:
        if kind == "int":
            return match["key"], Value.u32(abs(int(value)) & 0xFFFFFFFF)
        if kind == "float":
            return match["key"], Value.f32(float(value))
    except ValueError:
        raise problem from None
    if kind == "bool":
        if value not in ("true", "false"):
            raise problem
        return match["key"], Value.boolean(value == "true")
    if len(value.encode()) > MAX_OVERRIDE_STRING:
        raise LoragraftError(text, "the string is too long", expected=f"at most {MAX_OVERRIDE_STRING} bytes")
    return match["key"], Value.string(value)
