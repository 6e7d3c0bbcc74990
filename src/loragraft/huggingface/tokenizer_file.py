"""tokenizer.json of Hugging Face's tokenizers, read and checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from loragraft.errors import CheckpointError, LoragraftError, UnsupportedError
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.gguf.schema import MAX_TOKEN
from loragraft.formats.gguf.values import TokenType
from loragraft.formats.pretokenizers import IGNORE_MERGES, PRETOKENIZERS, recognise
from loragraft.huggingface.slow_tokenizer import (
    SentencePieces,
    added_tokens,
    has_slow_bpe,
    read_sentencepiece,
    slow_bpe,
)
from loragraft.units import names_text

#: More tokens than any tokenizer has; a file that says so is refused before anything is sized by it.
_MAX_TOKENS = 1 << 24
SPACE = "\u2581"
"""How SentencePiece spells a space."""
_NOTHING = {"type": "Sequence", "normalizers": [], "pretokenizers": []}
#: Of an added token, and what is different without it.
_FLAGS = {
    "lstrip": "white space before it becomes tokens",
    "rstrip": "white space after it becomes tokens",
    "single_word": "it is also found within words",
}
#: Of the BPE model: marks on the pieces of a word, as CLIP has them.
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class TokenizerFile:
    """tokenizer.json of a BPE tokenizer, byte-level or (with byte_fallback) SentencePiece's; or what it would say,
    where only the files of a slow tokenizer are there (`huggingface.slow_tokenizer`)."""

    @staticmethod
    def is_there(checkpoint: Checkpoint) -> bool:
        """Whether the folder holds a tokenizer that may be read."""
        return (
            checkpoint.has("tokenizer.json") or has_slow_bpe(checkpoint) or checkpoint.has("tokenizer.model")
        )

    @staticmethod
    def open(checkpoint: Checkpoint) -> TokenizerFile:
        """The tokenizer of the folder. Raises CheckpointError, UnsupportedError."""
        if checkpoint.has("tokenizer.json"):
            path, content = checkpoint.path / "tokenizer.json", checkpoint.json("tokenizer.json")
            file = TokenizerFile(path, content)
            pieces = _pieces_beside(checkpoint, file)
            return file if pieces is None else ScoredTokenizerFile(path, content, pieces)
        if has_slow_bpe(checkpoint):
            return TokenizerFile(checkpoint.path / "vocab.json", slow_bpe(checkpoint))
        if checkpoint.has("tokenizer.model"):
            return SentencePieceModel(checkpoint)
        found = next((n for n in ("tekken.json", "vocab.json", "spiece.model") if checkpoint.has(n)), None)
        raise UnsupportedError(
            checkpoint.path,
            "no tokenizer.json",
            found=found,
            expected="tokenizer.json, vocab.json and merges.txt, or tokenizer.model",
            hint="load the tokenizer with transformers and save_pretrained it again",
        )

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.json = path, content
        self.model: dict[str, Any] = self._object(self.json.get("model"), "model")
        kind = self.model.get("type", "BPE" if "merges" in self.model else None)
        if kind != "BPE":
            raise UnsupportedError(self.path, "this kind of tokenizer", found=repr(kind), expected="BPE")
        for affix in _AFFIXES:
            if self.model.get(affix):
                raise UnsupportedError(
                    self.path, f"a tokenizer with {affix}", found=repr(self.model[affix]), expected="none"
                )
        self.is_sentencepiece = bool(self.model.get("byte_fallback"))
        vocab = self._object(self.model.get("vocab"), "model.vocab")
        if not all(type(id_) is int and id_ >= 0 for id_ in vocab.values()):
            raise CheckpointError(self.path, "model.vocab has ids that are not numbers")
        if (longest := max(map(len, vocab), default=0)) > MAX_TOKEN:
            raise CheckpointError(
                self.path,
                "a token is too long",
                found=f"{longest} characters",
                expected=f"at most {MAX_TOKEN}",
            )
        self.vocab: dict[str, int] = vocab
        self.added: list[dict[str, Any]] = self.json.get("added_tokens") or []
        if not isinstance(self.added, list):
            raise CheckpointError(self.path, "added_tokens is not a list", found=repr(self.added))
        for token in self.added:
            fields = token if isinstance(token, dict) else {}
            if type(fields.get("id")) is not int or not isinstance(fields.get("content"), str):
                raise CheckpointError(
                    self.path, "added_tokens has an entry without id or content", found=repr(token)[:80]
                )

    def _object(self, value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise CheckpointError(self.path, f"{name} is missing or not an object")
        return value

    def _vocabulary(self) -> tuple[dict[int, str], dict[int, int]]:
        """Every token's text and type by its id, added tokens left out."""
        texts = {id_: text for text, id_ in self.vocab.items()}
        return texts, dict.fromkeys(texts, int(TokenType.NORMAL))

    def tokens(self, vocab_size: int | None) -> tuple[list[str], list[int]]:
        """Every token's text and type, `vocab_size` of them."""
        texts, kinds = self._vocabulary()
        for token in self.added:
            text = token["content"]
            special = bool(token.get("special")) or _looks_special(text)
            # a user-defined token may spell its spaces as SentencePiece does
            texts[token["id"]] = text if special else text.replace(SPACE, " ")
            kinds[token["id"]] = TokenType.CONTROL if special else TokenType.USER_DEFINED
        if self.is_sentencepiece:
            unknown = self._unknown()
            kinds.update({id_: TokenType.BYTE for id_, text in texts.items() if _BYTE.fullmatch(text)})
            kinds.update({id_: TokenType.UNKNOWN for id_, text in texts.items() if text == unknown})
        size = max(texts, default=-1) + 1
        if vocab_size is None:
            vocab_size = size
        if max(size, vocab_size) > _MAX_TOKENS:
            raise CheckpointError(
                self.path,
                "larger than any vocabulary",
                found=max(size, vocab_size),
                expected=f"<= {_MAX_TOKENS}",
            )
        if size > vocab_size:
            raise CheckpointError(
                self.path,
                "the tokenizer has more tokens than the model",
                found=f"token id {size - 1} ({texts[size - 1]!r})",
                expected=f"ids below config.json's vocab_size {vocab_size}",
                hint="were tokens added without resizing the model's embeddings? Take those that were not trained "
                "out of added_tokens; or add --resize-vocab, or resize and save the model: "
                "model.resize_token_embeddings(len(tokenizer))",
            )
        return (
            [texts.get(id_, f"[PAD{id_}]") for id_ in range(vocab_size)],
            [int(kinds.get(id_, TokenType.UNUSED)) for id_ in range(vocab_size)],
        )

    def _unknown(self) -> str | None:
        """The text of the token that stands for what is not a token, if it is of that type."""
        text = self.model.get("unk_token")
        return text if isinstance(text, str) else None

    @property
    def merges_nothing(self) -> bool:
        return not self.pairs()

    def pairs(self) -> list[tuple[str, str]]:
        """The merges, best first."""
        merges = self.model.get("merges") or []
        if not isinstance(merges, list):
            raise CheckpointError(self.path, "model.merges is not a list")
        pairs = []
        for merge in merges:
            parts = merge.split(" ") if isinstance(merge, str) else merge
            if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) for p in parts):
                raise CheckpointError(self.path, "model.merges has a bad entry", found=repr(merge)[:80])
            pairs.append((parts[0], parts[1]))
        return pairs

    def merges(self) -> list[str]:
        """`left right` per merge; a space within a part is written as byte-level BPE writes it (U+0120)."""
        return [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in self.pairs()]

    def scores(self, tokens: list[str], types: list[int], notes: list[str]) -> list[float]:
        """SentencePiece's scores of `tokens`: the earlier the merge that makes a token, the higher.

        GGUF's readers merge any two neighbours that make a token; where `merges` knows fewer ways, a note says so.
        """
        pairs = self.pairs()
        ranks: dict[str, int] = {}
        for left, right in pairs:
            ranks.setdefault(left + right, len(ranks))
        normal = {text for text, kind in zip(tokens, types, strict=True) if kind == TokenType.NORMAL}
        known = set(pairs)
        cuts = chain.from_iterable(((text[:i], text[i:]) for i in range(1, len(text))) for text in normal)
        more = sum(pair not in known for pair in cuts if pair[0] in normal and pair[1] in normal)
        if more:
            notes.append(
                f"tokenizer.json: GGUF implies {more} merges more than it has: some words may be cut differently"
            )
        scores = dict.fromkeys(normal, -float(len(ranks))) | {
            text: -float(rank) for text, rank in ranks.items()
        }
        return [
            scores[text] if kind == TokenType.NORMAL else -1000.0 if kind == TokenType.UNUSED else 0.0
            for text, kind in zip(tokens, types, strict=True)
        ]

    def adds_space(self) -> bool:
        """Whether SentencePiece's space goes before a text.

        Raises UnsupportedError for a normalizer or pre-tokenizer that does more than to spell spaces.
        """
        spelling = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        steps = [*self._normalizers(), *flat(self.json.get("pre_tokenizer") or _NOTHING, "pretokenizers")]
        prefix = False
        for at, step in enumerate(steps):
            kind = step.get("type") if isinstance(step, dict) else None
            if kind == "Split" and step.get("pattern") == {"String": " "} and spelling in steps[:at]:
                continue  # no space is left to split at (Gemma)
            if kind == "Prepend" and step.get("prepend") == SPACE:
                prefix = True
            elif kind == "Metaspace" and step.get("replacement") == SPACE and not self._splits_words(step):
                scheme = step.get(
                    "prepend_scheme", "always" if step.get("add_prefix_space", True) else "never"
                )
                prefix = scheme != "never"
            elif step != spelling:
                raise UnsupportedError(
                    self.path,
                    "a step that GGUF cannot express in a SentencePiece tokenizer",
                    found=repr(step)[:200],
                    expected=f"spaces as {SPACE}",
                )
        return prefix

    def _splits_words(self, metaspace: dict[str, Any]) -> bool:
        """Whether it keeps tokens from spanning words, and there are such tokens."""
        return bool(metaspace.get("split", True)) and any(SPACE in text.lstrip(SPACE) for text in self.vocab)

    def _normalizers(self) -> list[Any]:
        return flat(self.json.get("normalizer") or _NOTHING, "normalizers")

    def pretokenizer(self, notes: list[str]) -> str:
        """GGUF's name of this tokenizer's pre-tokenizer."""
        expressions = list(_expressions(self.path, self.json.get("pre_tokenizer")))
        normalizers = self._normalizers()
        if any(normalizer != {"type": "NFC"} for normalizer in normalizers):
            raise UnsupportedError(
                self.path,
                "a normalizer that GGUF cannot express",
                found=repr(normalizers)[:120],
                expected="none or NFC",
            )
        ignore_merges = bool(self.model.get("ignore_merges"))
        name = recognise(expressions, ignore_merges)
        if name is None:
            raise UnsupportedError(
                self.path,
                "no GGUF pre-tokenizer has this definition",
                found=" then ".join(expressions) or "none",
                hint="llama.cpp could not read the result; train the tokenizer with a known pre-tokenizer",
            )
        if (name in IGNORE_MERGES) != ignore_merges:
            notes.append(
                f"tokenizer.json: GGUF's pre-tokenizer {name} implies ignore_merges = {not ignore_merges}: "
                "rare words may be cut differently"
            )
        return name

    def left_out(self) -> list[str]:
        """Notes on what changes ids of some texts, and GGUF has no place for."""
        notes = []
        if {"type": "NFC"} in self._normalizers():
            notes.append(
                "tokenizer.json: normal form C is left out, as GGUF has no place for it: text in another form of "
                "Unicode (accents apart from their letters) is cut differently"
            )
        for flag, meaning in _FLAGS.items():
            tokens = [token["content"] for token in self.added if token.get(flag)]
            if tokens:
                listed = names_text(map(repr, tokens), 4)
                notes.append(f"tokenizer.json: {flag} of {listed} is left out: {meaning}")
        return notes

    def id_of(self, text: str) -> int | None:
        return next((token["id"] for token in self.added if token["content"] == text), None)


