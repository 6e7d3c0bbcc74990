"""tokenizer.json as GGUF metadata: pre-tokenizers by definition, token types, special tokens, chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loragraft.errors import CheckpointError, LoragraftError, UnsupportedError
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.gguf.values import Metadata, Value, ValueType
from loragraft.formats.pretokenizers import PRETOKENIZERS
from loragraft.huggingface.tokenizer_json import generation_config, tokenizer_files
from loragraft.huggingface.vocab import tokenizer_metadata
from loragraft.inference.tokenizer import Tokenizer
from paths import data


def checkpoint(folder: Path, tokenizer: dict[str, Any], **files: Any) -> Checkpoint:
    """A folder with llama-kjv's tokenizer, its parts replaced by `tokenizer`'s; `files` by their stems (.json)."""
    folder.mkdir()
    original = json.loads((data("llama-kjv") / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**original, **tokenizer}))
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return Checkpoint(folder, files.get("config", {}), [])


def convert(
    folder: Path, tokenizer: dict[str, Any] | None = None, **files: Any
) -> tuple[Metadata, list[str]]:
    notes: list[str] = []
    return tokenizer_metadata(checkpoint(folder, tokenizer or {}, **files), None, notes), notes


def split(expression: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": invert}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {**BYTE_LEVEL, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
QWEN2 = PRETOKENIZERS["qwen2"][0]
O200K = PRETOKENIZERS["gpt-4o"][0]
LLAMA3 = PRETOKENIZERS["llama-bpe"][0]


def model(ignore_merges: bool) -> dict[str, Any]:
    original = json.loads((data("llama-kjv") / "tokenizer.json").read_text())["model"]
    return {**original, "ignore_merges": ignore_merges}


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [
        ([split(LLAMA3), BYTE_LEVEL], True, "llama-bpe"),
        ([split(LLAMA3), BYTE_LEVEL], False, "dbrx"),  # the same expression without ignore_merges
        ([split(QWEN2), BYTE_LEVEL], False, "qwen2"),
        ([GPT2], False, "gpt-2"),
        ([DIGITS, GPT2], False, "starcoder"),
        ([split(O200K, "Removed", True), BYTE_LEVEL], False, "gpt-4o"),
        ([*map(split, PRETOKENIZERS["deepseek-v3"]), BYTE_LEVEL], False, "deepseek-v3"),
        ([*map(split, PRETOKENIZERS["deepseek-coder"][:-1]), DIGITS, BYTE_LEVEL], False, "deepseek-coder"),
        ([split(PRETOKENIZERS["tekken"][0]), BYTE_LEVEL], True, "tekken"),
    ],
)
def test_recognised_by_definition(tmp_path: Path, steps: list[Any], ignore_merges: bool, name: str) -> None:
    pre = {"type": "Sequence", "pretokenizers": steps}
    metadata, notes = convert(tmp_path / "m", {"pre_tokenizer": pre, "model": model(ignore_merges)})
    assert metadata["tokenizer.ggml.pre"].data == name
    assert notes == []


def test_a_deviating_ignore_merges_is_a_note(tmp_path: Path) -> None:
    pre = {"type": "Sequence", "pretokenizers": [split(QWEN2), BYTE_LEVEL]}
    metadata, notes = convert(tmp_path / "m", {"pre_tokenizer": pre, "model": model(True)})
    assert metadata["tokenizer.ggml.pre"].data == "qwen2"
    assert ["ignore_merges = False" in note for note in notes] == [True]


def test_what_the_metadata_say_tokenizes_as_the_original(tmp_path: Path) -> None:
    import tokenizers

    added = [
        {"id": 2048, "content": "<tool>", "special": False, "normalized": False},
        {"id": 2049, "content": "<|im_end|>", "special": False, "normalized": False},
    ]
    original = json.loads((data("llama-kjv") / "tokenizer.json").read_text())["added_tokens"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    metadata, _ = convert(
        tmp_path / "m", {"added_tokens": original + [{**flags, **token} for token in added]}
    )
    assert list(metadata["tokenizer.ggml.token_type"].data[2046:]) == [1, 1, 4, 3]
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    ours = Tokenizer(metadata)
    text = "In the beginning <tool>was 1234 the wörd,\n\n  and   the Word's end\t<|im_end|>."
    assert ours.encode(text, parse_special=True).tolist() == theirs.encode(text).ids


def test_special_tokens(tmp_path: Path) -> None:
    """Texts of tokenizer_config.json first, then ids of config.json; the flags are the post-processor's."""
    metadata, _ = convert(
        tmp_path / "m",
        tokenizer_config={
            "eos_token": {"content": "<|end_of_text|>"},
            "add_bos_token": False,
            "add_eos_token": False,
        },
        config={"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 7},
    )
    assert {key: value.data for key, value in metadata.items() if key.endswith(("_id", "_token"))} == {
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 7,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def test_a_template_that_ends_with_another_token(tmp_path: Path) -> None:
    """Then that is the end of text, and tokenizer_config.json's eos_token the end of a turn."""
    ends = [
        {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    single = [*ends, {"SpecialToken": {"id": "<|end_of_text|>", "type_id": 0}}]
    metadata, _ = convert(
        tmp_path / "m",
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": single,
                "pair": [],
                "special_tokens": {},
            }
        },
        tokenizer_config={"bos_token": "<|begin_of_text|>", "eos_token": "<|begin_of_text|>"},
    )
    assert metadata["tokenizer.ggml.eos_token_id"].data == 1
    assert metadata["tokenizer.ggml.eot_token_id"].data == 0
    assert metadata["tokenizer.ggml.add_eos_token"].data is True


def test_chat_templates(tmp_path: Path) -> None:
    one, _ = convert(tmp_path / "one", tokenizer_config={"chat_template": "{{ messages }}"})
    assert one["tokenizer.chat_template"].data == "{{ messages }}"
    several = [{"name": "default", "template": "a"}, {"name": "tool use", "template": "b"}]
    many, _ = convert(tmp_path / "many", tokenizer_config={"chat_template": several})
    assert many["tokenizer.chat_template"].data == "a"
    assert many["tokenizer.chat_template.tool_use"].data == "b"
    assert many["tokenizer.chat_templates"].data == ["tool_use"]
    folder = checkpoint(tmp_path / "file", {})
    (folder.path / "chat_template.jinja").write_text("{% for m in messages %}")
    assert tokenizer_metadata(folder, None, [])["tokenizer.chat_template"].data == "{% for m in messages %}"


def test_no_chat_template_is_no_key() -> None:
    metadata = tokenizer_metadata(Checkpoint.open(data("llama-kjv")), 2048, [])
    assert not [key for key in metadata if "chat" in key]


def test_merges_of_either_layout(tmp_path: Path) -> None:
    pairs, _ = convert(tmp_path / "pairs", {"model": {**model(True), "merges": [["Ġ", "t"], ["a b", "c"]]}})
    lines, _ = convert(tmp_path / "lines", {"model": {**model(True), "merges": ["Ġ t", "aĠb c"]}})
    assert pairs["tokenizer.ggml.merges"].data == lines["tokenizer.ggml.merges"].data == ["Ġ t", "aĠb c"]


SENTENCEPIECE = json.loads(data("golden/sentencepiece.json").read_text())
SPELLED = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}


def sentencepiece_tokenizer(**parts: Any) -> dict[str, Any]:
    """tokenizer.json of the golden SentencePiece model as transformers converts it (SentencePieceExtractor): merges
    are all ways to make a piece of two, best score first."""
    texts, scores, types = (SENTENCEPIECE[key] for key in ("tokens", "scores", "types"))
    score = {text: s for text, s, kind in zip(texts, scores, types, strict=True) if kind == 1}
    ways = [(t[:i], t[i:]) for t in score for i in range(1, len(t)) if t[:i] in score and t[i:] in score]
    merges = sorted(ways, key=lambda way: (-score[way[0] + way[1]], -len(way[0])))
    added = [
        {"id": id_, "content": text, "special": kind in (2, 3), "normalized": False}
        for id_, (text, kind) in enumerate(zip(texts, types, strict=True))
        if kind in (2, 3, 4)
    ]
    model = {"type": "BPE", "byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    return {
        "model": {**model, "vocab": {text: id_ for id_, text in enumerate(texts)}, "merges": merges},
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, SPELLED],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        **parts,
    }


