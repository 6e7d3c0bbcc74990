"""A Hugging Face tokenizer as GGUF's `tokenizer.*` metadata.

Byte-level BPE (`gpt2`): tokens, types and merges as llama.cpp's conversion/base.py (`get_vocab_base`) writes them, the
pre-tokenizer recognised by its definition. BPE with byte_fallback (`llama`, SentencePiece's): scores from the order of
the merges. Special tokens, BOS and EOS flags and chat templates as gguf-py's `SpecialVocab` finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loragraft.errors import CheckpointError
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.gguf.values import Metadata, TokenType, Value, ValueType
from loragraft.formats.textfile import MAX_SMALL, decoded, read_file
from loragraft.huggingface.tokenizer_file import TokenizerFile, flat

#: Kinds of special token in the order in which their keys are written.
SPECIAL_KINDS = ("bos", "eos", "unk", "sep", "pad", "mask")
#: Of Gemma 4's tokens those that a chat's parser reads.
_SHOWN = frozenset(
    [
        "<|channel>",
        "<channel|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|tool_response>",
        "<tool_response|>",
        '<|"|>',
    ]
)
#: What GGUF calls them (`tokenizer.ggml.<this>_token_id`), where it differs.
_GGUF_KIND = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # the spelling is GGUF's


def tokenizer_metadata(
    checkpoint: Checkpoint, vocab_size: int | None, notes: list[str], *, ranked: str | None = None
) -> Metadata:
    """The `tokenizer.*` keys of the model in `checkpoint`; `vocab_size` as config.json has it; `ranked`: what GGUF
    calls a vocabulary of this architecture that is spelled as SentencePiece's and merges by rank.

    A vocabulary smaller than `vocab_size` is padded with unused tokens `[PAD<id>]`. Raises CheckpointError for a
    tokenizer.json that is malformed or larger than the model's vocabulary, UnsupportedError for a kind of tokenizer, or
    a pre-tokenizer, that GGUF has no name for. What cannot be carried over is added to `notes`.
    """
    file = TokenizerFile.open(checkpoint)
    tokens, types = file.tokens(vocab_size)
    if ranked is not None and file.is_sentencepiece:
        return _ranked(checkpoint, file, ranked, types, notes)
    metadata: Metadata = {
        "tokenizer.ggml.model": Value.string("llama" if file.is_sentencepiece else "gpt2"),
        "tokenizer.ggml.pre": Value.string("default" if file.is_sentencepiece else file.pretokenizer(notes)),
        "tokenizer.ggml.tokens": Value.strings(tokens),
    }
    kinds = Value.numbers(ValueType.INT32, types)
    if file.is_sentencepiece:
        scores = file.scores(tokens, types, notes)
        metadata["tokenizer.ggml.scores"] = Value.numbers(ValueType.FLOAT32, scores)
        metadata["tokenizer.ggml.token_type"] = kinds
    else:
        metadata["tokenizer.ggml.token_type"] = kinds
        metadata["tokenizer.ggml.merges"] = Value.strings(file.merges())
    if file.merges_nothing:
        notes.append(f"{file.path.name} has no merges: text will be read letter by letter")
    notes += file.left_out()
    metadata.update(_special_tokens(checkpoint, file.json, file.id_of, len(tokens), notes))
    metadata.update(_chat_templates(checkpoint, notes))
    if file.is_sentencepiece:
        metadata["tokenizer.ggml.add_space_prefix"] = Value.boolean(file.adds_space())
    return metadata


def _ranked(
    checkpoint: Checkpoint, file: TokenizerFile, kind: str, types: list[int], notes: list[str]
) -> Metadata:
    """As llama.cpp's converter writes Gemma 4's: no scores that say anything, merges, and tokens of a chat that are
    shown as texts. Tokens that are added, and not special, are tokens like others."""
    texts = {id_: text for text, id_ in file.vocab.items()}
    texts |= {token["id"]: token["content"] for token in file.added}
    special = {token["id"] for token in file.added if token.get("special")}
    for id_, text in texts.items():
        if types[id_] != TokenType.BYTE:
            types[id_] = TokenType.CONTROL if id_ in special else TokenType.NORMAL
        if text in _SHOWN:
            types[id_] = TokenType.USER_DEFINED
    tokens = [texts.get(id_, f"[PAD{id_}]") for id_ in range(len(types))]
    metadata: Metadata = {
        "tokenizer.ggml.model": Value.string(kind),
        "tokenizer.ggml.tokens": Value.strings(tokens),
        "tokenizer.ggml.scores": Value.numbers(ValueType.FLOAT32, [-1000.0] * len(tokens)),
        "tokenizer.ggml.token_type": Value.numbers(ValueType.INT32, [int(kind) for kind in types]),
        "tokenizer.ggml.merges": Value.strings(file.merges()),
    }
    notes += file.left_out()
    metadata.update(_special_tokens(checkpoint, file.json, file.id_of, len(tokens), notes))
    metadata.pop("tokenizer.ggml.add_bos_token", None)
    metadata.update(_chat_templates(checkpoint, notes))
    metadata["tokenizer.ggml.add_space_prefix"] = Value.boolean(file.adds_space())
    metadata["tokenizer.ggml.add_bos_token"] = Value.boolean(True)
    return metadata


def tokenizer_uses(checkpoint: Checkpoint, tokens: Sequence[str], notes: list[str]) -> Metadata:
    """What the folder says of using a tokenizer that it does not hold: chat templates, and the special tokens that
    tokenizer_config.json names, by their places among `tokens`."""
    ids = {text: id_ for id_, text in enumerate(tokens)}
    metadata = _special_tokens(checkpoint, {}, ids.get, len(tokens), notes)
    return {**metadata, **_chat_templates(checkpoint, notes)}


def _special_tokens(
    checkpoint: Checkpoint,
    tokenizer: Mapping[str, Any],
    id_of: Callable[[str], int | None],
    vocabulary: int,
    notes: list[str],
) -> Metadata:
    """Ids from tokenizer_config.json's texts, else from config.json; `add_*` flags from the post-processor, else from
    tokenizer_config.json."""
    config = checkpoint.json("tokenizer_config.json") if checkpoint.has("tokenizer_config.json") else {}
    texts = {kind: _content(config.get(f"{kind}_token")) for kind in SPECIAL_KINDS}
    cls = _content(config.get("cls_token"))
    texts["bos"] = texts["bos"] or cls
    texts["eos"] = texts["eos"] or texts["sep"]
    kinds = list(SPECIAL_KINDS)
    added: dict[str, bool] = {}
    processor = tokenizer.get("post_processor")
    for step in flat(processor, "processors"):
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "ByteLevel":
            added.setdefault("bos", False)
            added.setdefault("eos", False)
        elif kind == "TemplateProcessing":
            first, last = _template_ends(step.get("single"))
            if first is not None:
                texts["bos"] = texts["bos"] or first
                added["bos"] = first in (texts["bos"], cls)
                if not added["bos"]:
                    notes.append(f"tokenizer.json puts {first!r} before every text; GGUF cannot express that")
            if last is not None:
                if last != texts["eos"]:
                    # the model's end of text differs from its end of turn
                    kinds.append("eot")
                    texts["eot"], texts["eos"] = texts["eos"], last
                added["eos"] = True
            if (separated := _separates(step, first, last, (texts["sep"], texts["eos"]))) is not None:
                added["sep"] = separated
                texts["sep"] = texts["sep"] or (texts["eos"] if separated else None)
    ids: dict[str, int | None] = {}
    for kind in kinds:
        if isinstance(flag := config.get(f"add_{kind}_token"), bool):
            added.setdefault(kind, flag)
        if (text := texts.get(kind)) is not None and (id_ := id_of(text)) is not None:
            ids[kind] = id_
    for kind in kinds:
        ids.setdefault(kind, _configured_id(checkpoint, f"{kind}_token_id", vocabulary, notes))
    metadata: Metadata = {
        f"tokenizer.ggml.{_GGUF_KIND.get(kind, kind)}_token_id": Value.u32(id_)
        for kind, id_ in ids.items()
        if id_ is not None
    }
    metadata.update({f"tokenizer.ggml.add_{kind}_token": Value.boolean(flag) for kind, flag in added.items()})
    return metadata


def _configured_id(checkpoint: Checkpoint, key: str, vocabulary: int, notes: list[str]) -> int | None:
    """An id in config.json; None where it is not set (null, or the -1 of old files), a list, or no token's."""
    id_ = checkpoint.config.get(key)
    if type(id_) is not int or id_ == -1:
        return None
    if not 0 <= id_ < vocabulary:
        notes.append(f"config.json: {key} {id_} is left out: the vocabulary has {vocabulary} tokens")
        return None
    return id_


