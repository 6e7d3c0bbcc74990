"""Every model type by what people type: `convert`, `merge --type Q4_K_M` with an adapter of PEFT, `check`, `run`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from archs.test_hf_configs import write
from archs.test_hf_peft import write_adapter
from hf_configs import first_of_each, records
from hf_measured import peft_records
from loragraft.cli import app
from loragraft.formats.gguf.model import open_gguf


def loragraft(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("case", first_of_each())
def test_the_way_of_a_model(tmp_path: Path, case: str) -> None:
    folder, only = write(tmp_path / "m", case), []
    if "text_config" in records()[case]["config"]:
        only = ["--text-only"]
    lora = ["--lora", write_adapter(tmp_path / "a", case)] if case in peft_records() else []
    whole, merged, again = (tmp_path / f"{name}.gguf" for name in ("whole", "merged", "again"))
    loragraft("convert", folder, "-o", whole, "--type", "F32", *only)
    loragraft("merge", folder, *lora, "-o", merged, "--type", "Q4_K_M", *only)
    loragraft("merge", whole, *lora, "-o", again, "--type", "Q4_K_M")
    one, other = open_gguf(merged).tensors, open_gguf(again).tensors
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert tensor.rows(0, tensor.n_rows).tobytes() == other[name].rows(0, other[name].n_rows).tobytes(), (
            name
        )
    assert "linear" in loragraft("check", whole, *lora)
    loragraft("check", merged)
    prompt = ("-p", "ABC", "-n", 6, "--temp", 0)
    assert loragraft("run", merged, *prompt).startswith("ABC")
    assert loragraft("run", folder, *lora, *only, *prompt) == loragraft("run", whole, *lora, *prompt)
