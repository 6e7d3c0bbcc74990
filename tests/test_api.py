"""The public names of the package."""

from __future__ import annotations

import subprocess
import sys

import loragraft


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_every_public_name_exists() -> None:
    for name in loragraft.__all__:
        assert getattr(loragraft, name) is not None
        assert name in dir(loragraft)
    assert not hasattr(loragraft, "nonsense")


def test_a_verb_stays_a_function_when_its_module_is_imported() -> None:
    code = "import loragraft as lg; from loragraft.load import Model; assert lg.load.__name__ == 'load'; print('ok')"
    assert run(code) == "ok\n"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, loragraft.cli; print(sorted({'numpy', 'gguf', 'tokenizers', 'rich'} & set(sys.modules)))"
    )
    assert run(code) == "[]\n"
