"""Every format that is read: how a mutant of it is made, and what reads it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import hostile_models as hostile
import loragraft as lg
from fuzz.gguf_pieces import mutated_gguf, pieces_of
from fuzz.mutate import any_json, mutated_bytes, mutated_json, mutated_text
from loragraft.adapters.peft_config import read_settings
from loragraft.errors import AdapterError, CheckpointError, LoragraftError
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.formats.imatrix import Imatrix
from loragraft.formats.jsonfile import load_json
from loragraft.formats.safetensors import SafetensorsFile, SafetensorsSpec, SafetensorsWriter
from loragraft.formats.split import parse_size
from loragraft.formats.torch_file import read_torch_file
from loragraft.huggingface.card_file import read_card
from loragraft.huggingface.intake import Intake
from loragraft.huggingface.model_card import general_metadata
from loragraft.huggingface.vocab import tokenizer_metadata
from loragraft.inference.calibration import calibration_windows
from loragraft.inference.chat import render
from loragraft.inference.tokenizer import Tokenizer
from loragraft.opening import load_adapter, open_model
from loragraft.patterns import PatternError, SuffixTable, searcher
from loragraft.quants.filetypes import file_type
from loragraft.server.bodies import decoded
from loragraft.server.chat import ChatCompletions
from loragraft.server.completions import Completions
from loragraft.server.constraints import Grammars
from loragraft.server.errors import ApiError
from loragraft.server.schema import ChatRequest, CompletionRequest
from loragraft.server.serve import ServeOptions, make_state
from loragraft.streaming.journal import Journal
from loragraft.streaming.options import layers, override, tensor_type, tensor_type_file
from loragraft.units import byte_count
from loragraft.units import share as unit_share


class Format(ABC):
    """`mutant` writes one into the folder and says where; `read` reads it and may raise LoragraftError alone."""

    #: Of 1000 mutants, how many are of this format.
    share: int

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "mutant"
        self.interesting: list[bytes] = []
        """Mutants that led somewhere new; others are made of them."""

    @abstractmethod
    def mutant(self, rng: random.Random) -> Path: ...

    @abstractmethod
    def read(self, path: Path) -> None: ...

    def learn(self, corpus: Path, rng: random.Random) -> None:  # noqa: B027, formats of several files do not
        """Build on what earlier runs left in `corpus`, and leave there what leads somewhere new."""

    def keep(self, path: Path, outcome: str) -> None:  # noqa: B027
        """It led somewhere new."""


class Binary(Format):
    """Files of bytes, changed as bytes."""

    seeds: list[bytes]
    corpus: Path

    def learn(self, corpus: Path, rng: random.Random) -> None:
        self.corpus = corpus
        corpus.mkdir(parents=True, exist_ok=True)
        found = sorted(corpus.iterdir())
        self.interesting = [path.read_bytes() for path in rng.sample(found, min(100, len(found)))]

    def keep(self, path: Path, outcome: str) -> None:
        if len(self.interesting) < 200 and path.stat().st_size < 1 << 20:
            self.interesting.append(path.read_bytes())
            kept = self.corpus / hashlib.sha256(outcome.encode()).hexdigest()[:16]
            if not kept.exists():
                kept.write_bytes(self.interesting[-1])

    def mutant(self, rng: random.Random) -> Path:
        pool = [*self.seeds * 4, *self.interesting]
        self.path.write_bytes(self.changed(rng, rng.choice(pool), pool))
        return self.path

    def changed(self, rng: random.Random, data: bytes, pool: list[bytes]) -> bytes:
        return mutated_bytes(rng, data, pool)


def _gguf_bytes(folder: Path, name: str) -> bytes:
    small = hostile.model(name)
    if name == "qwen3moe":
        small.metadata["tokenizer.ggml.model"] = Value.string("llama")
        small.metadata["tokenizer.ggml.scores"] = Value.numbers(
            ValueType.FLOAT32, [0.0] * len(hostile.TOKENS)
        )
    return hostile.gguf(folder / "seed.gguf", small).read_bytes()


def _small_gguf_bytes(folder: Path, name: str) -> bytes:
    """Of every kind of value and of tensor, and little of each: what one reads fast."""
    small = hostile.model(name)
    for key, value in small.metadata.items():
        if value.type is ValueType.ARRAY:
            small.metadata[key] = Value(value.type, value.data[:6], value.item)
    small.metadata |= {kind.name: Value(kind, 1) for kind in ValueType if kind not in _OF_MANY}
    inner = Value.numbers(ValueType.UINT8, [1, 2])
    small.metadata["nested"] = Value(ValueType.ARRAY, [inner, Value.strings(["a"])], ValueType.ARRAY)
    small.arrays = {name: array[:2] for name, array in list(small.arrays.items())[:6]}
    return hostile.gguf(folder / "seed.gguf", small).read_bytes()


_OF_MANY = (ValueType.ARRAY, ValueType.STRING)


class Gguf(Binary):
    share = 330
    seed_bytes = staticmethod(_small_gguf_bytes)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "mutant.gguf"
        self.seeds = [self.seed_bytes(folder, name) for name in ("llama", "qwen3moe")]
        self.pieces = [pieces_of(data) for data in self.seeds]

    def mutant(self, rng: random.Random) -> Path:
        if self.interesting and rng.random() < 0.2:
            return super().mutant(rng)
        self.path.write_bytes(mutated_gguf(rng, rng.choice(self.pieces), self.interesting))
        return self.path

    def read(self, path: Path) -> None:
        model = open_gguf(path)
        for tensor in model.tensors.values():
            tensor.rows(0, tensor.n_rows)


class GgufUse(Gguf):
    """The same files, through every verb."""

    share = 8
    seed_bytes = staticmethod(_gguf_bytes)

    def read(self, path: Path) -> None:
        verbs = [
            lambda: json.dumps(lg.inspect(path).as_json(), allow_nan=False),
            lambda: lg.quantize(path, self.folder / "out", "Q4_K_M", threads=1),
            lambda: lg.split(path, self.folder / "part"),
            lambda: list(lg.load(path, threads=1).generate("the", max_tokens=2, temperature=0)),
            lambda: lg.export(path, self.folder / "exported", threads=1),
            lambda: lg.check(path),
        ]
        for verb in verbs:
            with suppress(LoragraftError):
                verb()
        shutil.rmtree(self.folder / "exported", ignore_errors=True)
        left = [name for name in os.listdir(self.folder) if "partial" in name]
        assert not left, f"left behind: {left}"
        open_gguf(path)


class GgufTokenizer(Gguf):
    share = 60
    seed_bytes = staticmethod(_gguf_bytes)

    def read(self, path: Path) -> None:
        tokenizer = Tokenizer(open_gguf(path).metadata, path)
        ids = tokenizer.encode("the thing in <|end|> é", parse_special=True)
        tokenizer.decode(ids, show_special=True)


_KINDS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "U8": "u1", "BOOL": "u1", "F8_E4M3": "u1"}


class Safetensors(Binary):
    share = 250

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        specs = [SafetensorsSpec(f"model.layers.{i}.a", kind, (2, 2 + i)) for i, kind in enumerate(_KINDS)]
        with SafetensorsWriter(folder / "seed", specs) as writer:
            for index, (spec, kind) in enumerate(zip(specs, _KINDS.values(), strict=True)):
                writer.write(spec.name, 0, np.zeros((2, 2 + index), kind))
        _, adapter = hostile.checkpoint(folder / "model", hostile.checkpoint_jsons())
        files = (folder / "seed", adapter / "adapter_model.safetensors")
        self.seeds = [path.read_bytes() for path in files]

    def changed(self, rng: random.Random, data: bytes, pool: list[bytes]) -> bytes:
        length = int.from_bytes(data[:8], "little")
        if rng.random() < 0.5 and length < len(data):
            try:
                header = json.loads(data[8 : 8 + length])
            except ValueError:
                return mutated_bytes(rng, data, pool)
            text = json.dumps(mutated_json(rng, header)).encode()
            return len(text).to_bytes(8, "little") + text + data[8 + length :]
        start = mutated_bytes(rng, data[: 8 + length], pool) if rng.random() < 0.8 else data[: 8 + length]
        return start + data[8 + length :][: rng.choice([None, None, 0, 1, 100])]

    def read(self, path: Path) -> None:
        for tensor in SafetensorsFile.open(path).tensors.values():
            tensor.data()


class Torch(Binary):
    share = 60

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seeds = [_torch_bytes()]

    def changed(self, rng: random.Random, data: bytes, pool: list[bytes]) -> bytes:
        if rng.random() < 0.4:
            return mutated_bytes(rng, data, pool)
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(self.seeds[0])) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, mutated_bytes(rng, content) if name.endswith("pkl") else content)
        return out.getvalue()

    def read(self, path: Path) -> None:
        for tensor in read_torch_file(path).values():
            tensor.data()


class _Rebuilt:
    """A tensor of the storage `key`."""

    def __init__(self, key: str) -> None:
        self.key = key


class _TorchPickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes references to storages as torch does."""

    def save(self, obj: Any, *rest: Any) -> None:
        if isinstance(obj, _Rebuilt):
            self.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
            self.save("storage")
            self.write(b"ctorch\nFloatStorage\n")
            for part in (obj.key, "cpu", 4):
                self.save(part)
            self.write(b"tQ")
            for part in (0, (2, 2), (2, 1), False, OrderedDict()):
                self.save(part)
            self.write(b"tR")
        else:
            super().save(obj, *rest)


