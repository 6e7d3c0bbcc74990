"""Which type each tensor of a model gets: llama-quantize's rules, complete.

Source of every rule: llama-quant.cpp of llama.cpp (`llama_tensor_get_type`, `tensor_type_fallback`,
`tensor_requires_imatrix`). The rules look at names, at positions among the tensors of one
kind, and at a few facts of the model. They are order-dependent: tensors must come in the order of the output file
(`quants.roles.output_order`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loragraft.errors import QuantizeError
from loragraft.patterns import PatternError, searcher
from loragraft.quants.filetypes import FileType
from loragraft.quants.roles import VALUES, Category, category, layer_of, may_quantize
from loragraft.quants.types import BY_NAME, F16, QuantType

#: Kept at Q8_0 or better in some architectures.
_AT_LEAST_Q8_0 = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the rules know of the model beside its tensors. `layers`: all blocks, before any is pruned."""

    arch: str
    layers: int
    experts: int = 0
    heads: int = 0
    heads_kv: int = 0

    @property
    def group(self) -> int:
        """Query heads per key-value head in the first layer; 0 if there are none."""
        return self.heads // self.heads_kv if self.heads_kv else 0

    @property
    def is_70b(self) -> bool:
        """llama.cpp's model type "70B", which it tells by the number of layers."""
        if self.arch == "llama":
            return self.layers == 80 and self.heads != self.heads_kv
        return self.layers == {"deci": 80, "qwen2": 80, "olmo": 80, "jais2": 68}.get(self.arch)

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> ModelFacts:
        """From a model's metadata, as plain values. Absent counts are 0; of a number per layer the first layer's
        counts."""

        def count(key: str, default: int = 0) -> int:
            value = metadata.get(f"{arch}.{key}")
            if value is None:
                return default
            numbers = np.atleast_1d(np.asarray(value))
            if not numbers.size or numbers.dtype.kind not in "iu":
                raise QuantizeError(f"{arch}.{key}", "must be a whole number", found=repr(value)[:60])
            return int(numbers.flat[0])

        arch = str(metadata.get("general.architecture", ""))
        heads = count("attention.head_count")
        heads_kv = count("attention.head_count_kv", heads)
        return cls(arch, count("block_count"), count("expert_count"), heads, heads_kv)


@dataclass(frozen=True)
class TypeOptions:
    """What the user asked for. `patterns`: (regular expression, type), the first that matches a name decides."""

    file_type: FileType
    pure: bool = False
    leave_output: bool = False
    output_type: QuantType | None = None
    token_embedding_type: QuantType | None = None
    patterns: Sequence[tuple[str, QuantType]] = ()
    has_imatrix: bool = False


@dataclass(frozen=True, slots=True)
class TensorChoice:
    """The decision for one tensor; `unfit` is the type that its row length made impossible, if any."""

    name: str
    type: QuantType
    needs_importance: bool = False
    unfit: QuantType | None = None


_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    # llama-quantize gives up on these two. Q4_1 holds two levels exactly; IQ4_NL is as small as NVFP4.
    "Q1_0": "Q4_1",
    "NVFP4": "IQ4_NL",
}


def fitting(wanted: QuantType, columns: int) -> QuantType:
    """`wanted`, or the type that stands in for it where `columns` is not a whole number of its blocks."""
    if columns % wanted.block == 0:
        return wanted
    chosen = BY_NAME[_FALLBACK.get(wanted.name, wanted.name)]
    return chosen if columns % chosen.block == 0 else F16


_NEEDS_IMPORTANCE = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})


def needs_importance(name: str, chosen: QuantType, file_type: FileType) -> bool:
    """Whether llama-quantize refuses to make tensor `name` of this type without an importance matrix."""
    if category(name) in (Category.TOKEN_EMBD, Category.OUTPUT):
        return False
    return chosen.name in _NEEDS_IMPORTANCE or (chosen.name == "Q2_K" and file_type.name == "Q2_K_S")


def plan_types(
    tensors: Mapping[str, tuple[Sequence[int], QuantType]], facts: ModelFacts, options: TypeOptions
) -> list[TensorChoice]:
    """The type of every tensor, in the order of `tensors` (name: shape in NumPy order, type now).

    The caller passes them in `output_order`; a tensor that already has the chosen type is to be copied.
    """
    rules = _Rules(facts, options, tensors)
    return [rules.choose(name, shape, now) for name, (shape, now) in tensors.items()]


def _more_bits(i: int, n: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


_LOW_BIT = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})
_EMBEDDING = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), "Q4_K"),
}
_QUERY_KEY = {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}
_ATTN_OUTPUT = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
_ATTN_OUTPUT_8_EXPERTS = frozenset(
    {
        "Q2_K",
        "IQ3_XS",
        "IQ3_XXS",
        "Q3_K_S",
        "Q3_K_M",
        "IQ4_NL",
        "Q4_K_S",
        "Q4_K_M",
        "IQ3_S",
        "IQ3_M",
        "IQ4_XS",
    }
)


