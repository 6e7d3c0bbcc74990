"""Every option of `quantize` on the command line, against the files that llama-quantize wrote with the same words."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gguf_files import write_gguf
from loragraft.cli import app
from loragraft.errors import LoragraftError
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.quants import native
from loragraft.quants.types import BY_NAME
from loragraft.streaming.options import layers, override, tensor_type, weight_type
from paths import ROOT, data

RECORDED = json.loads((ROOT / "tests/data/golden/quantize-options.json").read_text())


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, where the inputs have the names that they had for llama-quantize."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inputs() -> Path:
    Path("types.txt").write_text(RECORDED["types.txt"])
    for kind in ("gguf", "dat"):
        shutil.copy(data(f"gguf/llama-kjv.merged.imatrix.{kind}"), f"imatrix.{kind}")
    return data(RECORDED["source"])


def sha256(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.parametrize("words", RECORDED["runs"])
def test_as_llama_quantize(words: str) -> None:
    source = inputs()
    *options, target = words.split()
    if "--keep-split" in options:
        run("split", source, "part", "--split-max-tensors", 15)
        source = Path("part-00001-of-00003.gguf")
    before = set(Path().iterdir())
    run("quantize", *options, source, "out.gguf", target)
    written = {path.name: sha256(path) for path in set(Path().iterdir()) - before}
    assert written == RECORDED["runs"][words]


def test_requantizing() -> None:
    source, wanted = inputs(), RECORDED["requantized"]
    run("quantize", source, "q8.gguf", "Q8_0")
    assert "--allow-requantize" in run("quantize", "q8.gguf", "out.gguf", "Q4_K_M", code=1)
    run("quantize", "--allow-requantize", "q8.gguf", "out.gguf", "Q4_K_M")
    assert sha256("out.gguf") == wanted["Q8_0, then --allow-requantize Q4_K_M"]
    run("quantize", "q8.gguf", "out.gguf", "COPY")
    assert sha256("out.gguf") == wanted["Q8_0, then COPY"]
    run("quantize", source, "f32.gguf", "F32")
    run("quantize", "f32.gguf", "bf16.gguf", "32", "2")
    run("quantize", "bf16.gguf", "out.gguf", "q8_0")
    assert sha256("out.gguf") == wanted["F32, BF16, then Q8_0"]


def test_an_entry_missing_from_the_matrix() -> None:
    output = run(
        *(
            "quantize",
            "--imatrix",
            "imatrix.gguf",
            "--exclude-weights",
            "attn_q",
            inputs(),
            "out.gguf",
            "IQ2_XS",
        ),
        code=1,
    )
    assert (
        "imatrix.gguf: the imatrix has no entry for tensor 'blk.0.attn_q.weight', which IQ2_XS needs"
        in output
    )


# ---- what needs no recorded file ----


def model(path: str = "in.gguf", **arrays: np.ndarray) -> Path:
    metadata = {"general.architecture": Value.string("llama"), "llama.block_count": Value.u32(2)}
    rng = np.random.default_rng(0)
    tensors = {
        f"blk.{i}.attn_{part}.weight": rng.standard_normal((64, 256)) for i in range(2) for part in "qk"
    }
    named = {f"blk.1.{name}.weight": array for name, array in arrays.items()}
    return write_gguf(Path(path), metadata, {**tensors, **named})


def test_the_output_may_be_left_out() -> None:
    model()
    run("quantize", "in.gguf", "q8_0", "2")
    assert open_gguf("ggml-model-Q8_0.gguf").tensors["blk.0.attn_q.weight"].type.name == "Q8_0"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["in.gguf"], "missing argument"),
        (["in.gguf", "out.gguf"], "no such file type"),
        (["in.gguf", "out.gguf", "Q9"], "no such file type"),
        (["in.gguf", "out.gguf", "Q8_0", "many"], "unexpected 'many'"),
        (["--tensor-type", "attn_q", "in.gguf", "Q8_0"], "REGEX=TYPE"),
        (["--tensor-type", "attn(=q8_0", "in.gguf", "Q8_0"], "is not a valid regular expression"),
        (["--output-tensor-type", "I32", "in.gguf", "Q8_0"], "no such type of weights"),
        (["--override-kv", "a=int:b", "in.gguf", "Q8_0"], "KEY=TYPE:VALUE"),
        (["--prune-layers", "1,x", "in.gguf", "Q8_0"], "not a list of layers"),
        (["--split-max-size", "12", "in.gguf", "Q8_0"], "not a size"),
        (["--keep-split", "--split-max-tensors", "3", "in.gguf", "Q8_0"], "give one of"),
        (["--include-weights", "a", "--exclude-weights", "b", "in.gguf", "Q8_0"], "give either"),
    ],
)
def test_wrong_usage(words: list[str], says: str) -> None:
    model()
    assert says in run("quantize", *words, code=2)
    assert [path.name for path in Path().iterdir()] == ["in.gguf"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["in.gguf", "in.gguf", "Q8_0"], "the output is also an input"),
        (["none.gguf", "out.gguf", "Q8_0"], "no such file"),
        (["--imatrix", "none", "in.gguf", "Q8_0"], "none: no such file"),
        (["--prune-layers", "7", "in.gguf", "Q8_0"], "layers to prune are not in the model: found 7"),
        (["--prune-layers", "0,1", "in.gguf", "Q8_0"], "no layer would be left"),
        (["--tensor-type-file", "none", "in.gguf", "Q8_0"], "none: no such file"),
        (["in.gguf", "IQ2_XS"], "requires an imatrix"),
        (["in.gguf", "missing/out.gguf", "Q8_0"], "its folder does not exist"),
    ],
)
def test_bad_input(words: list[str], says: str) -> None:
    model()
    output = run("quantize", *words, code=1)
    assert says in output
    assert output.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["in.gguf"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("target", ["Q8_0", "F16", "COPY"])
def test_a_weight_that_is_not_finite_is_named(value: float, target: str) -> None:
    array = np.zeros((300, 512), np.float32)
    array[257, 65] = value
    model(ffn_up=array)
    output = run("quantize", "in.gguf", "out.gguf", target, code=1)
    assert "tensor 'blk.1.ffn_up.weight', row 257, column 65 is not finite" in output
    assert [path.name for path in Path().iterdir()] == ["in.gguf"]


def test_a_weight_too_large_for_its_type_is_named() -> None:
    array = np.zeros((300, 512), np.float32)
    array[257, 65] = 1e30
    model(ffn_up=array)
    output = run("quantize", "in.gguf", "out.gguf", "Q8_0", code=1)
    assert "row 257, column 64 has a block whose scale does not fit Q8_0" in output
    assert "row 257, column 65 does not fit F16" in run("quantize", "in.gguf", "out.gguf", "F16", code=1)
    run("quantize", "--tensor-type", "ffn_up=bf16", "in.gguf", "out.gguf", "Q8_0")


def imatrix(path: str, **rows: np.ndarray) -> None:
    arrays = {}
    for name, values in rows.items():
        arrays[f"blk.0.{name}.weight.in_sum2"] = values
        arrays[f"blk.0.{name}.weight.counts"] = np.full((len(values), 1), 4, np.float32)
    facts = {
        "general.type": Value.string("imatrix"),
        "imatrix.datasets": Value.strings(["text"]),
        "imatrix.chunk_count": Value.u32(1),
        "imatrix.chunk_size": Value.u32(512),
    }
    write_gguf(Path(path), facts, arrays)


def test_importance_that_is_zero_everywhere_is_named() -> None:
    model()
    imatrix("zero.gguf", attn_q=np.zeros((1, 256), np.float32), attn_k=np.ones((1, 256), np.float32))
    output = run("quantize", "--imatrix", "zero.gguf", "in.gguf", "out.gguf", "Q8_0", code=1)
    assert "the importance of tensor 'blk.0.attn_q.weight' is zero in all columns of row 0" in output
    words = ("--exclude-weights", "blk.0.attn_q.weight")
    run("quantize", "--imatrix", "zero.gguf", *words, "in.gguf", "out.gguf", "Q8_0")


def test_importance_of_another_size() -> None:
    model()
    imatrix("small.gguf", attn_q=np.ones((1, 128), np.float32))
    output = run("quantize", "--imatrix", "small.gguf", "in.gguf", "out.gguf", "Q8_0", code=1)
    assert "found 128 values, expected 256" in output


def test_dry_run_writes_nothing_and_tells_sizes() -> None:
    model(ffn_up=np.ones((8, 776), np.float32))
    lines = run("quantize", "--dry-run", "in.gguf", "IQ4_NL").splitlines()
    assert lines[1].split() == ["blk.0.attn_k.weight", "64", "x", "256", "F32", "IQ4_NL", "9.2", "kB", "4.50"]
    assert lines[-2] == "5 tensors, 71,744 weights: 287.0 kB to 49.3 kB, 5.50 bits per weight"
    assert lines[-1] == "1 tensor in another type than wanted, to fit the rows"
    assert "will need an importance matrix" in run("quantize", "--dry-run", "in.gguf", "IQ2_XS")
    assert [path.name for path in Path().iterdir()] == ["in.gguf"]
    assert json.loads(run("quantize", "--dry-run", "--json", "in.gguf", "IQ4_NL"))["bytes"] == 49280


def test_copy_guesses_a_file_type_that_is_not_there() -> None:
    """Of the commonest tensor type, and marked as guessed (1024), as llama-quantize does."""
    run("quantize", model(), "copy.gguf", "COPY")
    assert open_gguf("copy.gguf").metadata["general.file_type"] == Value.u32(1024 + 0)
    run("quantize", "--override-kv", "general.name=str:x", "in.gguf", "mixed.gguf", "F16")
    assert open_gguf("mixed.gguf").metadata["general.file_type"] == Value.u32(1)


def test_split_output() -> None:
    model()
    run("quantize", "--split-max-tensors", "3", "in.gguf", "out.gguf", "Q8_0")
    run("quantize", "in.gguf", "whole.gguf", "Q8_0")
    parts, whole = open_gguf("out-00001-of-00002.gguf"), open_gguf("whole.gguf")
    assert parts.metadata == whole.metadata
    assert list(parts.tensors) == list(whole.tensors)
    for name, tensor in whole.tensors.items():
        assert np.array_equal(tensor.rows(0, tensor.n_rows), parts.tensors[name].rows(0, tensor.n_rows))
    run("merge", "in.gguf", "-o", "small.gguf", "--type", "Q8_0", "--split-max-size", "1M")
    assert Path("small-00001-of-00001.gguf").exists()


def test_verify_measures_each_tensor() -> None:
    model()
    lines = run("quantize", "--verify", "in.gguf", "out.gguf", "Q8_0").splitlines()
    tensors = open_gguf("in.gguf").tensors, open_gguf("out.gguf").tensors
    x, y = (
        native.dequantize(t["blk.0.attn_k.weight"].rows(0, 64), t["blk.0.attn_k.weight"].type)
        for t in tensors
    )
    error = np.linalg.norm(x.astype(np.float64) - y) / np.linalg.norm(x.astype(np.float64))
    assert lines[1].split() == ["blk.0.attn_k.weight", "Q8_0", f"{error:.5f}"]
    assert 0.004 < error < 0.008


def test_option_values() -> None:
    assert tensor_type("ATTN_V=q8_0") == ("attn_v", BY_NAME["Q8_0"])
    assert weight_type("nvfp4") is BY_NAME["NVFP4"]
    assert layers("3, 1") == {1, 3}
    assert override("a.b=int:-3") == ("a.b", Value.u32(3))
    assert override("a.b=float:0.1")[1] == Value.f32(0.1)
    assert override("a.b=bool:false") == ("a.b", Value.boolean(False))
    assert override("a.b=str:x=y") == ("a.b", Value(ValueType.STRING, "x=y"))
    for wrong in ("a", "=int:1", "a=int:x", "a=bool:1", "a=list:1", "a=str:" + "x" * 128):
        with pytest.raises(LoragraftError):
            override(wrong)