def _torch_bytes() -> bytes:
    pickled, out = io.BytesIO(), io.BytesIO()
    _TorchPickler(pickled, 2).dump({"a.weight": _Rebuilt("0"), "b.weight": _Rebuilt("1")})
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("m/data.pkl", pickled.getvalue())
        for key in "01":
            file.writestr(f"m/data/{key}", np.arange(4, dtype="<f4").tobytes())
        file.writestr("m/byteorder", "little")
    return out.getvalue()


class ImatrixFile(Binary):
    share = 60

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        names = [f"blk.{i}.attn_q.weight" for i in range(3)]
        sums = {name: np.ones((1, 32), np.float32) for name in names}
        matrix = Imatrix(sums, {name: np.array([7]) for name in names}, ["text"], 3, 8)
        matrix.save_gguf(folder / "seed.imatrix")
        legacy = struct.pack("<i", len(names))
        for name in names:
            legacy += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 3, 32) + bytes(128)
        self.seeds = [(folder / "seed.imatrix").read_bytes(), legacy + struct.pack("<ii", 3, 4) + b"text"]

    def read(self, path: Path) -> None:
        matrix = Imatrix.load(path)
        with np.errstate(all="ignore"):
            assert matrix.entries.keys() == matrix.sums.keys()


class JsonFile(Binary):
    share = 60

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        odd = b'{"a": [1, {"b": "\\ud83d\\ude00"}], "c": 1e5}'
        self.seeds = [json.dumps(hostile.checkpoint_jsons()).encode(), odd]

    def changed(self, rng: random.Random, data: bytes, pool: list[bytes]) -> bytes:
        if rng.random() < 0.5:
            return mutated_bytes(rng, data, pool)
        return json.dumps(any_json(rng)).encode()

    def read(self, path: Path) -> None:
        load_json(path, CheckpointError)


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


