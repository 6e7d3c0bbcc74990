"""An adapter of PEFT on every linear of a model of each type: run, merged, and written by PEFT's names again, against
PEFT's own logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import loragraft as lg
from archs.test_hf_configs import TEXT_ONLY, write
from hf_configs import ADAPTED, PEFT_STEP, weights
from hf_configs import logits as golden_logits
from loragraft.formats.gguf.model import open_gguf
from paths import data
from tolerances import NATIVE_F32, nmse

GOLDEN: dict[str, dict[str, Any]] = {
    case: record
    for name in ADAPTED.values()
    for case, record in json.loads(data(f"golden/{name}.json").read_text()).items()
}


def expected_logits(case: str) -> np.ndarray:
    files = [np.load(data(f"golden/{name}.npz")) for name in ADAPTED.values()]
    return next(np.asarray(file[case]) for file in files if case in file)


def write_adapter(folder: Path, case: str) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(GOLDEN[case]["config"]))
    save_file(weights(GOLDEN[case]["shapes"]), folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("case", GOLDEN)
def test_an_adapter_on_every_linear(tmp_path: Path, case: str) -> None:
    base, adapter = write(tmp_path / "m", case), write_adapter(tmp_path / "a", case)
    ids, expected = golden_logits()["ids"], expected_logits(case)
    plain = lg.load(base, threads=1, activations="f32", context=len(ids), intake=TEXT_ONLY).logits(ids)[
        ::PEFT_STEP
    ]
    assert nmse(plain, expected) > 1e-3
    lg.merge(base, adapter, output=tmp_path / "merged.gguf", type="F32", intake=TEXT_ONLY)
    merged = lg.load(tmp_path / "merged.gguf", threads=1, activations="f32", context=len(ids))
    assert nmse(merged.logits(ids)[::PEFT_STEP], expected) < NATIVE_F32
    lg.convert(base, tmp_path / "base.gguf", type="F32", intake=TEXT_ONLY)
    lg.merge(tmp_path / "base.gguf", adapter, output=tmp_path / "from-gguf.gguf", type="F32")
    one, other = (open_gguf(tmp_path / f"{name}.gguf").tensors for name in ("merged", "from-gguf"))
    assert {name: tensor.rows(0, tensor.n_rows).tobytes() for name, tensor in one.items()} == {
        name: tensor.rows(0, tensor.n_rows).tobytes() for name, tensor in other.items()
    }
    tuned = lg.load(
        base, adapters=[adapter], threads=1, activations="f32", context=len(ids), intake=TEXT_ONLY
    )
    assert nmse(tuned.logits(ids)[::PEFT_STEP], expected) < NATIVE_F32
