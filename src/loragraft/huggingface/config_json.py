"""Back from GGUF to Hugging Face: config.json from hyperparameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.archs import ARCHS, ConfigClass
from loragraft.archs.graphs import check_keys, read_hparams
from loragraft.archs.keys import GgufModel
from loragraft.archs.keys.windows import no_such_windows
from loragraft.archs.metadata import MetadataKeys
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Metadata

_SPECIAL = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "padding_token_id",
}
#: Ends of the names of what has a bias and is not a linear layer.
_NO_LINEAR = ("_norm", "_norm_2", "exp_probs_b", "ssm_dt", "ssm_conv1d")


def config_of(
    metadata: Metadata, tensors: Mapping[str, tuple[int, ...]], rope_freqs: npt.NDArray[np.float32] | None
) -> dict[str, Any]:
    """config.json for a GGUF of this metadata, with `tensors` (shapes by name) and perhaps `rope_freqs.weight`.

    Of the architecture's configuration classes it is the first that can say it all. Raises UnsupportedError for an
    architecture that is not known, a RoPE scaling that cannot be told from the file, and keys, windows or biases that
    no configuration of transformers has; FormatError for a value that makes no sense.
    """
    keys = MetadataKeys(metadata)
    arch = ARCHS.by_name(keys.arch)
    h = read_hparams(metadata)
    check_keys(metadata)
    model = GgufModel(keys, h, tensors, rope_freqs)
    candidates = [one for one in arch.classes if one.experts is None or one.experts == (h.experts > 0)]
    problem: UnsupportedError | None = None
    for config_class in candidates:
        try:
            return _config(config_class, model, metadata)
        except UnsupportedError as error:
            problem = problem or error
    if problem is not None:
        raise problem
    raise UnsupportedError(
        f"{arch.name}.expert_count", "no model of transformers with this architecture", found=h.experts
    )


def _config(config_class: ConfigClass, model: GgufModel, metadata: Metadata) -> dict[str, Any]:
    """What this class says of the model; raises UnsupportedError if it cannot."""
    config: dict[str, Any] = {
        "architectures": [config_class.hf_class],
        "model_type": config_class.model_type,
    }
    if "sliding_window" not in config_class.config_keys and any(layer.window for layer in model.h.layers):
        raise no_such_windows(model)
    for rule in config_class.keys:
        config.update(rule.to_config(model))
    config["vocab_size"] = model.shapes["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in model.shapes
    config.update({key: allowed[0] for key, allowed in config_class.requires.items()})
    config.update(bias_flags(config_class, model.shapes))
    for key, suffix in _SPECIAL.items():
        value = metadata.get(f"tokenizer.ggml.{suffix}")
        config[key] = None if value is None else int(value.data)
    return config


def biased_linears(tensors: Iterable[str]) -> dict[str, str]:
    """The names among `tensors` that are biases of linears, each with its linear (`attn_q`)."""
    found = {name: name.split(".")[-2] for name in tensors if name.endswith(".bias")}
    return {name: stem for name, stem in found.items() if not stem.endswith(_NO_LINEAR)}


def bias_flags(config_class: ConfigClass, tensors: Iterable[str]) -> dict[str, bool]:
    """The flags of config.json for the linears that have a bias; raises UnsupportedError for one that has no flag."""
    biased = biased_linears(tensors)
    allowed = frozenset[str]().union(*config_class.biases.values())
    for name, linear in biased.items():
        if linear not in allowed:
            raise UnsupportedError(name, f"{config_class.hf_class} in transformers has no such bias")
    present = set(biased.values())
    return {key: bool(present & linears) for key, linears in config_class.biases.items() if key}