def _content(entry: Any) -> str | None:
    """A token's text in tokenizer_config.json: a string, or an AddedToken's `content`."""
    text = entry.get("content") if isinstance(entry, Mapping) else entry
    return text if isinstance(text, str) and text else None


def _template_ends(single: Any) -> tuple[str | None, str | None]:
    """The special tokens that a TemplateProcessing puts before and behind one text."""
    if not isinstance(single, list) or len(single) < 2:
        return None, None

    def token(piece: Any) -> str | None:
        inner = piece.get("SpecialToken") if isinstance(piece, dict) else None
        return inner.get("id") if isinstance(inner, dict) and isinstance(inner.get("id"), str) else None

    return token(single[0]), token(single[-1])


def _separates(
    template: Mapping[str, Any], first: str | None, last: str | None, ends: tuple[str | None, ...]
) -> bool | None:
    """Whether a TemplateProcessing puts one of `ends` between two texts, beside what it puts around one; None if it
    puts nothing there (gguf-py's `SpecialVocab`)."""
    pair = template.get("pair")
    if not isinstance(pair, list) or not pair:
        return None
    special = [piece.get("SpecialToken") if isinstance(piece, dict) else None for piece in pair]
    texts = [entry.get("id") if isinstance(entry, dict) else None for entry in special]
    begin = int(first is not None and texts[0] == first)
    end = len(pair) - int(last is not None and texts[-1] == last)
    inner = pair[begin:end]
    names = [piece.get("Sequence") if isinstance(piece, dict) else None for piece in inner]
    sequences = [entry.get("id") if isinstance(entry, dict) else None for entry in names]
    between = texts[begin:end][1:-1]
    if not between or (sequences[0], sequences[-1]) != ("A", "B"):
        return None
    separated = between[0] is not None and between[0] in ends and last is None
    return separated or (len(between) == 2 and between[1] is not None and between[1] in ends)


