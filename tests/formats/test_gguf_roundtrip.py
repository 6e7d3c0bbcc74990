"""Files of llama.cpp's own tools, read and written again, come out with the same bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.gguf.values import QUANTIZATION_VERSION, TokenType, ValueType
from loragraft.formats.gguf.writer import GGUFLayout, GGUFWriter, TensorSpec
from paths import data


def specs(file: GGUFFile) -> list[TensorSpec]:
    return [TensorSpec(tensor.name, tensor.shape, tensor.type) for tensor in file.tensors.values()]


@pytest.mark.parametrize(
    "name",
    [
        "gguf/llama-kjv.merged-f16.gguf",
        "gguf/odd-f16.gguf",
        "gguf/llama-kjv.merged.imatrix.gguf",
        "gguf/starcoder2-bias-f16.gguf",
    ],
)
def test_rewriting_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    source = data(name)
    file = GGUFFile.open(source)
    with GGUFWriter(tmp_path / "copy.gguf", file.metadata, specs(file), inputs=[source]) as writer:
        for tensor in reversed(file.tensors.values()):
            content = tensor.data()
            half = content.shape[0] // 2
            writer.write(tensor.name, half * tensor.row_bytes, content[half:])
            writer.write(tensor.name, 0, content[:half])
    assert (tmp_path / "copy.gguf").read_bytes() == source.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["copy.gguf"]


def test_layout_is_the_files_own() -> None:
    with GGUFFile.open(data("gguf/llama-kjv.merged-f16.gguf")) as file:
        layout = GGUFLayout.plan(file.metadata, specs(file))
        assert layout.offsets == {tensor.name: tensor.offset for tensor in file.tensors.values()}
        assert len(layout.header) == file.data_start
        assert layout.size == file.path.stat().st_size


def test_tensors_have_the_golden_types_shapes_and_bytes() -> None:
    golden = json.loads(data("golden/convert.json").read_text())["llama-kjv.merged-f16"]["tensors"]
    model = open_gguf(data("gguf/llama-kjv.merged-f16.gguf"))
    assert model.arch == "llama"
    found = {}
    for name, tensor in model.tensors.items():
        content = tensor.rows(0, tensor.n_rows)
        assert content.dtype == np.uint8
        assert not content.flags.writeable
        found[name] = {
            "type": tensor.type.name,
            "shape": list(reversed(tensor.shape)),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    assert found.keys() == golden.keys()
    for name, facts in golden.items():
        assert {key: found[name][key] for key in found[name]} == {key: facts[key] for key in found[name]}


def test_the_enums_are_those_of_the_gguf_package() -> None:
    assert {kind.name: kind.value for kind in ValueType} == {
        kind.name: kind.value for kind in gguf.GGUFValueType
    }
    assert {kind.name: kind.value for kind in TokenType} == {kind.name: kind.value for kind in gguf.TokenType}
    assert QUANTIZATION_VERSION == gguf.GGML_QUANT_VERSION