@dataclass
class _Rules:
    """The rules with their counters: how many tensors of a kind were decided by rule so far."""

    facts: ModelFacts
    options: TypeOptions
    tensors: Mapping[str, tuple[Sequence[int], QuantType]]
    seen: dict[str, int] = field(default_factory=lambda: {"v": 0, "down": 0})

    def __post_init__(self) -> None:
        self.mix = self.options.file_type.name
        self.falcon = self.facts.arch == "falcon"
        self.tied = "output.weight" not in self.tensors
        self.values = sum(category(name) in VALUES for name in self.tensors)
        self.patterns = [(_compile(pattern), wanted) for pattern, wanted in self.options.patterns]

    def choose(self, name: str, shape: Sequence[int], now: QuantType) -> TensorChoice:
        options = self.options
        keep = options.file_type.copies or (options.leave_output and name == "output.weight")
        if keep or not may_quantize(name, shape, self.facts.arch):
            return TensorChoice(name, now)
        wanted = self._wanted(name, shape)
        chosen = fitting(wanted, shape[-1])
        needs = needs_importance(name, chosen, options.file_type)
        return TensorChoice(name, chosen, needs, wanted if chosen is not wanted else None)

    def _wanted(self, name: str, shape: Sequence[int]) -> QuantType:
        """What the options, then the mix want, whatever the row length."""
        options, role = self.options, category(name)
        manual = next((wanted for pattern, wanted in self.patterns if pattern(name)), None)
        # The per-layer embedding is a large table of its own, so a pattern may name it.
        named = manual is not None and name == "per_layer_token_embd.weight"
        if options.token_embedding_type is not None and role is Category.TOKEN_EMBD and not named:
            return options.token_embedding_type
        if options.output_type is not None and role is Category.OUTPUT:
            return options.output_type
        default = options.file_type.default
        if default.is_float:
            return default
        if manual is not None:
            return manual
        return default if options.pure else self._by_rule(name, shape, role, default)

    def _by_rule(self, name: str, shape: Sequence[int], role: Category, default: QuantType) -> QuantType:
        arch = self.facts.arch
        if any(part in name for part in _AT_LEAST_Q8_0.get(arch, ())):
            return BY_NAME["Q8_0"]
        if self.mix in ("NVFP4", "NVFP4_MLP"):
            return self._nvfp4(role, default)
        if role is Category.OUTPUT or (self.tied and role is Category.TOKEN_EMBD):
            return self.options.output_type or BY_NAME[self._output(shape[-1], default)]
        if self.mix == "MXFP4_MOE":
            return BY_NAME[self._mxfp4(shape, role)]
        if role is Category.TOKEN_EMBD:
            chosen = _EMBEDDING.get(self.mix)
        elif self.mix in _LOW_BIT:
            chosen = self._low_bit(role)
        elif role in VALUES:
            chosen = self._attn_v(default)
        elif role is Category.ATTN_K:
            chosen = "Q8_0" if self.facts.experts == 8 else _QUERY_KEY.get(self.mix)
        elif role is Category.ATTN_Q:
            chosen = _QUERY_KEY.get(self.mix)
        elif role is Category.FFN_DOWN:
            chosen = self._ffn_down(self._layer(name, "down"))
        elif role is Category.ATTN_OUTPUT:
            chosen = self._attn_output()
        elif role in (Category.FFN_GATE, Category.FFN_UP):
            chosen = self._ffn_gate_up(self._layer(name, role.name))
        else:
            chosen = None
        return default if chosen is None else BY_NAME[chosen]

    def _count(self, kind: str) -> int:
        """How many of `kind` came before; counts this one."""
        before = self.seen.get(kind, 0)
        self.seen[kind] = before + 1
        return before

    def _layer(self, name: str, kind: str) -> int:
        """The index that stands for the layer: the count so far, or with experts (which may be stored one by one)
        the number in the name."""
        counted = self._count(kind)
        if self.facts.experts <= 1:
            return counted
        layer = layer_of(name)
        if not 0 <= layer < self.facts.layers:
            raise QuantizeError(
                name,
                "the layer of an expert model's tensor must be in its name",
                found=f"layer {layer}",
                expected=f"blk.N. with N below {self.facts.layers}",
            )
        return layer

    def _output(self, columns: int, default: QuantType) -> str:
        if self.mix == "MXFP4_MOE" or self.falcon or columns % default.block:
            return "Q8_0"
        if self.mix in _LOW_BIT or self.mix == "IQ3_XXS":
            return "Q5_K"
        return "Q8_0" if default.name == "Q8_0" else "Q6_K"

    def _nvfp4(self, role: Category, default: QuantType) -> QuantType:
        """ModelOpt's NVFP4_DEFAULT_CFG and NVFP4_MLP_ONLY_CFG leave the embedding and the output in 16 bits. Here what
        they leave becomes Q8_0: half the size, with a relative squared error of 2e-5 against NVFP4's 7e-3."""
        if role in (Category.OUTPUT, Category.TOKEN_EMBD):
            return self.options.output_type or BY_NAME["Q8_0"]
        ffn = role in (Category.FFN_UP, Category.FFN_GATE, Category.FFN_DOWN)
        return default if ffn or self.mix == "NVFP4" else BY_NAME["Q8_0"]

    def _mxfp4(self, shape: Sequence[int], role: Category) -> str:
        # In bailingmoe3 the attention's latent projections are three-dimensional too.
        ffn = role in (Category.FFN_UP, Category.FFN_GATE, Category.FFN_DOWN)
        experts = len(shape) > 2 and shape[-3] > 1 and (ffn or self.facts.arch != "bailingmoe3")
        return "MXFP4" if experts else "Q8_0"

    def _low_bit(self, role: Category) -> str | None:
        """The mixes below 3 bits."""
        facts = self.facts
        larger = "IQ3_S" if self.mix in ("IQ2_S", "IQ2_M") else "Q2_K"
        if role in VALUES:
            self._count("v")
            return "Q4_K" if facts.group >= 4 or facts.experts >= 4 else larger
        if role is Category.ATTN_K and facts.experts == 8:
            return "Q4_K"
        if role is Category.FFN_DOWN:
            return larger if self._count("down") < facts.layers // 8 else None
        if role is Category.ATTN_OUTPUT:
            if facts.experts == 8:
                return "Q5_K"
            return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(self.mix)
        return None

    def _attn_v(self, default: QuantType) -> str:
        facts, mix, i = self.facts, self.mix, self._count("v")
        grouped = facts.group >= 4
        chosen = default.name
        if mix == "Q2_K":
            chosen = "Q4_K" if grouped else "Q3_K"
        elif mix == "IQ3_XXS":
            chosen = "Q4_K" if grouped else "IQ3_XXS" if self.options.has_imatrix else "IQ3_S"
        elif mix == "IQ3_M" or (mix in ("Q2_K_S", "IQ3_XS", "IQ3_S") and grouped):
            chosen = "Q4_K"
        elif mix == "Q3_K_M":
            chosen = "Q5_K" if i < 2 else "Q4_K"
        elif mix == "Q3_K_L" or (mix in ("IQ4_NL", "IQ4_XS") and grouped) or (mix == "Q4_K_S" and i < 4):
            chosen = "Q5_K"
        elif mix in ("Q4_K_M", "Q5_K_M") and _more_bits(i, self.values):
            chosen = "Q6_K"
        if facts.is_70b and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"  # eight heads share these weights there: small tensors that matter
        return "Q8_0" if facts.experts == 8 else chosen

    def _ffn_down(self, i: int) -> str | None:
        mix, n, falcon = self.mix, self.facts.layers, self.falcon
        first, more = i < n // 8, _more_bits(i, n)
        chosen: str | None = None
        if mix == "Q2_K":
            chosen = "Q3_K"
        elif mix == "Q2_K_S":
            chosen = "Q4_K" if first else None
        elif mix == "IQ3_XXS" and not self.options.has_imatrix:
            chosen = "Q4_K" if first else "Q3_K"
        elif mix == "Q3_K_M":
            chosen = "Q5_K" if i < n // 16 else "Q4_K" if more or not falcon else "Q3_K"
        elif mix == "IQ3_M":
            chosen = "Q4_K" if first or (self.facts.experts == 8 and more) else None
        elif mix == "Q3_K_L":
            chosen = "Q4_K" if falcon else "Q5_K"
        elif mix == "Q4_K_M" and falcon:
            chosen = "Q6_K" if i < n // 16 else "Q5_K" if more else "Q4_K"
        elif mix in ("Q4_K_M", "Q5_K_M"):
            chosen = "Q6_K" if more else None
        elif mix in ("IQ4_NL", "IQ4_XS"):
            chosen = "Q5_K" if first and not self.options.has_imatrix else None
        elif mix == "Q4_K_S":
            chosen = "Q5_K" if first and not falcon else None
        elif mix in ("Q4_0", "Q5_0") and self.options.has_imatrix and first:
            chosen = {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[mix]
        return chosen

    def _attn_output(self) -> str | None:
        if self.falcon:
            return "Q4_K" if self.mix == "Q3_K_L" else None
        if self.facts.experts == 8:
            return "Q5_K" if self.mix in _ATTN_OUTPUT_8_EXPERTS else None
        return _ATTN_OUTPUT.get(self.mix)

    def _ffn_gate_up(self, i: int) -> str | None:
        n = self.facts.layers
        return "IQ3_XXS" if self.mix == "IQ3_XS" and n // 8 <= i < 7 * n // 8 else None


def _compile(pattern: str) -> Callable[[str], bool]:
    try:
        return searcher(pattern)
    except PatternError as error:
        raise QuantizeError(
            pattern, f"not a regular expression ({error})", hint="check --tensor-type"
        ) from None
