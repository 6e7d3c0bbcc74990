"""`QuantizeOptions` as a library user writes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import loragraft as lg
from loragraft.formats.gguf.values import Value
from loragraft.formats.imatrix import Imatrix
from loragraft.quants.types import BY_NAME
from loragraft.streaming.options import QuantizeOptions
from paths import data


def test_names_paths_and_plain_values_become_what_they_mean() -> None:
    options = QuantizeOptions(
        imatrix="matrix.gguf",
        include_weights="blk.0",
        output_tensor_type="q8_0",
        tensor_types=["ATTN_V=q6_k", ("ffn", "Q5_K"), ("output", BY_NAME["Q4_0"])],
        prune_layers=[2, 1, 2],
        override_kv={"a": "text", "b": 7, "c": 0.5, "d": True, "e": Value.i32(-1)},
    )
    assert options.imatrix == Path("matrix.gguf")
    assert options.include_weights == ("blk.0",)
    assert options.output_tensor_type is BY_NAME["Q8_0"]
    assert options.tensor_types == (
        ("attn_v", BY_NAME["Q6_K"]),
        ("ffn", BY_NAME["Q5_K"]),
        ("output", BY_NAME["Q4_0"]),
    )
    assert options.prune_layers == {1, 2}
    assert options.override_kv == {
        "a": Value.string("text"),
        "b": Value.u32(7),
        "c": Value.f32(0.5),
        "d": Value.boolean(True),
        "e": Value.i32(-1),
    }
    assert QuantizeOptions(tensor_types="attn_v=q8_0").tensor_types == (("attn_v", BY_NAME["Q8_0"]),)
    assert replace(options, pure=True) == QuantizeOptions(
        **{name: getattr(options, name) for name in options.__dataclass_fields__} | {"pure": True}
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"output_tensor_type": "Q9"}, "no such type of weights"),
        ({"tensor_types": ["attn_v"]}, "not a tensor type: expected REGEX=TYPE"),
        ({"tensor_types": [("(", "Q8_0")]}, "not a valid regular expression"),
        ({"override_kv": {"key": -1}}, "key: not a value for metadata: found -1"),
        ({"override_kv": {"key": [1]}}, "not a value for metadata"),
    ],
)
def test_what_means_nothing_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(lg.LoragraftError, match=message):
        QuantizeOptions(**wrong)  # type: ignore[arg-type]


def test_a_matrix_in_memory_weighs_as_its_file_does(tmp_path: Path) -> None:
    source, path = data("gguf/llama-kjv.merged-f16.gguf"), data("gguf/llama-kjv.merged.imatrix.gguf")
    lg.quantize(source, tmp_path / "file.gguf", "IQ4_XS", options=QuantizeOptions(imatrix=path))
    lg.quantize(source, tmp_path / "memory.gguf", 30, options=QuantizeOptions(imatrix=Imatrix.load(path)))
    found = [
        {name: bytes(tensor.rows(0, tensor.n_rows)) for name, tensor in lg.load(file).source.tensors.items()}
        for file in (tmp_path / "file.gguf", tmp_path / "memory.gguf")
    ]
    assert found[0] == found[1]
    assert "quantize.imatrix.file" not in lg.load(tmp_path / "memory.gguf").source.metadata
