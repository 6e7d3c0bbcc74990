"""RoPE's parameters between config.json and GGUF's keys.

transformers names the magnitude of YaRN itself (`attention_factor`, or `mscale` and `mscale_all_dim`); what llama.cpp
reads, `rope.scaling.attn_factor`, multiplies the standard one, 1 + 0.1 ln(factor) (src/llama-context.cpp). Its
converter writes `yarn_attn_factor`, which nothing reads for most architectures; we write both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.archs.config import Config
from loragraft.archs.keys.rule import GgufModel, Rule
from loragraft.archs.keys.values import shortest
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.rope import DYNAMIC, LONG_FACTORS, llama3_freq_factors, standard_magnitude
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value

_KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
#: What is copied as the reference converter does: GGUF key, config.json keys.
_YARN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("rope.scaling.yarn_ext_factor", ("extrapolation_factor",)),
    ("rope.scaling.yarn_attn_factor", ("attention_factor", "attn_factor")),
    ("rope.scaling.yarn_beta_fast", ("beta_fast",)),
    ("rope.scaling.yarn_beta_slow", ("beta_slow",)),
)
#: Those of them that mean the same to transformers.
_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
#: All that transformers reads of the object.
_PARAMETERS = frozenset(
    [
        "rope_type",
        "type",
        "rope_theta",
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "low_freq_factor",
        "high_freq_factor",
        "partial_rotary_factor",
        "short_factor",
        "long_factor",
        *_BETAS,
    ]
)


#: YaRN's magnitude as llama.cpp takes it where the file has no `rope.scaling.attn_factor`, by its factor and
#: mscale_all_dim, which some architectures have in a key of its own (`rope.scaling.yarn_log_multiplier`).
Assumed = Callable[[float, float], float]


def plain_yarn(factor: float, all_dim: float) -> float:
    return standard_magnitude(factor)


@dataclass(frozen=True)
class RopeParameters(Rule):
    """One rope for all layers: base, and context extension (linear, YaRN; dynamic is left out; Llama 3's becomes a
    tensor). `llama3`: whether llama.cpp has that tensor in this architecture; `partial`: whether a part of each head
    may turn, which `RotaryPart` then writes; `long`: whether it has the factors of long texts (`archs.longrope`)."""

    llama3: bool = False
    partial: bool = False
    long: bool = False
    truncate: bool = True
    """Whether YaRN's ramp is cut to whole pairs."""
    assumed: Assumed = plain_yarn
    explicit: bool = False
    """Whether the class scales where config.json is silent, so that "default" must be said."""

    @property
    def config_keys(self) -> frozenset[str]:
        part = [] if self.partial else ["partial_rotary_factor"]
        return frozenset(
            ["original_max_position_embeddings", "rope_parameters", "rope_scaling", "rope_theta", *part]
        )

    def to_gguf(self, config: Config) -> Metadata:
        rope = config.rope
        self._check(config, rope)
        return rope_keys(config, rope, self.assumed)

    def _check(self, config: Config, rope: Mapping[str, Any]) -> None:
        model_type = config.values.get("model_type")
        kind = _kind(config, rope)
        truncate = rope.get("truncate", True) is not False
        if kind == "yarn" and truncate != self.truncate:
            raise UnsupportedError(
                config.path,
                f"YaRN whose ramp is {'' if truncate else 'not '}cut to whole pairs, which {model_type} in GGUF does "
                f"{'not do' if truncate else 'always'}",
                found=f"truncate = {truncate!r}",
            )
        if kind == "longrope" and not self.long:
            raise UnsupportedError(config.path, f"RoPE scaling {kind} on architecture {model_type}")
        part = rope.get("partial_rotary_factor")
        if part not in (None, 1.0) and not self.partial:
            raise UnsupportedError(config.path, f"partial rotary embedding, in {model_type}", found=part)

    def notes(self, config: Config, arch: str) -> list[str]:
        notes = rope_notes(config, config.rope)
        if _kind(config, config.rope) == "llama3" and not self.llama3:
            notes.append(
                f"{config.path.name}: Llama 3's RoPE scaling is kept, as rope_freqs.weight, but llama.cpp has no such "
                f"tensor in {arch}: it will not load the file"
            )
        return notes

    def tensors(self, config: Config) -> Mapping[str, npt.NDArray[np.float32]]:
        factors = llama3_freq_factors(config)
        return {} if factors is None else {"rope_freqs.weight": factors}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        """`rope_theta` and `rope_scaling`, as every version of transformers reads them."""
        keys, h = model.keys, model.h
        head_dim = max(layer.key_dim for layer in h.layers)
        rotary = keys.count("rope.dimension_count", head_dim)
        if rotary != head_dim and not self.partial:
            raise UnsupportedError(
                f"{h.arch}.rope.dimension_count", "cannot be exported", found=rotary, expected=head_dim
            )
        found: dict[str, Any] = {"rope_theta": shortest(keys.number("rope.freq_base", 10000.0))}
        if any(name in model.shapes for name in LONG_FACTORS):
            raise UnsupportedError(
                LONG_FACTORS[0], "cannot be exported", hint="export from the Hugging Face folder"
            )
        scaling = scaling_config(keys)
        if model.rope_freqs is not None:
            if scaling:
                raise UnsupportedError(
                    "rope_freqs.weight", f"cannot be exported beside {scaling['rope_type']} scaling"
                )
            scaling = _llama3(rotary, found["rope_theta"], model.rope_freqs)
        if scaling.get("rope_type") == "yarn" and not self.truncate:
            scaling["truncate"] = False
        if self.explicit:
            scaling.setdefault("rope_type", "default")
        return {**found, "rope_scaling": scaling} if scaling else found