class Template(Format):
    share = 10

    def mutant(self, rng: random.Random) -> Path:
        text = (
            "{% for m in messages %}{{ m.role|upper }}: {{ m['content'] }}{% if loop.last %}{{ eos_token }}"
        )
        text += "{% endif %}{% endfor %}"
        tokens = [
            *(
                "{% for a in range(9999) %}",
                "{% endfor %}",
                "{{ 'a' * 10**9 }}",
                "{% macro m() %}",
                "{% endmacro %}",
            ),
            *(
                "{{ m() }}",
                "{% set x = x ~ x %}",
                "|tojson",
                "|sort",
                "|join",
                "[",
                "]",
                "(",
                ")",
                "{{",
                "}}",
                "{%",
                "%}",
            ),
            *(
                "**",
                "*",
                "//0",
                "%",
                ".__class__",
                "|attr('x')",
                "|format(1)",
                "|indent(10**9)",
                "namespace(x=1)",
                "|list",
            ),
            *(
                "{% if 1 %}",
                "{% endif %}",
                "cycler()",
                "|truncate(0)",
                "|xmlattr",
                "raise_exception('x')",
                "|batch(3)",
            ),
        ]
        self.path.write_text(mutated_text(rng, text, tokens))
        return self.path

    def read(self, path: Path) -> None:
        render(path.read_text(), [{"role": "user", "content": "hi"}], bos="<s>", eos="</s>")


