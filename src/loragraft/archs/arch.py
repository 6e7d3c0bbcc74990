"""What an architecture is: one `Arch` record per file, and the registry of all.

A record owns what its configuration classes say and in which words (`keys`), what a layer is (`hparams`), which tensors
a checkpoint has and how they change (`tensors`), and the graph (`build`). Everything else derives from the records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, read_decoder
from loragraft.archs.keys.rule import Rule
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import Tensor
from loragraft.errors import UnsupportedError
from loragraft.graph.llama_cpp import PublishedArch
from loragraft.graph.ops import Graph, TensorFact

T = TypeVar("T")

#: The linears of a layer by GGUF's names.
QKV = frozenset(["attn_q", "attn_k", "attn_v"])
ATTENTION = QKV | {"attn_output"}
FEED_FORWARD = frozenset(["ffn_gate", "ffn_up", "ffn_down"])

Build = Callable[[Hparams, Mapping[str, TensorFact]], Graph]


@dataclass(frozen=True, slots=True)
class ConfigClass:
    """One configuration class of transformers: how it and its model read config.json."""

    model_type: str
    hf_class: str
    """What runs it, for the `architectures` of an exported config.json."""
    keys: tuple[Rule, ...]
    """What GGUF says too, in the order in which llama.cpp's converter writes it."""
    defaults: Mapping[str, Any]
    """What transformers assumes where config.json is silent, as far as it differs from Config's own rules."""
    requires: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys whose other values GGUF's architecture cannot express: a model with one is refused."""
    ignores: frozenset[str] = frozenset()
    """Keys that the class reads, and logits do not depend on."""
    biases: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The linears, by GGUF's name in a layer, that have a bias if the key is true; under "", those that always have."""
    left_out: Callable[[Config, str], bool] = lambda config, name: False
    """Whether a checkpoint's tensor of this name has no place in GGUF (so has it llama.cpp's converter), and none in
    what transformers computes: a note says so."""
    experts: bool | None = None
    """Whether its models have experts; None: they may."""
    when: Callable[[Mapping[str, Any]], bool] = lambda values: True
    """Whether a config.json of this model_type is of this architecture, where one model_type is several."""

    @property
    def config_keys(self) -> frozenset[str]:
        """Every key of config.json that has a meaning to it."""
        read = frozenset[str]().union(*(rule.config_keys for rule in self.keys))
        return read | self.defaults.keys() | self.requires.keys() | self.biases.keys() | self.ignores


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture, by its name in `general.architecture`."""

    name: str
    classes: tuple[ConfigClass, ...]
    """The configuration classes that are this architecture; export takes the first that can say it all."""
    tensors: tuple[Tensor, ...]
    build: Build
    hparams: Callable[[MetadataKeys], Hparams] = read_decoder
    extra_tensors: Callable[[Config], Mapping[str, npt.NDArray[np.float32]]] = lambda config: {}
    """Tensors that config.json implies, such as `rope_freqs.weight`."""
    scalars: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    """Tensors of one number, by Hugging Face's names in a layer: the keys of GGUF that are arrays of them, and their
    shape in checkpoints."""
    vocabulary: str | None = None
    """What GGUF calls its vocabulary, if it is spelled as SentencePiece's and merges by rank."""
    llama_cpp: PublishedArch = field(default_factory=PublishedArch)
    """What llama.cpp's file for it knows of linears."""
    outer_scales: frozenset[str] = frozenset()
    """Linears of a layer whose `.scale` in GGUF is the architecture's own: in transformers it multiplies what an
    adapter adds as well, so that they take none."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Keys of GGUF that the graph does not read, as it computes what they say at this value; others are refused."""


class Registry:
    """Architectures by GGUF name and by model_type; a second claim to a name is an error at definition. Of several
    architectures of one model_type, it is the first whose `when` holds."""

    def __init__(self, archs: Iterable[Arch]) -> None:
        self._by_name: dict[str, Arch] = {}
        self._by_model_type: dict[str, list[tuple[Arch, ConfigClass]]] = {}
        for arch in archs:
            if arch.name in self._by_name:
                raise ValueError(f"two architectures claim {arch.name!r}")
            self._by_name[arch.name] = arch
            for config_class in arch.classes:
                own = self._by_model_type.setdefault(config_class.model_type, [])
                if any(other is arch for other, _ in own):
                    raise ValueError(f"{arch.name!r} claims {config_class.model_type!r} twice")
                own.append((arch, config_class))

    def __iter__(self) -> Iterator[Arch]:
        return iter(self._by_name.values())

    def by_name(self, name: str) -> Arch:
        """The architecture that a GGUF calls `name`. Raises UnsupportedError, for the caller to name the file."""
        hint = (
            "a GGUF of any architecture can be quantized, and merged with GGUF adapters: "
            "loragraft merge base.gguf --lora adapter.gguf"
        )
        return self._find(self._by_name, name, "general.architecture", hint)

    def has_name(self, name: str) -> bool:
        return name in self._by_name

    def has_model_type(self, name: str) -> bool:
        return name in self._by_model_type

    def by_model_type(
        self, name: str, subject: str = "config.json", values: Mapping[str, Any] | None = None
    ) -> tuple[Arch, ConfigClass]:
        """What config.json calls `name`, and the architecture that it is, for one with `values` where that depends on
        them; `subject` names the file in the error."""
        hint = (
            "make GGUFs of model and adapter with llama.cpp's convert_hf_to_gguf.py and convert_lora_to_gguf.py; "
            "then: loragraft merge base.gguf --lora adapter.gguf"
        )
        found = self._find(self._by_model_type, name, subject, hint)
        return next((one for one in found if values is not None and one[1].when(values)), found[-1])

    @staticmethod
    def _find(table: Mapping[str, T], key: str, subject: str, hint: str) -> T:
        if key in ("", "None"):
            raise UnsupportedError(
                subject,
                "does not say what architecture it is",
                expected="model_type in config.json, general.architecture in a GGUF",
                hint="take config.json from the model's repository again",
            )
        if key not in table:
            raise UnsupportedError(
                subject,
                "unknown architecture",
                found=repr(key),
                expected="one of " + ", ".join(sorted(table)),
                hint=hint,
            )
        return table[key]
