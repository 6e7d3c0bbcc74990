"""Text to token ids and back, from a GGUF's own metadata, through the Hugging Face `tokenizers` library.

Keys: `tokenizer.ggml.model` (gpt2: byte-level BPE; llama: SentencePiece), `.pre`, `.tokens`, `.merges`, `.scores`,
`.token_type`, the special ids and `.add_bos_token`, as llama.cpp's src/llama-vocab.cpp reads them.
"""

from __future__ import annotations

import codecs
import re
import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken

from loragraft.arrays import Ids
from loragraft.errors import LoragraftError, TextError, UnsupportedError
from loragraft.formats.gguf.values import TokenType, Value
from loragraft.formats.pretokenizers import ADD_BOS, PRETOKENIZERS
from loragraft.inference import bpe

#: Tokens that end a reply in some published vocabulary whose metadata names only one of them (llama-vocab.cpp).
_END_TEXTS = frozenset(
    (
        *(
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
        ),
        *("[EOT]", "[EOS]", "<｜end▁of▁sentence｜>", "<|eom_id|>", "<|return|>", "<|call|>"),
    )
)


#: How makers write tokens that structure a conversation.
_MARK = re.compile("<[|｜].*[|｜]>")


class Tokenizer:
    """The tokenizer of one model.

    `bos`, `eos`: ids, or None. `end_ids`: every id at which a generation stops. `size`: how many tokens.
    """

    def __init__(self, metadata: Mapping[str, Value], subject: str | PathLike[str] = "tokenizer") -> None:
        """The tokenizer that a GGUF's `metadata` describes; `subject` names the file in errors.

        Raises `UnsupportedError` for a kind of tokenizer, or a pre-tokenizer, that is not known."""
        self._subject = subject
        self.kind = str(self._required(metadata, "tokenizer.ggml.model"))
        if self.kind not in ("gpt2", "llama", "gemma4"):
            raise UnsupportedError(
                subject,
                "tokenizer kind not supported",
                found=self.kind,
                expected="gpt2 (BPE), llama (SentencePiece) or gemma4",
            )
        self._tokens: list[str] = self._required(metadata, "tokenizer.ggml.tokens")
        self.size = len(self._tokens)
        types = metadata.get("tokenizer.ggml.token_type")
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._types = [int(t) for t in types.data] if types else [int(TokenType.NORMAL)] * self.size
        if len(self._types) != self.size:
            raise UnsupportedError(
                subject,
                "tokenizer.ggml.token_type has the wrong length",
                found=len(self._types),
                expected=self.size,
            )
        self.pre = metadata["tokenizer.ggml.pre"].data if "tokenizer.ggml.pre" in metadata else "default"
        self.bos = self._special(metadata, "bos")
        self.eos = self._special(metadata, "eos")
        starts = self.kind in ("llama", "gemma4") or self.pre in ADD_BOS
        self.add_bos = self._flag(metadata, "add_bos_token", default=starts) and self.bos is not None
        self.add_eos = self._flag(metadata, "add_eos_token", default=False) and self.eos is not None
        named = (self._special(metadata, name) for name in ("eos", "eot", "eom"))
        listed = (
            token for token, text in enumerate(self._tokens) if text in _END_TEXTS and self._is_special(token)
        )
        self.end_ids = frozenset([token for token in named if token is not None] + list(listed))
        self._space_prefix = self.kind == "llama" and self._flag(metadata, "add_space_prefix", default=True)
        self._bpe = self._build(metadata)
        self._lock = threading.Lock()

    @cached_property
    def control_texts(self) -> list[str]:
        """The texts of tokens that structure a conversation (`<|im_end|>`): control tokens, and user-defined ones that
        look like such. (Others, like Gemma's `\\n\\n` and `<table>`, are how the model reads ordinary text.)"""
        return [
            text
            for text, kind in zip(self._tokens, self._types, strict=True)
            if text
            and (
                kind == TokenType.CONTROL
                or (kind == TokenType.USER_DEFINED and (text in _END_TEXTS or _MARK.fullmatch(text)))
            )
        ]

    @cached_property
    def longest_piece(self) -> int:
        """The most bytes of text that one token stands for."""
        return max(len(self.piece(token, show_special=True)) for token in range(self.size))

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> Ids:
        """`text` as ids, int32 [n].

        `add_special` puts BOS before (and EOS behind) it if the model wants that; with `parse_special` the texts of
        control tokens (`<|eot_id|>`) become these tokens instead of being read letter by letter.
        """
        check_text(text)
        with self._lock:  # the setting holds for every thread
            self._bpe.encode_special_tokens = not parse_special
            ids = self._bpe.encode(text, add_special_tokens=False).ids
        before = [self.bos] if add_special and self.add_bos else []
        after = [self.eos] if add_special and self.add_eos else []
        return np.array([*before, *ids, *after], dtype=np.int32)

    def decode(self, ids: Iterable[int], *, show_special: bool = False) -> str:
        """The text of `ids`; control tokens are left out unless `show_special`. Bytes that are not UTF-8 become
        U+FFFD."""
        decoder = self.decoder(show_special=show_special)
        text = "".join([decoder.push(token) for token in checked_ids(ids, empty=True)]) + decoder.finish()
        return text.removeprefix(" ") if self._space_prefix else text

    def decoder(self, *, show_special: bool = False) -> TextDecoder:
        """A decoder to feed token by token. (The space that SentencePiece puts before a text stays.)"""
        return TextDecoder(self, show_special)

    def piece(self, token: int, *, show_special: bool = False) -> bytes:
        """The bytes of one token; they need not be whole UTF-8 characters."""
        piece = self._pieces.get((token, show_special))
        if piece is None:
            piece = self._pieces[token, show_special] = self._piece(token, show_special)
        return piece

    def _piece(self, token: int, show_special: bool) -> bytes:
        if not 0 <= token < self.size:
            raise UnsupportedError(
                self._subject, "no such token", found=f"id {token}", expected=f"an id below {self.size}"
            )
        text, kind = self._tokens[token], self._types[token]
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED):
            return text.encode(errors="surrogateescape") if show_special else b""
        if kind == TokenType.USER_DEFINED:
            return text.encode(errors="surrogateescape")
        if kind == TokenType.BYTE and (byte := _byte_token(text)) is not None:
            return byte
        if self.kind != "gpt2":
            return text.replace(bpe.SPACE, " ").encode(errors="surrogateescape")
        try:
            return bytes(bpe.BYTE_OF[character] for character in text)
        except KeyError:
            return text.encode(errors="surrogateescape")

    def _build(self, metadata: Mapping[str, Value]) -> tokenizers.Tokenizer:
        merges = metadata["tokenizer.ggml.merges"].data if "tokenizer.ggml.merges" in metadata else []
        unknown = next(
            (t for t, k in zip(self._tokens, self._types, strict=True) if k == TokenType.UNKNOWN), None
        )
        try:
            if self.kind == "llama":
                scores = self._required(metadata, "tokenizer.ggml.scores")
                mergeable = [kind in (TokenType.NORMAL, TokenType.UNUSED) for kind in self._types]
                pipeline = bpe.sentencepiece(self._tokens, scores, mergeable, unknown, self._space_prefix)
            elif self.kind == "gemma4":
                pipeline = bpe.ranked_spelling(self._tokens, merges, unknown)
            else:
                pipeline = bpe.byte_level(self._tokens, merges, self._known_pre())
            pipeline.add_special_tokens(self._added(TokenType.CONTROL))
            pipeline.add_tokens(self._added(TokenType.USER_DEFINED))
        except ValueError as error:
            raise UnsupportedError(
                self._subject, f"the tokenizer's merges do not fit its tokens ({error})"
            ) from error
        return pipeline

    def _known_pre(self) -> str:
        if self.pre not in PRETOKENIZERS:
            raise UnsupportedError(
                self._subject,
                "unknown pre-tokenizer in tokenizer.ggml.pre",
                found=self.pre,
                expected="one of " + ", ".join(PRETOKENIZERS),
            )
        return self.pre

    def _added(self, wanted: TokenType) -> list[AddedToken]:
        special = wanted is TokenType.CONTROL
        return [
            AddedToken(text, special=special, normalized=False)
            for text, kind in zip(self._tokens, self._types, strict=True)
            if kind == wanted and text
        ]

    def _is_special(self, token: int) -> bool:
        return self._types[token] in (TokenType.CONTROL, TokenType.USER_DEFINED)

    def _required(self, metadata: Mapping[str, Value], key: str) -> Any:
        if key not in metadata:
            raise UnsupportedError(
                self._subject, f"no {key} in the metadata", hint="the file carries no tokenizer"
            )
        return metadata[key].data

    def _special(self, metadata: Mapping[str, Value], name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            return None
        if not 0 <= value.data < self.size:
            raise UnsupportedError(
                self._subject,
                f"tokenizer.ggml.{name}_token_id is out of range",
                found=value.data,
                expected=f"an id below {self.size}",
            )
        return int(value.data)

    @staticmethod
    def _flag(metadata: Mapping[str, Value], name: str, *, default: bool) -> bool:
        value = metadata.get(f"tokenizer.ggml.{name}")
        return default if value is None else bool(value.data)


class TextDecoder:
    """Turns a stream of tokens into text; a character whose bytes come in several tokens waits for the last."""

    def __init__(self, tokenizer: Tokenizer, show_special: bool) -> None:
        self._tokenizer = tokenizer
        self._show_special = show_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """What became certain with this token; may be empty."""
        return self._utf8.decode(self._tokenizer.piece(int(token), show_special=self._show_special))

    def finish(self) -> str:
        """What was still waiting, as U+FFFD."""
        return self._utf8.decode(b"", final=True)


def check_text(text: str) -> None:
    """Raises TextError for what is not text: another type, or half of a surrogate pair in it."""
    if not isinstance(text, str):
        raise TextError("text", "not a string", found=type(text).__name__)
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise TextError(
            "text", "holds half of a surrogate pair, which is not a character", found=f"at {problem.start}"
        ) from None


def checked_ids(ids: Iterable[int] | npt.NDArray[Any], *, empty: bool = False) -> Ids:
    """Token ids as int32 [n]; n >= 1, unless they may be `empty`. Raises LoragraftError for anything else."""
    try:
        given = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
    except (TypeError, ValueError, OverflowError):
        raise LoragraftError(
            "ids", "not a list of tokens", found=repr(ids)[:80], expected="integers"
        ) from None
    if empty and not given.size:
        return np.empty(0, np.int32)
    if given.ndim != 1 or not len(given):
        raise LoragraftError(
            "ids", "not a list of tokens", found=f"shape {given.shape}", expected="at least one"
        )
    if given.dtype.kind not in "iu":
        raise LoragraftError("ids", "not a list of tokens", found=given.dtype, expected="integers")
    range_ = np.iinfo(np.int32)
    for extreme in (int(given.max()), int(given.min())):
        if not range_.min <= extreme <= range_.max:  # no bound of a vocabulary would tell it after the cast
            raise LoragraftError("ids", "no such token", found=extreme)
    return given.astype(np.int32)


def _byte_token(text: str) -> bytes | None:
    """The byte of `<0x0A>`."""
    try:
        return bytes.fromhex(text[3:5]) if text.startswith("<0x") else None
    except ValueError:
        return None
