"""What holds for every record, whoever adds it."""

from __future__ import annotations

import ast
import re

import gguf
import pytest

from loragraft.archs import ARCHS, Arch
from loragraft.archs.arch import Registry
from loragraft.archs.keys import FILE_TYPE
from paths import ROOT

FOLDER = ROOT / "src" / "loragraft" / "archs"
RECORDS = pytest.mark.parametrize("arch", list(ARCHS), ids=lambda arch: arch.name)


def imported(path: str) -> set[str]:
    tree = ast.parse((FOLDER / path).read_text())
    return {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py")))
def test_archs_know_no_backend_and_no_native_core(path: str) -> None:
    """Neither do they read folders: they say what is in them."""
    rooms = {module.split(".")[1] for module in imported(path) if module.startswith("loragraft.")}
    assert rooms <= {"archs", "arrays", "errors", "formats", "graph"}
    assert "loragraft" not in imported(path)  # `from loragraft import _native`


@RECORDS
def test_gguf_knows_the_names(arch: Arch) -> None:
    """Of the architecture and of every tensor that the record names."""
    assert arch.name in gguf.MODEL_ARCH_NAMES.values()
    known = {name.replace("{bid}", "{i}") for name in gguf.TENSOR_NAMES.values()}
    for tensor in arch.tensors:
        name = re.sub(r"\.(weight|bias|scale)$", "", tensor.gguf) if tensor.exact else tensor.gguf
        assert name in known, tensor.gguf
        assert ("{i}" in tensor.gguf) == ("{i}" in tensor.hf), tensor.hf


@RECORDS
def test_nothing_is_said_twice(arch: Arch) -> None:
    rows = [(tensor.hf, tensor.gguf) for tensor in arch.tensors]
    assert len(rows) == len(set(rows))
    for config_class in arch.classes:
        assert sum(rule is FILE_TYPE for rule in config_class.keys) <= 1
        assert not config_class.ignores & (config_class.requires.keys() | config_class.biases.keys())
        own = [key for rule in config_class.keys for key in rule.config_keys if not key.startswith("rope_")]
        assert len(own) == len(set(own)), sorted(own)


@RECORDS
def test_the_documentation_names_it(arch: Arch) -> None:
    text = (ROOT / "docs" / "architectures.md").read_text()
    [row] = [line for line in text.splitlines() if line.startswith(f"| {arch.name} |")]
    for config_class in arch.classes:
        assert re.search(rf"\b{config_class.model_type}\b", row), config_class.model_type


def test_a_second_claim_is_an_error() -> None:
    arch = ARCHS.by_name("llama")
    with pytest.raises(ValueError, match="two architectures claim 'llama'"):
        Registry([arch, arch])
