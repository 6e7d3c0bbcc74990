"""The three kinds of byte-pair encoding in GGUF files, as `tokenizers` pipelines.

Byte-level (`gpt2`): text is cut into words by regular expressions, every byte is written as a printable character,
and pairs merge by rank. SentencePiece (`llama`): spaces are written U+2581, nothing is cut, pairs merge by the score of
what they make, and what is not a token falls back to byte tokens `<0x0A>`. Gemma 4's (`gemma4`):
spelled as SentencePiece's, pairs merge by rank, lines and what parts them apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from loragraft.formats.gguf.schema import merge_pairs
from loragraft.formats.pretokenizers import IGNORE_MERGES, PRETOKENIZERS

SPACE = "\u2581"


def byte_level(tokens: Sequence[str], merges: Sequence[str], pre: str) -> tokenizers.Tokenizer:
    """`merges`: "left right", best first; `pre`: a name in PRETOKENIZERS. Raises ValueError if they do not fit."""
    bpe = _pipeline(models.BPE, tokens, merge_pairs(merges), ignore_merges=pre in IGNORE_MERGES)
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in PRETOKENIZERS[pre]]
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*splits, spelling])
    return bpe


def sentencepiece(
    tokens: Sequence[str],
    scores: Sequence[float],
    mergeable: Sequence[bool],
    unknown: str | None,
    prefix: bool,
) -> tokenizers.Tokenizer:
    """`mergeable`: which tokens text may merge into; `prefix`: a space goes before a text. Raises ValueError."""
    merges = _merges(tokens, scores, mergeable)
    bpe = _pipeline(models.BPE, tokens, merges, byte_fallback=True, fuse_unk=True, unk_token=unknown)
    steps: list[normalizers.Normalizer] = [normalizers.Prepend(SPACE)] if prefix else []
    bpe.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    return bpe


def ranked_spelling(
    tokens: Sequence[str], merges: Sequence[str], unknown: str | None
) -> tokenizers.Tokenizer:
    """`merges` as in `byte_level`. Raises ValueError."""
    bpe = _pipeline(
        models.BPE, tokens, merge_pairs(merges), byte_fallback=True, fuse_unk=True, unk_token=unknown
    )
    bpe.normalizer = normalizers.Replace(" ", SPACE)
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    return bpe


def _pipeline(
    model: type[models.BPE], tokens: Sequence[str], merges: Sequence[tuple[str, str]], **options: object
) -> tokenizers.Tokenizer:
    vocabulary = {text: token for token, text in enumerate(tokens)}
    try:
        return tokenizers.Tokenizer(model(vocab=vocabulary, merges=list(merges), **options))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(str(error)) from error


def _merges(
    tokens: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool]
) -> list[tuple[str, str]]:
    """Every way to make a token of two others, in the order in which SentencePiece would take them: best score first
    (of equal scores the one with the longer left part, so that repeated characters pair from the left)."""
    score_of = {text: score for text, score, fit in zip(tokens, scores, mergeable, strict=True) if fit}
    found = [
        (-score, -cut, text)
        for text, score in score_of.items()
        for cut in range(1, len(text))
        if text[:cut] in score_of and text[cut:] in score_of
    ]
    return [(text[:-minus_cut], text[-minus_cut:]) for _, minus_cut, text in sorted(found)]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for the code points from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
