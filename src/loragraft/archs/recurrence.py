"""What a file says of recurrent layers: sizes of the gated delta net and of Mamba-2, and which layers they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Layer, Recurrence
from loragraft.archs.keys import GgufModel, KvHeads, Rule
from loragraft.archs.keys.layer_kinds import layer_kinds
from loragraft.archs.metadata import MetadataKeys
from loragraft.errors import FormatError
from loragraft.formats.gguf.values import Metadata, Value, ValueType


def read_recurrence(keys: MetadataKeys) -> Recurrence:
    """Raises FormatError for a key that is missing, and for sizes that do not divide as they must."""
    inner, heads = keys.count("ssm.inner_size"), keys.count("ssm.time_step_rank")
    groups = keys.count("ssm.group_count")
    for key, whole, part in (("inner_size", inner, heads), ("time_step_rank", heads, groups)):
        if whole % part:
            raise FormatError(
                f"{keys.arch}.ssm.{key}", "does not divide", found=whole, expected=f"a multiple of {part}"
            )
    return Recurrence(
        heads=heads,
        key_heads=groups,
        key_dim=keys.count("ssm.state_size"),
        value_dim=inner // heads,
        taps=keys.count("ssm.conv_kernel"),
    )


def with_recurrent_layers(keys: MetadataKeys, h: Hparams, mixer: str) -> Hparams:
    """Those of `attention.recurrent_layers`, or all but every `full_attention_interval`th, have this mixer."""
    interval = keys.count("full_attention_interval", 4)
    flags = keys.flags("attention.recurrent_layers", len(h.layers))
    last = len(h.layers) - h.predictors

    def layer(index: int, own: Layer) -> Layer:
        recurrent = index < last and (index + 1) % interval != 0 if flags is None else flags[index]
        return replace(own, mixer=mixer) if recurrent else own

    return replace(h.with_layers(layer), recurrence=read_recurrence(keys))


@dataclass(frozen=True)
class KvHeadsByKind(KvHeads):
    """`layer_types` and the key-value heads as one array: none in recurrent layers."""

    recurrent: str
    attending: str
    usual: Callable[[Config, int], str]
    """The kind of a layer where config.json does not say it."""
    names: tuple[str, ...] = ()
    """Keys that `usual` reads."""

    @property
    def config_keys(self) -> frozenset[str]:
        return super().config_keys | {"layer_types", *self.names}

    def to_gguf(self, config: Config) -> Metadata:
        kinds = layer_kinds(config, (self.recurrent, self.attending), self.usual)
        counts = [config.n_kv_heads if kind == self.attending else 0 for kind in kinds]
        return {"attention.head_count_kv": Value.numbers(ValueType.INT32, counts)}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        counts = [layer.kv_heads for layer in model.h.layers]
        kinds = [self.attending if count else self.recurrent for count in counts]
        return {"num_key_value_heads": max(counts) or model.h.layers[0].heads, "layer_types": kinds}


@dataclass(frozen=True)
class RecurrentLayers(Rule):
    """`layer_types`: which layers are recurrent, or all but every `full_attention_interval`th."""

    recurrent: str = "linear_attention"
    attending: str = "full_attention"

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset(["layer_types", "full_attention_interval"])

    def _kinds(self, config: Config) -> Sequence[str]:
        def usual(config: Config, layer: int) -> str:
            return self.recurrent if (layer + 1) % self._interval(config) else self.attending

        return layer_kinds(config, (self.recurrent, self.attending), usual)

    @staticmethod
    def _interval(config: Config) -> int:
        return config.integer("full_attention_interval")

    def to_gguf(self, config: Config) -> Metadata:
        flags = [int(kind == self.recurrent) for kind in self._kinds(config)]
        said = {"attention.recurrent_layers": Value.numbers(ValueType.BOOL, flags)}
        keys = said if config.get("layer_types") is not None else {}
        return {**keys, "full_attention_interval": Value.u32(self._interval(config))}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        layers = model.h.layers[: len(model.h.layers) - model.h.predictors]
        kinds = [self.attending if layer.mixer == "attention" else self.recurrent for layer in layers]
        return {"layer_types": kinds}
