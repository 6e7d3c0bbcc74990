"""Formats of folders: checkpoints, adapters, tokenizers, model cards."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

import hostile_models as hostile
import loragraft as lg
from fuzz.format import Format
from fuzz.mutate import mutated_bytes, mutated_json, mutated_text
from loragraft.adapters.peft_config import read_settings
from loragraft.errors import AdapterError
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.jsonfile import load_json
from loragraft.formats.safetensors import SafetensorsFile, SafetensorsSpec, SafetensorsWriter
from loragraft.huggingface.card_file import read_card
from loragraft.huggingface.intake import Intake
from loragraft.huggingface.integer_weights import byte_weight, gptq_or_awq, packed_weight
from loragraft.huggingface.model_card import general_metadata
from loragraft.huggingface.vocab import tokenizer_metadata
from loragraft.opening import load_adapter, open_model


class AdapterConfig(Format):
    share = 50

    def mutant(self, rng: random.Random) -> Path:
        config = hostile.checkpoint_jsons()["adapter_config.json"]
        config |= {"rank_pattern": {"q_proj": 2, r"layers\.\d+\.v": 3}, "alpha_pattern": {"k": 1.5}}
        config |= {"modules_to_save": ["lm_head"], "trainable_token_indices": [1, 2], "use_dora": True}
        self.path.write_text(json.dumps(mutated_json(rng, config)))
        return self.path

    def read(self, path: Path) -> None:
        settings = read_settings(path, load_json(path, AdapterError))
        settings.scale_of("model.layers.1.self_attn.q_proj")


class Folder(Format):
    """A checkpoint with an adapter, one of whose JSON files is changed."""

    share = 12

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.base, self.adapter = hostile.checkpoint(folder / "model", hostile.checkpoint_jsons())

    def mutant(self, rng: random.Random) -> Path:
        jsons = hostile.checkpoint_jsons()
        name = rng.choice(list(jsons))
        jsons[name] = mutated_json(rng, jsons[name])
        for file, value in jsons.items():
            place = self.adapter if file == "adapter_config.json" else self.base
            (place / file).write_text(json.dumps(value))
        return self.adapter / name if name == "adapter_config.json" else self.base / name

    def read(self, path: Path) -> None:
        lg.merge(self.base, [self.adapter], self.folder / "out.gguf", threads=1)


class IndexFile(Format):
    share = 30

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.base, _ = hostile.checkpoint(folder / "model", hostile.checkpoint_jsons())
        (self.base / "model.safetensors").rename(self.base / "model-00001-of-00001.safetensors")
        names = SafetensorsFile.open(self.base / "model-00001-of-00001.safetensors").tensors
        self.index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}

    def mutant(self, rng: random.Random) -> Path:
        path = self.base / "model.safetensors.index.json"
        path.write_text(json.dumps(mutated_json(rng, self.index)))
        return path

    def read(self, path: Path) -> None:
        Checkpoint.open(self.base)


class TokenizerFiles(Format):
    share = 40

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.base, _ = hostile.checkpoint(folder / "model", hostile.checkpoint_jsons())

    def mutant(self, rng: random.Random) -> Path:
        jsons = hostile.checkpoint_jsons()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            value = mutated_json(rng, jsons[name]) if rng.random() < 0.6 else jsons[name]
            (self.base / name).write_text(json.dumps(value))
        return self.base / "tokenizer.json"

    def read(self, path: Path) -> None:
        tokenizer_metadata(Checkpoint(self.base, {}, []), len(hostile.TOKENS), [])


class SlowTokenizer(Format):
    """vocab.json and merges.txt, and tokenizer.model."""

    share = 20

    def mutant(self, rng: random.Random) -> Path:
        base = self.folder / "model"
        base.mkdir(exist_ok=True)
        for path in base.iterdir():
            path.unlink()
        if rng.random() < 0.5:
            vocab = {text: id_ for id_, text in enumerate(hostile.TOKENS)}
            (base / "vocab.json").write_text(json.dumps(mutated_json(rng, vocab)))
            merges = "#version: 0.2\n" + "\n".join(hostile.MERGES)
            (base / "merges.txt").write_text(mutated_text(rng, merges, ["a b", "\n", "  "]))
            (base / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
        else:
            pieces = b"".join(
                b"\x0a" + bytes([len(inner)]) + inner
                for text in ("<unk>", "<s>", "a", "b", "ab", "\u2581a")
                for inner in [
                    b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15\0\0\x80\xbf\x18\x01"
                ]
            )
            model = pieces + b"\x12\x04\x18\x02\x20\x06"
            (base / "tokenizer.model").write_bytes(mutated_bytes(rng, model))
        return base

    def read(self, path: Path) -> None:
        tokenizer_metadata(Checkpoint(path, {}, []), 1000, [])


class Card(Format):
    share = 25

    def mutant(self, rng: random.Random) -> Path:
        text = "---\nname: x\ntags:\n- a\n- no\nbase_model: org/Some-7B-v2\ndatasets: [a/b, c]\nlicense: mit\n---\n"
        tokens = [
            "&a ",
            "*a",
            "- ",
            ": ",
            "[",
            "]",
            "{",
            "}",
            "!!python/object:os.system ",
            "|\n",
            "<<: ",
            "---\n",
            "1e9",
        ]
        (self.folder / "README.md").write_text(mutated_text(rng, text, tokens), "utf-8", "surrogatepass")
        config = {"temperature": 0.5, "top_k": 3, "top_p": 0.9}
        (self.folder / "generation_config.json").write_text(json.dumps(mutated_json(rng, config)))
        return self.folder / "README.md"

    def read(self, path: Path) -> None:
        general_metadata(self.folder, "llama", "model", {"a": (7, 8)}, [])
        read_card(self.folder)


class AdapterFolder(Folder):
    """The same through the readers of other trainers' files, pickles allowed."""

    share = 6

    def read(self, path: Path) -> None:
        intake = Intake(allow_pickle=True, text_only=True, resize_vocab=True)
        open_model(self.base, intake=intake, dequantize=True)
        lg.convert_adapter(self.adapter, self.base, self.folder / "adapter.gguf", intake=intake)


