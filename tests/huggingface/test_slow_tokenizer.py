"""Tokenizers without tokenizer.json."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from intake_table import shows
from loragraft.errors import CheckpointError, LoragraftError, UnsupportedError
from loragraft.formats.checkpoint import Checkpoint
from loragraft.huggingface.slow_tokenizer import read_sentencepiece
from loragraft.huggingface.vocab import tokenizer_metadata
from paths import data

GOLDEN = json.loads(data("golden/sentencepiece.json").read_text())
SLOW = data("intake/01-template-without-tokenizer-json") / "slow-tokenizer"


def field(number: int, value: int | bytes | float) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def model(algorithm: int = 2, prefix: int = 1) -> bytes:
    """The golden model as SentencePiece writes it."""
    pieces = zip(GOLDEN["tokens"], GOLDEN["scores"], GOLDEN["types"], strict=True)
    data = b"".join(
        field(1, field(1, text.encode()) + field(2, float(score)) + field(3, kind))
        for text, score, kind in pieces
    )
    return (
        data
        + field(2, field(3, algorithm) + field(4, 32000))
        + field(3, field(1, b"identity") + field(3, prefix))
    )


@shows("01", "tokenizer.model", "read, as the sentencepiece library reads it")
def test_tokenizer_model_is_what_the_library_reads(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})
    )
    (tmp_path / "added_tokens.json").write_text(
        json.dumps({"<|im_end|>": len(GOLDEN["tokens"]), "word": len(GOLDEN["tokens"]) + 1})
    )
    notes: list[str] = []
    found = tokenizer_metadata(Checkpoint(tmp_path, {}, []), len(GOLDEN["tokens"]) + 4, notes)
    assert notes == []
    size = len(GOLDEN["tokens"])
    assert found["tokenizer.ggml.model"].data == "llama"
    tokens, types = (
        list(found["tokenizer.ggml.tokens"].data),
        found["tokenizer.ggml.token_type"].data.tolist(),
    )
    scores = found["tokenizer.ggml.scores"].data.tolist()
    assert tokens[:size] == GOLDEN["tokens"]
    assert tokens[size:] == ["<|im_end|>", "word", f"[PAD{size + 2}]", f"[PAD{size + 3}]"]
    control = {tokens.index("<s>"), tokens.index("</s>")}
    assert [kind for id_, kind in enumerate(types[:size]) if id_ not in control] == [
        kind for id_, kind in enumerate(GOLDEN["types"]) if id_ not in control
    ]
    assert types[size:] == [3, 4, 5, 5]
    plain = [id_ for id_ in range(size) if id_ not in control]
    assert [scores[id_] for id_ in plain] == [pytest.approx(GOLDEN["scores"][id_]) for id_ in plain]
    assert scores[size:] == [-1000, -1000, -10000, -10000]
    assert found["tokenizer.ggml.bos_token_id"].data == tokens.index("<s>")
    assert found["tokenizer.ggml.add_bos_token"].data is True
    assert found["tokenizer.ggml.add_space_prefix"].data is True


def test_what_sentencepiece_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    for content, error, says in (
        (model(algorithm=1), UnsupportedError, "found Unigram, expected BPE"),
        (b"\x0a\xff\xff\xff\xff\x7f", CheckpointError, "broken protocol buffer"),
        (b"\xff" * 20, CheckpointError, "broken protocol buffer"),
        (field(7, 1), CheckpointError, "is not a SentencePiece model"),
        (field(1, field(1, 3) + field(2, 4.0)), CheckpointError, "piece 0 is malformed"),
        (field(1, field(1, b"a") + field(3, b"2")), CheckpointError, "bytes in field 3"),
        (model() + field(2, field(3, b"2")), CheckpointError, "bytes in field 3"),
        (model() + field(3, field(3, b"1")), CheckpointError, "bytes in field 3"),
    ):
        path.write_bytes(content)
        with pytest.raises(error, match=says):
            read_sentencepiece(path)
    path.write_bytes(model(prefix=0))
    assert read_sentencepiece(path).adds_space is False


def test_vocab_and_merges_are_tokenizer_json(tmp_path: Path) -> None:
    """The same tokens, types and merges as from the tokenizer.json that they were taken from."""
    base = data("llama-kjv")
    config = json.loads((base / "config.json").read_text())
    expected = tokenizer_metadata(Checkpoint(base, config, []), 2048, [])
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(SLOW / file, tmp_path)
    settings = {
        "tokenizer_class": "Qwen2TokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = tokenizer_metadata(Checkpoint(tmp_path, {}, []), 2048, [])
    for key in ("tokens", "token_type", "merges", "bos_token_id", "eos_token_id"):
        assert found[f"tokenizer.ggml.{key}"] == expected[f"tokenizer.ggml.{key}"], key
    assert found["tokenizer.ggml.pre"].data == "qwen2"
    settings["tokenizer_class"] = "SomeTokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(LoragraftError, match="found tokenizer_class 'SomeTokenizer'"):
        tokenizer_metadata(Checkpoint(tmp_path, {}, []), 2048, [])
