"""A layer imports only from layers below it (CONTRIBUTING.md draws the ladder)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from paths import ROOT

PACKAGE = ROOT / "src" / "loragraft"

#: Low to high. Modules of one rung may import one another, but not in a circle.
LADDER = [
    {"arrays", "errors", "patterns", "progress", "units", "system", "_native", "__version__"},
    {"quants"},
    {"formats"},
    {"adapters", "graph"},
    {"archs", "backends"},
    {"huggingface"},
    {"opening", "streaming"},
    {"inference"},
    {"evaluate"},
    {"verbs"},
    {"cli", "server", "__main__", "__init__"},
]
NEVER = {("archs", "backends"), ("backends", "archs")}
LEVEL = {name: level for level, names in enumerate(LADDER) for name in names}


def part(module: str) -> str:
    """The room of `loragraft.<module>`."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "loragraft"}


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_from_below(path: Path) -> None:
    name = "loragraft." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    here = part(name)
    assert here in LEVEL, f"{name} is on no rung: give it a place in the ladder, here and in CONTRIBUTING.md"
    wrong = [
        f"{name} (layer {LEVEL[here]}) imports {other} (layer {LEVEL[part(other)]})"
        for other in imports(path)
        if LEVEL[part(other)] > LEVEL[here] or (here, part(other)) in NEVER
    ]
    assert wrong == []


def modules_of(path: Path) -> set[str]:
    """The modules that one imports as it is imported itself: neither in functions nor for the type checker."""
    tree = ast.parse(path.read_text())
    at_start = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    names: set[str] = set()
    for node in at_start:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                part_of = f"{node.module}.{alias.name}"
                names.add(part_of if part_of in NAMED else node.module)
    return names & set(NAMED)


def dotted(path: Path) -> str:
    parts = ("loragraft", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMED = {dotted(path): path for path in MODULES}


def test_no_two_modules_need_each_other() -> None:
    """Also within a rung, where the ladder does not tell who stands on whom."""
    needs = {name: modules_of(path) - {name, "loragraft"} for name, path in NAMED.items()}
    assert needs["loragraft.verbs.merge"] >= {"loragraft.opening", "loragraft.streaming.plan"}
    while free := {name for name, others in needs.items() if not others}:
        needs = {name: others - free for name, others in needs.items() if name not in free}
    assert needs == {}, "each of these waits for another of them"


def test_no_circle_hides_in_a_function_or_a_type() -> None:
    """A circle of imports is one, also where the type checker alone follows it or a function imports late."""
    needs = {name: {within(other) for other in imports(path)} for name, path in NAMED.items()}
    needs = {name: others - {name, "loragraft"} for name, others in needs.items()}
    assert "loragraft.system.remote.stores" in needs["loragraft.system.remote.paths"], "it imports late"
    while free := {name for name, others in needs.items() if not others}:
        needs = {name: others - free for name, others in needs.items() if name not in free}
    assert needs == {}, "each of these waits for another of them"


def within(name: str) -> str:
    """The module that `name` is, or is a name of."""
    return name if name in NAMED else name.rpartition(".")[0]


def test_the_check_sees_imports() -> None:
    seen = {imported for path in MODULES for imported in imports(path)}
    assert "loragraft.errors.UnsupportedError" in seen
