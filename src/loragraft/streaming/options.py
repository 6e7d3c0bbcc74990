"""The options of `quantize` and `merge`, by llama-quantize's names, and how they are written on a command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from loragraft.errors import LoragraftError
from loragraft.formats.gguf.values import Value
from loragraft.formats.split import SplitLimits
from loragraft.quants.types import BY_NAME, QuantType, by_name

if TYPE_CHECKING:
    from loragraft.formats.imatrix import Imatrix

#: Types that hold weights; the integers and F64 of the table do not.
WEIGHT_TYPES = tuple(name for name in BY_NAME if name not in ("I8", "I16", "I32", "I64", "F64"))


@dataclass(frozen=True, init=False)
class QuantizeOptions:
    """What to do beside the plain target; every default is "as usual".

    Types may be given by name, paths as strings, overrides as plain values: the fields hold what was meant. Raises
    LoragraftError for a value that means nothing.
    """

    allow_requantize: bool
    """Let tensors that are already quantized be quantized to another type."""
    keep_quantized: bool
    """Copy tensors that are already quantized, where no adapter changes them, whatever the target."""
    leave_output_tensor: bool
    """Keep output.weight as it is."""
    pure: bool
    """Every tensor in the target's default type, no mix."""
    imatrix: Path | Imatrix | None
    """An importance matrix: GGUF or legacy .dat, or what `imatrix` has collected."""
    include_weights: tuple[str, ...]
    """Use only the entries of the importance matrix whose names contain one of these."""
    exclude_weights: tuple[str, ...]
    """Leave out the entries whose names contain one of these."""
    output_tensor_type: QuantType | None
    token_embedding_type: QuantType | None
    tensor_types: tuple[tuple[str, QuantType], ...]
    """(regular expression, type): the first that matches a tensor's name decides. Given as such or as `REGEX=TYPE`."""
    nvfp4_naive: bool
    """Quantize to NVFP4 as ggml does: no scale per tensor, no search for the block scales."""
    prune_layers: frozenset[int]
    """Blocks to leave out; those after them are renumbered."""
    override_kv: Mapping[str, Value]
    """Metadata to set in the output, and to use in choosing the types."""
    keep_split: bool
    """Write as many files as the input has, each with the same tensors."""
    split: SplitLimits | None
    """Write several files, each within these limits."""
    max_memory: int | None
    """Bytes that the threads' buffers may take together."""
    resume: bool
    """Continue a run that was killed."""
    verify: bool
    """Read the output back and measure each tensor's error."""

    def __init__(
        self,
        *,
        allow_requantize: bool = False,
        keep_quantized: bool = False,
        leave_output_tensor: bool = False,
        pure: bool = False,
        imatrix: str | PathLike[str] | Imatrix | None = None,
        include_weights: Iterable[str] = (),
        exclude_weights: Iterable[str] = (),
        output_tensor_type: str | QuantType | None = None,
        token_embedding_type: str | QuantType | None = None,
        tensor_types: Iterable[str | tuple[str, str | QuantType]] = (),
        nvfp4_naive: bool = False,
        prune_layers: Iterable[int] = (),
        override_kv: Mapping[str, Value | str | bool | int | float] | None = None,
        keep_split: bool = False,
        split: SplitLimits | None = None,
        max_memory: int | None = None,
        resume: bool = False,
        verify: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        if isinstance(imatrix, str | PathLike):
            given["imatrix"] = Path(imatrix)
        given["include_weights"] = _words(include_weights)
        given["exclude_weights"] = _words(exclude_weights)
        given["output_tensor_type"] = _type(output_tensor_type)
        given["token_embedding_type"] = _type(token_embedding_type)
        rules = [tensor_types] if isinstance(tensor_types, str) else tensor_types
        given["tensor_types"] = tuple(
            tensor_type(rule) if isinstance(rule, str) else _rule(*rule) for rule in rules
        )
        given["prune_layers"] = frozenset(prune_layers)
        given["override_kv"] = {key: _value(key, value) for key, value in (override_kv or {}).items()}
        for name, value in given.items():
            object.__setattr__(self, name, value)

    @property
    def files(self) -> list[Path]:
        """The files that they name."""
        return [self.imatrix] if isinstance(self.imatrix, Path) else []


def _words(given: Iterable[str]) -> tuple[str, ...]:
    """A lone string is one word, not its letters."""
    return (given,) if isinstance(given, str) else tuple(given)


def _type(given: str | QuantType | None) -> QuantType | None:
    return weight_type(given) if isinstance(given, str) else given


def _rule(pattern: str, kind: str | QuantType) -> tuple[str, QuantType]:
    return tensor_type(f"{pattern}={kind if isinstance(kind, str) else kind.name}")


def _value(key: str, given: Value | str | bool | int | float) -> Value:
    """A plain value as `override` would write it."""
    if isinstance(given, Value):
        return given
    if isinstance(given, bool):
        return Value.boolean(given)
    if isinstance(given, str):
        return Value.string(given)
    if isinstance(given, int) and 0 <= given < 2**32:
        return Value.u32(given)
    if isinstance(given, float):
        return Value.f32(given)
    raise LoragraftError(
        key, "not a value for metadata", found=repr(given), expected="a string, a truth value or a number"
    )


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
