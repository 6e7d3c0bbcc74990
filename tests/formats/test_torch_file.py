"""Pickled weights: what torch wrote is read, and nothing in a pickle runs."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from intake_table import shows
from loragraft.errors import CheckpointError
from loragraft.formats.torch_file import read_torch_file
from paths import data

WRITTEN = data("intake/pickled") / "adapter_model.bin"


def test_what_torch_wrote() -> None:
    found = read_torch_file(WRITTEN)
    oracle = load_file(data("intake/02-language-model-prefix") / "plain" / "adapter_model.safetensors")
    assert found.keys() == oracle.keys()
    for name, array in oracle.items():
        expected = array.astype("f2") if "q_proj" in name else array
        assert found[name].dtype == {"f2": "F16", "f4": "F32"}[expected.dtype.str[1:]]
        np.testing.assert_array_equal(found[name].array(), expected)


class Global:
    """Pickled as the name of something in a module."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    def __init__(self, function: Global, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments


class Stored:
    """Pickled as a reference to a storage."""

    def __init__(self, key: str, kind: str = "FloatStorage") -> None:
        self.pid = ("storage", Global("torch", kind), key, "cpu", 4)


class Pickler(pickle._Pickler):
    """Writes what torch's would, or what it never would."""

    def save(self, obj: Any, *rest: Any) -> None:
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, Stored):
            self.save(obj.pid)
            self.write(pickle.BINPERSID)
        else:
            super().save(obj, *rest)


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


def tensor(storage: Any = None, offset: Any = 0, shape: Any = (2, 2), strides: Any = (2, 1)) -> Call:
    return Call(REBUILD, storage or Stored("0"), offset, shape, strides, False, OrderedDict())


def archive(path: Path, content: Any, *, method: int = zipfile.ZIP_STORED, size: int = 16) -> Path:
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(content)
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("a/data.pkl", buffer.getvalue())
        file.writestr("a/data/0", np.arange(size // 4, dtype="<f4").tobytes())
    return path


def test_a_crafted_one_is_read(tmp_path: Path) -> None:
    found = read_torch_file(archive(tmp_path / "m.bin", {"w": tensor(), "v": tensor(None, 1, (3,), (1,))}))
    assert found["w"].array().tolist() == [[0, 1], [2, 3]]
    assert found["v"].array().tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            {"w": Call(Global("os", "system"), "touch ran")},
            "refers to a class that weights do not need.*os.system",
        ),
        ({"w": Call(Global("builtins", "eval"), "1")}, "builtins.eval"),
        ({"w": Global("torch", "load")}, "torch.load"),
        ({"w": 1}, "holds more than tensors"),
        ([tensor()], "holds no dictionary"),
        ({"w\n": tensor()}, "holds more than tensors"),
        ({"w": tensor(Stored("9"))}, "has no bytes in the archive"),
        ({"w": tensor("0")}, "has no bytes"),
        ({"w": tensor(None, 0, (2, 3), (3, 1))}, "are too few: found 16 bytes, expected 24"),
        ({"w": tensor(None, 3, (2,), (1,))}, "are too few"),
        ({"w": tensor(None, -1)}, "has a wrong shape"),
        ({"w": tensor(None, 0, (1 << 62, 1 << 62), (1, 1))}, "is not contiguous|too few"),
        ({"w": tensor(None, 0, (2, 2), (1, 2))}, "is not contiguous: found strides"),
        ({"w": tensor(None, 0, [2, 2])}, "has a wrong shape"),
        ({"w": tensor(Stored("0", "ComplexFloatStorage"))}, "ComplexFloatStorage"),
    ],
)
@shows("pickles", "crafted archives", "refused; nothing of them is run")
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=says):
        read_torch_file(archive(Path("m.bin"), content))
    assert not Path("ran").exists()


def test_broken_archives(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.bin", {"w": tensor()}, method=zipfile.ZIP_DEFLATED, size=4096)
    with pytest.raises(CheckpointError, match="are compressed"):
        read_torch_file(path)
    whole = WRITTEN.read_bytes()
    for name, content, says in (
        ("old", b"\x80\x02\x8a\nl\xfc\x9c", "is not a file of torch 1.6"),
        ("cut", whole[: len(whole) // 2], "broken archive"),
        ("no-pickle", None, "is not a torch archive"),
    ):
        path = tmp_path / name
        if content is None:
            with zipfile.ZipFile(path, "w") as file:
                file.writestr("a/version", "3")
        else:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=says):
            read_torch_file(path)


@shows("pickles", "changed bytes", "read or refused")
def test_any_change_of_a_byte_is_read_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    whole = archive(tmp_path / "m.bin", {"w": tensor()}).read_bytes()
    for _ in range(300):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), 2).tolist():
            changed[at] = int(rng.integers(256))
        (tmp_path / "x.bin").write_bytes(changed)
        try:
            for one in read_torch_file(tmp_path / "x.bin").values():
                assert len(one.data()) == one.nbytes
        except CheckpointError:
            pass