def _chat_templates(checkpoint: Checkpoint, notes: list[str]) -> Metadata:
    """`tokenizer.chat_template`, and `.chat_template.<name>` for others; from tokenizer_config.json or *.jinja."""
    config = checkpoint.json("tokenizer_config.json") if checkpoint.has("tokenizer_config.json") else {}
    template: Any = config.get("chat_template")
    if template is None and checkpoint.has("chat_template.jinja"):
        template = _read(checkpoint.path / "chat_template.jinja")
        others = sorted((checkpoint.path / "additional_chat_templates").glob("*.jinja"))
        if others:
            named = [{"name": path.stem, "template": _read(path)} for path in others]
            template = [{"name": "default", "template": template}, *named]
    elif template is None and checkpoint.has("chat_template.json"):
        template = checkpoint.json("chat_template.json").get("chat_template")
    if template is None:
        return {}
    if isinstance(template, str):
        return {"tokenizer.chat_template": Value.string(template)}
    if not isinstance(template, list):
        notes.append("tokenizer_config.json: chat_template is neither a text nor a list; left out")
        return {}
    return _named_templates(template)


def _named_templates(templates: Sequence[Any]) -> Metadata:
    named: dict[str, str] = {}
    for entry in templates:
        if (
            isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("template"), str)
        ):
            named["".join(c if c.isalnum() or c == "_" else "_" for c in entry["name"])] = entry["template"]
    metadata: Metadata = {}
    default = named.pop("default", None)
    if named:
        metadata.update(
            {f"tokenizer.chat_template.{name}": Value.string(text) for name, text in named.items()}
        )
        metadata["tokenizer.chat_templates"] = Value.strings(list(named))
    if default is not None:
        metadata["tokenizer.chat_template"] = Value.string(default)
    return metadata


def _read(path: Path) -> str:
    return decoded(read_file(path, MAX_SMALL, CheckpointError), path, CheckpointError)
