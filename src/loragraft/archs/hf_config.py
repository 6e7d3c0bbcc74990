"""Back from GGUF to Hugging Face: config.json from hyperparameters, and tensor names from GGUF's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.archs import ARCHS
from loragraft.archs.base import Arch, ModelType, biased_linears
from loragraft.archs.gguf_keys import NORM_KEYS, SIZE_KEYS
from loragraft.archs.hparams import MetadataKeys, read_hparams
from loragraft.archs.metadata_keys import check_keys
from loragraft.archs.names import TensorNames
from loragraft.archs.rope_keys import rope_config, shortest
from loragraft.archs.windows import Windows
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

    Raises UnsupportedError for an architecture that is not known, a RoPE scaling that cannot be told from the file, and
    keys, windows or biases that no configuration of transformers has; FormatError for a value that makes no sense.
    """
    keys = MetadataKeys(metadata)
    arch = ARCHS.by_name(keys.arch)
    h = read_hparams(metadata)
    check_keys(metadata, h)
    model_type, windowed = _model_type(arch, h.experts > 0, h.windows)
    config: dict[str, Any] = {"architectures": [model_type.hf_class], "model_type": model_type.name}
    for suffix, names in SIZE_KEYS:
        if keys.has(suffix):
            config[names[0]] = keys.count(suffix, least=0)
    config["num_key_value_heads"] = keys.count("attention.head_count_kv", config["num_attention_heads"])
    for suffix, names in NORM_KEYS:
        if keys.has(suffix):
            name = next((name for name in names if name in model_type.defaults), names[0])
            config[name] = shortest(keys.number(suffix))
    for suffix, names in _EXPERT_KEYS.items():
        if keys.has(suffix):
            config.update(dict.fromkeys(names, keys.count(suffix, least=0)))
    if keys.has("attention.key_length"):
        config["head_dim"] = keys.count("attention.key_length")
    config["vocab_size"] = tensors["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config.update({key: allowed[0] for key, allowed in model_type.requires.items()})
    config.update(bias_flags(model_type, tensors))
    config.update(windowed)
    for key, suffix in _SPECIAL.items():
        value = metadata.get(f"tokenizer.ggml.{suffix}")
        config[key] = None if value is None else int(value.data)
    config.update(rope_config(arch, config, keys, rope_freqs))
    return config


def _model_type(arch: Arch, experts: bool, windows: Windows) -> tuple[ModelType, dict[str, Any]]:
    """Whose configuration can say these windows, and how."""
    candidates = (arch.mixture.model_type,) if arch.mixture and experts else arch.model_types
    for model_type in candidates:
        if model_type.windows is None:
            if not any(windows):
                return model_type, {}
        elif (said := model_type.windows.write(windows)) is not None:
            return model_type, said
    raise UnsupportedError(
        f"{arch.name}.attention.sliding_window",
        "no model of transformers with this architecture has these windows",
        found=sorted({0 if window is None else window for window in windows}),
    )


def bias_flags(model_type: ModelType, tensors: Iterable[str]) -> dict[str, bool]:
    """The flags of config.json for the linears that have a bias; raises UnsupportedError for one that has no flag."""
    biased = biased_linears(tensors)
    allowed = frozenset[str]().union(*model_type.biases.values())
    for name, linear in biased.items():
        if linear not in allowed:
            raise UnsupportedError(name, f"{model_type.hf_class} of transformers has no such bias")
    present = set(biased.values())
    return {key: bool(present & linears) for key, linears in model_type.biases.items() if key}


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
