"""longrope (Ding et al. 2024, arXiv 2402.13753): each frequency divided by a factor of its own; one set of factors for
contexts up to the original one, another for longer ones.

transformers takes the set by the length of the text. A program rotates keys before it knows that length, so it takes
the set by the context that it was prepared for, as llama.cpp does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Layer
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.rope import LONG_FACTORS
from loragraft.errors import CheckpointError


def _is_long(config: Config) -> bool:
    return str(config.rope["rope_type"]).lower() in ("longrope", "su")


def original_context(config: Config) -> int:
    """Tokens; `original_max_position_embeddings` at the top goes before one within the parameters."""
    given = config.rope.get("original_max_position_embeddings")
    return config.context if given is None else int(given)


def long_magnitude(config: Config) -> float:
    """By which cos and sin grow (transformers, `_compute_longrope_parameters`); 1 without longrope."""
    if not _is_long(config):
        return 1.0
    numbers, original = Config(config.path, config.rope), original_context(config)
    given = numbers.optional_number("attention_factor")
    if given is not None:
        return given
    factor = numbers.optional_number("factor") or config.context / original
    return 1.0 if factor <= 1.0 or original < 2 else math.sqrt(1 + math.log(factor) / math.log(original))


def long_factors(config: Config) -> Mapping[str, npt.NDArray[np.float32]]:
    """The two tensors, float32 [rotary / 2]; none without longrope."""
    if not _is_long(config):
        return {}
    rotary = int(config.head_dim * (config.rope.get("partial_rotary_factor") or 1.0))
    return {
        name: _factors(config, key, rotary // 2)
        for name, key in zip(LONG_FACTORS, ("long_factor", "short_factor"), strict=True)
    }


def _factors(config: Config, key: str, count: int) -> npt.NDArray[np.float32]:
    given = config.rope.get(key)
    if (
        not isinstance(given, list)
        or len(given) != count
        or not all(isinstance(one, int | float) and 0 < one < math.inf for one in given)
    ):
        raise CheckpointError(
            config.path, f"bad {key}", found=repr(given)[:80], expected=f"{count} numbers > 0"
        )
    return np.array(given, np.float32)


def with_long_factors(keys: MetadataKeys, h: Hparams) -> Hparams:
    """The contexts that choose between the sets, in every layer's rope."""
    original = keys.count("rope.scaling.original_context_length", h.context)

    def layer(index: int, own: Layer) -> Layer:
        if own.rope is None:
            return own
        return replace(own, rope=replace(own.rope, context=h.context, original=original))

    return h.with_layers(layer)
