"""`budget` on real models: what it chooses fits, is what gets written, and beats the mix of its size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import loragraft as lg
from command_line import loragraft
from loragraft.errors import LoragraftError
from loragraft.evaluate.divergence import kl
from loragraft.evaluate.reading import read_beside
from loragraft.evaluate.sensitivity import sensitivities
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.imatrix import Imatrix
from loragraft.inference.measurement import Text
from loragraft.inference.perplexity import log_softmax
from loragraft.quants import reference
from loragraft.quants.filetypes import file_type
from loragraft.quants.types import BY_NAME
from loragraft.streaming.options import QuantizeOptions, tensor_type_file
from loragraft.streaming.plan import plan_quantize
from loragraft.streaming.rounding import rounding_errors
from loragraft.verbs.budget import MIXES, Budget, save_picture
from paths import data

BASE, ADAPTER, TEXT = data("llama-kjv"), data("llama-kjv.shakespeare"), data("shakespeare-valid.txt")
SMALL = lg.Measurement(TEXT.read_text(), context=128, windows=4, threads=1)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Budget:
    work = tmp_path_factory.mktemp("work")
    found = lg.budget(BASE, [ADAPTER], SMALL, valid_windows=12, work_dir=work)
    assert os.listdir(work) == []
    return found


def test_it_fits_and_beats_the_mix_of_its_size(result: Budget) -> None:
    mix, larger = result.mixes
    assert (result.mix, mix.label, larger.label) == ("Q4_K_M", "Q4_K_M", "Q5_K_S")
    assert 0.998 * result.size < result.chosen.size <= result.size == mix.size
    assert result.chosen.divergence is not None
    assert mix.divergence is not None
    assert result.chosen.divergence.mean < 0.6 * mix.divergence.mean
    # That the costs of single tensors add up is the ground it all stands on.
    assert result.expected == pytest.approx(result.chosen.divergence.mean, rel=0.25)
    saving = re.match(
        r"The chosen types lose (\d\d\.\d) ± \d\.\d % less than Q4_K_M \(2\.62 MB against 2\.62 MB\)",
        result.verdict,
    )
    assert saving
    ratio = result.chosen.divergence.mean / mix.divergence.mean
    assert float(saving[1]) == pytest.approx(100 * (1 - ratio), abs=0.1)
    assert "They are not as good as Q5_K_S, which is 13 % larger" in result.verdict


def test_the_types_file_makes_that_model(result: Budget, tmp_path: Path) -> None:
    types = tmp_path / "types.txt"
    types.write_text(result.tensor_types())
    options = QuantizeOptions(tensor_types=tensor_type_file(types))
    lg.merge(BASE, [ADAPTER], tmp_path / "tuned.gguf", type=result.mix, options=options)
    tensors = open_gguf(tmp_path / "tuned.gguf").tensors
    assert {row.name: row.type for row in result.tensors} == {
        name: tensor.type.name for name, tensor in tensors.items() if tensor.type.is_quantized
    }
    assert sum(tensor.n_rows * tensor.row_bytes for tensor in tensors.values()) == result.chosen.size
    # ... and is judged on what the tensors were not measured on.
    lg.merge(BASE, [ADAPTER], tmp_path / "full.gguf")
    full, tuned = (lg.load(tmp_path / f"{name}.gguf") for name in ("full", "tuned"))
    held_out = Text(full.tokenize(TEXT.read_text())[4 * 128 :], 128, full.tokenizer.bos, 12)
    _, readings = read_beside(full, {"tuned": tuned}, held_out)
    assert readings["tuned"].divergence == result.chosen.divergence
    assert readings["tuned"].perplexity == result.chosen.perplexity


def test_sensitive_tensors_get_more_bits(result: Budget) -> None:
    """The first layer's values are many times as sensitive as the third's."""
    rows = {row.name: row for row in result.tensors}
    first, third = rows["blk.0.attn_v.weight"], rows["blk.2.attn_v.weight"]
    assert first.probe.value > 5 * third.probe.value
    assert first.bits_per_weight > third.bits_per_weight
    assert {row.mix_type for row in result.tensors} == {"Q4_K", "Q6_K"}
    assert sum(row.cost for row in result.tensors) == result.expected


def test_a_sensitivity_against_the_reference_backend(tmp_path: Path) -> None:
    lg.merge(BASE, [ADAPTER], tmp_path / "full.gguf")
    name = "blk.0.ffn_down.weight"
    options = QuantizeOptions(pure=True)
    lg.quantize(tmp_path / "full.gguf", tmp_path / "rough.gguf", "Q3_K_S", options=options)
    full = lg.load(tmp_path / "full.gguf")
    rough = open_gguf(tmp_path / "rough.gguf").tensors[name]
    text = Text(full.tokenize(TEXT.read_text()[:2000]), 64, full.tokenizer.bos, 2)
    found = sensitivities(full, {name: rough}, text, lg.Measurement(""))[name]
    one = QuantizeOptions(tensor_types=[(f"^{re.escape(name)}$", BY_NAME["Q3_K"]), (".", BY_NAME["F16"])])
    lg.quantize(tmp_path / "full.gguf", tmp_path / "one.gguf", "Q4_K_M", options=one)
    exact, changed = (lg.load(tmp_path / f"{which}.gguf", backend="reference") for which in ("full", "one"))
    expected = [
        kl(*(log_softmax(model.logits(window.ids)[window.scored]) for model in (exact, changed))).mean()
        for window in text
    ]
    assert found.value == pytest.approx(np.mean(expected), rel=0.02)
    assert found.value > 0.001


@pytest.mark.parametrize("weighted", [False, True])
def test_rounding_errors_against_the_numpy_quantizers(weighted: bool) -> None:
    matrix = data("gguf/llama-kjv.merged.imatrix.gguf")
    model = open_gguf(data("gguf/llama-kjv.merged-f16.gguf"))
    options = QuantizeOptions(imatrix=matrix if weighted else None)
    name, kinds = "blk.1.attn_k.weight", {BY_NAME["Q3_K"], BY_NAME["Q5_K"]}
    (step,) = (step for step in plan_quantize(model, file_type("Q4_K_M"), options).steps if step.name == name)
    found = rounding_errors([step], {name: kinds}, threads=2)
    weights = model.tensors[name].rows(0, 128).view(np.float16).astype(np.float32)
    importance = Imatrix.load(matrix).importance(name, (128, 256)) if weighted else None
    for kind in kinds:
        vector = None if importance is None else importance[0]
        rounded = reference.dequantize(reference.quantize(weights, kind, vector), kind)
        squares = np.square((weights - rounded).astype(np.float64))
        expected = (squares * (1 if vector is None else vector)).sum()
        assert found[name, kind] == pytest.approx(expected, rel=1e-5)


def test_experts_and_no_adapter_and_bits_per_weight() -> None:
    text = data("text/shakespeare-train.txt").read_text()[:20_000]
    found = lg.budget(
        data("qwen3moe-8x"),
        [],
        replace(SMALL, text=text),
        bits_per_weight=4.6,
        types=["q3_k", "q4_k", "q6_k"],
        valid_windows=12,
    )
    weights = sum(
        np.prod(tensor.shape) for tensor in open_gguf(data("gguf/qwen3moe-8x-f16.gguf")).tensors.values()
    )
    assert found.size == int(4.6 * weights / 8)
    assert found.chosen.size <= found.size
    assert {row.type for row in found.tensors} <= {"Q3_K", "Q4_K", "Q6_K"}
    assert any(row.shape[0] == 8 and len(row.shape) == 3 for row in found.tensors)
    assert found.chosen.kept is None
    assert found.mixes[0].size <= found.size < found.mixes[1].size
    assert "of the fine-tune" not in found.verdict


def test_an_importance_matrix_admits_the_types_that_need_one() -> None:
    matrix = data("gguf/llama-kjv.merged.imatrix.gguf")
    types = ["IQ2_XS", "IQ3_XXS", "Q4_K"]
    small = replace(SMALL, windows=1)
    found = lg.budget(BASE, [ADAPTER], small, size=1_700_000, types=types, imatrix=matrix, valid_windows=2)
    assert "IQ2_XS" in {row.type for row in found.tensors}
    assert found.mixes[0].label in MIXES
    without = lg.budget(BASE, [ADAPTER], small, size=2_300_000, types=types, valid_windows=2)
    assert {row.type for row in without.tensors if row.name.startswith("blk.")} == {"Q4_K"}


def test_the_least_that_keeps_a_share() -> None:
    """It is smaller than the smallest mix that does: IQ4_XS."""
    found = lg.budget(BASE, [ADAPTER], SMALL, keep=0.99, valid_windows=12)
    assert found.chosen.kept is not None
    assert found.chosen.kept.at_least(0.99)
    assert found.chosen.kept.value < 0.994
    assert found.size == found.chosen.size < 2_388_992
    assert re.match(
        r"2\.\d\d MB keep 99\.\d+ ± 0\.\d+ % of the fine-tune\. The chosen types lose", found.verdict
    )
    assert found.mixes[0].size <= found.size < found.mixes[1].size


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 1, "bits_per_weight": 4.0}, "size: given twice"),
        ({"types": ["F16"]}, "F16: no type to choose from"),
        ({"types": ["IQ2_XXS"]}, "none of the types fits this tensor"),
        ({"size": 1_000_000}, "size: too small for these types"),
        ({"keep": 99}, "keep: not a share of a fine-tune"),
        ({"keep": 0.999, "types": ["Q2_K"]}, "cost: is out of reach with these types"),
        ({"like": "F16"}, "F16: quantizes no tensor"),
        ({"like": "IQ2_XXS"}, "requires an imatrix"),
        ({"windows": 500}, "too short to measure tensors on and to judge"),
    ],
)
def test_what_is_refused(options: dict[str, object], says: str, tmp_path: Path) -> None:
    windows = options.pop("windows", 1)
    text = lg.Measurement(TEXT.read_text()[:3000], context=16, windows=windows)  # type: ignore[arg-type]
    with pytest.raises(LoragraftError, match=re.escape(says)):
        lg.budget(BASE, [ADAPTER], text, valid_windows=2, work_dir=tmp_path, **options)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_command_line(tmp_path: Path) -> None:
    args = ["budget", BASE, "--lora", ADAPTER, "--text", TEXT, "--size", "2.2MB", "-c", 64, "--windows", 2]
    args += ["-t", 1, "--valid-windows", 4, "-o", tmp_path / "types.txt", "--plot", tmp_path / "bits.svg"]
    command = [sys.executable, "-m", "loragraft", *map(str, args)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    types = dict(line.split("=") for line in (tmp_path / "types.txt").read_text().split())
    assert len(types) == 30
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert {rf"^{row[0]}$".replace(".", r"\."): row[1].lower() for row in rows[1:31]} == types
    assert "The chosen types" in shown.stdout
    assert f"-o OUT.gguf --type Q3_K_M --tensor-type-file {tmp_path / 'types.txt'}" in shown.stderr
    assert "<!-- attn_output -->" in (tmp_path / "bits.svg").read_text()
    parsed = json.loads(loragraft(*args, "--json").stdout)
    assert {row["name"]: row["type"] for row in parsed["tensors"]}["blk.0.attn_v.weight"].lower() == types[
        r"^blk\.0\.attn_v\.weight$"
    ]
    twice = loragraft(*args, "--bpw", "4")
    assert (twice.returncode, "give one of --size, --bpw and --keep" in twice.stderr) == (2, True)
    odd = loragraft(*args, "--size", "much")
    assert (odd.returncode, "'much' is not a size" in odd.stderr) == (2, True)


def test_the_picture(result: Budget, tmp_path: Path) -> None:
    save_picture(result, tmp_path / "bits.png")
    assert (tmp_path / "bits.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Budget:
    work = tmp_path_factory.mktemp("calibrated")
    text = work / "train.txt"
    text.write_text(TEXT.read_text()[20_000:])
    how = replace(SMALL, text=TEXT.read_text()[:20_000], activations="f32", windows=2, threads=2)
    return lg.budget(
        BASE,
        [ADAPTER],
        how,
        valid_windows=12,
        calibrate=[text],
        calibrate_windows=24,
        types=["Q3_K", "Q4_K", "Q6_K"],
    )


def test_types_are_chosen_for_rounding_with_feedback(calibrated: Budget, result: Budget) -> None:
    """What is expected comes from gradients on another text, and what is measured is near it; all of it is nearer to
    the fine-tune than rounding to nearest."""
    chosen, mix = calibrated.chosen.divergence, calibrated.mixes[0].divergence
    usual = result.mixes[0].divergence
    assert chosen is not None
    assert mix is not None
    assert usual is not None
    assert chosen.mean < 0.7 * mix.mean < 0.7 * usual.mean
    assert chosen.mean / 1.5 < calibrated.expected < chosen.mean * 1.5
    assert calibrated.chosen.size <= calibrated.size
    rows = {row.name: row for row in calibrated.tensors}
    assert all(row.cost > 0 for row in rows.values())
