"""Model cards of strangers: within bounds, or left out with a note; and what is in a good one arrives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hostile_models as hostile
import loragraft as lg
from loragraft.errors import CheckpointError
from loragraft.formats.gguf.model import open_gguf
from loragraft.huggingface.card_file import read_card

BOMB = (
    "---\na0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    + "base_model: *a11\n---\n"
)
CARDS = {
    "bomb": (BOMB, "aliases"),
    "deep": ("---\nname: " + "[" * 100 + "]" * 100 + "\n---\n", "too large"),
    "many": ("---\ntags: [" + "x," * 60_000 + "]\n---\n", "too large"),
    "long list": ("---\ntags: [" + "x," * 1001 + "]\n---\n", "too many entries"),
    "long name": (f"---\nbase_model: {'-' * 100_000}x\n---\n", "too long"),
    "endless": ("---\nname: x\n" + "# \n" * 200_000, "have no end"),
    "no table": ("---\n- a\n---\n", "is not a table"),
    "not YAML": ("---\na: [\n---\n", "not YAML"),
    "half a pair": ('---\nname: "\\ud800"\n---\n', None),
    "a date that is none": ("---\nname: 2024-99-99\n---\n", "not YAML"),
    "a name that is a list": ("---\nname: [a, b]\n---\n", None),
    "a table as a model": ("---\nbase_model: [{name: {a: 1}}]\n---\n", None),
}


@pytest.mark.parametrize("case", CARDS)
def test_a_hostile_card_is_a_note(tmp_path: Path, case: str) -> None:
    text, says = CARDS[case]
    base, _ = hostile.checkpoint(tmp_path, hostile.checkpoint_jsons())
    (base / "README.md").write_text(text)
    start = time.process_time()
    if says is not None:
        with pytest.raises(CheckpointError, match=says):
            read_card(base)
    notes = lg.convert(base, tmp_path / "out.gguf", threads=1).notes
    assert time.process_time() - start < 5
    (note,) = [note for note in notes if "the model card is left out" in note]
    assert says is None or says in note
    assert len(note) < 400
    assert open_gguf(tmp_path / "out.gguf").metadata["general.name"].data == "base"


@pytest.mark.parametrize("name", ["README.md", "chat_template.jinja"])
def test_a_pipe_among_the_files_does_not_block(tmp_path: Path, name: str) -> None:
    base, _ = hostile.checkpoint(tmp_path, hostile.checkpoint_jsons())
    os.mkfifo(base / name)
    lg.convert(base, tmp_path / "out.gguf", threads=1)


def test_a_link_to_a_device_is_no_template(tmp_path: Path) -> None:
    base, _ = hostile.checkpoint(tmp_path, hostile.checkpoint_jsons())
    (base / "chat_template.jinja").write_text("x")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "a.jinja").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"a\.jinja: is not a regular file"):
        lg.convert(base, tmp_path / "out.gguf", threads=1)


def test_a_good_card_arrives(tmp_path: Path) -> None:
    base, _ = hostile.checkpoint(tmp_path, hostile.checkpoint_jsons())
    (base / "README.md").write_text(
        "---\nname: My Model\nlicense: mit\nlanguage:\n- en\n- no\nbase_model: org/Some-Base-7B\n---\nText\n"
    )
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20}))
    lg.convert(base, tmp_path / "out.gguf", threads=1)
    metadata = open_gguf(tmp_path / "out.gguf").metadata
    assert metadata["general.name"].data == "My Model"
    assert metadata["general.license"].data == "mit"
    assert metadata["general.languages"].data == ["en", "no"]
    assert metadata["general.base_model.0.organization"].data == "Org"
    assert metadata["general.sampling.top_k"].data == 20
    assert metadata["general.sampling.temp"].data == pytest.approx(0.6)


def test_a_library_that_logs_is_not_seen(tmp_path: Path) -> None:
    """gguf-py reports every odd entry of a card, in full."""
    base, _ = hostile.checkpoint(tmp_path, hostile.checkpoint_jsons())
    (base / "README.md").write_text("---\nbase_model: [1, 2, 3]\ndatasets: [4]\n---\n")
    command = [sys.executable, "-m", "loragraft", "convert", base, "-o", tmp_path / "out.gguf", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
