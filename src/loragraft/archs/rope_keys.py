"""RoPE's parameters between config.json and GGUF's keys.

transformers names the magnitude of YaRN itself (`attention_factor`, or `mscale` and `mscale_all_dim`); what llama.cpp
reads, `rope.scaling.attn_factor`, multiplies the standard one, 1 + 0.1 ln(factor) (src/llama-context.cpp). Its
converter writes `yarn_attn_factor`, which nothing reads for the architectures here; we write both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.archs.base import Arch
from loragraft.archs.config import Config
from loragraft.archs.hparams import MetadataKeys, standard_magnitude
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value

_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")
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
        *_BETAS,
    ]
)


def rope_keys(arch: Arch, config: Config) -> Metadata:
    """The `rope.*` keys, without the architecture's prefix, in the order of the reference converter.

    Raises CheckpointError for a parameter that is missing, UnsupportedError for what GGUF cannot express.
    """
    rope = config.rope
    kind = _kind(arch, config, rope)
    keys: Metadata = {}
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
            relative = _magnitude(numbers, factor) / standard_magnitude(factor)
            if not math.isclose(relative, 1.0, rel_tol=1e-6):
                keys["rope.scaling.attn_factor"] = Value.f32(relative)
    if "rope_theta" in rope:
        keys["rope.freq_base"] = Value.f32(rope["rope_theta"])
    return keys


def rope_notes(config: Config) -> list[str]:
    """What of the parameters is left out, and what of them llama.cpp leaves out."""
    rope, name = config.rope, config.path.name
    kind = str(rope["rope_type"]).lower()
    notes = []
    if kind == "dynamic":
        notes.append(f"{name}: dynamic RoPE scaling is left out: texts longer than the context will differ")
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


def _kind(arch: Arch, config: Config, rope: Mapping[str, Any]) -> str:
    kind = str(rope["rope_type"]).lower()
    if kind not in _KINDS:
        raise UnsupportedError(
            config.path, "unknown RoPE scaling", found=repr(kind), expected=" or ".join(_KINDS)
        )
    if kind == "llama3" and arch.rope_freqs(config) is None:
        raise UnsupportedError(config.path, f"RoPE scaling llama3 on architecture {arch.name}")
    if rope.get("partial_rotary_factor") not in (None, 1.0):
        raise UnsupportedError(
            config.path, f"RoPE on a part of each head, in {arch.name}", found=rope["partial_rotary_factor"]
        )
    if kind == "yarn" and rope.get("truncate") not in (None, True):
        raise UnsupportedError(
            config.path,
            "YaRN whose ramp is not cut to whole pairs, which GGUF cannot express",
            found=f"truncate = {rope['truncate']!r}",
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


def rope_config(
    arch: Arch, config: Mapping[str, Any], keys: MetadataKeys, freqs: npt.NDArray[np.float32] | None
) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, as every version of transformers reads them, from GGUF's keys.

    `config`: the rest of config.json; `keys`: the GGUF's;
    `freqs`: `rope_freqs.weight` [rotary/2]. Raises UnsupportedError for what transformers' configuration cannot say.
    """
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    rotary = keys.count("rope.dimension_count", head_dim)
    if rotary != head_dim:
        raise UnsupportedError(
            f"{arch.name}.rope.dimension_count", "cannot be exported", found=rotary, expected=head_dim
        )
    found: dict[str, Any] = {"rope_theta": shortest(keys.number("rope.freq_base", 10000.0))}
    scaling = _scaling(arch, keys, config["max_position_embeddings"])
    if freqs is not None:
        if scaling:
            raise UnsupportedError(
                "rope_freqs.weight", f"cannot be exported beside {scaling['rope_type']} scaling"
            )
        scaling = _llama3(arch, {**config, **found}, freqs)
    return {**found, "rope_scaling": scaling} if scaling else found


def _scaling(arch: Arch, keys: MetadataKeys, context: int) -> dict[str, Any]:
    """`rope_scaling` of the kinds that GGUF has keys for; empty without any."""
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    relative = keys.number("rope.scaling.attn_factor", 1.0)
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedError(f"{arch.name}.rope.scaling.type", "cannot be exported", found=repr(kind))
    if relative != 1.0 and kind != "yarn":
        raise UnsupportedError(
            f"{arch.name}.rope.scaling.attn_factor", "cannot be exported but with YaRN", found=relative
        )
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    scaling: dict[str, Any] = {"rope_type": kind, "factor": shortest(factor)}
    if kind == "yarn":
        original = keys.count("rope.scaling.original_context_length", context)
        scaling["original_max_position_embeddings"] = int(original)
        for key, names in _YARN:
            if names[0] in _BETAS and keys.has(key):
                scaling[names[0]] = shortest(keys.number(key))
        if relative != 1.0:
            scaling["attention_factor"] = shortest(relative * standard_magnitude(factor))
    return scaling


def _llama3(arch: Arch, config: Mapping[str, Any], freqs: npt.NDArray[np.float32]) -> dict[str, Any]:
    """The scaling of Llama 3.1 and later; only `factor` differs between the published models."""
    scaling = {"rope_type": "llama3", "factor": shortest(float(freqs.max())), "low_freq_factor": 1.0}
    scaling.update({"high_freq_factor": 4.0, "original_max_position_embeddings": 8192})
    again = arch.rope_freqs(Config(Path("config.json"), {**config, "rope_scaling": scaling}))
    if again is None or not np.array_equal(again, freqs):
        raise UnsupportedError(
            "rope_freqs.weight", "are not those of Llama 3", hint="export from the Hugging Face folder"
        )
    return scaling


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
