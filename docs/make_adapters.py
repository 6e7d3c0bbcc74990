"""Writes docs/adapters.md from what the tests run; tests/huggingface/test_peft_methods.py fails when it is stale.

    python docs/make_adapters.py [--measure]

`--measure` computes every case's error anew, into tests/data/golden/peft-figures.json, which the tests hold code to.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from loragraft.adapters.peft_config import UNMERGEABLE  # noqa: E402
from peft_matrix import (  # noqa: E402
    FIGURES,
    KINDS,
    LORA,
    LORA_KINDS,
    MERGED_ALONE,
    MERGED_KINDS,
    RECORDED,
    RUN,
    TAKEN,
)

INTRODUCTION = """# Adapters by method

Written by `make docs` from the cases that tests/huggingface/test_peft_kinds.py and test_peft_methods.py hold against
the logits of transformers and PEFT 0.21.2: random weights, every trained number disturbed, saved by PEFT and loaded
again. "Merged" (into a GGUF in F32) and "run" (beside the base: `run`, `compare`, ...) are the largest normalised mean
squared error between our logits and PEFT's, in float32, as measured; the tests allow ten times that. Rows of tokens
take the base's type, which is F16 here. What a method's tensors mean is in `adapters/methods/`, one file per family.

| PEFT's method | of it | cases | merged | run |
|---|---|--:|--:|--:|"""

REST = """
Also: QALoRA (its layer's outputs against PEFT's forward; the layer itself needs a GPTQ kernel), and CorDA, LoRA-GA and
PiSSA with the adapter's start beside it (against PEFT's own conversion). A GGUF adapter takes whatever becomes pairs:
LoRA, AdaLoRA, LoHa, LoKr, VeRA, OLoRA and PiSSA.

aLoRA (`alora_invocation_tokens`) works only from its tokens on, which no merged weight can do: `merge` refuses it.
`run`, `chat`, `serve` and `load` run it as PEFT does (NMSE 2e-13), and refuse a prompt without
these tokens, where PEFT runs the base. `convert` writes it as a GGUF adapter, and back.

What runs only merged is refused at run time with the command that merges it: rotations, and factors of what enters an
attention layer, are neither pairs nor factors of rows. Factors of what enters the last layer of a gated feed-forward
run, as factors of the rows of the layer before it.

## Refused, by name

- PEFT merges them itself, which is what the refusal says to do: {merged}.
- No weights do what they do (they put tokens or vectors before the text, choose by the input, or compute beside the
  layers); the refusal says to run them with transformers and peft: {others}.
- CorDA, LoRA-GA and PiSSA by a fast decomposition without their start: save them converted, or put the start beside.
- BOFT with several butterfly factors, DoRA of an embedding, `layer_replication`, every key that is not known.
"""


def page() -> str:
    rows = [row("LORA", kind, cases, run=True) for kind, cases in LORA_KINDS.items()]
    for table, run in ((KINDS, True), (MERGED_KINDS, False)):
        rows += [
            row(method, kind, cases, run=run)
            for method, kinds in table.items()
            for kind, cases in kinds.items()
        ]
    merged = ", ".join(sorted(RECORDED.keys() - TAKEN - UNMERGEABLE))
    others = ", ".join(sorted(UNMERGEABLE))
    return "\n".join([INTRODUCTION, *rows]) + "\n" + REST.format(merged=merged, others=others)


def row(method: str, kind: str, cases: list[str], *, run: bool) -> str:
    merged = max(FIGURES[case]["merged"] for case in cases)
    beside = f"{max(FIGURES[case]['run'] for case in cases):.0e}" if run else "merge first"
    return f"| {method} | {kind} | {len(cases)} | {merged:.0e} | {beside} |"


def measure() -> dict[str, dict[str, float]]:
    """The error of every case, rounded up to one digit."""
    from loragraft.inference.model import load
    from loragraft.verbs.merge import merge
    from peft_golden import adapter_folder, base_folder, golden, recorded
    from tolerances import nmse

    figures: dict[str, dict[str, float]] = {}
    for case in [*LORA, *RUN, *MERGED_ALONE]:
        with tempfile.TemporaryDirectory() as work:
            base, adapter = base_folder(case, Path(work) / "base"), adapter_folder(case, Path(work) / "a")
            merged = Path(work) / "merged.gguf"
            merge(base, [adapter], merged, type="F32")
            models = {"merged": load(merged, backend="reference")}
            if case not in MERGED_ALONE:
                models["run"] = load(base, [adapter], backend="reference")
            expected = recorded(case)[f"{case}/logits"]
            figures[case] = {
                how: float(f"{1.05 * nmse(model.logits(golden()['ids']), expected):.0e}")
                for how, model in models.items()
            }
    return figures


if __name__ == "__main__":
    if sys.argv[1:] == ["--measure"]:
        FIGURES.update(measure())
        path = ROOT / "tests" / "data" / "golden" / "peft-figures.json"
        path.write_text(json.dumps(FIGURES, indent=1) + "\n")
    (Path(__file__).parent / "adapters.md").write_text(page())
