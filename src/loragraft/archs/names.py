"""Hugging Face tensor names to places in a GGUF, for models and adapters alike."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

from loragraft.archs import ARCHS
from loragraft.archs.hparams import read_hparams
from loragraft.formats.gguf.values import Metadata

#: Buffers that old checkpoints carry beside their weights.
_BUFFERS = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
_EXPERT = re.compile(
    r"(?P<stack>.*\.experts)\.(?P<expert>\d{1,4})\.(?P<projection>[a-z_0-9]+)(?P<suffix>\.weight|\.bias)"
)
_FUSED = re.compile(r"(?P<stack>.*\.experts)\.(?P<projection>gate_up_proj|down_proj)(?:\.weight)?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a Hugging Face tensor goes: the whole of GGUF tensor `name`, or a part of it."""

    name: str
    heads: int | None = None
    """Its rows change to GGUF's RoPE order, over this many heads."""
    expert: int | None = None
    """It is one expert's matrix of the stack `name` [n_expert, out, in]."""
    half: int | None = None
    """Only this half (0 or 1) of each expert's rows goes there (fused gate and up)."""


class TensorNames:
    """The places of one model's tensors, by the architecture and sizes in its GGUF metadata.

    Raises UnsupportedError for an architecture whose Hugging Face names are not known.
    """

    def __init__(self, metadata: Metadata) -> None:
        h = read_hparams(metadata)
        arch = ARCHS.by_name(h.arch)
        self.layers, self.experts = h.layers, h.experts
        self._modules = arch.modules
        number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == arch.name)
        self._map = get_tensor_name_map(number, h.layers)
        counts = {"heads": h.heads, "kv_heads": h.kv_heads}
        self._heads = {module: counts[count] for module, count in arch.rotary.items()}

    @staticmethod
    def is_buffer(name: str) -> bool:
        """Whether the tensor is no weight and may be left out."""
        return name.endswith(_BUFFERS)

    def places(self, name: str) -> tuple[Place, ...]:
        """Where the tensor `name` (with `.weight` or `.bias`) goes; empty if the architecture has no such tensor."""
        if match := _EXPERT.fullmatch(name):
            target = self._find(f"{match['stack']}.{match['projection']}{match['suffix']}")
            return (Place(target, expert=int(match["expert"])),) if target else ()
        if match := _FUSED.fullmatch(name):
            parts: dict[str, int | None] = {"down_proj": None}
            if match["projection"] == "gate_up_proj":
                parts = {"gate_proj": 0, "up_proj": 1}
            found = [
                (self._find(f"{match['stack']}.{module}.weight"), half) for module, half in parts.items()
            ]
            return tuple(Place(target, half=half) for target, half in found if target)
        target = self._find(name)
        if target is None:
            return ()
        return (Place(target, heads=self._heads.get(name.split(".")[-2] if "." in name else "")),)

    def _find(self, name: str) -> str | None:
        if name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2] not in self._modules:
            return None
        for candidate in (name, "model." + name):
            if found := self._map.get_name(candidate, try_suffixes=(".weight", ".bias")):
                return str(found)
        return None
