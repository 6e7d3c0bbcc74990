"""What is uploaded to the hub: the files, and a card that says what went into them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

import loragraft as lg
from command_line import loragraft
from loragraft.adapters.receipt import digest_of
from loragraft.errors import FormatError
from loragraft.system.remote import stores
from loragraft.verbs.card import MARK
from loragraft.verbs.comparison_file import read_comparison
from loragraft.verbs.push import push
from paths import ROOT, data
from remote_servers import FileServer, serving

pytestmark = pytest.mark.filterwarnings("ignore")  # of the progress bars of huggingface_hub
NEW, OWN = "acme/tuned", "acme/own"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    stores._store.cache_clear()
    models = {"acme/llama-kjv": data("llama-kjv"), NEW: tmp_path / "tuned", OWN: tmp_path / "own"}
    with serving(models) as (address, server):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # which has a protocol of its own
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield server


def test_the_card_shows_a_comparison(hub: FileServer, tmp_path: Path) -> None:
    adapter, text = data("llama-kjv.shakespeare"), (ROOT / "examples" / "shakespeare-valid.txt").read_text()
    how = lg.Measurement(text, context=64, windows=4)
    found = lg.compare(data("llama-kjv"), [adapter], how)
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(found.as_dict()))
    report = lg.merge(data("llama-kjv"), [adapter], tmp_path / "tuned.gguf", type="Q4_K_M")
    push(report, f"hf://{NEW}", comparison=path)
    card = (tmp_path / "tuned" / "README.md").read_text()
    merged, kept = found.types[0].merged, found.types[0].merged.kept
    assert kept is not None
    assert merged.divergence is not None
    row = next(line for line in card.splitlines() if line.startswith("| merged, Q4\\_K\\_M |"))
    assert f"| {merged.perplexity.value:.2f} | {merged.divergence.mean:.5f} |" in row
    assert f"| {100 * kept.value:.2f} ± {100 * kept.error:.2f} % |" in row
    assert f"{merged.perplexity.tokens} predictions in the second halves of 4 windows of 64 tokens" in card


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"types": []}, "is not a comparison: types: found 0 of them, expected 1 to 200"),
        ({"full": 3}, "is not a comparison: full: found int, expected dict"),
        ({"context": "x"}, "is not a comparison: context: found 'x', expected a number"),
        ({"context": float("inf")}, "context"),
    ],
)
def test_what_is_no_comparison_is_refused(tmp_path: Path, damage: dict[str, object], said: str) -> None:
    row = {"label": "x", "size": 1, "perplexity": {"value": 1.0, "error": 0.0, "tokens": 2, "windows": 1}}
    right = {"context": 4, "types": [{"merged": row, "runtime": row}], "full": row, "base": row}
    path = tmp_path / "c.json"
    path.write_text(json.dumps(right))
    assert read_comparison(path).rows[0].label == "x"
    path.write_text(json.dumps(right | damage))
    with pytest.raises(FormatError, match=said):
        read_comparison(path)


def test_a_merge_is_pushed_with_its_receipt(hub: FileServer, tmp_path: Path) -> None:
    adapter = data("llama-kjv.shakespeare")
    words = ["merge", "hf://acme/llama-kjv", "--lora", f"{adapter}=0.5", "--type", "Q4_K_M"]
    words += ["-o", str(tmp_path / "tuned-Q4_K_M.gguf"), "--push", f"hf://{NEW}"]
    done = subprocess.run([sys.executable, "-m", "loragraft", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"/{NEW}/commit/" in done.stdout + done.stderr
    assert hub.private == {NEW: True}
    there = tmp_path / "tuned"
    assert (there / "tuned-Q4_K_M.gguf").read_bytes() == (tmp_path / "tuned-Q4_K_M.gguf").read_bytes()
    card = (there / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["base_model"] == ["acme/llama-kjv"]
    assert "lora" in facts["tags"]
    assert MARK in text
    assert digest_of(sorted(adapter.glob("*.safetensors"))) in text
    assert "| 0.5 | 8 | 56 of 56 | 28 | 28 |" in text
    assert f"llama-server -hf {NEW} -hff tuned-Q4_K_M.gguf" in text
    assert str(tmp_path) not in card
    assert str(adapter.parent) not in card


def test_a_card_of_ours_is_replaced_and_another_stays(hub: FileServer, tmp_path: Path) -> None:
    from loragraft.verbs.push import push

    report = lg.merge(data("llama-kjv"), [], tmp_path / "m.gguf", type="Q8_0")
    push(report, f"hf://{NEW}")
    first = (tmp_path / "tuned" / "README.md").read_text()
    again = lg.merge(data("llama-kjv"), [], tmp_path / "m.gguf", type="Q4_0")
    push(again, f"hf://{NEW}")
    assert (tmp_path / "tuned" / "README.md").read_text() != first
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("# Mine\n")
    push(report, f"hf://{OWN}")
    assert (tmp_path / "own" / "README.md").read_text() == "# Mine\n"
    assert MARK in (tmp_path / "own" / "loragraft.md").read_text()


@pytest.mark.parametrize("to", ["acme/tuned", "hf://acme", "hf://acme/tuned/file", "s3://bucket/x"])
def test_only_a_repository_is_pushed_to(hub: FileServer, tmp_path: Path, to: str) -> None:
    done = loragraft("merge", data("llama-kjv"), "--push", to, "-o", tmp_path / "m.gguf")
    assert done.returncode == 1
    assert "is not a repository on the hub" in done.stderr
    assert not (tmp_path / "m.gguf").exists()


def test_without_a_token_one_line_says_so(
    hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loragraft.verbs.push import push

    monkeypatch.setenv("HF_TOKEN", "")
    report = lg.merge(data("llama-kjv"), [], tmp_path / "m.gguf", type="Q8_0")
    says = r"hf auth login; what was written stays; to upload it later: hf upload .*m\.gguf"
    with pytest.raises(lg.OutputError, match=says) as raised:
        push(report, f"hf://{NEW}")
    assert "\n" not in str(raised.value)
