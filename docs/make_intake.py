"""Writes docs/intake.md from what the tests try; tests/verbs/test_intake_members.py fails when it is stale.

python docs/make_intake.py
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "src"))

from intake_members import MEMBERS, Member  # noqa: E402 (after the paths)
from intake_table import CLASSES, SHOWN  # noqa: E402

#: Whose tests are marked with `shows`.
MODULES = (
    "verbs.test_intake",
    "huggingface.test_contents",
    "huggingface.test_mapped_names",
    "huggingface.test_slow_tokenizer",
    "huggingface.test_resizing",
    "huggingface.test_mlx",
    "huggingface.test_bitsandbytes_weights",
    "huggingface.test_integer_weights",
    "huggingface.test_packed_weights",
    "adapters.test_receipt",
    "formats.test_torch_file",
    "cli.test_inputs_stay",
)

INTRODUCTION = """# Files as trainers leave them

Written by `make docs` from what the tests try. First public reports of people who had an adapter and a base, replayed:
each stands for a class. Then other folders and files, one by one.

| report | class | members tried | outcome |
|---|---|---|---|"""

OTHERS = """
## Others, one by one

`tests/intake_members.py` makes them, `tests/verbs/test_intake_members.py` runs them. "Taken": the merged model has the
numbers of the plain adapter (or, of a base, the base's own). Refused: the error says this, and the next command.

| what was left | outcome | what is said |
|---|---|---|"""


def page() -> str:
    for module in MODULES:
        importlib.import_module(module)
    rows = []
    for case, (report, what) in CLASSES.items():
        # A module that is also collected by pytest may be imported twice.
        shown = list(dict.fromkeys(one for one in SHOWN if one.case == case))
        shown.sort(key=lambda one: one.members)
        named = f"{case} {report}" if case.isdigit() else report, what
        for one in shown:
            rows.append(f"| {named[0]} | {named[1]} | {one.members} | {one.outcome} |")
            named = "", ""
    others = [row(member) for member in MEMBERS]
    return "\n".join([INTRODUCTION, *rows, OTHERS, *others]) + "\n"


def row(member: Member) -> str:
    outcome = "refused" if member.scale is None else "taken"
    said = " … ".join(part.strip() for part in member.says)
    with_option = f", with `{member.options[0]}`" if member.options else ""
    return f"| {member.what}{with_option} | {outcome} | {said} |"


if __name__ == "__main__":
    (ROOT / "docs" / "intake.md").write_text(page())
