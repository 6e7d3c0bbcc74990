"""Against the Hugging Face tokenizer.json of the same model."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.formats.pretokenizers import PRETOKENIZERS, recognise
from loragraft.inference import bpe
from loragraft.inference.tokenizer import Tokenizer
from paths import data

TEXTS = [
    "",
    "In the beginning God created the heaven and the earth.",
    "   leading, trailing   and\n\n\nblank lines \t\ttabs  \r\n",
    "It's we'll I'VE don'T '' 'x",
    "1 12 123 1234 12345678 3.14159 ٣٤٥ ⅷ",
    "naïve café, ÆØÅ straße ἐν ἀρχῇ ἦν ὁ λόγος, в начале",
    "日本語のテキスト 中文字符 한국어 ไทย हिन्दी",
    "🙂🏳️‍🌈 \u200b zero width, \ufeff bom, e\u0301 combining",
    "<|begin_of_text|> is text unless asked for",
    "def f(x):\n    return {'a': [x ** 2 for _ in range(10)]}  # ok!?\n",
    "\x00\x01 control \x7f",
]


def metadata(folder: str = "llama-kjv", **changes: Value) -> dict[str, Value]:
    model = json.loads((data(folder) / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "tokenizer.ggml.model": Value.string("gpt2"),
        "tokenizer.ggml.pre": Value.string("llama-bpe"),
        "tokenizer.ggml.tokens": Value.strings(tokens),
        "tokenizer.ggml.merges": Value.strings(merges),
        "tokenizer.ggml.token_type": Value.numbers(ValueType.INT32, [3, 3] + [1] * (len(tokens) - 2)),
        "tokenizer.ggml.bos_token_id": Value.u32(0),
        "tokenizer.ggml.eos_token_id": Value.u32(1),
        **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer(metadata())


@pytest.fixture(scope="module")
def theirs() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(data("llama-kjv") / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_same_ids(ours: Tokenizer, theirs: tokenizers.Tokenizer, text: str) -> None:
    assert ours.encode(text, parse_special=True).tolist() == theirs.encode(text).ids
    assert ours.decode(ours.encode(text)) == text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=60))
def test_same_ids_on_any_text(ours: Tokenizer, theirs: tokenizers.Tokenizer, text: str) -> None:
    assert ours.encode(text, add_special=False).tolist() == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ours.encode(text)) == text


def test_special_tokens_only_on_request(ours: Tokenizer) -> None:
    text = "<|end_of_text|>hi"
    assert ours.encode(text, parse_special=True).tolist()[:2] == [0, 1]
    assert 1 not in ours.encode(text)
    assert ours.decode(ours.encode(text)) == text
    assert ours.decode([0, 1, 434], show_special=True) == "<|begin_of_text|><|end_of_text|>hi"
    assert ours.decode([0, 1, 434]) == "hi"
    assert ours.end_ids == {1}


def test_bos_follows_the_metadata() -> None:
    assert Tokenizer(metadata()).encode("a").tolist()[0] == 0
    assert 0 not in Tokenizer(metadata(add_bos_token=Value.boolean(False))).encode("a")
    assert 0 not in Tokenizer(metadata(pre=Value.string("qwen2"))).encode("a")
    assert Tokenizer(metadata(add_eos_token=Value.boolean(True))).encode("a").tolist()[-1] == 1


def test_streaming_never_shows_half_a_character(ours: Tokenizer) -> None:
    text = "héllo 日本 🙂!"
    decoder = ours.decoder()
    pieces = [decoder.push(token) for token in ours.encode(text)]
    assert "".join(pieces) + decoder.finish() == text
    assert "" in pieces  # some character did wait for its last byte
    assert all("\ufffd" not in piece for piece in pieces)
    assert ours.decode(ours.encode("日")[:-1]) == "\ufffd"


def test_user_defined_tokens_are_found_in_plain_text() -> None:
    changed = metadata()
    changed["tokenizer.ggml.token_type"].data[1] = 4
    tokenizer = Tokenizer(changed)
    assert tokenizer.encode("hi<|end_of_text|>hi").tolist() == [0, 434, 1, 434]
    assert tokenizer.decode([434, 1]) == "hi<|end_of_text|>"


def test_control_texts_are_those_that_structure_a_conversation() -> None:
    """Of tokens that a model's makers added, those that look like marks, and not Gemma's line breaks and HTML: these
    are how it reads ordinary text."""
    changed = metadata(merges=Value.strings([]))
    tokens, types = changed["tokenizer.ggml.tokens"].data, changed["tokenizer.ggml.token_type"].data
    marks = ["<|im_sep|>", "<｜User｜>", "<end_of_turn>"]
    for place, text in enumerate([*marks, "\n\n", "<table>", "  "], 300):
        tokens[place], types[place] = text, 4
    assert Tokenizer(changed).control_texts == ["<|begin_of_text|>", "<|end_of_text|>", *marks]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("model", Value.string("bert"), "tokenizer kind not supported: found bert"),
        ("pre", Value.string("odd"), "unknown pre-tokenizer in tokenizer.ggml.pre: found odd"),
        ("bos_token_id", Value.u32(5000), "bos_token_id is out of range: found 5000"),
        ("merges", Value.strings(["zz qq"]), "merges do not fit its tokens"),
        ("token_type", Value.numbers(ValueType.INT32, [1]), "wrong length: found 1, expected 2048"),
    ],
)
def test_bad_metadata(key: str, value: Value, problem: str) -> None:
    with pytest.raises(UnsupportedError, match=problem):
        Tokenizer(metadata(**{key: value}), "m.gguf")


SENTENCEPIECE = json.loads((data("golden/sentencepiece.json")).read_text())


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    return Tokenizer(
        {
            "tokenizer.ggml.model": Value.string("llama"),
            "tokenizer.ggml.tokens": Value.strings(SENTENCEPIECE["tokens"]),
            "tokenizer.ggml.scores": Value.numbers(ValueType.FLOAT32, SENTENCEPIECE["scores"]),
            "tokenizer.ggml.token_type": Value.numbers(ValueType.INT32, SENTENCEPIECE["types"]),
            "tokenizer.ggml.bos_token_id": Value.u32(1),
            "tokenizer.ggml.eos_token_id": Value.u32(2),
        }
    )


@pytest.mark.parametrize("case", SENTENCEPIECE["cases"], ids=lambda case: ascii(case["text"][:20]))
def test_sentencepiece_gives_the_library_s_ids(pieces: Tokenizer, case: dict[str, Any]) -> None:
    assert pieces.encode(case["text"], add_special=False).tolist() == case["ids"]
    assert pieces.encode(case["text"]).tolist() == [1, *case["ids"]]
    assert pieces.decode(pieces.encode(case["text"])) == case["text"]


def test_recognised_by_its_expressions() -> None:
    splits = json.loads((data("llama-kjv") / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"]
    assert recognise([splits[0]["pattern"]["Regex"]]) == "llama-bpe"
    assert recognise(["x"]) is None
    for expressions in PRETOKENIZERS.values():
        for expression in expressions:
            tokenizers.Regex(expression)


def test_letters_with_case_are_words_of_deepseek_llm() -> None:
    """Its third expression takes ASCII's letters for punctuation: a word is cut behind others. Numbers stay whole."""
    letters = [*bpe.BYTE_OF]
    pipeline = bpe.byte_level(letters, [], "deepseek-llm")
    assert pipeline.pre_tokenizer is not None
    cut = [piece for piece, _ in pipeline.pre_tokenizer.pre_tokenize_str("Hej Øl, 1234 一二\nא  ")]
    spelled = ["".join(bpe_letter(byte) for byte in text.encode()) for text in ("Hej", " Ø", "l", ",")]
    assert cut[:4] == spelled
    assert "1234" in cut
    assert "".join(bpe_letter(byte) for byte in "一二".encode()) in cut


