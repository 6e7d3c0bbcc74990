"""Measures the small models of tests/data/golden/hf-configs.json and fills the table of docs/architectures.md:

    PYTHONPATH=tests python docs/make_architectures.py

The figures are of this machine; tests/archs holds them to the bounds of tests/tolerances.py everywhere.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import loragraft as lg
from hf_configs import STEP, converted, kind, records, weights, write_tokenizer
from hf_configs import logits as golden_logits
from loragraft.archs import ARCHS
from loragraft.huggingface.intake import Intake
from tolerances import nmse

ROOT = Path(__file__).parents[1]
HEAD = (
    "| `general.architecture` | model_type | record | configurations | reference | native | converter |",
    "|---|---|---|---|---|---|---|",
)


def measured(case: str, logits: np.ndarray, ids: np.ndarray) -> tuple[float, float]:
    """The error of the folder's logits on each backend."""
    record = records()[case]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(weights(record["shapes"], kind(record["config"])), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(record["config"]))
        write_tokenizer(folder)
        errors = []
        for backend in ("reference", "native"):
            model = lg.load(
                folder,
                backend=backend,  # type: ignore[arg-type]
                threads=1,
                activations="f32",
                context=len(ids),
                intake=Intake(text_only=True),
            )
            errors.append(nmse(model.logits(ids)[::STEP], logits))
    return errors[0], errors[1]


def main() -> None:
    golden, recorded = golden_logits(), converted()
    errors: dict[str, list[tuple[float, float]]] = defaultdict(list)
    same: dict[str, int] = defaultdict(int)
    for case, record in records().items():
        arch = ARCHS.by_model_type(kind(record["config"]), values=record["config"])[0].name
        errors[arch].append(measured(case, golden[case], golden["ids"]))
        same[arch] += case in recorded
    page = ROOT / "docs" / "architectures.md"
    text = page.read_text()
    for name, found in errors.items():
        reference, native = (max(errors[i] for errors in found) for i in range(2))
        measures = f"{len(found)} | {reference:.0e} | {native:.0e} | {same[name] or 'elsewhere'}"
        row = re.search(rf"^\| {re.escape(name)} \| ([^|]*) \| ([^|]*) \|.*$", text, re.M)
        assert row is not None, name
        text = text.replace(row[0], f"| {name} | {row[1]} | {row[2]} | {measures} |")
    text = re.sub(r"^\| `general\.architecture` .*\n\|[-|]+$", "\n".join(HEAD), text, count=1, flags=re.M)
    page.write_text(text)


if __name__ == "__main__":
    main()