@pytest.mark.parametrize(
    "parts", [{}, {"normalizer": None, "pre_tokenizer": METASPACE}], ids=["legacy", "metaspace"]
)
def test_sentencepiece(tmp_path: Path, parts: dict[str, Any]) -> None:
    """Through tokenizer.json to GGUF's scores, and the ids are still those of the sentencepiece library."""
    metadata, notes = convert(tmp_path / "m", sentencepiece_tokenizer(**parts))
    assert notes == []
    assert metadata["tokenizer.ggml.model"].data == "llama"
    assert metadata["tokenizer.ggml.tokens"].data == SENTENCEPIECE["tokens"]
    texts, types = SENTENCEPIECE["tokens"], SENTENCEPIECE["types"]
    # as llama.cpp has it, an added token that looks like a control token is one
    expected = [3 if text == "<|im_start|>" else kind for text, kind in zip(texts, types, strict=True)]
    assert list(metadata["tokenizer.ggml.token_type"].data) == expected
    assert metadata["tokenizer.ggml.add_space_prefix"].data is True
    ours, theirs = metadata["tokenizer.ggml.scores"].data, SENTENCEPIECE["scores"]
    made = [id_ for id_, text in enumerate(texts) if len(text) > 1 and types[id_] == 1]
    assert sorted(made, key=lambda id_: -ours[id_]) == sorted(made, key=lambda id_: -theirs[id_])
    # the library's cases take that token in a text for itself, as a user-defined one
    tokenizer = Tokenizer({**metadata, "tokenizer.ggml.token_type": Value.numbers(ValueType.INT32, types)})
    for case in SENTENCEPIECE["cases"]:
        assert tokenizer.encode(case["text"], add_special=False).tolist() == case["ids"], case["text"]


