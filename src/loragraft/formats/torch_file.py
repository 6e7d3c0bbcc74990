"""Tensors that torch.save wrote (`adapter_model.bin`, `pytorch_model.bin`), read without running what a pickle may run.

The rules are those of torch.load(weights_only=True): a pickle may name an ordered dictionary, torch's storage types and
the functions that make a tensor of a storage, and nothing else. Here those names stand for records of our own: nothing
of torch is called either. The file is a ZIP archive whose entries are stored as they are: `<name>/data.pkl`, and
`<name>/data/<key>` with the bytes of one storage each. Sources: torch/serialization.py, _weights_only_unpickler.py.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from loragraft.errors import CheckpointError
from loragraft.formats.impostors import HEAD, refuse_impostor
from loragraft.formats.safetensors import DTYPE_BITS, CheckpointTensor
from loragraft.system import mapped

#: The pickle holds names and shapes only; those of the largest models take a few megabytes.
_MAX_PICKLE = 1 << 26
_MAX_AXES = 32
_MAX_ORDER = 100  # bytes of the word little or big
#: Tuples closed one after another, without a tensor made of them.
_MAX_DEPTH = 64
_LOCAL_HEADER = 30
"""Bytes of a ZIP entry's own header, before its name and its extra field, whose lengths are its last two numbers."""

#: torch's storages, and what safetensors calls their elements.
_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: Any
    offset: Any
    shape: Any
    strides: Any