class ScoredTokenizerFile(TokenizerFile):
    """tokenizer.json beside the tokenizer.model that it was made from, `pieces`, which has the scores."""

    def __init__(self, path: Path, content: dict[str, Any], pieces: SentencePieces) -> None:
        super().__init__(path, content)
        self._pieces = pieces

    def _vocabulary(self) -> tuple[dict[int, str], dict[int, int]]:
        texts, kinds = super()._vocabulary()
        # tokenizer.json has what is user-defined among the added tokens
        own = {id_: kind for id_, kind in enumerate(self._pieces.types) if kind != TokenType.USER_DEFINED}
        return texts, kinds | own

    def _unknown(self) -> str | None:
        return None  # as tokenizer.model has it, or the added tokens

    def scores(self, tokens: list[str], types: list[int], notes: list[str]) -> list[float]:
        return _own_scores(self._pieces, self.added, types)


def _pieces_beside(checkpoint: Checkpoint, file: TokenizerFile) -> SentencePieces | None:
    """The pieces of tokenizer.model, if it has the same vocabulary as tokenizer.json."""
    if not file.is_sentencepiece or not checkpoint.has("tokenizer.model"):
        return None
    try:
        pieces = read_sentencepiece(checkpoint.path / "tokenizer.model")
    except LoragraftError:
        return None  # tokenizer.json is enough
    added = {token["id"] for token in file.added}
    ids = {id_ for id_ in range(len(pieces.texts)) if file.vocab.get(pieces.texts[id_]) == id_}
    others = {id_ for id_ in [*file.vocab.values(), *range(len(pieces.texts))] if id_ not in ids}
    return pieces if others <= added else None


