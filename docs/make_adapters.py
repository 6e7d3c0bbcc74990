"""Writes docs/adapters.md from what the tests run; tests/huggingface/test_peft_methods.py fails when it is stale."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from loragraft.adapters.peft_config import UNMERGEABLE  # noqa: E402
from peft_matrix import KINDS, LORA_KINDS, MERGED_KINDS, RECORDED, TAKEN, tolerance  # noqa: E402

INTRODUCTION = """# Adapters by method

Written by `make docs` from the cases that tests/huggingface/test_peft_kinds.py and test_peft_methods.py hold against
the logits of transformers and PEFT 0.21.2: random weights, every trained number disturbed, saved by PEFT and loaded
again. "Within" is the largest normalised mean squared error that the tests allow between our logits and PEFT's, in
float32. "Run" is beside the base (`run`, `compare`, ...); "merge" makes a GGUF or a checkpoint of it. What a method's
tensors mean is in `adapters/methods/`, one file per family.

| PEFT's method | of it | cases | merge | run | within |
|---|---|---|---|---|---|"""

REST = """
Also: QALoRA (its layer's outputs against PEFT's forward; the layer itself needs a GPTQ kernel), and CorDA, LoRA-GA and
PiSSA with the adapter's start beside it (against PEFT's own conversion). A GGUF adapter takes whatever becomes pairs:
LoRA, AdaLoRA, LoHa, LoKr, VeRA, OLoRA and PiSSA.

What runs only merged is refused at run time with the command that merges it: rotations, and factors of what enters an
attention layer, are neither pairs nor factors of rows. Factors of what enters the last layer of a gated feed-forward
run, as factors of the rows of the layer before it.

## Refused, by name

- PEFT merges them itself, which is what the refusal says to do: {merged}.
- No weights do what they do (they put tokens or vectors before the text, choose by the input, or compute beside the
  layers); the refusal says to run them with transformers and peft: {others}.
- aLoRA (`alora_invocation_tokens`), which works only from its tokens on: no merged weight can do that; `serve` runs it.
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
    within = max(map(tolerance, cases))
    return f"| {method} | {kind} | {len(cases)} | yes | {'yes' if run else 'merge first'} | {within:.0e} |"


if __name__ == "__main__":
    (Path(__file__).parent / "adapters.md").write_text(page())
