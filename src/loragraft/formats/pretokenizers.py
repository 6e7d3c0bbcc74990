r"""How byte-level BPE tokenizers cut text into words before merging: facts by GGUF's `tokenizer.ggml.pre` name.

A pre-tokenizer *is* its list of regular expressions: each in turn splits what the earlier ones left into matches and
the text between them. Recognising a tokenizer by them, not by a hash of what it makes of a sample text, lets
custom-trained and extended vocabularies convert.

The expressions are the ones of the models' own tokenizer.json (Oniguruma syntax); llama.cpp's src/llama-vocab.cpp
has the names, which of them take whole words from the vocabulary without merging, and which start with BOS.
"""

from __future__ import annotations

from collections.abc import Sequence

# The building blocks that the published expressions share.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

#: Letters with case, as deepseek-llm's file lists them.
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    "Ὗ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-"
    "Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)


def _cased(suffix: str, digits: str) -> str:
    """GPT-4o's expression: a word changes from upper to lower case at most once."""
    word = (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{suffix}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{suffix}"
    )
    return f"{word}|{digits}|{_CASED_TAIL}"


#: Expressions by name. Of names with the same expressions, the first is the one that `recognise` answers.
PRETOKENIZERS: dict[str, tuple[str, ...]] = {
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "gpt-2": (_GPT2,),
    "starcoder": (r"\p{N}", _GPT2),
    "gpt-4o": (_cased(_CONTRACTIONS + "?", r"\p{N}{1,3}"),),
    "tekken": (_cased("", r"\p{N}"),),
    "deepseek-v3": (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _PUNCTUATED),
    "deepseek-llm": (
        r"[\r\n]",
        r"\s?[" + _CASED_LETTERS + "]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        r"[一-龥ࠀ-一가-퟿]+",
        r"\p{N}+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    "qwen35": (
        _CONTRACTIONS
        + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "seed-coder": (
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "bailingmoe": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    "bloom": (r" ?[^(\s|.,!?…。，、।۔،)]+",),
    "viking": (r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}

_SAME = {
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe chatglm-bpe glm4 glm5",
    "qwen2": "deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan megrez solar-open grok-2",
    "gpt-2": "phi-2 jina-es jina-de gigachat mellum modern-bert exaone4 mpt olmo jais trillion granite-docling",
    "starcoder": "refact command-r smollm codeshell exaone minerva-7b mellum2",
    "gpt-4o": "llama4 kanana2 talkie minimax-m2",
    "deepseek-v3": "hunyuan-dense joyai-llm",
    "bailingmoe": "bailingmoe2 llada-moe",
    "bloom": "poro-chat gpt3-finnish",
}
PRETOKENIZERS.update(
    {name: PRETOKENIZERS[original] for original, names in _SAME.items() for name in names.split()}
)

_STARTS_WITH_BOS = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "tekken",
)

#: A text starts with BOS unless `tokenizer.ggml.add_bos_token` says otherwise.
ADD_BOS = frozenset(_STARTS_WITH_BOS)

#: A word that is itself a token is taken whole, whatever the merges say (`ignore_merges` of tokenizer.json).
IGNORE_MERGES = frozenset((*_STARTS_WITH_BOS, "glm4", "glm5"))


def recognise(expressions: Sequence[str], ignore_merges: bool | None = None) -> str | None:
    """The name of the pre-tokenizer with these expressions, or None; if there are several, one that implies
    `ignore_merges`, if there is such."""
    wanted = tuple(expressions)
    names = [name for name, known in PRETOKENIZERS.items() if known == wanted]
    fitting = [name for name in names if ignore_merges in (None, name in IGNORE_MERGES)]
    return next(iter(fitting + names), None)
