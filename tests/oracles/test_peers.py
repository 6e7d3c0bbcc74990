"""Live, against the peers' own code: what they make of our checkpoints, and we of theirs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import loragraft as lg
from checkpoints import nvfp4_formula, raw_tensors
from loragraft.formats.source import TensorSource
from loragraft.formats.views import float_rows
from loragraft.huggingface.tokenizer_file import SPACE
from loragraft.opening import open_model
from loragraft.quants.nvfp4 import dequantize_nvfp4
from loragraft.quants.types import BY_NAME
from oracles.conftest import Ask
from paths import data
from tolerances import REFERENCE, nmse

pytestmark = pytest.mark.oracle

IDS = [int(id_) for id_ in np.random.default_rng(0).integers(2, 2048, 48)]
TEXTS = [
    "In the beginning 1234,\n\n  was the wörd's <|end_of_text|>\t(and) so on.",
    " two  spaces </s>",
    "é🚀\u3000x",
    "",
]
#: compressed-tensors decompresses to BF16: each weight is off by up to 2^-9 of its size.
BF16 = 1e-5
#: peft adds float32 products of the rank in another order.
SUMS = 1e-13


def logits(path: Path, adapter: Path | None = None) -> np.ndarray:
    """Ours, by the reference backend."""
    return lg.load(path, [adapter] if adapter else [], backend="reference").logits(IDS)


def values(tensor: TensorSource) -> np.ndarray:
    return float_rows(tensor.rows(0, tensor.n_rows), tensor.type)


@pytest.mark.parametrize("name", ["llama-kjv", "qwen2-bias", "starcoder2-bias", "qwen3moe-8x"])
def test_from_modelopt_through_gguf_to_the_compressed_tensors_library(
    ask: Ask, tmp_path: Path, name: str
) -> None:
    """The same weights as in ModelOpt's checkpoint by ModelOpt's formula, and transformers' logits on them are ours."""
    source = data(f"{name}-nvfp4")
    lg.convert(source, tmp_path / "model.gguf")
    report = lg.export(tmp_path / "model.gguf", tmp_path / "out", format="compressed-tensors")
    assert (report.algorithm, report.quantized) == ("NVFP4", 0)
    ask("decompress", folder=tmp_path / "out", out=tmp_path / "plain")
    theirs, original = raw_tensors(tmp_path / "plain"), raw_tensors(source)
    weights = [name for name in original if name.endswith((".weight", ".bias"))]
    assert theirs.keys() == set(weights)
    for weight in weights:
        found, raw = theirs[weight].data.view("<f4"), original[weight]
        if raw.dtype == "U8":
            expected = nvfp4_formula(original, weight.removesuffix(".weight"))
            np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=2e-7, err_msg=weight)
        else:
            expected = float_rows(raw.data.reshape(1, -1), BY_NAME[raw.dtype]).reshape(-1)
            np.testing.assert_array_equal(found, expected, weight)
    ask("logits", folder=tmp_path / "plain", ids=IDS, out=tmp_path / "theirs.npy")
    assert nmse(logits(source), np.load(tmp_path / "theirs.npy")) < REFERENCE


def test_what_the_compressed_tensors_library_writes(ask: Ask, tmp_path: Path) -> None:
    """Every way to scale FP8, beside NVFP4 with and without 4-bit activations, in one checkpoint."""
    groups = {
        "FP8": ["re:.*q_proj"],
        "FP8_DYNAMIC": ["re:.*k_proj"],
        "FP8_BLOCK": ["re:.*(v|o)_proj"],
        "NVFP4": ["re:.*mlp.(gate|up)_proj"],
        "NVFP4A16": ["re:.*mlp.down_proj"],
    }
    ask("compress", folder=data("llama-kjv"), out=tmp_path / "m", groups=groups)
    ask("decompress", folder=tmp_path / "m", out=tmp_path / "plain")
    ours, theirs = open_model(tmp_path / "m"), open_model(tmp_path / "plain")
    four_bit = {name for name, tensor in ours.tensors.items() if tensor.type.name == "NVFP4"}
    assert four_bit == {f"blk.{i}.ffn_{part}.weight" for i in range(4) for part in ("gate", "up", "down")}
    wide = [f"blk.{i}.ffn_down.weight" for i in range(4)]
    assert ours.metadata["general.tensor_extra.name"].data == wide
    assert values(ours.tensors["blk.0.ffn_up.input_scale"]).reshape(-1) == [4]
    for name, tensor in theirs.tensors.items():
        expected, found = values(tensor), ours.tensors[name]
        if name in four_bit:
            scale = values(ours.tensors[f"{name.removesuffix('.weight')}.scale"]).reshape(-1)[0]
            weights = dequantize_nvfp4(found.rows(0, found.n_rows), float(scale))
            np.testing.assert_allclose(weights, expected, rtol=3e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(values(found), expected, name)


@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        ("llama-kjv", "llama-kjv.shakespeare"),
        ("llama-kjv-nvfp4", None),
        ("qwen2-bias", "qwen2-bias.rslora"),
        ("starcoder2-bias", "starcoder2-bias.pattern"),
    ],
)
def test_transformers_loads_an_export(ask: Ask, tmp_path: Path, base: str, adapter: str | None) -> None:
    adapters = [data(adapter)] if adapter else []
    lg.export(data(base), tmp_path / "out", format="compressed-tensors", adapters=adapters)
    ask("logits", folder=tmp_path / "out", ids=IDS, out=tmp_path / "theirs.npy", compressed=True)
    assert nmse(logits(tmp_path / "out"), np.load(tmp_path / "theirs.npy")) < BF16