def _own_scores(pieces: SentencePieces, added: list[dict[str, Any]], types: list[int]) -> list[float]:
    """As llama.cpp's converter: -1000 for what was added, -10000 for what pads."""
    own = [*pieces.scores, *[-1000.0] * (len(types) - len(pieces.scores))]
    for token in added:
        own[token["id"]] = -1000.0
    return [
        -10000.0 if id_ >= len(pieces.scores) and kind == TokenType.UNUSED else own[id_]
        for id_, kind in enumerate(types)
    ]


class SentencePieceModel(TokenizerFile):
    """tokenizer.model, SentencePiece's own file, with the tokens that were added beside it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path / "tokenizer.model"
        self._pieces = read_sentencepiece(self.path)
        self.json, self.model, self.is_sentencepiece = {}, {}, True
        self.vocab = {text: id_ for id_, text in enumerate(self._pieces.texts)}
        self.added = [
            {"id": id_, "content": text, "special": special}
            for text, (id_, special) in added_tokens(checkpoint, self.vocab).items()
        ]
        config = checkpoint.json("tokenizer_config.json") if checkpoint.has("tokenizer_config.json") else {}
        prefix = config.get("add_prefix_space")
        self._adds_space = prefix if isinstance(prefix, bool) else self._pieces.adds_space

    def _vocabulary(self) -> tuple[dict[int, str], dict[int, int]]:
        return dict(enumerate(self._pieces.texts)), dict(enumerate(self._pieces.types))

    def scores(self, tokens: list[str], types: list[int], notes: list[str]) -> list[float]:
        return _own_scores(self._pieces, self.added, types)

    def adds_space(self) -> bool:
        return self._adds_space

    @property
    def merges_nothing(self) -> bool:
        return False

    def id_of(self, text: str) -> int | None:
        """Also of a piece: SentencePiece's own BOS and EOS are added by nobody."""
        found = super().id_of(text)
        return self.vocab.get(text) if found is None else found


