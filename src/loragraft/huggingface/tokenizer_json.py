"""The Hugging Face files of a tokenizer, from a GGUF's metadata: the way back from `loragraft.huggingface.vocab`."""

from __future__ import annotations

from typing import Any

from gguf import TokenType

from loragraft.formats.gguf.values import Metadata
from loragraft.formats.pretokenizers import IGNORE_MERGES, PRETOKENIZERS

_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED)


def tokenizer_files(metadata: Metadata, notes: list[str]) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json by name, of a byte-level BPE; of another kind nothing, and a note."""
    model = metadata.get("tokenizer.ggml.model")
    pre = metadata.get("tokenizer.ggml.pre")
    name = "default" if pre is None else str(pre.data)
    if (
        model is None
        or model.data != "gpt2"
        or name not in PRETOKENIZERS
        or "tokenizer.ggml.merges" not in metadata
    ):
        notes.append(
            "the tokenizer is left out: only byte-level BPE can be written; copy it from the original model"
        )
        return {}
    tokens: list[str] = list(metadata["tokenizer.ggml.tokens"].data)
    kinds = metadata.get("tokenizer.ggml.token_type")
    types = [int(TokenType.NORMAL)] * len(tokens) if kinds is None else [int(kind) for kind in kinds.data]
    held = [(id_, text, kind) for id_, (text, kind) in enumerate(zip(tokens, types, strict=True))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in PRETOKENIZERS[name]
    ]
    special = _special_texts(metadata, tokens)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": text, **flags, "special": kind == TokenType.CONTROL}
            for id_, text, kind in held
            if kind in _ADDED
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]},
        "post_processor": _template(metadata, tokens) or byte_level,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": name in IGNORE_MERGES,
            "vocab": {text: id_ for id_, text, kind in held if kind != TokenType.UNUSED},
            "merges": [merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"].data],
        },
    }
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"].data
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}


def _special_texts(metadata: Metadata, tokens: list[str]) -> dict[str, str]:
    kinds = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}
    found = {}
    for kind, name in kinds.items():
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is not None and 0 <= value.data < len(tokens):
            found[f"{kind}_token"] = tokens[value.data]
    return found


def _template(metadata: Metadata, tokens: list[str]) -> dict[str, Any] | None:
    """The post-processor that puts BOS before and EOS behind a text, where the metadata ask for it."""
    special = _special_texts(metadata, tokens)
    ends: dict[str, list[Any]] = {"bos": [], "eos": []}
    for kind, pieces in ends.items():
        flag = metadata.get(f"tokenizer.ggml.add_{kind}_token")
        if flag is not None and flag.data and f"{kind}_token" in special:
            pieces.append({"SpecialToken": {"id": special[f"{kind}_token"], "type_id": 0}})
    used = [piece["SpecialToken"]["id"] for pieces in ends.values() for piece in pieces]
    if not used:
        return None
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [*ends["bos"], first, *ends["eos"]],
        "pair": [*ends["bos"], first, *ends["eos"], second],
        "special_tokens": {
            text: {"id": text, "ids": [tokens.index(text)], "tokens": [text]} for text in used
        },
    }