@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        ("llama-kjv", "llama-kjv.shakespeare"),
        ("llama-kjv", "llama-kjv.dora"),
        ("llama-kjv", "llama-kjv.embed"),
        ("qwen2-bias", "qwen2-bias.rslora"),
        ("starcoder2-bias", "starcoder2-bias.pattern"),
        ("qwen3moe-8x", "qwen3moe-8x.experts"),
    ],
)
def test_peft_merges_to_the_same_weights(ask: Ask, tmp_path: Path, base: str, adapter: str) -> None:
    lg.merge(data(base), [data(adapter)], tmp_path / "ours.gguf", type="F32")
    ask("merge", folder=data(base), adapter=data(adapter), out=tmp_path / "theirs")
    ours, theirs = open_model(tmp_path / "ours.gguf"), open_model(tmp_path / "theirs")
    plain = open_model(data(base))
    assert ours.tensors.keys() == theirs.tensors.keys() == plain.tensors.keys()
    moved = 0
    for name, tensor in ours.tensors.items():
        expected = values(theirs.tensors[name])
        assert nmse(values(tensor), expected) < SUMS, name
        moved += not np.array_equal(expected, values(plain.tensors[name]))
    assert moved >= 10


@pytest.mark.parametrize(
    "kind",
    ["llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "starcoder2"],
)
def test_a_folder_that_transformers_saves(ask: Ask, tmp_path: Path, kind: str) -> None:
    """Configuration, names, tokenizer, chat template and an adapter as transformers 5 and peft write them; and the
    export of it, under the names that transformers finds again."""
    folder, adapter = tmp_path / "m", tmp_path / "adapter"
    ask("save", kind=kind, tokenizer=data("llama-kjv"), ids=IDS, out=folder, adapter=adapter)
    assert nmse(logits(folder), np.load(folder / "logits.npy")) < REFERENCE
    assert nmse(logits(folder, adapter), np.load(adapter / "logits.npy")) < REFERENCE
    assert nmse(np.load(folder / "logits.npy"), np.load(adapter / "logits.npy")) > 0.01
    model = open_model(folder)
    assert model.notes == []
    assert "m['content']" in str(model.metadata["tokenizer.chat_template"].data)
    lg.convert(folder, tmp_path / "m.gguf", type="F32")
    lg.export(tmp_path / "m.gguf", tmp_path / "out", format="compressed-tensors")
    ask("decompress", folder=tmp_path / "out", out=tmp_path / "plain")
    ask("logits", folder=tmp_path / "plain", ids=IDS, out=tmp_path / "theirs.npy")
    assert nmse(logits(tmp_path / "out"), np.load(tmp_path / "theirs.npy")) < REFERENCE
    tokenizers_agree(ask, tmp_path / "m.gguf", tmp_path / "out", tmp_path / "facts.json", "<|end_of_text|>")


def tokenizers_agree(ask: Ask, gguf: Path, folder: Path, out: Path, special: str) -> None:
    """Ours on the GGUF, and transformers' on the folder made of it; the token `special` is left out
    in decoding."""
    ask("tokenize", folder=folder, texts=TEXTS, out=out)
    facts = json.loads(out.read_text())
    model = lg.load(gguf)
    assert facts["ids"] == [model.tokenize(text, parse_special=True).tolist() for text in TEXTS]
    assert facts["texts"] == [text.replace(special, "") for text in TEXTS]
    assert facts["chat_template"] == open_model(gguf).metadata["tokenizer.chat_template"].data


def test_a_sentencepiece_tokenizer_goes_there_and_back(ask: Ask, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    ask("save", kind="llama", tokenizer=data("llama-kjv"), ids=IDS, out=folder)
    golden = json.loads(data("golden/sentencepiece.json").read_text())
    texts, scores, types = (golden[key] for key in ("tokens", "scores", "types"))
    score = {text: s for text, s, kind in zip(texts, scores, types, strict=True) if kind == 1}
    ways = [(t[:i], t[i:]) for t in score for i in range(1, len(t)) if t[:i] in score and t[i:] in score]
    ways.sort(key=lambda way: (-score[way[0] + way[1]], -len(way[0])))
    prepend = {"type": "Prepend", "prepend": SPACE}
    spell = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    tokenizer = {
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "vocab": {text: id_ for id_, text in enumerate(texts)},
            "merges": ways,
        },
        "added_tokens": [
            {"id": id_, "content": text, "special": True}
            for id_, (text, kind) in enumerate(zip(texts, types, strict=True))
            if kind in (2, 3)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [prepend, spell]},
        "pre_tokenizer": None,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True})
    )
    lg.convert(folder, tmp_path / "m.gguf", type="F16")
    lg.export(tmp_path / "m.gguf", tmp_path / "out")
    tokenizers_agree(ask, tmp_path / "m.gguf", tmp_path / "out", tmp_path / "facts.json", "</s>")