def flat(component: Any, children: str) -> list[Any]:
    """The components of a `Sequence`, or the one component, as a list."""
    leaves, left = [], [component]
    while left:  # not by recursion: a file may nest them as deeply as it likes
        item = left.pop()
        inner = item.get(children) if isinstance(item, dict) and item.get("type") == "Sequence" else None
        if isinstance(inner, list):
            left += reversed(inner)
        else:
            leaves.append(item)
    return leaves


def _expressions(path: Path, pre_tokenizer: Any) -> Iterator[str]:
    """The regular expressions that cut a text into words, in order.

    Every component is one: Split as it says, Digits by its meaning, ByteLevel by GPT-2's expression if it uses it.
    """
    byte_level = False
    for step in flat(pre_tokenizer, "pretokenizers"):
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "Split" and isinstance(step.get("pattern"), dict):
            # keeping the matches (Removed, inverted) and isolating them differ only where nothing matches
            behaviour = (step.get("behavior"), bool(step.get("invert")))
            expression = step["pattern"].get("Regex")
            if behaviour in (("Isolated", False), ("Removed", True)) and isinstance(expression, str):
                yield expression
                continue
        elif kind == "Digits":
            yield r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
            continue
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            byte_level = True
            if step.get("use_regex", True):
                yield from PRETOKENIZERS["gpt-2"]
            continue
        raise UnsupportedError(
            path,
            "a pre-tokenizer that GGUF cannot express",
            found=repr(step)[:400],
            expected="Split, Digits, ByteLevel",
        )
    if not byte_level:
        raise UnsupportedError(
            path, "a BPE tokenizer that is not byte-level", expected="a ByteLevel pre-tokenizer"
        )


def _looks_special(text: str) -> bool:
    """Texts that published models add as ordinary tokens though they are control tokens."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )
