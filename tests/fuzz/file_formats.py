"""Formats of single files: GGUF, safetensors, torch, importance matrices, JSON, journals."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import hostile_models as hostile
import loragraft as lg
from fuzz.format import Binary
from fuzz.gguf_pieces import mutated_gguf, pieces_of
from fuzz.mutate import any_json, mutated_bytes, mutated_json
from loragraft.errors import CheckpointError, LoragraftError
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.formats.imatrix import Imatrix
from loragraft.formats.jsonfile import load_json
from loragraft.formats.safetensors import SafetensorsFile, SafetensorsSpec, SafetensorsWriter
from loragraft.formats.torch_file import read_torch_file
from loragraft.inference.tokenizer import Tokenizer
from loragraft.streaming.journal import Journal


def _gguf_bytes(folder: Path, name: str) -> bytes:
    small = hostile.model(name)
    if name == "qwen3moe":
        small.metadata["tokenizer.ggml.model"] = Value.string("llama")
        small.metadata["tokenizer.ggml.scores"] = Value.numbers(
            ValueType.FLOAT32, [0.0] * len(hostile.TOKENS)
        )
    return hostile.gguf(folder / "seed.gguf", small).read_bytes()


def _small_gguf_bytes(folder: Path, name: str) -> bytes:
    """Of every kind of value and of tensor, and little of each: what one reads fast."""
    small = hostile.model(name)
    for key, value in small.metadata.items():
        if value.type is ValueType.ARRAY:
            small.metadata[key] = Value(value.type, value.data[:6], value.item)
    small.metadata |= {kind.name: Value(kind, 1) for kind in ValueType if kind not in _OF_MANY}
    inner = Value.numbers(ValueType.UINT8, [1, 2])
    small.metadata["nested"] = Value(ValueType.ARRAY, [inner, Value.strings(["a"])], ValueType.ARRAY)
    small.arrays = {name: array[:2] for name, array in list(small.arrays.items())[:6]}
    return hostile.gguf(folder / "seed.gguf", small).read_bytes()


_OF_MANY = (ValueType.ARRAY, ValueType.STRING)


class Gguf(Binary):
    share = 330
    seed_bytes = staticmethod(_small_gguf_bytes)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "mutant.gguf"
        self.seeds = [self.seed_bytes(folder, name) for name in ("llama", "qwen3moe")]
        self.pieces = [pieces_of(data) for data in self.seeds]

    def mutant(self, rng: random.Random) -> Path:
        if self.interesting and rng.random() < 0.2:
            return super().mutant(rng)
        self.path.write_bytes(mutated_gguf(rng, rng.choice(self.pieces), self.interesting))
        return self.path

    def read(self, path: Path) -> None:
        model = open_gguf(path)
        for tensor in model.tensors.values():
            tensor.rows(0, tensor.n_rows)


class GgufUse(Gguf):
    """The same files, through every verb."""

    share = 8
    seed_bytes = staticmethod(_gguf_bytes)

    def read(self, path: Path) -> None:
        verbs = [
            lambda: json.dumps(lg.inspect(path).as_json(), allow_nan=False),
            lambda: lg.quantize(path, self.folder / "out", "Q4_K_M", threads=1),
            lambda: lg.split(path, self.folder / "part"),
            lambda: list(lg.load(path, threads=1).generate("the", max_tokens=2, temperature=0)),
            lambda: lg.export(path, self.folder / "exported", threads=1),
            lambda: lg.check(path),
        ]
        for verb in verbs:
            with suppress(LoragraftError):
                verb()
        shutil.rmtree(self.folder / "exported", ignore_errors=True)
        left = [name for name in os.listdir(self.folder) if "partial" in name]
        assert not left, f"left behind: {left}"
        open_gguf(path)


class GgufTokenizer(Gguf):
    share = 60
    seed_bytes = staticmethod(_gguf_bytes)

    def read(self, path: Path) -> None:
        tokenizer = Tokenizer(open_gguf(path).metadata, path)
        ids = tokenizer.encode("the thing in <|end|> é", parse_special=True)
        tokenizer.decode(ids, show_special=True)


_KINDS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "U8": "u1", "BOOL": "u1", "F8_E4M3": "u1"}


class Safetensors(Binary):
    share = 250

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        specs = [SafetensorsSpec(f"model.layers.{i}.a", kind, (2, 2 + i)) for i, kind in enumerate(_KINDS)]
        with SafetensorsWriter(folder / "seed", specs) as writer:
            for index, (spec, kind) in enumerate(zip(specs, _KINDS.values(), strict=True)):
                writer.write(spec.name, 0, np.zeros((2, 2 + index), kind))
        _, adapter = hostile.checkpoint(folder / "model", hostile.checkpoint_jsons())
        files = (folder / "seed", adapter / "adapter_model.safetensors")
        self.seeds = [path.read_bytes() for path in files]

    def changed(self, rng: random.Random, data: bytes, pool: list[bytes]) -> bytes:
        length = int.from_bytes(data[:8], "little")
        if rng.random() < 0.5 and length < len(data):
            try:
                header = json.loads(data[8 : 8 + length])
            except ValueError:
                return mutated_bytes(rng, data, pool)
            text = json.dumps(mutated_json(rng, header)).encode()
            return len(text).to_bytes(8, "little") + text + data[8 + length :]
        start = mutated_bytes(rng, data[: 8 + length], pool) if rng.random() < 0.8 else data[: 8 + length]
        return start + data[8 + length :][: rng.choice([None, None, 0, 1, 100])]

    def read(self, path: Path) -> None:
        for tensor in SafetensorsFile.open(path).tensors.values():
            tensor.data()


class Torch(Binary):
    share = 60

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seeds = [_torch_bytes()]

    def changed(self, rng: random.Random, data: bytes, pool: list[bytes]) -> bytes:
        if rng.random() < 0.4:
            return mutated_bytes(rng, data, pool)
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(self.seeds[0])) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                new.writestr(_undated(name), mutated_bytes(rng, content) if name.endswith("pkl") else content)
        return out.getvalue()

    def read(self, path: Path) -> None:
        for tensor in read_torch_file(path).values():
            tensor.data()


def _undated(name: str) -> zipfile.ZipInfo:
    """The same bytes at any time."""
    return zipfile.ZipInfo(name)


class _Rebuilt:
    """A tensor of the storage `key`."""

    def __init__(self, key: str) -> None:
        self.key = key


class _TorchPickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes references to storages as torch does."""

    def save(self, obj: Any, *rest: Any) -> None:
        if isinstance(obj, _Rebuilt):
            self.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
            self.save("storage")
            self.write(b"ctorch\nFloatStorage\n")
            for part in (obj.key, "cpu", 4):
                self.save(part)
            self.write(b"tQ")
            for part in (0, (2, 2), (2, 1), False, OrderedDict()):
                self.save(part)
            self.write(b"tR")
        else:
            super().save(obj, *rest)


