"""config.json to logits, opened as it is and converted, against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from safetensors.numpy import save_file

import loragraft as lg
from gpu import WITH_DEVICES
from hf_configs import STEP, digest, first_of_each, kind, records, weights, write_tokenizer
from hf_configs import logits as golden_logits
from hf_measured import inputs, llama_cpp, measured
from loragraft.formats.gguf.model import open_gguf
from loragraft.huggingface.intake import Intake
from tolerances import GPU_F32, NATIVE_F32, REFERENCE, nmse

#: A multimodal model's language model, whatever is around it; nothing to others.
TEXT_ONLY = Intake(text_only=True)
#: How much larger than recorded an error may be on another machine, whose sums have another order.
STALE = 50
BACKENDS: list[tuple[Literal["reference", "native"], float]] = [
    ("reference", REFERENCE),
    ("native", NATIVE_F32),
]


def write(
    folder: Path, case: str, edit: Callable[[dict[str, Any], dict[str, Any]], None] | None = None
) -> Path:
    """The checkpoint of a case, its configuration and tensors changed by `edit`."""
    record = records()[case]
    config = record["config"]
    tensors = dict(weights(record["shapes"], kind(config)))
    if edit is not None:
        edit(config, tensors)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("case", records())
def test_logits_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    """And the page's figures are of this model; llama.cpp's recorded logits, of this file."""
    golden = golden_logits()
    folder = write(tmp_path / "m", case)
    lg.convert(folder, tmp_path / "m.gguf", type="F32", intake=TEXT_ONLY)
    file, recorded = open_gguf(tmp_path / "m.gguf"), measured()[case]
    assert digest(file.metadata, file.tensors) == llama_cpp()[case]["digest"], (
        "make_hf_llama_cpp.py records anew"
    )
    assert inputs(case) == recorded["inputs"], "docs/make_architectures.py --measure measures anew"
    for backend, tolerance in BACKENDS:
        for path in (folder, tmp_path / "m.gguf"):
            model = lg.load(
                path,
                backend=backend,
                threads=1,
                activations="f32",
                context=len(golden["ids"]),
                intake=TEXT_ONLY,
            )
            logits = model.logits(golden["ids"])
            error = nmse(logits[::STEP], golden[case])
            assert error < tolerance, (backend, path.name)
            assert error < STALE * recorded[backend]


@pytest.mark.parametrize("device", WITH_DEVICES)
@pytest.mark.parametrize("case", first_of_each())
def test_logits_of_a_gpu(tmp_path: Path, case: str, device: str) -> None:
    golden, folder = golden_logits(), write(tmp_path / "m", case)
    context = len(golden["ids"])
    model = lg.load(folder, device=device, activations="f32", context=context, intake=TEXT_ONLY)
    assert nmse(model.logits(golden["ids"])[::STEP], golden[case]) < GPU_F32


@pytest.mark.parametrize("device", WITH_DEVICES)
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(records().keys() - set(first_of_each())))
def test_logits_of_a_gpu_for_every_configuration(tmp_path: Path, case: str, device: str) -> None:
    test_logits_of_a_gpu(tmp_path, case, device)


def notes_of(folder: Path) -> list[str]:
    """On its config.json."""
    notes = [note.partition(": ") for note in lg.load(folder, backend="reference").notes]
    return [said for subject, _, said in notes if subject == "config.json"]


def test_parameters_that_llama_cpp_reads(tmp_path: Path) -> None:
    """transformers' magnitude is 1, for each of the three; YaRN's own is 1 + 0.1 ln 4."""
    lg.convert(write(tmp_path / "m", "llama-yarn-attention-factor"), tmp_path / "m.gguf")
    keys = {key: value.data for key, value in lg.load(tmp_path / "m.gguf").source.metadata.items()}
    assert keys["llama.rope.scaling.yarn_attn_factor"] == 1.0  # as the reference converter
    assert keys["llama.rope.scaling.attn_factor"] == pytest.approx(1 / (1 + 0.1 * np.log(4)), rel=1e-6)
    lg.convert(write(tmp_path / "plain", "llama-yarn"), tmp_path / "plain.gguf")
    assert "llama.rope.scaling.attn_factor" not in lg.load(tmp_path / "plain.gguf").source.metadata


def test_windows_in_the_metadata(tmp_path: Path) -> None:
    lg.convert(write(tmp_path / "m", "qwen2-window-above"), tmp_path / "m.gguf")
    metadata = lg.load(tmp_path / "m.gguf").source.metadata
    assert metadata["qwen2.attention.sliding_window"].data == 8
    assert metadata["qwen2.attention.sliding_window_pattern"].data.tolist() == [0, 1]

    def wide(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["sliding_window"] = config["max_position_embeddings"]

    notes = notes_of(write(tmp_path / "wide", "mistral-window", wide))
    lg.convert(tmp_path / "wide", tmp_path / "wide.gguf")
    assert "llama.attention.sliding_window" not in lg.load(tmp_path / "wide.gguf").source.metadata
    assert notes == []


def test_the_context_chooses_the_factors(tmp_path: Path) -> None:
    """Long ones where the program is for more tokens than the original context (64), as in llama.cpp."""
    golden = golden_logits()
    folder = write(tmp_path / "m", "phi3-short")
    short, long, trained = (
        lg.load(folder, threads=1, activations="f32", context=context).logits(golden["ids"])
        for context in (64, 65, None)
    )
    assert nmse(short[::STEP], golden["phi3-short"]) < NATIVE_F32
    assert nmse(long, short) > 1e-3
    np.testing.assert_array_equal(long, trained)
