"""Rules for plain values: counts, numbers, flags, and what is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loragraft.archs.config import LAYERS, Config
from loragraft.archs.hparams import ACTIVATIONS
from loragraft.archs.keys.rule import GgufModel, Rule
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


@dataclass(frozen=True)
class Count(Rule):
    """A whole number under `names`: the first is written back, with `also` beside it. `optional`: there may be none;
    any other must be at least 1."""

    gguf: str
    names: tuple[str, ...]
    optional: bool = False
    also: tuple[str, ...] = ()

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset([*self.names, *self.also])

    def to_gguf(self, config: Config) -> Metadata:
        read = config.optional_integer if self.optional else config.integer
        found = read(*self.names)
        return {} if found is None else {self.gguf: Value.u32(found)}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        if not model.keys.has(self.gguf):
            return {}
        return dict.fromkeys((self.names[0], *self.also), model.keys.count(self.gguf, least=0))


@dataclass(frozen=True)
class Number(Rule):
    """A number, written as float32 if config.json or the defaults have it."""

    gguf: str
    name: str

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset([self.name])

    def to_gguf(self, config: Config) -> Metadata:
        found = config.optional_number(self.name)
        return {} if found is None else {self.gguf: Value.f32(found)}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        return {self.name: shortest(model.keys.number(self.gguf))} if model.keys.has(self.gguf) else {}


@dataclass(frozen=True)
class Flag(Rule):
    """True or false, written if config.json or the defaults have it."""

    gguf: str
    name: str

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset([self.name])

    def to_gguf(self, config: Config) -> Metadata:
        found = config.get(self.name)
        return {} if found is None else {self.gguf: Value.boolean(bool(found))}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        return {self.name: model.keys.flag(self.gguf, False)} if model.keys.has(self.gguf) else {}


@dataclass(frozen=True)
class Computed(Rule):
    """Whatever the others cannot say: `write` makes GGUF's keys of a config.json that has `names`, `back` the
    reverse."""

    names: frozenset[str]
    write: Callable[[Config], Metadata]
    back: Callable[[GgufModel], Mapping[str, Any]] = lambda model: {}
    say: Callable[[Config], list[str]] = lambda config: []
    """Its notes, without the file's name."""

    @property
    def config_keys(self) -> frozenset[str]:
        return self.names

    def to_gguf(self, config: Config) -> Metadata:
        return self.write(config)

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        return dict(self.back(model))

    def notes(self, config: Config, arch: str) -> list[str]:
        return [f"{config.path.name}: {note}" for note in self.say(config)]


class Layers(Rule):
    """How many layers there are."""

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset(LAYERS)

    def to_gguf(self, config: Config) -> Metadata:
        return {"block_count": Value.u32(config.n_layers)}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        return {LAYERS[0]: len(model.h.layers)}


class KvHeads(Rule):
    """The key-value heads: as many as heads where config.json says nothing."""

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset(["num_key_value_heads", "n_kv_heads"])

    def to_gguf(self, config: Config) -> Metadata:
        return {"attention.head_count_kv": Value.u32(config.n_kv_heads)}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        heads = model.keys.count("attention.head_count")
        return {"num_key_value_heads": model.keys.count("attention.head_count_kv", heads)}


@dataclass(frozen=True)
class HeadDim(Rule):
    """Elements of a head; `always`: written even where config.json does not name them; `unusual`: only where they are
    not the width divided by the heads."""

    always: bool = False
    unusual: bool = False

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset(["head_dim"])

    def to_gguf(self, config: Config) -> Metadata:
        if not self.always and config.get("head_dim") is None:
            return {}
        if self.unusual and config.head_dim * config.n_heads == config.hidden_size:
            return {}
        return dict.fromkeys(("attention.key_length", "attention.value_length"), Value.u32(config.head_dim))

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        if not model.keys.has("attention.key_length"):
            return {"head_dim": model.h.layers[0].key_dim} if self.unusual else {}
        return {"head_dim": model.keys.count("attention.key_length")}


