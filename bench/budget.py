"""What `loragraft budget` gains, and how well what it stands on holds: docs/bits.md.

    python bench/budget.py [MODEL ADAPTER [IMATRIX]] [--mixes Q3_K_M,Q4_K_M,...]

Types are chosen on `text/shakespeare-train.txt` and judged on `text/shakespeare-valid.txt` of the test data.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import loragraft as lg
from loragraft.evaluate.sensitivity import sensitivities
from loragraft.evaluate.tensor_costs import PROBE
from loragraft.evaluate.uncertainty import Estimate
from loragraft.evaluate.verdict import percent_text
from loragraft.formats.gguf.model import open_gguf
from loragraft.inference.measurement import Text
from loragraft.quants.filetypes import file_type
from loragraft.quants.types import BY_NAME
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.plan import plan_quantize
from loragraft.streaming.rounding import rounding_errors
from loragraft.verbs.budget import CONTEXT, TYPES, WINDOWS

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from paths import data

MIXES = "Q2_K,Q3_K_S,Q3_K_M,IQ4_XS,Q4_K_M,Q5_K_M,Q6_K"


def text_of(name: str) -> str:
    return data(f"text/{name}").read_text()


def gains(base: Path, adapter: Path, imatrix: Path | None, mixes: list[str], windows: int) -> None:
    """One line per mix: its KL divergence and that of the types chosen for its size, judged on another text."""
    print(
        "| size | as | mean KL | chosen: mean KL | expected | less lost | kept | chosen: kept | next larger |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for mix in mixes:
        result = lg.budget(
            base,
            [adapter],
            lg.Measurement(text_of("shakespeare-train.txt"), windows=windows),
            valid=text_of("shakespeare-valid.txt"),
            like=mix,
            imatrix=imatrix,
        )
        usual, *larger = result.mixes
        kl = [row.divergence.mean for row in (usual, result.chosen, *larger) if row.divergence is not None]
        kept = [percent_text(row.kept) for row in (usual, result.chosen) if row.kept is not None]
        saved = result.verdict.partition("lose ")[2].partition(" less")[0] or "no more than chance"
        beside = (
            f"{larger[0].label}, +{100 * (larger[0].size / usual.size - 1):.0f} %: {kl[2]:.3g}"
            if larger
            else ""
        )
        print(
            f"| {usual.size / 1e6:.2f} MB | {mix} | {kl[0]:.3g} | {kl[1]:.3g} | {result.expected:.3g} | {saved} "
            f"| {kept[0]} | {kept[1]} | {beside} |",
            flush=True,
        )


def agreement(base: Path, adapter: Path) -> None:
    """For every type: each tensor's own divergence, measured, over what the rough type and the rounding error say."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "full.gguf"
        lg.merge(base, [adapter], path)
        full = lg.load(path)
        text = Text(full.tokenize(text_of("shakespeare-train.txt")), CONTEXT, full.tokenizer.bos, WINDOWS)
        steps = plan_quantize(full.source, file_type("Q4_K_M"), QuantizeOptions()).steps
        steps = [step for step in steps if step.type.is_quantized]
        kinds = [BY_NAME[name] for name in TYPES]
        errors = rounding_errors(steps, {step.name: set(kinds) for step in steps}, threads=2)

        def measured(kind: str) -> dict[str, Estimate]:
            options = QuantizeOptions(pure=True, tensor_types=[(".", BY_NAME[kind])])
            lg.quantize(path, Path(folder) / "rough.gguf", "Q4_K_S", options=options)
            tensors = open_gguf(Path(folder) / "rough.gguf").tensors
            return sensitivities(
                full, {step.name: tensors[step.name] for step in steps}, text, lg.Measurement("")
            )

        probes = measured(PROBE.default.name)
        print("| type | measured / expected, median over tensors | middle two thirds |")
        print("|---|---|---|")
        for kind in kinds:
            own = measured(kind.name)
            ratios = [
                own[s.name].value
                / (probes[s.name].value * errors[s.name, kind] / errors[s.name, PROBE.default])
                for s in steps
            ]
            low, middle, high = np.percentile(ratios, [100 / 6, 50, 500 / 6])
            print(f"| {kind} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="llama-kjv")
    parser.add_argument("adapter", nargs="?", default="llama-kjv.shakespeare")
    parser.add_argument("imatrix", nargs="?")
    parser.add_argument("--mixes", default=MIXES)
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--agreement", action="store_true", help="the ground it stands on, not the gain")
    asked = parser.parse_args()
    if asked.agreement:
        agreement(data(asked.model), data(asked.adapter))
    else:
        matrix = None if asked.imatrix is None else data(asked.imatrix)
        gains(data(asked.model), data(asked.adapter), matrix, asked.mixes.split(","), asked.windows)