def read_torch_file(path: Path) -> dict[str, CheckpointTensor]:
    """The tensors of a dictionary of tensors, mapped, by name.

    Raises CheckpointError for a file that is malformed, holds anything but tensors, or names what is not on the list.
    """
    mapping = mapped.map_file(path, CheckpointError)
    refuse_impostor(path, mapping[:HEAD], CheckpointError)
    if mapping[8:9] == b"{":
        raise CheckpointError(
            path,
            "is a safetensors file, whatever its name says",
            expected="a file of torch.save",
            hint=f"rename it: mv {path} {path.with_suffix('.safetensors')}",
        )
    if mapping[:4] != b"PK\x03\x04":
        raise CheckpointError(
            path,
            "is not a file of torch 1.6 or newer",
            found=f"a file that begins with {mapping[:4]!r}",
            expected="a ZIP archive",
            hint="load it with the torch that wrote it, and save it as safetensors",
        )
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            root = next((name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl")), None)
            if root is None:
                raise CheckpointError(path, "is not a torch archive", expected="data.pkl in it")
            order = entries.get(f"{root}byteorder")
            if (
                order is not None
                and order.file_size < _MAX_ORDER
                and archive.read(f"{root}byteorder")[:3] == b"big"
            ):
                raise CheckpointError(
                    path, "was written on a big-endian machine", hint="save it as safetensors"
                )
            if entries[f"{root}data.pkl"].file_size > _MAX_PICKLE:
                raise CheckpointError(path, "its data.pkl is too large", expected=f"<= {_MAX_PICKLE} bytes")
            data = archive.read(f"{root}data.pkl")
            _check_opcodes(path, data)
            content = _Unpickler(path, data).load()
    except CheckpointError:
        raise
    except Exception as problem:  # zipfile raises anything for a hostile archive
        raise CheckpointError(path, f"is a broken archive: {problem}") from None
    tensors = {}
    for name, tensor in _named(path, content).items():
        key = tensor.storage.key if isinstance(tensor.storage, _Storage) else ""
        tensors[name] = _placed(path, name, tensor, entries.get(f"{root}data/{key}"), mapping)
    return tensors


#: What torch's pickles are made of.
_OPCODES = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
        *(
            "EMPTY_DICT",
            "EMPTY_TUPLE",
            "EMPTY_LIST",
            "TUPLE",
            "TUPLE1",
            "TUPLE2",
            "TUPLE3",
            "APPEND",
            "APPENDS",
        ),
        *("SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "BINUNICODE"),
        *(
            "SHORT_BINUNICODE",
            "BININT",
            "BININT1",
            "BININT2",
            "LONG1",
            "BINFLOAT",
            "NONE",
            "NEWTRUE",
            "NEWFALSE",
        ),
    )
)
_TUPLES = frozenset(["TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "EMPTY_DICT"])


def _check_opcodes(path: Path, data: bytes) -> None:
    """Raises CheckpointError for what a pickle of weights does not do, and what takes any amount of time or memory: an
    entry of the memo far beyond those before, or containers that hold one another more than once."""
    memo: set[int] = set()
    containers: set[int] = set()
    before, depth = "", 0
    for opcode, argument, _ in pickletools.genops(data):
        depth = depth + 1 if opcode.name.startswith("TUPLE") else 0 if opcode.name == "REDUCE" else depth
        if opcode.name not in _OPCODES or depth > _MAX_DEPTH:
            raise CheckpointError(path, "its data.pkl is not a dictionary of tensors", found=opcode.name)
        if opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(memo) if argument is None else argument
            if place > 2 * len(memo) + 256:
                raise CheckpointError(path, "its data.pkl is broken", found=f"entry {place} of its memo")
            memo.add(place)
            if before in _TUPLES:
                containers.add(place)
        elif opcode.name in ("BINGET", "LONG_BINGET") and argument in containers:
            raise CheckpointError(
                path, "its data.pkl is not a dictionary of tensors", found="a shared container"
            )
        before = opcode.name


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._path = path

    def load(self) -> Any:
        try:
            return super().load()
        except CheckpointError:
            raise
        except Exception as problem:  # a hostile pickle raises anything
            raise CheckpointError(self._path, f"its data.pkl is broken: {problem}") from None

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        raise CheckpointError(
            self._path,
            "refers to a class that weights do not need, which may run code",
            found=f"{module}.{name}"[:120],
            expected="tensors alone",
            hint="get the adapter as safetensors, or load it where you trust it and save_pretrained it again",
        )

    def persistent_load(self, pid: Any) -> Any:
        if (
            not isinstance(pid, tuple)
            or len(pid) < 3
            or pid[0] != "storage"
            or not isinstance(pid[1], _StorageType)
        ):
            raise CheckpointError(self._path, "refers to an unknown kind of storage", found=repr(pid)[:80])
        return _Storage(str(pid[2]), pid[1].dtype)


def _named(path: Path, content: Any) -> dict[str, _Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(path, "holds no dictionary of tensors", found=type(content).__name__)
    for name, tensor in content.items():
        if not isinstance(name, str) or not name.isprintable() or not isinstance(tensor, _Tensor):
            found = f"{str(name)[:60]!r}: {type(tensor).__name__}"
            raise CheckpointError(path, "holds more than tensors", found=found, expected="names and tensors")
    return dict(content)


def _placed(
    path: Path, name: str, tensor: _Tensor, entry: zipfile.ZipInfo | None, mapping: Any
) -> CheckpointTensor:
    """The tensor as a range of the file's bytes, everything checked against the file."""
    subject = f"tensor {name!r}"
    if entry is None or not isinstance(tensor.storage, _Storage):
        raise CheckpointError(path, f"{subject} has no bytes in the archive")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(path, f"the bytes of {subject} are compressed, which torch never does")
    dtype, shape, strides, offset = tensor.storage.dtype, tensor.shape, tensor.strides, tensor.offset
    if not (_is_sizes(shape) and _is_sizes(strides) and _is_sizes((offset,)) and len(shape) == len(strides)):
        raise CheckpointError(path, f"{subject} has a wrong shape", found=repr(shape)[:80])
    expected = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if any(size > 1 and step != wanted for size, step, wanted in zip(shape, strides, expected, strict=True)):
        raise CheckpointError(
            path,
            f"{subject} is not contiguous",
            found=f"strides {strides}",
            expected=f"{expected} for {shape}",
        )
    size = DTYPE_BITS[dtype] // 8
    header = entry.header_offset
    lengths = mapping[header + _LOCAL_HEADER - 4 : header + _LOCAL_HEADER]
    if len(lengths) < 4:
        raise CheckpointError(path, f"the bytes of {subject} lie outside the file")
    start = header + _LOCAL_HEADER + int.from_bytes(lengths[:2], "little")
    start += int.from_bytes(lengths[2:], "little") + offset * size
    nbytes = prod(shape) * size
    if offset * size + nbytes > entry.file_size or start + nbytes > len(mapping):
        raise CheckpointError(
            path,
            f"the bytes of {subject} are too few",
            found=f"{entry.file_size} bytes",
            expected=f"{offset * size + nbytes} for {dtype} {list(shape)}",
        )
    return CheckpointTensor(path, name, dtype, tuple(shape), start, nbytes, mapping)


def _is_sizes(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= _MAX_AXES
        and all(type(number) is int and 0 <= number < 1 << 63 for number in value)
    )