#: The settings and shapes of an adapter of each method for a weight of 32 x 32, beside those of LoRA.
_METHODS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "ADALORA": ({"init_r": 3, "lora_alpha": 3}, {"lora_A": (3, 32), "lora_B": (32, 3), "lora_E": (3, 1)}),
    "BOFT": ({"boft_block_size": 4}, {"boft_R": (1, 8, 4, 4), "boft_s": (32, 1)}),
    "HRA": ({"r": 2}, {"hra_u": (32, 2)}),
    "IA3": ({}, {"ia3_l": (32, 1)}),
    "LN_TUNING": ({}, {"weight": (32, 32)}),
    "LOHA": (
        {"r": 2, "alpha": 2},
        {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32)},
    ),
    "LOKR": ({"r": 2, "alpha": 2}, {"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8)}),
    "OFT": ({"oft_block_size": 4, "r": 0}, {"oft_R": (8, 6)}),
    "VERA": (
        {"r": 2, "save_projection": False, "projection_prng_key": 0},
        {"vera_lambda_b": (32,), "vera_lambda_d": (2,)},
    ),
    "LORA": ({"r": 2, "lora_alpha": 3, "use_qalora": True, "qalora_group_size": 2}, {"lora_A": (2, 16)}),
}
_SIZES = (0, 1, 2, 3, 4, 6, 8, 16, 31, 32, 33, 64, 1000, 4000)


class MethodFolder(Format):
    """An adapter of one of PEFT's methods, its settings and shapes changed."""

    share = 30

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        base, self.adapter = hostile.checkpoint(folder / "model", hostile.checkpoint_jsons())
        self.base = open_model(base)

    def mutant(self, rng: random.Random) -> Path:
        kind = rng.choice(list(_METHODS))
        settings, parts = _METHODS[kind]
        config = {"peft_type": kind, "target_modules": ["q_proj"], **settings}
        if rng.random() < 0.6:
            config = mutated_json(rng, config, 2)
        (self.adapter / "adapter_config.json").write_text(json.dumps(config))
        if kind == "LORA":
            parts = {**parts, "lora_B": (32, 2)}
        stem = "base_model.model.model.layers.1.self_attn.q_proj"
        specs, arrays = [], {}
        for part, shape in parts.items():
            name = f"{stem}.{part}" if "lora_" not in part or part == "lora_E" else f"{stem}.{part}.weight"
            if rng.random() < 0.3:
                shape = tuple(rng.choice(_SIZES) if rng.random() < 0.5 else size for size in shape)
            if rng.random() < 0.05:
                shape = (*shape, rng.choice(_SIZES))
            if np.prod(shape, dtype=np.int64) > 1 << 20:
                continue
            specs.append(SafetensorsSpec(name, "F32", shape))
            arrays[name] = np.full(shape, rng.choice([0, 1, 1, 0.5, 1e30, 1e-40, np.nan]), "<f4")
        with SafetensorsWriter(self.adapter / "adapter_model.safetensors", specs) as writer:
            for spec in specs:
                writer.write(spec.name, 0, arrays[spec.name])
        return self.adapter / "adapter_config.json"

    def read(self, path: Path) -> None:
        with np.errstate(all="ignore"):
            load_adapter(self.adapter, self.base)


#: The tensors of weights of 32 x 64 in whole numbers, by how they are packed.
_PACKINGS: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "gptq": {
        "qweight": ("I32", (8, 32)),
        "qzeros": ("I32", (2, 4)),
        "scales": ("F16", (2, 32)),
        "g_idx": ("I32", (64,)),
    },
    "awq": {"qweight": ("I32", (64, 4)), "qzeros": ("I32", (2, 4)), "scales": ("F16", (2, 32))},
    "packed": {
        "weight_packed": ("I32", (32, 8)),
        "weight_scale": ("F16", (32, 2)),
        "weight_shape": ("I32", (2,)),
        "weight_zero_point": ("I32", (4, 2)),
        "weight_g_idx": ("I32", (64,)),
    },
    "bytes": {
        "weight": ("I8", (32, 64)),
        "weight_scale": ("F32", (32, 1)),
        "weight_zero_point": ("I8", (32, 1)),
    },
}
_WIDTHS = {"I8": 1, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8}