def test_sentencepiece_without_prefix_or_with_fewer_merges(tmp_path: Path) -> None:
    plain, _ = convert(tmp_path / "plain", sentencepiece_tokenizer(normalizer=SPELLED))
    assert plain["tokenizer.ggml.add_space_prefix"].data is False
    tokenizer = sentencepiece_tokenizer()
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-3]
    _, notes = convert(tmp_path / "fewer", tokenizer)
    assert ["implies 3 merges more" in note for note in notes] == [True]
    with pytest.raises(UnsupportedError, match="Lowercase"):
        convert(tmp_path / "odd", sentencepiece_tokenizer(normalizer={"type": "Lowercase"}))


@pytest.mark.parametrize(
    ("tokenizer", "error", "message"),
    [
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(r"\w+|\s"), BYTE_LEVEL]}},
            UnsupportedError,
            r"no GGUF pre-tokenizer has this definition: found \\w\+\|\\s;",
        ),
        (
            {"pre_tokenizer": {"type": "Whitespace"}},
            UnsupportedError,
            "Whitespace.* expected Split, Digits, ByteLevel",
        ),
        ({"pre_tokenizer": split(LLAMA3)}, UnsupportedError, "not byte-level"),
        ({"pre_tokenizer": {**GPT2, "add_prefix_space": True}}, UnsupportedError, "add_prefix_space"),
        ({"pre_tokenizer": split(LLAMA3, "MergedWithNext")}, UnsupportedError, "MergedWithNext"),
        ({"normalizer": {"type": "Lowercase"}}, UnsupportedError, "Lowercase"),
        (
            {"model": {"type": "WordPiece", "vocab": {}}},
            UnsupportedError,
            "kind of tokenizer: found 'WordPiece'",
        ),
        (
            {"model": {"type": "BPE", "vocab": [1]}},
            CheckpointError,
            "model.vocab is missing or not an object",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": -1}}}, CheckpointError, "ids that are not numbers"),
        ({"added_tokens": [{"content": "x"}]}, CheckpointError, "added_tokens"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"] * 3]}},
            CheckpointError,
            "model.merges",
        ),
    ],
)
def test_what_gguf_cannot_express(
    tmp_path: Path, tokenizer: dict[str, Any], error: type[LoragraftError], message: str
) -> None:
    with pytest.raises(error, match=message) as refusal:
        convert(tmp_path / "m", tokenizer)
    assert "\n" not in str(refusal.value)


def test_normal_form_c_is_the_one_normalizer_that_is_known(tmp_path: Path) -> None:
    metadata, notes = convert(tmp_path / "m", {"normalizer": {"type": "NFC"}})
    assert metadata["tokenizer.ggml.pre"].data == "llama-bpe"
    assert ["normal form C is left out" in note for note in notes] == [True]


def test_flags_of_added_tokens_are_noted(tmp_path: Path) -> None:
    off = {"special": False, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    added = [{**off, "id": 2048 + i, "content": f"<{i}>", "rstrip": True} for i in range(5)]
    added.append({**off, "id": 2053, "content": "<word>", "single_word": True})
    _, notes = convert(tmp_path / "m", {"added_tokens": added})
    assert notes == [
        "tokenizer.json: rstrip of '<0>', '<1>', '<2>', '<3>', ... is left out: white space after it becomes tokens",
        "tokenizer.json: single_word of '<word>' is left out: it is also found within words",
    ]


def test_marked_pieces_are_refused(tmp_path: Path) -> None:
    marked = {"model": {**model(True), "end_of_word_suffix": "</w>"}}
    with pytest.raises(UnsupportedError, match="a tokenizer with end_of_word_suffix: found '</w>'"):
        convert(tmp_path / "m", marked)


def test_a_huge_id_is_not_allocated(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="vocabulary"):
        convert(tmp_path / "m", {"model": {**model(True), "vocab": {"a": 2**60}}})


# ---- and back


@pytest.mark.parametrize("parts", [{}, {"normalizer": SPELLED}], ids=["prefix", "no prefix"])
def test_sentencepiece_written_as_tokenizer_json(tmp_path: Path, parts: dict[str, Any]) -> None:
    """From the library's own scores: the ids are its ids, every text decodes to itself, and what is read again is what
    was written."""
    import tokenizers

    metadata, _ = convert(tmp_path / "m", sentencepiece_tokenizer(**parts))
    golden = {
        "tokenizer.ggml.scores": Value.numbers(ValueType.FLOAT32, SENTENCEPIECE["scores"]),
        "tokenizer.ggml.token_type": Value.numbers(ValueType.INT32, SENTENCEPIECE["types"]),
        "general.architecture": Value.string("llama"),
        "llama.context_length": Value.u32(4096),
    }
    notes: list[str] = []
    files = tokenizer_files({**metadata, **golden}, notes)
    assert notes == []
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    for case in SENTENCEPIECE["cases"]:
        if "<s>" in case["text"]:
            continue  # a control token's name is text to the library, the token itself to tokenizers
        ids = tokenizer.encode(case["text"]).ids
        if not parts:
            assert ids == case["ids"], case["text"]
        assert tokenizer.decode(ids, skip_special_tokens=False) == case["text"]
    assert files["tokenizer_config.json"]["model_max_length"] == 4096
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "tokenizer.json").write_text(json.dumps(files["tokenizer.json"]))
    again = tokenizer_metadata(Checkpoint(tmp_path / "again", {}, []), None, notes)
    assert again == {**metadata, "tokenizer.ggml.token_type": again["tokenizer.ggml.token_type"]}