class FeedForward(Rule):
    """The width of the feed-forward network under `n_inner`: 4 times the model's where config.json says none."""

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset(["n_inner"])

    def to_gguf(self, config: Config) -> Metadata:
        width = config.optional_integer("n_inner") or 4 * config.hidden_size
        return {"feed_forward_length": Value.u32(width)}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        return {"n_inner": model.h.layers[0].ff}


#: transformers' other names of the activations in `ACTIVATIONS`.
_SAME = {
    "swish": "silu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_python_tanh": "gelu_pytorch_tanh",
}


@dataclass(frozen=True)
class HiddenAct(Rule):
    """The activation of feed-forward networks, under `name`. GGUF says it only where it is not what the architecture
    does (`usual`): llama.cpp does not read it for these."""

    usual: str = "silu"
    name: str = "hidden_act"

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset([self.name])

    def to_gguf(self, config: Config) -> Metadata:
        given = config.get(self.name) or self.usual
        same = _SAME.get(given, given) if isinstance(given, str) else None
        if same not in ACTIVATIONS:
            raise UnsupportedError(
                config.path, f"unknown {self.name}", found=repr(given), expected=" or ".join(ACTIVATIONS)
            )
        return {} if same == _SAME.get(self.usual, self.usual) else {"hidden_activation": Value.string(same)}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        return {self.name: model.keys.text("hidden_activation", "") or self.usual}

    def notes(self, config: Config, arch: str) -> list[str]:
        if not self.to_gguf(config):
            return []
        said = f"{self.name} = {config.get(self.name)!r}"
        return [f"{config.path.name}: {said} is kept, but llama.cpp computes {arch} with {self.usual}"]


class SparseLayers(Rule):
    """Which layers have experts (`decoder_sparse_step`, `mlp_only_layers`): those that have a router among their
    tensors, so that GGUF needs no key for it. llama.cpp wants experts in every layer of these architectures."""

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset(["decoder_sparse_step", "mlp_only_layers"])

    def to_gguf(self, config: Config) -> Metadata:
        self._dense(config)
        return {}

    @staticmethod
    def _dense(config: Config) -> list[int]:
        step, only = config.optional_integer("decoder_sparse_step"), config.get("mlp_only_layers") or []
        if not isinstance(only, list) or not all(type(layer) is int for layer in only):
            raise CheckpointError(
                config.path, "bad mlp_only_layers", found=repr(only)[:80], expected="a list of layers"
            )
        step = 1 if step is None else step
        return [i for i in range(config.n_layers) if i in only or not step or (i + 1) % step]

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        layers = range(len(model.h.layers))
        dense = [i for i in layers if f"blk.{i}.ffn_gate_inp.weight" not in model.shapes]
        return {"decoder_sparse_step": 1, "mlp_only_layers": dense}

    def notes(self, config: Config, arch: str) -> list[str]:
        dense = self._dense(config)
        if not dense:
            return []
        return [
            f"{config.path.name}: {len(dense)} layers have no experts (the first is {dense[0]}): they are kept, but "
            f"llama.cpp wants experts in every layer of {arch} and will not load the file"
        ]


@dataclass(frozen=True)
class NormTopK(Rule):
    """Whether the weights of the experts chosen are made to sum to 1 (`norm_topk_prob`). GGUF says it only where it is
    not what the architecture does (`usual`): llama.cpp does not read it for these."""

    usual: bool

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset(["norm_topk_prob"])

    def to_gguf(self, config: Config) -> Metadata:
        given = bool(config.get("norm_topk_prob"))
        return {} if given is self.usual else {"expert_weights_norm": Value.boolean(given)}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        return {"norm_topk_prob": model.keys.flag("expert_weights_norm", self.usual)}

    def notes(self, config: Config, arch: str) -> list[str]:
        if not self.to_gguf(config):
            return []
        said = f"norm_topk_prob = {config.get('norm_topk_prob')!r}"
        return [
            f"{config.path.name}: {said} is kept, but llama.cpp computes {arch} as if it were {self.usual!r}"
        ]