def _torch_bytes() -> bytes:
    pickled, out = io.BytesIO(), io.BytesIO()
    _TorchPickler(pickled, 2).dump({"a.weight": _Rebuilt("0"), "b.weight": _Rebuilt("1")})
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(_undated("m/data.pkl"), pickled.getvalue())
        for key in "01":
            file.writestr(_undated(f"m/data/{key}"), np.arange(4, dtype="<f4").tobytes())
        file.writestr(_undated("m/byteorder"), "little")
    return out.getvalue()


class ImatrixFile(Binary):
    share = 60

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        names = [f"blk.{i}.attn_q.weight" for i in range(3)]
        sums = {name: np.ones((1, 32), np.float32) for name in names}
        matrix = Imatrix(sums, {name: np.array([7]) for name in names}, ["text"], 3, 8)
        matrix.save_gguf(folder / "seed.imatrix")
        legacy = struct.pack("<i", len(names))
        for name in names:
            legacy += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 3, 32) + bytes(128)
        self.seeds = [(folder / "seed.imatrix").read_bytes(), legacy + struct.pack("<ii", 3, 4) + b"text"]

    def read(self, path: Path) -> None:
        matrix = Imatrix.load(path)
        with np.errstate(all="ignore"):
            assert matrix.entries.keys() == matrix.sums.keys()


class JsonFile(Binary):
    share = 60

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        odd = b'{"a": [1, {"b": "\\ud83d\\ude00"}], "c": 1e5}'
        self.seeds = [json.dumps(hostile.checkpoint_jsons()).encode(), odd]

    def changed(self, rng: random.Random, data: bytes, pool: list[bytes]) -> bytes:
        if rng.random() < 0.5:
            return mutated_bytes(rng, data, pool)
        return json.dumps(any_json(rng)).encode()

    def read(self, path: Path) -> None:
        load_json(path, CheckpointError)


class JournalFile(Binary):
    share = 40

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        journal = Journal(folder / "seed", "plan", resume=False)
        for row in range(5):
            journal.add("blk.0.attn_q.weight", row * 8, row * 8 + 8)
        journal.close()
        self.seeds = [(folder / "seed").read_bytes()]

    def read(self, path: Path) -> None:
        found = Journal(path, "plan", resume=True)
        found.close()
        for name, spans in found.done.items():
            assert name == "blk.0.attn_q.weight"
            assert all(stop - start == 8 and start in range(0, 40, 8) for start, stop in spans), spans