_WORDS = (
    *(
        r"blk\.\d+\.attn_v=q8_0",
        "attn_v=q4_k",
        "k=int:3",
        "k=str:x",
        "k=bool:true",
        "0,1,2",
        "4G",
        "3.2GB",
        "99%",
    ),
    *("Q4_K_M", "15", "(a|b)*c", "[a-z_.0-9]+", "a{2,5}", "^x$", "(.*)*(.*)*x"),
)


class Options(Format):
    """Expressions, rules and the other texts of the command line."""

    share = 100

    def mutant(self, rng: random.Random) -> Path:
        tokens = [
            "(",
            ")",
            "*",
            "+",
            "?",
            "{2,3}",
            "{9999}",
            "[",
            "]",
            "^",
            "\\",
            "\\d",
            "|",
            "(?i)",
            "(?=",
            ".",
            "=",
            "int:",
        ]
        self.path.write_text(mutated_text(rng, rng.choice(_WORDS), tokens), "utf-8", "surrogatepass")
        return self.path

    def read(self, path: Path) -> None:
        text = path.read_text("utf-8", "surrogatepass")
        refused = ""
        for use in (
            *(searcher, lambda t: SuffixTable({t: 1}).find("a.b", 0), tensor_type, layers, override),
            *(file_type, lambda _: tensor_type_file(path)),
        ):
            try:
                use(text)
            except (LoragraftError, PatternError) as error:
                refused = str(error)
        for parse in (parse_size, byte_count, unit_share):  # click makes a usage error of a ValueError
            with suppress(ValueError, LoragraftError):
                parse(text)
        if refused:
            raise LoragraftError("options", refused[:40])


class JournalFile(Binary):
    share = 40

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        journal = Journal(folder / "seed", "plan", resume=False)
        for row in range(5):
            journal.add("blk.0.attn_q.weight", row * 8, row * 8 + 8)
        journal.close()
        self.seeds = [(folder / "seed").read_bytes()]

    def read(self, path: Path) -> None:
        found = Journal(path, "plan", resume=True)
        found.close()
        for name, spans in found.done.items():
            assert name == "blk.0.attn_q.weight"
            assert all(stop - start == 8 and start in range(0, 40, 8) for start, stop in spans), spans


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


