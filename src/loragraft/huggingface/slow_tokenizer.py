"""Tokenizers without tokenizer.json: vocab.json and merges.txt of byte-level BPE, and SentencePiece's tokenizer.model.

Which words a byte-level tokenizer cuts a text into before it merges is written nowhere but in the code of its class, so
that is a table here. SentencePiece's model is a protocol buffer (google/sentencepiece, src/sentencepiece_model.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.gguf.values import TokenType
from loragraft.formats.impostors import refuse_impostor
from loragraft.formats.pretokenizers import PRETOKENIZERS
from loragraft.system.mapped import map_file

#: GGUF's pre-tokenizers, by transformers' classes (models/<name>/tokenization_<name>.py).
_CLASSES = {"GPT2Tokenizer": "gpt-2", "GPTNeoXTokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
_MAX_BYTES = 1 << 26
_MAX_PIECES = 1 << 24
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_BPE = 2
_KINDS = {
    1: TokenType.NORMAL,
    2: TokenType.UNKNOWN,
    3: TokenType.CONTROL,
    4: TokenType.USER_DEFINED,
    5: TokenType.UNUSED,
    6: TokenType.BYTE,
}


def has_slow_bpe(checkpoint: Checkpoint) -> bool:
    return checkpoint.has("vocab.json") and checkpoint.has("merges.txt")


def slow_bpe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What tokenizer.json would say of vocab.json and merges.txt. Raises CheckpointError, UnsupportedError."""
    config = checkpoint.json("tokenizer_config.json") if checkpoint.has("tokenizer_config.json") else {}
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if kind not in _CLASSES:
        raise UnsupportedError(
            checkpoint.path,
            "no tokenizer.json, and loragraft does not know how this class of tokenizers splits text into words",
            found=f"tokenizer_class {kind!r}"[:80],
            expected=f"tokenizer.json, or {' or '.join(_CLASSES)}",
            hint="load the tokenizer with transformers and save_pretrained it again",
        )
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    words = [{**split, "pattern": {"Regex": expression}} for expression in PRETOKENIZERS[_CLASSES[kind]]]
    bytes_only = {
        "type": "ByteLevel",
        "add_prefix_space": bool(config.get("add_prefix_space")),
        "use_regex": False,
    }
    return {
        "added_tokens": [
            {"id": id_, "content": text, "special": special}
            for text, (id_, special) in added_tokens(checkpoint, checkpoint.json("vocab.json")).items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*words, bytes_only]},
        "model": {
            "type": "BPE",
            "vocab": checkpoint.json("vocab.json"),
            "merges": _merges(checkpoint.path / "merges.txt"),
        },
    }


def added_tokens(checkpoint: Checkpoint, vocab: Mapping[str, Any]) -> dict[str, tuple[int, bool]]:
    """The tokens beside the vocabulary proper by their texts, with their ids and whether they are special: those of
    added_tokens.json, of `added_tokens_decoder`, and those that are named as BOS, EOS and so on.

    Raises CheckpointError for a token without an id.
    """
    config = checkpoint.json("tokenizer_config.json") if checkpoint.has("tokenizer_config.json") else {}
    mapped = checkpoint.json("special_tokens_map.json") if checkpoint.has("special_tokens_map.json") else {}
    found: dict[str, tuple[int, bool]] = {}
    if checkpoint.has("added_tokens.json"):
        found = {text: (id_, False) for text, id_ in checkpoint.json("added_tokens.json").items()}
    decoder = config.get("added_tokens_decoder")
    for id_, fields in (decoder if isinstance(decoder, Mapping) else {}).items():
        if isinstance(fields, Mapping) and isinstance(fields.get("content"), str) and id_.isdigit():
            found[fields["content"]] = int(id_), bool(fields.get("special"))
    for table in (mapped, config):
        named = [table.get(key) for key in _SPECIAL]
        more = table.get("additional_special_tokens")
        for entry in [*named, *(more if isinstance(more, list) else [])]:
            text = entry.get("content") if isinstance(entry, Mapping) else entry
            if isinstance(text, str) and (text in found or text in vocab):
                found[text] = found[text][0] if text in found else vocab[text], True
    for text, (id_, _) in found.items():
        if type(id_) is not int or not 0 <= id_ < _MAX_PIECES:
            raise CheckpointError(
                checkpoint.path, f"the added token {text[:40]!r} has no id", found=repr(id_)[:40]
            )
    return found