def test_what_ends_a_turn_ends_the_generation() -> None:
    ids = {"bos": 0, "eos": 1, "eot": 7, "eom": 1, "padding": 3}
    metadata = {f"tokenizer.ggml.{kind}_token_id": Value.u32(id_) for kind, id_ in ids.items()}
    assert generation_config(metadata) == {"bos_token_id": 0, "eos_token_id": [1, 7], "pad_token_id": 3}
    del metadata["tokenizer.ggml.eot_token_id"]
    assert generation_config(metadata)["eos_token_id"] == 1
    assert generation_config({}) == {}


def test_chat_templates_are_written_as_they_were(tmp_path: Path) -> None:
    several = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    for number, template in enumerate(["{{ x }}", several]):
        metadata, _ = convert(tmp_path / str(number), tokenizer_config={"chat_template": template})
        files = tokenizer_files({**metadata, "general.architecture": Value.string("llama")}, [])
        assert files["tokenizer_config.json"]["chat_template"] == template


def test_a_tokenizer_of_another_kind_is_left_out() -> None:
    notes: list[str] = []
    assert tokenizer_files({"tokenizer.ggml.model": Value.string("t5")}, notes) == {}
    assert ["copy it from the original" in note for note in notes] == [True]


def test_gemma_4_merges_by_rank(tmp_path: Path) -> None:
    """Spelled as SentencePiece's; of llama.cpp's own vocabulary for it this gives every key, token, type and merge."""
    texts = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<|channel>", "\n\n", "▁▁"]
    texts += [f"<0x{byte:02X}>" for byte in range(256)] + [*"abc▁\n", "ab", "▁a"]
    vocab = {text: id_ for id_, text in enumerate(texts)}
    merges = [["a", "b"], ["▁", "a"]]
    added = [{"id": i, "content": texts[i], "special": i < 6} for i in range(8)]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    bpe = {"type": "BPE", "byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    tokenizer = {
        "added_tokens": added,
        "normalizer": spaces,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"},
        "decoder": None,
        "post_processor": None,
        "model": {**bpe, "vocab": vocab, "merges": merges},
    }
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "add_bos_token": False}
    folder = checkpoint(tmp_path / "m", tokenizer, tokenizer_config=names)
    notes: list[str] = []
    found = tokenizer_metadata(folder, len(texts), notes, ranked="gemma4")
    prefix = "tokenizer.ggml."
    assert [key.removeprefix(prefix) for key in found] == [
        *("model", "tokens", "scores", "token_type", "merges"),
        *("bos_token_id", "eos_token_id", "unknown_token_id", "add_space_prefix", "add_bos_token"),
    ]
    assert found[f"{prefix}model"].data == "gemma4"
    assert list(found[f"{prefix}tokens"].data) == texts
    assert set(found[f"{prefix}scores"].data.tolist()) == {-1000.0}
    assert found[f"{prefix}token_type"].data.tolist() == [3, 3, 3, 3, 3, 4, 1, 1, *[6] * 256, *[1] * 7]
    assert list(found[f"{prefix}merges"].data) == ["a b", "▁ a"]
    assert found[f"{prefix}add_bos_token"].data is True
    assert found[f"{prefix}add_space_prefix"].data is False
    ours = Tokenizer(found, "m.gguf")
    pieces = ("ab", "▁", "ab", "▁", "c")  # by rank, not by length
    assert ours.encode("ab ab c", add_special=False).tolist() == [vocab[piece] for piece in pieces]
