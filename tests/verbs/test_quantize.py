"""`quantize` against every recorded run of llama-quantize: the same file, byte for byte, or the same refusal."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import golden
from loragraft.errors import QuantizeError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.progress import Silent
from loragraft.streaming.options import QuantizeOptions, tensor_type, weight_type
from loragraft.verbs.quantize import quantize
from paths import data

REQUIRES_IMATRIX = "this quantization requires an imatrix!"
NO_FALLBACK = "no tensor type fallback is defined"


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def options_of(run: golden.Run) -> QuantizeOptions:
    output, embedding = run.option("--output-tensor-type"), run.option("--token-embedding-type")
    return QuantizeOptions(
        pure=bool(run.option("--pure")),
        nvfp4_naive=True,  # the peer has no other
        leave_output_tensor=bool(run.option("--leave-output-tensor")),
        # The name is written into the file, and this is what it was called then.
        imatrix=Path("imatrix.gguf") if run.imatrix else None,
        output_tensor_type=weight_type(output[0]) if output else None,
        token_embedding_type=weight_type(embedding[0]) if embedding else None,
        tensor_types=[tensor_type(value) for value in run.option("--tensor-type")],
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensor_hashes(path: Path) -> dict[str, str]:
    with GGUFFile.open(path) as file:
        return {name: hashlib.sha256(tensor.data()).hexdigest() for name, tensor in file.tensors.items()}


def test_the_source_is_the_recorded_one() -> None:
    """Where the file is not here it is made anew, by our own conversion and merge: the same bytes."""
    recorded = json.loads(data("golden/llama-merged-quantize.json").read_text())["source_sha256"]
    assert sha256(data(golden.FILES["llama-merged"][1])) == recorded


ALL_RUNS = [(file, number) for file, (count, _, _) in golden.FILES.items() for number in range(count)]


IDENTICAL, REFUSED, FELL_BACK, FAILED = (
    "files identical",
    "refused alike",
    "fall back where it gives up",
    "failed",
)


@pytest.fixture(scope="module")
def tally(summary: dict[str, str]) -> Iterator[dict[str, list[str]]]:
    """How the runs of each golden file went; printed at the end."""
    results: dict[str, list[str]] = {}
    yield results
    for file, outcomes in results.items():
        good = len(outcomes) - outcomes.count(FAILED)
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(outcomes).items()))
        summary[f"golden/{file}-quantize.json"] = (
            f"{good} of {len(outcomes)} runs as llama-quantize's ({kinds})"
        )


@pytest.mark.parametrize(("file", "number"), ALL_RUNS)
def test_golden_run(
    file: str,
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tally: dict[str, list[str]],
    record_property: pytest.RecordProperty,
) -> None:
    run = golden.runs(file)[number]
    record_property("run", run.name)
    _, source, imatrix = golden.FILES[file]
    model = data(source)
    outcomes = tally.setdefault(file, [])
    outcomes.append(FAILED)
    monkeypatch.chdir(tmp_path)
    if run.imatrix:
        assert imatrix is not None
        shutil.copy(data(imatrix), "imatrix.gguf")
    if run.refused == REQUIRES_IMATRIX:
        with pytest.raises(QuantizeError, match="this quantization requires an imatrix"):
            quantize(model, "out.gguf", run.target, options=options_of(run))
        assert list(tmp_path.iterdir()) == []
        outcomes[-1] = REFUSED
    elif run.refused and NO_FALLBACK in run.refused:
        notes = Notes()
        report = quantize(model, "out.gguf", run.target, options=options_of(run), progress=notes)
        assert report.fallbacks > 0
        assert [note for note in notes.notes if note.startswith(f"{report.fallbacks} of ")] == notes.notes
        outcomes[-1] = FELL_BACK
    else:
        assert run.refused is None
        quantize(model, "out.gguf", run.target, options=options_of(run), threads=2)
        wanted = {name: tensor["sha256"] for name, tensor in run.result["tensors"].items()}
        assert tensor_hashes(Path("out.gguf")) == wanted, run.name
        assert sha256(Path("out.gguf")) == run.result["file_sha256"], run.name
        outcomes[-1] = IDENTICAL
