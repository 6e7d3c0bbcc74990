"""Writes the table of docs/architectures.md, of what the tests have recorded:

    python docs/make_architectures.py [--measure [CASE ...]]

`--measure` measures our errors anew before (golden/hf-measured.json); the figures are of this machine, and tests/archs
holds them to the bounds of tests/tolerances.py everywhere. tests/archs/test_table.py fails where the page is stale.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import loragraft as lg  # noqa: E402 (what the tests have beside them is found now)
from archs.test_hf_configs import TEXT_ONLY, write  # noqa: E402
from archs.test_hf_peft import expected_logits, write_adapter  # noqa: E402
from hf_configs import PEFT_STEP, STEP, converted, kind, logits, records  # noqa: E402
from hf_measured import DIFFERS, exports, inputs, llama_cpp, measured, peft_records, reason  # noqa: E402
from loragraft.archs import ARCHS  # noqa: E402
from tolerances import nmse  # noqa: E402

COLUMNS = (
    "`general.architecture`",
    "model_type",
    "record",
    "configurations",
    "reference",
    "native",
    "converter",
    "llama.cpp",
    "PEFT",
    "export",
)
BEGIN, END = "<!-- llama.cpp -->\n", "<!-- end -->\n"
EXPORTS_BEGIN, EXPORTS_END = "<!-- exports -->\n", "<!-- end of exports -->\n"


def measure(case: str) -> dict[str, Any]:
    """The errors of a case, as they are recorded."""
    golden = logits()
    ids = golden["ids"]

    def error(path: Path, expected: Any, step: int, **options: Any) -> float:
        model = lg.load(path, threads=1, activations="f32", context=len(ids), intake=TEXT_ONLY, **options)
        return float(f"{nmse(model.logits(ids)[::step], expected):.0e}")

    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name) / "m", case)
        found: dict[str, Any] = {
            backend: error(folder, golden[case], STEP, backend=backend) for backend in ("reference", "native")
        }
        if case in peft_records():
            adapter, expected = write_adapter(Path(name) / "a", case), expected_logits(case)
            lg.merge(folder, adapter, output=Path(name) / "merged.gguf", type="F32", intake=TEXT_ONLY)
            found["merged"] = error(Path(name) / "merged.gguf", expected, PEFT_STEP)
            found["adapted"] = error(folder, expected, PEFT_STEP, adapters=[adapter])
    return {**found, "inputs": inputs(case)}


def worst(errors: Iterable[float]) -> str:
    found = list(errors)
    return f"{max(found):.0e}" if found else "none"


def of_all(agreeing: int, count: int) -> str:
    return f"{count}" if agreeing == count else f"{agreeing} of {count}"


def cells(cases: list[str]) -> list[str]:
    """Of one architecture, from `configurations` on."""
    own, theirs, exported = measured(), llama_cpp(), exports()
    same = [case for case in cases if reason(case) is None]
    adapted = [case for case in cases if "merged" in own[case]]
    taken = [case for case in cases if "error" in exported[case]]
    return [
        str(len(cases)),
        worst(own[case]["reference"] for case in cases),
        worst(own[case]["native"] for case in cases),
        str(sum(case in converted() for case in cases) or "elsewhere"),
        f"{of_all(len(same), len(cases))}: {worst(theirs[case]['error'] for case in same)}",
        worst(own[case][how] for case in adapted for how in ("merged", "adapted")),
        f"{of_all(len(taken), len(cases))}: {worst(exported[case]['error'] for case in taken)}"
        if taken
        else "refused",
    ]


def differences() -> str:
    """Where llama.cpp's logits are others, and why."""
    return "".join(f"- {why}: {', '.join(f'`{case}`' for case in cases)}\n" for why, cases in DIFFERS.items())


def refusals() -> str:
    """Which exports are refused, and why."""
    found: dict[str, list[str]] = defaultdict(list)
    for case, said in exports().items():
        if "fails" in said:
            found[said["fails"]].append(case)
        if "refused" in said:
            subject, _, problem = re.sub(r"blk\.\d+\.", "blk.*.", said["refused"]).partition(": ")
            told = re.sub(r"(; |, expected ).*", "", re.sub(r"found .*", "", problem)).strip(" :,;")
            found[told or subject].append(case)
    return "".join(f"- {why}: {', '.join(f'`{case}`' for case in cases)}\n" for why, cases in found.items())


def between(text: str, begin: str, end: str, new: str) -> str:
    before, _, rest = text.partition(begin)
    return before + begin + new + end + rest.partition(end)[2]


def page(text: str) -> str:
    """The page as it should be, of the page as it is."""
    archs: dict[str, list[str]] = defaultdict(list)
    for case, record in records().items():
        archs[ARCHS.by_model_type(kind(record["config"]), values=record["config"])[0].name].append(case)
    for name, cases in archs.items():
        row = re.search(rf"^\| {re.escape(name)} \| ([^|]*) \| ([^|]*) \|.*$", text, re.M)
        assert row is not None, f"no row for {name}"
        text = text.replace(row[0], f"| {' | '.join([name, row[1], row[2], *cells(cases)])} |")
    head = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"
    text = re.sub(r"^\| `general\.architecture` .*\n\|[-|]+$", head, text, count=1, flags=re.M)
    text = between(text, BEGIN, END, differences())
    return between(text, EXPORTS_BEGIN, EXPORTS_END, refusals())


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        chosen = tuple(sys.argv[2:])
        path = ROOT / "tests" / "data" / "golden" / "hf-measured.json"
        found = json.loads(path.read_text()) if chosen else {}
        for case in records():
            if not chosen or case.startswith(chosen):
                found[case] = measure(case)
        text = json.dumps({case: found[case] for case in records()}, separators=(",", ":"))
        path.write_text(text.replace('},"', '},\n"') + "\n")
        measured.cache_clear()
    file = ROOT / "docs" / "architectures.md"
    file.write_text(page(file.read_text()))


if __name__ == "__main__":
    main()
