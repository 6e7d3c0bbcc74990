"""What conversion knows of one architecture's Hugging Face checkpoints, and the registry of all that it knows.

An architecture's file has two halves: how a checkpoint of it becomes GGUF (its `ARCH` record, with a `ModelType`
for each model_type of transformers that it is), and the graph it computes (its `build`, listed in archs/graphs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from loragraft.archs.config import Config
from loragraft.archs.windows import WindowRule
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Value

T = TypeVar("T")

#: The linears of a layer by GGUF's names.
QKV = frozenset(["attn_q", "attn_k", "attn_v"])
ATTENTION = QKV | {"attn_output"}
FEED_FORWARD = frozenset(["ffn_gate", "ffn_up", "ffn_down"])

#: The modules with tensors of a decoder as Llama named them; gguf's name map knows every architecture's names at once,
#: and would take another's for this one's.
LLAMA_MODULES = frozenset(
    [
        "embed_tokens",
        "lm_head",
        "norm",
        "input_layernorm",
        "post_attention_layernorm",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
)


def biased_linears(tensors: Iterable[str]) -> dict[str, str]:
    """The names among `tensors` that are biases of linears, each with its linear (`attn_q`)."""
    names = [name for name in tensors if name.endswith(".bias") and not name.endswith("_norm.bias")]
    return {name: name.split(".")[-2] for name in names}


@dataclass(frozen=True, slots=True)
class ModelType:
    """One `model_type` of transformers: how its configuration class and its model read config.json."""

    name: str
    hf_class: str
    """What runs it, for the `architectures` of an exported config.json."""
    defaults: Mapping[str, Any]
    """What transformers assumes where config.json is silent, as far as it differs from Config's own rules."""
    requires: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys whose other values GGUF's architecture cannot express: a model with one is refused."""
    biases: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The linears, by GGUF's name in a layer, that have a bias if the key is true; under "", those that always have."""
    windows: WindowRule | None = None
    """How it says which layers have a sliding window; None if none can."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """What transformers calls a mixture of experts that GGUF counts to a dense model's architecture."""

    model_type: ModelType
    block: str
    """The module of a layer in which the router and `experts.<i>` lie."""
    router: str
    projections: frozenset[str]
    """Of each expert."""


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture, by its name in `general.architecture`."""

    name: str
    model_types: tuple[ModelType, ...]
    """Those that are this architecture without being its `mixture`; export takes the first that can say it all."""
    modules: frozenset[str] = LLAMA_MODULES
    """The last parts of the names of modules that hold tensors."""
    mixture: Mixture | None = None
    """What a model of this architecture is if it has experts, and has another name then."""
    writes_head_dim: bool = False
    """Whether key_length and value_length are written even when config.json does not name head_dim."""
    extra_hyperparameters: Callable[[Config], Mapping[str, Value]] = lambda config: {}
    """Keys after the common ones, without the architecture's prefix."""
    rotary: Mapping[str, str] = field(default_factory=dict)
    """Modules whose rows change from transformers' RoPE order (halves) to GGUF's (adjacent pairs), each with
    what counts its heads: "heads" or "kv_heads"."""
    rope_freqs: Callable[[Config], Any] = lambda config: None
    """The `rope_freqs.weight` tensor (float32 [rotary/2]) that the RoPE scaling needs, or None."""

    @property
    def all_model_types(self) -> tuple[ModelType, ...]:
        return (*self.model_types, *([self.mixture.model_type] if self.mixture else []))


class Registry:
    """Architectures by GGUF name and by model_type; a second claim to either is an error at definition."""

    def __init__(self, archs: Iterable[Arch]) -> None:
        self._by_name: dict[str, Arch] = {}
        self._by_model_type: dict[str, tuple[Arch, ModelType]] = {}
        for arch in archs:
            self._claim(self._by_name, arch.name, arch)
            for model_type in arch.all_model_types:
                self._claim(self._by_model_type, model_type.name, (arch, model_type))

    @staticmethod
    def _claim(table: dict[str, T], key: str, what: T) -> None:
        if key in table:
            raise ValueError(f"two architectures claim {key!r}")
        table[key] = what

    def __iter__(self) -> Iterator[Arch]:
        return iter(self._by_name.values())

    def by_name(self, name: str, subject: str = "model") -> Arch:
        """The architecture that a GGUF calls `name`; `subject` names the file in the error."""
        return self._find(self._by_name, name, subject)

    def by_model_type(self, name: str, subject: str = "model") -> tuple[Arch, ModelType]:
        """What config.json calls `name`, and the architecture that it is."""
        return self._find(self._by_model_type, name, subject)

    @staticmethod
    def _find(table: Mapping[str, T], key: str, subject: str) -> T:
        if key not in table:
            raise UnsupportedError(
                subject,
                "unknown architecture",
                found=repr(key),
                expected="one of " + ", ".join(sorted(table)),
            )
        return table[key]
