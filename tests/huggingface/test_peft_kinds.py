"""Everything that PEFT saves in an adapter, against the logits of transformers and PEFT: at run time and merged."""

from __future__ import annotations

from pathlib import Path

import pytest

from loragraft.errors import AdapterError
from loragraft.inference.model import load
from loragraft.opening import open_model
from loragraft.streaming.options import QuantizeOptions
from loragraft.verbs.merge import merge
from loragraft.verbs.quantize import quantize
from paths import arrays, data
from peft_golden import adapter_folder, base_folder, golden
from peft_matrix import LORA as CASES
from peft_matrix import as_measured
from tolerances import NATIVE_F32, REFERENCE, REFERENCE_F16_MERGE, nmse


@pytest.mark.parametrize("case", CASES)
def test_logits_of_peft(case: str, tmp_path: Path) -> None:
    base, adapter = base_folder(case, tmp_path / "base"), adapter_folder(case, tmp_path / "adapter")
    expected, ids = golden()[f"{case}/logits"], golden()["ids"]
    reference, native = load(base, [adapter], backend="reference"), load(base, [adapter], activations="f32")
    rounded = "+tokens" in case  # rows take the type of the base, F16, as in PEFT; the oracle's base was F32
    assert nmse(reference.logits(ids), expected) < (REFERENCE_F16_MERGE if rounded else REFERENCE)
    assert as_measured(case, "run", nmse(reference.logits(ids), expected))
    assert nmse(native.logits(ids), reference.logits(ids)) < NATIVE_F32
    whole, halves, steps, one = (tmp_path / f"{name}.gguf" for name in ("f32", "f16", "two", "one"))
    report = merge(base, [adapter], whole, type="F32")
    assert report.adapters[0].tensors > 0
    merged = load(whole, backend="reference").logits(ids)
    assert nmse(merged, reference.logits(ids)) < REFERENCE
    assert as_measured(case, "merged", nmse(merged, expected))
    merge(base, [adapter], halves)
    quantize(halves, steps, "Q8_0")
    merge(base, [adapter], one, type="Q8_0")
    assert rows_of(one) == rows_of(steps)


@pytest.mark.parametrize("case", [case for case in CASES if "olora" not in case])
def test_on_a_quantized_base(case: str, tmp_path: Path) -> None:
    """A GGUF in Q8_0, whose rounding is all that is different."""
    base, adapter = base_folder(case, tmp_path / "base"), adapter_folder(case, tmp_path / "adapter")
    merge(base, [], tmp_path / "base.gguf", type="Q8_0")
    expected, ids = golden()[f"{case}/logits"], golden()["ids"]
    found = load(tmp_path / "base.gguf", [adapter], backend="reference").logits(ids)
    assert nmse(found, expected) < 5e-3
    options = QuantizeOptions(allow_requantize=True)
    merge(tmp_path / "base.gguf", [adapter], tmp_path / "merged.gguf", type="F32", options=options)
    assert nmse(load(tmp_path / "merged.gguf", backend="reference").logits(ids), found) < REFERENCE


def rows_of(path: Path) -> dict[str, bytes]:
    return {
        name: tensor.rows(0, tensor.n_rows).tobytes() for name, tensor in open_model(path).tensors.items()
    }


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_the_trained_fixture(backend: str, tmp_path: Path) -> None:
    expected = arrays("golden/hf-logits.npz")
    model = load(  # type: ignore[arg-type]
        data("llama-kjv"), [data("llama-kjv.embed")], backend=backend, activations="f32"
    )
    assert nmse(model.logits(expected["ids"]), expected["llama+embed"]) < REFERENCE


@pytest.mark.parametrize(
    "turns", [("llama+dora-rslora", "llama+mica"), ("llama+mica", "llama+dora-rslora")], ids=["first", "last"]
)
def test_dora_beside_another_adapter(turns: tuple[str, str], tmp_path: Path) -> None:
    """Which comes first makes a difference, as in PEFT."""
    base, expected = base_folder("llama", tmp_path / "base"), golden()[f"{' then '.join(turns)}/logits"]
    adapters = [adapter_folder(case, tmp_path / case) for case in turns]
    other = golden()[f"{' then '.join(reversed(turns))}/logits"]
    assert nmse(other, expected) > 1e-4
    for backend in ("reference", "native"):
        model = load(base, adapters, backend=backend, activations="f32")  # type: ignore[arg-type]
        found = model.logits(golden()["ids"])
        assert nmse(found, expected) < REFERENCE
    merge(base, adapters, tmp_path / "merged.gguf", type="F32")
    assert (
        nmse(load(tmp_path / "merged.gguf", activations="f32").logits(golden()["ids"]), expected) < REFERENCE
    )


def test_olora_needs_the_weights_that_it_started_from(tmp_path: Path) -> None:
    case = "llama+olora"
    base, adapter = base_folder(case, tmp_path / "base"), adapter_folder(case, tmp_path / "adapter")
    merge(base, [], tmp_path / "q8.gguf", type="Q8_0")
    with pytest.raises(AdapterError, match=r"OLoRA's start .* found Q8_0 \(.*merge it into the base before"):
        load(tmp_path / "q8.gguf", [adapter])


def test_an_output_that_was_resized_but_not_saved(tmp_path: Path) -> None:
    case = "llama+resized-embedding"
    base, adapter = base_folder(case, tmp_path / "base"), adapter_folder(case, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="43 rows in the embedding, 40 in the output"):
        load(base, [adapter])