def bpe_letter(byte: int) -> str:
    return next(letter for letter, value in bpe.BYTE_OF.items() if value == byte)


def test_gemma4_merges_by_rank_within_lines() -> None:
    """Spaces are U+2581, what is not a token becomes bytes, and a run of line breaks is a word of its own."""
    tokens = ["<pad>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    first = len(tokens)
    tokens += ["a", "b", "▁", "ab", "▁a", "\n", "\n\n"]
    kinds = [3, 3, 2, *[6] * 256, *[1] * 7]
    tokenizer = Tokenizer(
        {
            "tokenizer.ggml.model": Value.string("gemma4"),
            "tokenizer.ggml.tokens": Value.strings(tokens),
            "tokenizer.ggml.token_type": Value.numbers(ValueType.INT32, kinds),
            "tokenizer.ggml.merges": Value.strings(["▁ a", "a b", "\n \n"]),
            "tokenizer.ggml.bos_token_id": Value.u32(1),
        }
    )
    a, b, _, ab, space_a, line, lines = range(first, first + 7)
    assert tokenizer.encode("ab ab\n\nab\né").tolist() == [
        *(1, ab, space_a, b, lines, ab, line),
        *(3 + byte for byte in "é".encode()),
    ]
    assert tokenizer.decode([ab, space_a, b, lines, a]) == "ab ab\n\na"
