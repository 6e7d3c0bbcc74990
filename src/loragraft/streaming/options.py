"""The options of `quantize` and `merge`, by llama-quantize's names, and how they are written on a command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from loragraft.errors import LoragraftError, check_number
from loragraft.formats.gguf.values import Value
from loragraft.formats.split import SplitLimits
from loragraft.formats.textfile import decoded, read_file
from loragraft.patterns import PatternError, searcher
from loragraft.quants.types import BY_NAME, QuantType, by_name
from loragraft.system.remote.paths import as_path

if TYPE_CHECKING:
    from loragraft.formats.imatrix import Imatrix

#: Types that hold weights; the integers and F64 of the table do not.
WEIGHT_TYPES = tuple(name for name, kind in BY_NAME.items() if kind.holds_weights)
#: Bytes of a file of rules, each of which is tried on each tensor.
MAX_RULES = 1 << 18


GivenType = str | QuantType
"""A tensor type, or ggml's name for it in any case."""
GivenValue = Value | str | bool | int | float
_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Given(Generic[_In, _Out]):
    """A field of a dataclass that may be given in several forms: `convert` makes the one that is kept."""

    def __init__(self, convert: Callable[[_In], _Out], default: _In) -> None:
        self._convert, self._default = convert, default

    def __set_name__(self, owner: type, name: str) -> None:
        self._place = f"_{name}"

    def __get__(self, instance: object, owner: type) -> _Out:
        if instance is None:
            return self._default  # type: ignore[return-value]  # a dataclass asks its class for the default
        kept: _Out = getattr(instance, self._place)
        return kept

    def __set__(self, instance: object, given: _In) -> None:
        object.__setattr__(instance, self._place, self._convert(given))  # the dataclass is frozen


def _words(given: Iterable[str]) -> tuple[str, ...]:
    """A lone string is one word, not its letters."""
    return (given,) if isinstance(given, str) else tuple(given)


def _matrix(given: str | PathLike[str] | Imatrix | None) -> Path | Imatrix | None:
    return as_path(given) if isinstance(given, str | PathLike) else given


def _type(given: GivenType | None) -> QuantType | None:
    return weight_type(given) if isinstance(given, str) else given


def _paths(given: str | PathLike[str] | Iterable[str | PathLike[str]]) -> tuple[Path, ...]:
    return tuple(map(as_path, [given] if isinstance(given, str | PathLike) else given))


def _rules(given: Iterable[str | tuple[str, GivenType]]) -> tuple[tuple[str, QuantType], ...]:
    listed = [given] if isinstance(given, str) else given
    return tuple(tensor_type(rule) if isinstance(rule, str) else _rule(rule) for rule in listed)


def _rule(rule: tuple[str, GivenType]) -> tuple[str, QuantType]:
    try:
        pattern, kind = rule
    except (TypeError, ValueError):
        raise LoragraftError(
            "tensor_types", "not a rule", found=repr(rule)[:80], expected="REGEX=TYPE"
        ) from None
    return tensor_type(f"{pattern}={kind if isinstance(kind, str) else kind.name}")


def _layers(given: Iterable[int]) -> frozenset[int]:
    layers = frozenset(given)
    for layer in layers:
        check_number("prune_layers", layer, int)
    return layers


def _values(given: Mapping[str, GivenValue] | None) -> Mapping[str, Value]:
    return {key: _value(key, value) for key, value in (given or {}).items()}


def _value(key: str, given: GivenValue) -> Value:
    """A plain value as `override` would write it."""
    if not isinstance(key, str):
        raise LoragraftError("override_kv", "a key is not text", found=repr(key)[:80])
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


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """What to do beside the plain target; every default is "as usual".

    Types may be given by name, paths as strings, overrides as plain values: the fields hold what was meant. Raises
    LoragraftError for a value that means nothing.
    """

    allow_requantize: bool = False
    """Let tensors that are already quantized be quantized to another type."""
    keep_quantized: bool = False
    """Copy tensors that are already quantized, where no adapter changes them, whatever the target."""
    leave_output_tensor: bool = False
    """Keep output.weight as it is."""
    pure: bool = False
    """Every tensor in the target's default type, no mix."""
    imatrix: Given[str | PathLike[str] | Imatrix | None, Path | Imatrix | None] = Given(_matrix, None)
    """An importance matrix: GGUF or legacy .dat, or what `imatrix` has collected."""
    include_weights: Given[Iterable[str], tuple[str, ...]] = Given(_words, ())
    """Use only the entries of the importance matrix whose names contain one of these."""
    exclude_weights: Given[Iterable[str], tuple[str, ...]] = Given(_words, ())
    """Leave out the entries whose names contain one of these."""
    calibrate: Given[Iterable[str | PathLike[str]], tuple[Path, ...]] = Given(_paths, ())
    """Files of text to round on, with error feedback (`streaming.calibrated`)."""
    calibrate_windows: int = 64
    """How many windows of the text."""
    calibrate_device: str = "cpu"
    """Where to round: "cpu", or a GPU by torch and Triton, as "cuda" or "cuda:1" (`inference.devices`)."""
    general: Given[Iterable[str | PathLike[str]], tuple[Path, ...]] = Given(_paths, ())
    """Files of other text: what rounding does to it is told beside."""
    output_tensor_type: Given[GivenType | None, QuantType | None] = Given(_type, None)
    token_embedding_type: Given[GivenType | None, QuantType | None] = Given(_type, None)
    tensor_types: Given[Iterable[str | tuple[str, GivenType]], tuple[tuple[str, QuantType], ...]] = Given(
        _rules, ()
    )
    """(regular expression, type): the first that matches a tensor's name decides. Given as such or as `REGEX=TYPE`."""
    nvfp4_naive: bool = False
    """Quantize to NVFP4 as ggml does: no scale per tensor, no search for the block scales."""
    prune_layers: Given[Iterable[int], frozenset[int]] = Given(_layers, ())
    """Blocks to leave out; those after them are renumbered."""
    override_kv: Given[Mapping[str, GivenValue] | None, Mapping[str, Value]] = Given(_values, None)
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

    def __post_init__(self) -> None:
        if self.max_memory is not None:
            check_number("max_memory", self.max_memory, int, least=1)
        check_number("calibrate_windows", self.calibrate_windows, int, least=1)
        if self.general and not self.calibrate:
            raise LoragraftError("general", "needs a calibration", hint="give --calibrate FILE too")
        if self.calibrate_device != "cpu" and not self.calibrate:
            raise LoragraftError("calibrate_device", "needs a calibration", hint="give --calibrate FILE too")
        if self.calibrate and self.imatrix is not None:
            raise LoragraftError(
                "calibrate", "cannot be used with an importance matrix", hint="give one of the two"
            )

    @property
    def files(self) -> list[Path]:
        """The files that they name."""
        return [*([self.imatrix] if isinstance(self.imatrix, Path) else []), *self.calibrate, *self.general]


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
        searcher(pattern.lower())
    except PatternError as problem:
        raise LoragraftError(text, f"{pattern!r} is not a valid regular expression: {problem}") from None
    return pattern.lower(), weight_type(kind)


def tensor_type_file(path: Path) -> list[tuple[str, QuantType]]:
    """A file of `REGEX=TYPE`, separated by spaces or newlines."""
    words = decoded(read_file(path, MAX_RULES), path).split()
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
