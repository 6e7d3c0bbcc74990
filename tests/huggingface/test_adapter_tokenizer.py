"""The tokenizer beside an adapter: taken where it says something new, or needed where the vocabulary was resized."""

from __future__ import annotations

from pathlib import Path

import pytest

from loragraft.errors import AdapterError, CheckpointError
from loragraft.inference.model import load
from loragraft.opening import load_adapter, open_model
from loragraft.verbs.merge import merge
from peft_golden import adapter_folder, base_folder, write_tokenizer


def test_new_tokens_come_with_their_tokenizer(tmp_path: Path) -> None:
    base, adapter = (
        base_folder("llama", tmp_path / "base"),
        adapter_folder("llama+resized", tmp_path / "adapter"),
    )
    out = tmp_path / "merged.gguf"
    merge(base, [adapter], out)
    metadata = open_model(out).metadata
    assert metadata["tokenizer.ggml.tokens"].data == [chr(65 + i) for i in range(43)]
    assert metadata["llama.vocab_size"].data == 43
    assert load(base, [adapter]).detokenize([42]) == "k"
    assert load(out).detokenize([42]) == "k"


def test_new_tokens_that_nobody_names(tmp_path: Path) -> None:
    base, adapter = (
        base_folder("llama", tmp_path / "base"),
        adapter_folder("llama+resized", tmp_path / "adapter"),
    )
    (adapter / "tokenizer.json").unlink()
    with pytest.raises(
        AdapterError, match=r"another vocabulary .* found 43 tokens, expected 40, or tokenizer\.json"
    ):
        load_adapter(adapter, open_model(base))
    write_tokenizer(adapter, 44)
    with pytest.raises(CheckpointError, match="more tokens than the model"):
        load_adapter(adapter, open_model(base))


def test_what_is_the_bases_is_not_taken(tmp_path: Path) -> None:
    base, adapter = (
        base_folder("llama", tmp_path / "base"),
        adapter_folder("llama+saved", tmp_path / "adapter"),
    )
    write_tokenizer(adapter, 40)
    loaded = load_adapter(adapter, open_model(base))
    assert loaded.tokenizer == {}
    assert not any("tokenizer" in note for note in loaded.notes)


def test_a_chat_template_and_an_end_of_text(tmp_path: Path) -> None:
    base, adapter = (
        base_folder("llama", tmp_path / "base"),
        adapter_folder("llama+saved", tmp_path / "adapter"),
    )
    write_tokenizer(adapter, 40, eos_token="C", chat_template="{{ messages }}")
    loaded = load_adapter(adapter, open_model(base))
    assert {key: value.data for key, value in loaded.tokenizer.items()} == {
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }
    assert any(
        note.endswith("its own chat template replaces the base's, which differs") for note in loaded.notes
    )


def test_a_tokenizer_that_does_not_fit_is_left_out_with_a_note(tmp_path: Path) -> None:
    """Tokens were added, but the embeddings were never resized: the model cannot see them."""
    base, adapter = (
        base_folder("llama", tmp_path / "base"),
        adapter_folder("llama+saved", tmp_path / "adapter"),
    )
    write_tokenizer(adapter, 41)
    loaded = load_adapter(adapter, open_model(base))
    assert loaded.tokenizer == {}
    assert any("is left out" in note and "more tokens than the model" in note for note in loaded.notes)
