"""The Hugging Face files of a tokenizer, from a GGUF's metadata: the way back from `loragraft.huggingface.vocab`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loragraft.archs.metadata import MetadataKeys
from loragraft.errors import FormatError
from loragraft.formats.gguf.schema import merge_pairs
from loragraft.formats.gguf.values import Metadata, TokenType
from loragraft.formats.pretokenizers import IGNORE_MERGES, PRETOKENIZERS
from loragraft.huggingface.tokenizer_file import SPACE

_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED)


def tokenizer_files(metadata: Metadata, notes: list[str]) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json by name, of a byte-level BPE or of SentencePiece's; of another kind
    nothing, and a note."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    name = "default" if pre is None else str(pre.data)
    tokens: list[str] = (
        list(metadata["tokenizer.ggml.tokens"].data) if "tokenizer.ggml.tokens" in metadata else []
    )
    types = _types(metadata, len(tokens))
    template = _template(metadata, tokens)
    if (
        kind is not None
        and kind.data == "gpt2"
        and name in PRETOKENIZERS
        and {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"} <= metadata.keys()
    ):
        parts = _byte_level(metadata, name, template)
    elif kind is not None and kind.data == "llama" and "tokenizer.ggml.scores" in metadata:
        parts = _sentencepiece(metadata, tokens, types, template)
    else:
        notes.append(
            "the tokenizer is left out: only byte-level BPE and SentencePiece's BPE can be written; copy it from the "
            "original model"
        )
        return {}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    vocab = {
        text: id_
        for id_, (text, type_) in enumerate(zip(tokens, types, strict=True))
        if type_ != TokenType.UNUSED
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": text, **flags, "special": type_ == TokenType.CONTROL}
            for id_, (text, type_) in enumerate(zip(tokens, types, strict=True))
            if type_ in _ADDED
        ],
        **parts,
        "model": {
            "type": "BPE",
            "dropout": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            **parts["model"],
            "vocab": vocab,
        },
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **_special_texts(metadata, tokens),
        **_chat_template(metadata),
    }
    keys = MetadataKeys(metadata)
    if keys.has("context_length"):
        config["model_max_length"] = keys.count("context_length")
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}


def _byte_level(metadata: Metadata, name: str, template: dict[str, Any] | None) -> dict[str, Any]:
    """The parts of a byte-level BPE with GGUF's pre-tokenizer `name`. Raises FormatError for a merge that is none."""
    try:
        merges = merge_pairs(metadata["tokenizer.ggml.merges"].data)
    except ValueError as problem:
        raise FormatError("tokenizer.ggml.merges", str(problem)) from None
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in PRETOKENIZERS[name]
    ]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]},
        "post_processor": template or byte_level,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": name in IGNORE_MERGES,
            "merges": merges,
        },
    }


def _sentencepiece(
    metadata: Metadata, tokens: list[str], types: list[int], template: dict[str, Any] | None
) -> dict[str, Any]:
    """The parts of a SentencePiece BPE: its merges are all ways to make a piece of two others, the best score first,
    as transformers converts such models (convert_slow_tokenizer.py, `generate_merges`)."""
    flag = metadata.get("tokenizer.ggml.add_space_prefix")
    prefix = flag is None or bool(flag.data)
    scores = {
        text: float(score)
        for text, score, type_ in zip(tokens, metadata["tokenizer.ggml.scores"].data, types, strict=True)
        if type_ == TokenType.NORMAL
    }
    ways = [
        (text[:cut], text[cut:])
        for text in scores
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    ways.sort(key=lambda way: (-scores[way[0] + way[1]], -len(way[0])))
    unknown = next(
        (text for text, type_ in zip(tokens, types, strict=True) if type_ == TokenType.UNKNOWN), None
    )
    spelled = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    spoken = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, spelled]},
        "pre_tokenizer": None,
        "post_processor": template,
        "decoder": {
            "type": "Sequence",
            "decoders": [spoken, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "merges": [list(way) for way in ways],
        },
    }


def generation_config(metadata: Metadata) -> dict[str, Any]:
    """generation_config.json: every token that ends a text or a turn stops the generation."""
    ids = {
        kind: int(metadata[key].data)
        for kind in ("bos", "eos", "eot", "eom", "padding")
        if (key := f"tokenizer.ggml.{kind}_token_id") in metadata
    }
    ends = list(dict.fromkeys(ids[kind] for kind in ("eos", "eot", "eom") if kind in ids))
    config: dict[str, Any] = {"bos_token_id": ids["bos"]} if "bos" in ids else {}
    if ends:
        config["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if "padding" in ids:
        config["pad_token_id"] = ids["padding"]
    return config


def _types(metadata: Metadata, count: int) -> list[int]:
    kinds = metadata.get("tokenizer.ggml.token_type")
    return [int(TokenType.NORMAL)] * count if kinds is None else [int(kind) for kind in kinds.data]


def _chat_template(metadata: Metadata) -> Mapping[str, Any]:
    default = metadata.get("tokenizer.chat_template")
    names = metadata.get("tokenizer.chat_templates")
    if names is None:
        return {} if default is None else {"chat_template": default.data}
    texts = {"default": default} | {
        name: metadata.get(f"tokenizer.chat_template.{name}") for name in names.data
    }
    named = [{"name": name, "template": text.data} for name, text in texts.items() if text is not None]
    return {"chat_template": named}


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
