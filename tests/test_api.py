"""The public names of the package."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import loragraft
import loragraft as lg
from loragraft.quants.types import BY_NAME
from paths import data


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_every_public_name_exists() -> None:
    for name in loragraft.__all__:
        assert getattr(loragraft, name) is not None
        assert name in dir(loragraft)
    assert not hasattr(loragraft, "nonsense")


def test_a_verb_stays_a_function_when_its_module_is_imported() -> None:
    code = "import loragraft as lg, loragraft.verbs.merge; assert lg.merge.__name__ == 'merge'; print('ok')"
    assert run(code) == "ok\n"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, loragraft.cli; print(sorted({'numpy', 'gguf', 'tokenizers', 'rich'} & set(sys.modules)))"
    )
    assert run(code) == "[]\n"


def test_every_error_is_public_and_can_be_pickled() -> None:
    """So that one which a worker process meets reaches the parent."""
    kinds = [
        lg.LoragraftError,
        *lg.LoragraftError.__subclasses__(),
        *lg.FormatError.__subclasses__(),
        *lg.AdapterError.__subclasses__(),
    ]
    assert {kind.__name__ for kind in kinds} <= set(lg.__all__)
    for kind in kinds:
        error = kind("file", "is odd", found=BY_NAME["Q4_0"], expected=3, hint="look at it")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert str(again) == str(error) == "file: is odd: found Q4_0, expected 3; look at it"
        assert str(again.within("folder")) == str(error.within("folder"))


BASE, ADAPTER = data("llama-kjv"), data("llama-kjv.shakespeare")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda out: lg.merge(BASE, [(ADAPTER, "0.5")], out), "bad strength: found 0.5"),
        (lambda out: lg.merge(BASE, [], out, threads=-3), "threads: too few: found -3, expected 1 to 1024"),
        (lambda out: lg.load(BASE, threads=0), "threads: too few: found 0"),
        (lambda out: lg.merge(BASE, [], out, type=7000), "7000: no such file type"),
        (lambda out: lg.load(BASE, activations="int8"), "activations: no such kind: found int8"),
        (lambda out: lg.load(BASE).logits([1.5, 2.0]), "ids: not a list of tokens: found float64"),
        (lambda out: lg.load(BASE).logits([[1]]), "ids: not a list of tokens: found shape"),
        (lambda out: lg.load(BASE).logits([2**40]), "no such token"),
        (
            lambda out: lg.load(BASE).perplexity("word " * 500, context=16, windows=0),
            "windows: none is left to measure: found 0",
        ),
    ],
)
def test_bad_arguments_teach(call: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(lg.LoragraftError, match=message):
        call(tmp_path / "out.gguf")  # type: ignore[operator]
    assert not list(tmp_path.iterdir())


def test_one_adapter_with_its_strength_needs_no_list(tmp_path: Path) -> None:
    for name, adapters in (("one", (ADAPTER, 0.5)), ("list", [(ADAPTER, 0.5)])):
        lg.merge(BASE, adapters, tmp_path / name, type="Q8_0")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "list").read_bytes()


def test_reports_hold_the_notes(tmp_path: Path) -> None:
    """What a command prints, a library user can read."""
    options = lg.QuantizeOptions(resume=True)
    report = lg.merge(BASE, [], tmp_path / "out.gguf", type="Q8_0", options=options)
    assert report.notes == ["nothing to continue: starting from the beginning"]
    assert lg.quantize(tmp_path / "out.gguf", tmp_path / "copy.gguf", "COPY").notes == []