class Conversations(Format):
    """A text to calibrate on, a conversation or a text on each line."""

    share = 25

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "mutant.jsonl"
        self.model = open_gguf(hostile.gguf(folder / "model.gguf", hostile.model()))

    def mutant(self, rng: random.Random) -> Path:
        said = {"role": "user", "content": "the thing " * 4}
        lines = [
            {"text": hostile.TEXT},
            {"messages": [said]},
            {"prompt": "the", "completion": hostile.TEXT},
            {"conversations": [{"from": "gpt", "value": "in"}]},
        ]
        chosen = rng.choices(lines, k=2)
        text = "\n".join(
            json.dumps(mutated_json(rng, line) if rng.random() < 0.5 else line) for line in chosen
        )
        if rng.random() < 0.3:
            text = mutated_text(
                rng, text, ['"', "{", "}", "[" * 20_000, "\\ud800", "\n", "\u2028", "9" * 5000]
            )
        self.path.write_text(text, "utf-8", "surrogatepass")
        return self.path

    def read(self, path: Path) -> None:
        calibration_windows(self.model, [path], 2, 8)


class ServerBody(Format):
    """What a client sends, up to the request that the scheduler gets."""

    share = 40

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        small = hostile.model()
        small.metadata["tokenizer.chat_template"] = Value.string(
            "{% for m in messages %}{{ m.content }}{% endfor %}"
        )
        loaded = lg.load(hostile.gguf(folder / "model.gguf", small), threads=1)
        self.state = make_state(loaded, (), ServeOptions(alias="m"))
        self.grammars = Grammars(loaded.tokenizer)
        self.chat, self.plain = (
            ChatCompletions(self.state, self.grammars),
            Completions(self.state, self.grammars),
        )

    def mutant(self, rng: random.Random) -> Path:
        body = mutated_json(rng, rng.choice(_BODIES), rng.choice([1, 1, 2, 4]))
        self.path.write_bytes(json.dumps(body).encode())
        return self.path

    def read(self, path: Path) -> None:
        data = path.read_bytes()
        try:
            if b'"messages"' in data:
                self.chat.request(decoded(data, ChatRequest))
            else:
                for request in self.plain.requests(decoded(data, CompletionRequest)):
                    request.constraint and request.constraint()
        except ApiError as error:
            problem = error.message if 400 <= error.status < 500 else f"status {error.status}\n"
            raise LoragraftError("request", problem) from None


_SAID: list[dict[str, Any]] = [
    {"role": "system", "content": "the"},
    {"role": "user", "content": [{"type": "text", "text": "in <|end|>"}]},
    {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
    {"role": "tool", "content": "th", "tool_call_id": "a"},
]
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a{1,9}$", "maxLength": 9}}}
_FUNCTION = {"type": "function", "function": {"name": "f", "parameters": _SCHEMA}}
_SETTINGS = {
    "model": "m",
    "n": 2,
    "seed": 1,
    "stop": ["x"],
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "min_p": 0.1,
    "presence_penalty": 1,
    "logit_bias": {"3": 1},
    "max_tokens": 2,
    "lora": [],
}
_BODIES: list[dict[str, Any]] = [
    {**_SETTINGS, "prompt": "the thing", "logprobs": 2, "echo": True},
    {"model": "m", "prompt": [[3, 4], "th"], "grammar": 'root ::= "a" [b-d]*'},
    {**_SETTINGS, "messages": _SAID, "logprobs": True, "top_logprobs": 3, "chat_template_kwargs": {"a": 1}},
    {"model": "m", "messages": _SAID, "tools": [_FUNCTION], "tool_choice": "required"},
    {
        "model": "m",
        "messages": _SAID[:2],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}},
    },
]


FORMATS: dict[str, type[Format]] = {
    "gguf": Gguf,
    "gguf-tokenizer": GgufTokenizer,
    "gguf-verbs": GgufUse,
    "safetensors": Safetensors,
    "index": IndexFile,
    "torch": Torch,
    "imatrix": ImatrixFile,
    "json": JsonFile,
    "adapter-config": AdapterConfig,
    "checkpoint": Folder,
    "adapter": AdapterFolder,
    "tokenizer": TokenizerFiles,
    "slow-tokenizer": SlowTokenizer,
    "model-card": Card,
    "template": Template,
    "options": Options,
    "journal": JournalFile,
    "methods": MethodFolder,
    "conversations": Conversations,
    "server": ServerBody,
}