def _merges(path: Path) -> list[str]:
    with map_file(path, CheckpointError) as mapping:
        if len(mapping) > _MAX_BYTES:
            raise CheckpointError(
                path, "too large", found=f"{len(mapping)} bytes", expected=f"<= {_MAX_BYTES}"
            )
        try:
            text = mapping[:].decode()
        except UnicodeDecodeError as problem:
            raise CheckpointError(path, "is not UTF-8", found=f"a wrong byte at {problem.start}") from None
    lines = text.split("\n")
    return [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]


# ---- SentencePiece ----


@dataclass(frozen=True, slots=True)
class SentencePieces:
    """tokenizer.model: every piece's text, score and type, and whether a space goes before a text."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    adds_space: bool


def read_sentencepiece(path: Path) -> SentencePieces:
    """Raises CheckpointError for a malformed file, UnsupportedError for a model that is not BPE."""
    with map_file(path, CheckpointError) as mapping:
        if len(mapping) > _MAX_BYTES:
            raise CheckpointError(
                path, "too large", found=f"{len(mapping)} bytes", expected=f"<= {_MAX_BYTES}"
            )
        data = mapping[:]
    refuse_impostor(path, data, CheckpointError)
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    algorithm, adds_space = 1, True
    for field, value in _fields(path, data):
        if field == 1 and isinstance(value, bytes):
            piece = dict(_fields(path, value))
            text, score = piece.get(1, b""), piece.get(2, b"\0\0\0\0")
            if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
                raise CheckpointError(path, f"piece {len(texts)} is malformed")
            texts.append(text.decode("utf-8", "replace"))
            scores.append(struct.unpack("<f", score)[0])
            types.append(int(_KINDS.get(_number(path, piece), TokenType.NORMAL)))
        elif field == 2 and isinstance(value, bytes):
            algorithm = _number(path, dict(_fields(path, value)))
        elif field == 3 and isinstance(value, bytes):
            adds_space = bool(_number(path, dict(_fields(path, value))))
    if not texts:
        raise CheckpointError(path, "is not a SentencePiece model", expected="pieces")
    if algorithm != _BPE:
        raise UnsupportedError(
            path,
            "this kind of SentencePiece model",
            found={1: "Unigram", 3: "words", 4: "letters"}.get(algorithm, f"number {algorithm}"),
            expected="BPE",
            hint="llama.cpp's converter writes some of them; quantize and merge its GGUF",
        )
    return SentencePieces(texts, scores, types, adds_space)


def _number(path: Path, message: Mapping[int, int | bytes]) -> int:
    """Field 3: a piece's type, the trainer's algorithm, the normalizer's dummy prefix. It is 1 where it is left out."""
    value = message.get(3, 1)
    if not isinstance(value, int):
        raise CheckpointError(
            path, "is not a SentencePiece model", found="bytes in field 3", expected="a whole number"
        )
    return value


def _fields(path: Path, data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: numbers, or bytes (also of 4 or 8, for floats)."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise CheckpointError(path, "is not a SentencePiece model", found="a broken protocol buffer")
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = number()
        kind = key & 7
        if kind == 0:
            yield key >> 3, number()
            continue
        length = {1: 8, 5: 4}.get(kind) if kind != 2 else number()
        if length is None or length > len(data) - at:
            raise CheckpointError(path, "is not a SentencePiece model", found="a broken protocol buffer")
        yield key >> 3, data[at : at + length]
        at += length
