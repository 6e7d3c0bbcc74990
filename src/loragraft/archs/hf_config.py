"""Back from GGUF to Hugging Face: config.json from hyperparameters, and tensor names from GGUF's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.archs import ARCHS
from loragraft.archs.base import Arch
from loragraft.archs.config import Config
from loragraft.archs.gguf_keys import NORM_KEYS, SIZE_KEYS, YARN_KEYS
from loragraft.archs.names import TensorNames
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Metadata

_EXPERT_KEYS = {
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
}
#: Where the modules of a layer lie.
_BLOCKS = ("self_attn.", "mlp.", "mlp.shared_expert.", "")
_SPECIAL = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "padding_token_id",
}


def config_of(
    metadata: Metadata, tensors: Mapping[str, tuple[int, ...]], rope_freqs: npt.NDArray[np.float32] | None
) -> dict[str, Any]:
    """config.json for a GGUF of this metadata, with `tensors` (shapes by name) and perhaps `rope_freqs.weight`.

    Raises UnsupportedError for an architecture that is not known, or a RoPE scaling that cannot be told from the file.
    """
    name = str(metadata["general.architecture"].data)
    arch = ARCHS.by_name(name)
    values = {key.removeprefix(f"{name}."): value.data for key, value in metadata.items()}
    mixture = arch.mixture if values.get("expert_count") else None
    config: dict[str, Any] = {
        "architectures": [mixture.hf_class if mixture else arch.hf_class],
        "model_type": mixture.model_type if mixture else arch.model_types[0],
    }
    for suffix, keys in SIZE_KEYS:
        if suffix in values:
            config[keys[0]] = int(values[suffix])
    config["num_key_value_heads"] = int(values.get("attention.head_count_kv", config["num_attention_heads"]))
    for suffix, keys in NORM_KEYS:
        if suffix in values:
            key = next((key for key in keys if key in arch.defaults), keys[0])
            config[key] = _short(values[suffix])
    for suffix, keys in _EXPERT_KEYS.items():
        if suffix in values:
            config.update(dict.fromkeys(keys, int(values[suffix])))
    if "attention.key_length" in values:
        config["head_dim"] = int(values["attention.key_length"])
    config["vocab_size"] = tensors["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config.update(
        {key: allowed[0] for key, allowed in arch.requires.items() if key != "partial_rotary_factor"}
    )
    config.update(bias_flags(name, tensors))
    for key, suffix in _SPECIAL.items():
        value = metadata.get(f"tokenizer.ggml.{suffix}")
        config[key] = None if value is None else int(value.data)
    config.update(_rope(arch, config, values, rope_freqs))
    return config


def bias_flags(architecture: str, tensors: Collection[str]) -> dict[str, bool]:
    """The keys of config.json that say which linears have a bias, where the architecture leaves it open."""
    if not ARCHS.by_name(architecture).rotary:
        return {}
    return {
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def _short(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope(
    arch: Arch, config: Mapping[str, Any], values: Mapping[str, Any], freqs: npt.NDArray[np.float32] | None
) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, as every version of transformers reads them."""
    found: dict[str, Any] = {"rope_theta": _short(values.get("rope.freq_base", 10000.0))}
    kind = values.get("rope.scaling.type")
    if kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": _short(values["rope.scaling.factor"])}
        if kind == "yarn":
            scaling["original_max_position_embeddings"] = int(values["rope.scaling.original_context_length"])
            scaling.update(
                {keys[0]: _short(values[suffix]) for suffix, keys in YARN_KEYS if suffix in values}
            )
        found["rope_scaling"] = scaling
    elif freqs is not None:
        # The factors of Llama 3.1 and later; only `factor` differs between the published models.
        scaling = {"rope_type": "llama3", "factor": _short(float(freqs.max())), "low_freq_factor": 1.0}
        scaling.update({"high_freq_factor": 4.0, "original_max_position_embeddings": 8192})
        found["rope_scaling"] = scaling
        again = arch.rope_freqs(Config(Path("config.json"), {**config, **found}))
        if again is None or not np.array_equal(again, freqs):
            raise UnsupportedError(
                "rope_freqs.weight", "are not those of Llama 3", hint="export from the Hugging Face folder"
            )
    elif kind not in (None, "none"):
        raise UnsupportedError(f"{arch.name}.rope.scaling.type", "cannot be exported", found=repr(kind))
    return found


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a part of a GGUF tensor goes in a checkpoint: `heads` as in `names.Place`."""

    name: str
    expert: int | None
    heads: int | None


class CheckpointNames:
    """The Hugging Face names of one model's tensors. Experts have a name each."""

    def __init__(self, metadata: Metadata) -> None:
        names = TensorNames(metadata)
        arch = ARCHS.by_name(str(metadata["general.architecture"].data))
        self._origins: dict[str, dict[int | None, Origin]] = {}
        for module in self._modules(arch, names):
            for part in ("weight", "bias"):
                for place in names.places(f"{module}.{part}"):
                    origin = Origin(f"{module}.{part}", place.expert, place.heads)
                    self._origins.setdefault(place.name, {}).setdefault(place.expert, origin)

    @staticmethod
    def _modules(arch: Arch, names: TensorNames) -> list[str]:
        mixture = arch.mixture if names.experts else None
        leaves = sorted(arch.modules)
        blocks = (f"{mixture.block}.", *_BLOCKS) if mixture else _BLOCKS
        stack = f"{mixture.block if mixture else 'mlp'}.experts"
        projections = sorted(mixture.projections) if mixture else leaves
        modules = ["lm_head", *(f"model.{leaf}" for leaf in leaves)]
        for layer in range(names.layers):
            stem = f"model.layers.{layer}"
            modules += [f"{stem}.{block}{leaf}" for leaf in leaves for block in blocks]
            modules += [f"{stem}.{stack}.{e}.{leaf}" for e in range(names.experts) for leaf in projections]
        return modules

    def origins(self, name: str) -> list[Origin]:
        """The checkpoint tensors that GGUF tensor `name` is made of, experts in order; empty if it has none."""
        return [
            origin for _, origin in sorted(self._origins.get(name, {}).items(), key=lambda item: item[0] or 0)
        ]