class IntegerWeights(Format):
    """A weight of GPTQ, AWQ or compressed-tensors, its dtypes, shapes, numbers and settings changed."""

    share = 30

    def mutant(self, rng: random.Random) -> Path:
        kind = rng.choice(list(_PACKINGS))
        self.config: Any = {"quant_method": kind, "bits": 4, "group_size": 32, "checkpoint_format": "gptq"}
        if rng.random() < 0.5:
            self.config = mutated_json(rng, self.config, 2)
        specs, contents = [], {}
        for part, (dtype, shape) in _PACKINGS[kind].items():
            if rng.random() < 0.05:
                continue
            if rng.random() < 0.1:
                dtype = rng.choice(list(_WIDTHS))
            if rng.random() < 0.2:
                shape = tuple(rng.choice(_SIZES) if rng.random() < 0.5 else size for size in shape)
            if rng.random() < 0.03:
                shape = (*shape, rng.choice(_SIZES))
            size = int(np.prod(shape, dtype=np.int64)) * _WIDTHS[dtype]
            if size > 1 << 20:
                continue
            content = rng.randbytes(size)
            if part.endswith("g_idx") and rng.random() < 0.7:
                content = (
                    np.array([rng.randrange(2) for _ in range(size // 4)], "<i4").tobytes().ljust(size, b"\0")
                )
            if part == "weight_shape" and rng.random() < 0.7:
                content = np.array([32, 64], "<i4").tobytes().ljust(size, b"\0")[:size]
            if part in ("scales", "weight_scale") and rng.random() < 0.7:
                content = bytes(size)
            specs.append(SafetensorsSpec(part, dtype, shape))
            contents[part] = np.frombuffer(content, np.uint8)
        with SafetensorsWriter(self.path, specs) as writer:
            for spec in specs:
                writer.write(spec.name, 0, contents[spec.name])
        return self.path

    def read(self, path: Path) -> None:
        find = SafetensorsFile.open(path).tensors.get
        settings = self.config if isinstance(self.config, dict) else {}
        with np.errstate(all="ignore"):
            if packed := find("weight_packed"):
                read = packed_weight(path, "w", packed, find, 4)
            elif stored := find("weight"):
                read = byte_weight(path, "w", stored, find)
            else:
                read = gptq_or_awq(path, settings, "w", find)
            for start in range(0, min(read.source.n_rows, 64), 7):
                read.source.rows(start, min(start + 7, read.source.n_rows))
