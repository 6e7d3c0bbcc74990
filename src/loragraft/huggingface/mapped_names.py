"""Names of architectures that have no record of their own, from gguf-py's map of names.

The map says where a tensor goes, not whether its rows change order: that is a table here, read from llama.cpp's
converters (conversion/*.py at 0c1e57098). An architecture that is in no table is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

from loragraft.archs import ARCHS
from loragraft.archs.hparams import Hparams, Layer
from loragraft.archs.metadata import MAX_LAYERS, MetadataKeys
from loragraft.archs.rope import rope_row_order
from loragraft.archs.tensors import QKV_BY_KIND, Order, Reordered, RopePairs, Rows, Tensor
from loragraft.errors import UnsupportedError
from loragraft.formats.source import ModelSource
from loragraft.huggingface.tensor_names import Place
from loragraft.huggingface.wrappers import TextNames

#: Rows of q and k go from halves to neighbours (`LlamaModel.permute`), all else stays.
PERMUTED = frozenset(["deci", "llada", "llama-embed", "minicpm", "xverse"])
#: Linears stay as they are, however they are fused.
PLAIN = frozenset(
    "baichuan bloom dream exaone internlm2 mpt orion".split()  # noqa: SIM905
)
_EXPERT = re.compile(r"\.experts\.(\d{1,4})\.")


def _in_turn(find: Callable[[int, int, int], Order]) -> Reordered:
    """Rows found from heads, kv_heads and how many rows there are."""
    return Reordered(lambda h, layer, rows: find(h.layers[layer].heads, h.layers[layer].kv_heads, rows))


def _grouped(heads: int, kv_heads: int, rows: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Rows of a fused q, k and v whose heads stand in groups, the queries that share a key before it and its value:
    [kv_heads, queries + 2, head_dim]."""
    each = heads // max(kv_heads, 1) + 2
    if kv_heads < 1 or heads % kv_heads or rows % (kv_heads * each):
        raise ValueError(f"{rows} rows do not divide into {heads} heads and {kv_heads} of keys and values")
    return np.arange(rows).reshape(kv_heads, each, -1)


def _internlm2(part: int) -> Reordered:
    def find(heads: int, kv_heads: int, rows: int) -> Order:
        groups = _grouped(heads, kv_heads, rows)
        own = (groups[:, :-2], groups[:, -2], groups[:, -1])[part].reshape(-1)
        counts = (heads, kv_heads, 0)[part]
        return own[rope_row_order(len(own), counts)] if counts else own

    return _in_turn(find)


def _baichuan(part: int) -> Reordered:
    def find(heads: int, kv_heads: int, rows: int) -> Order:
        if rows % 3:
            raise ValueError(f"{rows} rows do not divide into q, k and v")
        own = np.arange(rows)[part * (rows // 3) : (part + 1) * (rows // 3)]
        counts = (heads, kv_heads, 0)[part]
        return own[rope_row_order(len(own), counts)] if counts else own

    return _in_turn(find)


#: Fused projections by architecture and name: the parts of GGUF's names and their rows.
_FUSED: Mapping[tuple[str, str], tuple[tuple[str, Rows], ...]] = {
    ("bloom", "query_key_value"): (("attn_qkv", QKV_BY_KIND),),
    ("internlm2", "wqkv"): tuple((f"attn_{name}", _internlm2(part)) for part, name in enumerate("qkv")),
    ("baichuan", "W_pack"): tuple((f"attn_{name}", _baichuan(part)) for part, name in enumerate("qkv")),
}
_LAYER = re.compile(r"\.(\d{1,6})\.")


def names_of(base: ModelSource) -> TextNames:
    """The Hugging Face names of `base`: its record's, or the map's.

    Raises UnsupportedError for an architecture of which neither is known.
    """
    if ARCHS.has_name(base.arch) or base.arch not in MODEL_ARCH_NAMES.values():
        return TextNames(base.metadata)
    return MappedNames(base)


@dataclass(frozen=True, slots=True)
class _Target:
    gguf: str
    rows: Rows | None = None


class MappedNames(TextNames):
    """The places of the tensors of a GGUF whose architecture has no record."""

    def __init__(self, base: ModelSource) -> None:
        keys = MetadataKeys(base.metadata)
        if base.arch not in PERMUTED | PLAIN:
            raise UnsupportedError(
                base.path,
                f"loragraft does not know how conversion reorders the rows of {base.arch}'s weights",
                found=f"architecture {base.arch!r}",
                expected="one whose conversion is known, or a GGUF adapter",
                hint="convert the adapter with llama.cpp's convert_lora_to_gguf.py, then: "
                f"loragraft merge {base.path} --lora ADAPTER.gguf -o merged.gguf",
            )
        count = keys.count("block_count", most=MAX_LAYERS)
        heads = keys.counts("attention.head_count", count, least=0)
        shared = keys.has("attention.head_count_kv")
        kv_heads = keys.counts("attention.head_count_kv", count, least=0) if shared else heads
        self._h = Hparams(
            base.arch,
            tuple(Layer(heads[i], kv_heads[i], 0, 0, None, None, 0) for i in range(count)),
            *(0, 0, 0.0, keys.count("expert_count", 0, least=0), 0),
        )
        self._arch, self._tensors = base.arch, base.tensors
        self.layers, self.experts = count, self._h.experts
        number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == base.arch)
        self._map = get_tensor_name_map(number, count)
        self._all: dict[str, list[Place]] = {}

    def by_name(self) -> dict[str, list[Place]]:
        """The names under which transformers has the tensors of this file."""
        if not self._all:
            for name in self._map.mapping:
                if name.startswith(("model.", "transformer.", "gpt_neox.", "lm_head", "embed_out")):
                    for part in (".weight", ".bias"):
                        places = self._direct(name + part)
                        if places and places[0].name in self._tensors:
                            self._all[name + part] = list(places)
        return self._all

    def _direct(self, name: str) -> tuple[Place, ...]:
        stem, _, part = name.rpartition(".")
        if part not in ("weight", "bias") or stem.startswith("blk."):
            return ()
        layer = int(match[1]) if (match := _LAYER.search(name)) else 0
        if layer >= len(self._h.layers):
            return ()
        if fused := _FUSED.get((self._arch, stem.rpartition(".")[2])):
            return tuple(
                Place(f"blk.{layer}.{gguf}.{part}", Tensor(stem, f"blk.{{i}}.{gguf}", rows), self._h, layer)
                for gguf, rows in fused
            )
        expert = int(match[1]) if (match := _EXPERT.search(name)) else None
        plain = _EXPERT.sub(".experts.", stem)
        found = self._map.get_name(plain) or self._map.get_name(f"model.{plain}")
        if not found or (expert is None) == found.endswith("_exps"):
            return ()
        rows = None
        if self._arch in PERMUTED and stem.endswith(("q_proj", "k_proj")):
            rows = RopePairs("heads" if stem.endswith("q_proj") else "kv_heads")
        return (Place(f"{found}.{part}", Tensor(stem, found, rows), self._h, layer, expert),)