@dataclass(frozen=True)
class LayerRopes(Rule):
    """Two ropes: one for layers with full attention, with `rope_scaling`, and a plain one for those with a window.
    `theta`, `local_theta`: where older files have their bases."""

    theta: str = "rope_theta"
    local_theta: str = "rope_local_base_freq"

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset(["rope_parameters", "rope_scaling", self.theta, self.local_theta])

    def _ropes(self, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
        full = config.rope_of("full_attention", self.theta, scaling=True)
        sliding = config.rope_of("sliding_attention", self.local_theta, scaling=False)
        for kind, rope, known in (
            ("full", full, ("default", "linear", "yarn")),
            ("sliding", sliding, ("default",)),
        ):
            if rope["rope_type"] not in known or rope.get("partial_rotary_factor") not in (None, 1.0):
                raise UnsupportedError(
                    config.path,
                    f"RoPE of this kind in layers of {kind} attention",
                    found=repr(rope)[:120],
                    expected=" or ".join(known),
                )
        return full, sliding

    def to_gguf(self, config: Config) -> Metadata:
        full, sliding = self._ropes(config)
        return {**rope_keys(config, full), "rope.freq_base_swa": Value.f32(sliding["rope_theta"])}

    def notes(self, config: Config, arch: str) -> list[str]:
        return rope_notes(config, self._ropes(config)[0])

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        """As transformers 5 has it, beside the keys that version 4 reads."""
        keys, scaling = model.keys, scaling_config(model.keys)
        theta = shortest(keys.number("rope.freq_base", 10000.0))
        local = shortest(keys.number("rope.freq_base_swa", 10000.0))
        full = {"rope_type": "default", **scaling, "rope_theta": theta}
        sliding = {"rope_type": "default", "rope_theta": local}
        old = {self.theta: theta, self.local_theta: local, **({"rope_scaling": scaling} if scaling else {})}
        return {**old, "rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


@dataclass(frozen=True)
class RotaryPart(Rule):
    """How many elements of each head turn, from the first on: written whatever config.json says."""

    name: str = "partial_rotary_factor"

    @property
    def config_keys(self) -> frozenset[str]:
        return frozenset([self.name])

    def to_gguf(self, config: Config) -> Metadata:
        part = config.rope.get("partial_rotary_factor") or config.optional_number(self.name) or 1.0
        return {"rope.dimension_count": Value.u32(int(config.head_dim * part))}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        head_dim = max(layer.key_dim for layer in model.h.layers)
        rotary = model.keys.count("rope.dimension_count", head_dim)
        return {} if rotary == head_dim else {self.name: rotary / head_dim}


def rope_keys(config: Config, rope: Mapping[str, Any], assumed: Assumed = plain_yarn) -> Metadata:
    """The `rope.*` keys of the parameters `rope`, in the order of the reference converter.

    Raises CheckpointError for a parameter that is missing, UnsupportedError for what GGUF cannot express.
    """
    kind = _kind(config, rope)
    keys: Metadata = {}
    if kind == "dynamic" and rope.get("alpha") is None:
        keys[DYNAMIC] = Value.f32(_factor(config, rope))
    if kind in ("linear", "yarn"):
        factor = _factor(config, rope)
        keys["rope.scaling.type"] = Value.string(kind)
        keys["rope.scaling.factor"] = Value.f32(factor)
        if kind == "yarn":
            keys["rope.scaling.original_context_length"] = Value.u32(_original_context(config, rope))
            numbers = Config(config.path, rope)
            for key, names in _YARN:
                if (value := numbers.optional_number(*names)) is not None:
                    keys[key] = Value.f32(value)
            usual = assumed(factor, numbers.optional_number("mscale_all_dim") or 0.0)
            relative = _magnitude(numbers, factor) / usual
            if not math.isclose(relative, 1.0, rel_tol=1e-6):
                keys["rope.scaling.attn_factor"] = Value.f32(relative)
    if "rope_theta" in rope:
        keys["rope.freq_base"] = Value.f32(rope["rope_theta"])
    return keys


def rope_notes(config: Config, rope: Mapping[str, Any]) -> list[str]:
    """What of the parameters is left out, and what of them llama.cpp leaves out."""
    name = config.path.name
    kind = str(rope["rope_type"]).lower()
    notes = []
    if kind == "dynamic":
        notes.append(
            f"{name}: dynamic RoPE scaling is left out: texts longer than the context of {config.context} tokens are "
            "refused (transformers' values there depend on the pieces that a text comes in)"
        )
    betas = {key: rope[key] for key, usual in _BETAS.items() if rope.get(key) not in (None, usual)}
    if kind == "yarn" and betas:
        said = ", ".join(f"{key} = {value:g}" for key, value in betas.items())
        notes.append(
            f"{name}: YaRN's {said} is kept, but llama.cpp computes with 32 and 1 for this architecture"
        )
    unread = sorted(rope.keys() - _PARAMETERS)
    if unread and kind != "default":
        notes.append(
            f"{name}: RoPE parameters that transformers does not read are left out: {', '.join(unread)}"
        )
    return notes


def _kind(config: Config, rope: Mapping[str, Any]) -> str:
    kind = str(rope["rope_type"]).lower()
    kind = "longrope" if kind == "su" else kind  # its first name
    if kind not in _KINDS:
        raise UnsupportedError(
            config.path, "unknown RoPE scaling", found=repr(kind), expected=" or ".join(_KINDS)
        )
    return kind


def _factor(config: Config, rope: Mapping[str, Any]) -> float:
    if "factor" not in rope or (rope["factor"] is None and rope["rope_type"] != "yarn"):
        raise CheckpointError(
            config.path, f"RoPE scaling {rope['rope_type']} without a factor", expected="a number > 0"
        )
    if rope["factor"] is None:
        return config.integer("max_position_embeddings") / _original_context(config, rope)
    return float(rope["factor"])


def _original_context(config: Config, rope: Mapping[str, Any]) -> int:
    """In tokens."""
    given = rope.get("original_max_position_embeddings")
    if given is None:
        return config.integer("max_position_embeddings")
    if given < 1:
        raise CheckpointError(
            config.path, "bad original_max_position_embeddings", found=given, expected="a number >= 1"
        )
    return int(given)


def _magnitude(rope: Config, factor: float) -> float:
    """transformers' `attention_factor` (modeling_rope_utils.py, `_compute_yarn_parameters`)."""
    if (given := rope.optional_number("attention_factor")) is not None:
        return given
    mscale, all_dim = rope.optional_number("mscale"), rope.optional_number("mscale_all_dim")
    if mscale and all_dim and factor > 1.0:
        scaled = [0.1 * scale * math.log(factor) + 1.0 for scale in (mscale, all_dim)]
        if scaled[1]:
            return scaled[0] / scaled[1]
    return standard_magnitude(factor)


def scaling_config(keys: MetadataKeys) -> dict[str, Any]:
    """`rope_scaling` of the kinds that GGUF has keys for; empty without any."""
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    relative = keys.number("rope.scaling.attn_factor", 1.0)
    if keys.has(DYNAMIC):
        return {"rope_type": "dynamic", "factor": shortest(keys.number(DYNAMIC))}
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedError(f"{keys.arch}.rope.scaling.type", "cannot be exported", found=repr(kind))
    if relative != 1.0 and kind != "yarn":
        raise UnsupportedError(
            f"{keys.arch}.rope.scaling.attn_factor", "can be exported only with YaRN", found=relative
        )
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    scaling: dict[str, Any] = {"rope_type": kind, "factor": shortest(factor)}
    if kind == "yarn":
        original = keys.count("rope.scaling.original_context_length", keys.count("context_length"))
        scaling["original_max_position_embeddings"] = int(original)
        for key, names in _YARN:
            if names[0] in _BETAS and keys.has(key):
                scaling[names[0]] = shortest(keys.number(key))
        if relative != 1.0:
            scaling["attention_factor"] = shortest(relative * standard_magnitude(factor))
    return scaling


def _llama3(head_dim: int, theta: float, freqs: npt.NDArray[np.float32]) -> dict[str, Any]:
    """The scaling of Llama 3.1 and later; only `factor` differs between the published models."""
    scaling = {"rope_type": "llama3", "factor": shortest(float(freqs.max())), "low_freq_factor": 1.0}
    scaling.update({"high_freq_factor": 4.0, "original_max_position_embeddings": 8192})
    config = {"head_dim": head_dim, "rope_theta": theta, "rope_scaling": scaling}
    again = llama3_freq_factors(Config(Path("config.json"), config))
    if again is None or not np.array_equal(again, freqs):
        raise UnsupportedError(
            "rope_freqs.weight", "are not Llama 3's", hint="export from the Hugging Face folder"
        )
    return scaling
