"""The tokenizer and chat template saved beside an adapter, where they are not the base's.

Training frameworks save the tokenizer that they trained with: tokens may have been added, a chat template or another
end of text set. A model merged without it would be asked in another language than it was taught.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loragraft.errors import AdapterError, FormatError, UnsupportedError
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.gguf.values import Metadata, TokenType, Value
from loragraft.formats.source import ModelSource
from loragraft.huggingface.tokenizer_file import TokenizerFile
from loragraft.huggingface.vocab import tokenizer_metadata, tokenizer_uses

_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"
_SCORES = "tokenizer.ggml.scores"
#: Keys that say how texts begin and end, rather than what the tokens are.
_USES = ("_token_id", ".add_bos_token", ".add_eos_token")
_TEMPLATES = "tokenizer.chat_template"


def adapter_tokenizer(folder: Path, base: ModelSource, vocabulary: int, notes: list[str]) -> Metadata:
    """The `tokenizer.*` keys that differ from the base's, for a model with `vocabulary` tokens; none if the folder
    holds no tokenizer. Raises AdapterError for a resized vocabulary whose tokens nobody names."""
    known = base.metadata.get(_TOKENS)
    resized = known is not None and len(known.data) != vocabulary
    own_notes: list[str] = []
    own = _saved(folder, vocabulary, required=resized, notes=notes, own_notes=own_notes)
    if own is None:
        tokens = _shortened(folder, base.metadata, vocabulary) if resized else {}
        return {**tokens, **_uses(folder, base, tokens, notes)}
    same_tokens = known is not None and own[_TOKENS] == known
    changed = {
        key: value
        for key, value in own.items()
        if base.metadata.get(key) != value
        and (not same_tokens or key.endswith(_USES) or key.startswith(_TEMPLATES))
    }
    if changed:
        what = (
            "tokenizer" if not same_tokens else "chat template" if _TEMPLATES in changed else "special tokens"
        )
        notes += [] if same_tokens else own_notes
        notes.append(f"{folder}: its own {what} replaces the base's, which differs")
    return changed


def _saved(
    folder: Path, vocabulary: int, *, required: bool, notes: list[str], own_notes: list[str]
) -> Metadata | None:
    checkpoint = Checkpoint(folder, {}, [])
    if not TokenizerFile.is_there(checkpoint):
        return None
    try:
        return tokenizer_metadata(checkpoint, vocabulary, own_notes)
    except (FormatError, UnsupportedError) as problem:
        if required:
            raise
        notes.append(f"the tokenizer beside the adapter is left out: {problem}")
        return None


def _uses(folder: Path, base: ModelSource, resized: Metadata, notes: list[str]) -> Metadata:
    """A chat template and special tokens saved beside an adapter without the tokenizer that they are for."""
    known = resized.get(_TOKENS) or base.metadata.get(_TOKENS)
    own_notes: list[str] = []
    try:
        own = tokenizer_uses(Checkpoint(folder, {}, []), known.data if known is not None else [], own_notes)
    except FormatError as problem:
        notes.append(f"the chat template beside the adapter is left out: {problem}")
        return {}
    changed = {key: value for key, value in own.items() if base.metadata.get(key) != value}
    if changed:
        what = "chat template" if any(key.startswith(_TEMPLATES) for key in changed) else "special tokens"
        notes += own_notes
        notes.append(f"{folder}: its own {what} replaces the base's, which differs")
    return changed


def _shortened(folder: Path, metadata: Metadata, vocabulary: int) -> Metadata:
    """The base's tokens without padding at their end, which resizing to the tokenizer's length takes off."""
    tokens, types = metadata[_TOKENS], metadata.get(_TYPES)
    spare = types is not None and (np.asarray(types.data)[vocabulary:] == TokenType.UNUSED).all()
    if vocabulary > len(tokens.data) or not spare:
        raise AdapterError(
            folder,
            "was trained with another vocabulary than the base model's",
            found=f"{vocabulary} tokens",
            expected=f"{len(tokens.data)}, or tokenizer.json in its folder",
            hint="save the tokenizer that it was trained with into its folder (tokenizer.save_pretrained)",
        )
    return {
        key: Value(value.type, value.data[:vocabulary], value.item)
        for key in (_TOKENS, _TYPES, _SCORES)
        if (value := metadata.get(key)) is not None
    }
