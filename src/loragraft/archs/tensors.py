"""The tensors of a checkpoint and those of GGUF that they become: names, and what changes on the way, both ways.

A record has a table of `Tensor`s. Where several checkpoint names lead to one GGUF tensor, the first is the one that
exports write. In names `{i}` stands for the layer and `{e}` for the expert.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from loragraft.archs.hparams import Hparams
from loragraft.archs.rope import rope_row_order
from loragraft.arrays import Floats

Order = npt.NDArray[np.intp]


class Rows(ABC):
    """Which rows (elements, of a bias) of a checkpoint's tensor a GGUF tensor has, in which order. Of a stack of
    experts: of each expert."""

    @abstractmethod
    def order(self, h: Hparams, layer: int, rows: int) -> Order:
        """Row i of GGUF's is row order[i] of the checkpoint's, which has `rows`. Raises ValueError if they do not
        divide as they must."""


@dataclass(frozen=True, slots=True)
class RopePairs(Rows):
    """Heads whose rows change from transformers' order (halves) to GGUF's (adjacent pairs), those that turn."""

    of: Literal["heads", "kv_heads"]

    def order(self, h: Hparams, layer: int, rows: int) -> Order:
        own = h.layers[layer]
        heads = own.heads if self.of == "heads" else own.kv_heads
        if heads < 1 or rows % (2 * heads):
            raise ValueError(f"{rows} rows do not divide into {heads} heads")
        return rope_row_order(rows, heads, None if own.rope is None else own.rope.rotary)


@dataclass(frozen=True, slots=True)
class Part(Rows):
    """One of `count` equal parts, one after the other."""

    index: int
    count: int = 2

    def order(self, h: Hparams, layer: int, rows: int) -> Order:
        if rows % self.count:
            raise ValueError(f"{rows} rows do not divide into {self.count} parts")
        size = rows // self.count
        return np.arange(self.index * size, (self.index + 1) * size)


@dataclass(frozen=True, slots=True)
class EveryOther(Rows):
    """One of two that stand in turn, row by row; the first if `index` is 0."""

    index: int

    def order(self, h: Hparams, layer: int, rows: int) -> Order:
        if rows % 2:
            raise ValueError(f"{rows} rows do not divide into 2 parts")
        return np.arange(self.index, rows, 2)


@dataclass(frozen=True, slots=True)
class Reordered(Rows):
    """Any other order or choice: `find(h, layer, rows)` gives it."""

    find: Callable[[Hparams, int, int], Order]

    def order(self, h: Hparams, layer: int, rows: int) -> Order:
        return self.find(h, layer, rows)


@dataclass(frozen=True, slots=True)
class OfHeads(Rows):
    """Of each head's rows a part, `find(h, layer)`: how many heads there are, and which rows of each (first, the one
    behind the last, of how many). The GGUF tensor is a stack with a matrix for each head, `turned`: transposed."""

    find: Callable[[Hparams, int], tuple[int, int, int, int]]
    turned: bool = False

    def order(self, h: Hparams, layer: int, rows: int) -> Order:
        heads, first, last, each = self.find(h, layer)
        if rows != heads * each:
            raise ValueError(f"{rows} rows do not divide into {heads} heads of {each}")
        return np.arange(rows).reshape(heads, each)[:, first:last].reshape(-1)


def _by_kind(h: Hparams, layer: int, rows: int) -> Order:
    own = h.layers[layer]
    each = own.heads // max(own.kv_heads, 1) + 2
    if own.kv_heads < 1 or rows % (own.kv_heads * each):
        raise ValueError(f"{rows} rows do not divide into {own.kv_heads} groups of {each} heads")
    groups = np.arange(rows).reshape(own.kv_heads, each, -1)
    return np.concatenate([part.reshape(-1) for part in (groups[:, :-2], groups[:, -2], groups[:, -1])])


#: Rows of q, k and v in one tensor that the checkpoint has by key-value head (its queries, its key, its value), and
#: GGUF by kind: all queries, all keys, all values (BLOOM, Falcon, GPT-NeoX).
QKV_BY_KIND = Reordered(_by_kind)


@dataclass(frozen=True, slots=True)
class Values:
    """Values that differ: GGUF's are `forward` of the checkpoint's, float32, and `inverse` of GGUF's are those."""

    forward: Callable[[Floats], Floats]
    inverse: Callable[[Floats], Floats]


def _decay(logarithm: Floats) -> Floats:
    """Rounded once. torch's float32 exponential, which llama.cpp's converter has, is off by a unit in the last place in
    1 of 100 values; which ones depends on the processor."""
    return -np.exp(logarithm.astype(np.float64)).astype(np.float32)


#: Of decays that transformers stores as the logarithm of minus what they are.
LOG_DECAY = Values(_decay, lambda values: np.log(-values.astype(np.float64)).astype(np.float32))

#: Of norms that transformers stores less 1.
PLUS_ONE = Values(lambda values: values + np.float32(1), lambda values: values - np.float32(1))


@dataclass(frozen=True, slots=True)
class Shape:
    """The same values under another shape: `forward(h, shape)` is GGUF's of the checkpoint's, `inverse(shape)` that of
    GGUF's."""

    forward: Callable[[Hparams, tuple[int, ...]], tuple[int, ...]]
    inverse: Callable[[tuple[int, ...]], tuple[int, ...]]


def _by_group(h: Hparams, shape: tuple[int, ...]) -> tuple[int, ...]:
    groups = h.recurrence.key_heads if h.recurrence is not None else 1
    if len(shape) != 1 or shape[0] % groups:
        raise ValueError(f"a shape of {shape} does not divide into {groups} groups")
    return groups, shape[0] // groups


#: A depthwise convolution: [c, 1, width] in checkpoints, [c, width] in GGUF. Its bias stays.
SQUEEZED = Shape(
    lambda h, shape: (shape[0], shape[2]) if len(shape) == 3 and shape[1] == 1 else shape,
    lambda shape: (shape[0], 1, shape[1]) if len(shape) == 2 else shape,
)
#: A number for each head, as Mamba-1 has numbers for each of its channels.
COLUMN = Shape(lambda h, shape: (*shape, 1), lambda shape: shape[:1])
#: Numbers under an axis of one.
UNDER_ONE = Shape(
    lambda h, shape: shape[1:] if len(shape) == 2 and shape[0] == 1 else shape,
    lambda shape: (1, *shape),
)
#: A norm over groups of elements.
GROUPED = Shape(_by_group, lambda shape: (shape[0] * shape[1],) if len(shape) == 2 else shape)


@dataclass(frozen=True, slots=True)
class Fused:
    """Part `index` of a GGUF tensor that is several modules of the checkpoint, one's rows below the other's.
    `rows(h, layer)`: how many each of them has."""

    index: int
    rows: Callable[[Hparams, int], tuple[int, ...]]

    def span(self, h: Hparams, layer: int) -> tuple[int, int]:
        """Which rows of the whole are this part's: first, and the one behind the last."""
        sizes = self.rows(h, layer)
        first = sum(sizes[: self.index])
        return first, first + sizes[self.index]


@dataclass(frozen=True, slots=True)
class Factors:
    """`weight(h)` and `bias(h)`: numbers above 0, each for all rows, or one for each. They raise ValueError where the
    file does not say them."""

    weight: Callable[[Hparams], tuple[float | Floats, ...]]
    bias: Callable[[Hparams], tuple[float | Floats, ...]] = lambda h: ()


@dataclass(frozen=True, slots=True)
class Tensor:
    """A module of the checkpoint, whose `.weight` and `.bias` become those of GGUF's `gguf`. Its weight is first
    transposed, then rows, columns and values are taken as they say."""

    hf: str
    gguf: str
    rows: Rows | None = None
    """None: all, in order."""
    values: Values | None = None
    exact: bool = False
    """Both names are whole names of tensors; nothing is added to them."""
    columns: Rows | None = None
    """Of the weight alone, as `rows` is; an order of all."""
    transposed: bool = False
    """The checkpoint has the weight as [in, out] (GPT-2's Conv1D), or as a stack of such. Adapters do not."""
    transposed_if: Callable[[Hparams, tuple[int, ...]], bool] | None = None
    """Whether a checkpoint has it so: by its shape, where there are checkpoints of both kinds."""
    fused: Fused | None = None
    """None: it is a tensor of its own."""
    shape: Shape | None = None
    """Of GGUF's tensor, if it is not the checkpoint's: for small ones."""
    factors: Factors | None = None
    """What GGUF's rows are multiplied by, one after another in float32, for config.json has it as numbers; of the
    weight and of the bias."""
    when: Callable[[Hparams], bool] = lambda h: True
    """Whether the model has it; where GGUF calls a module by what else there is."""
    beside: str | None = None
    """Exports write this name only if the model has this other tensor of GGUF: where a module's name depends on it."""
    stack: Callable[[Hparams], int] | None = None
    """How many modules make up GGUF's stack, `{e}` in their names, if they are not the experts."""
    padded: bool = False
    """GGUF's has a row for every token; those that the checkpoint lacks are 0, as llama.cpp's converter has them."""
    after: str | None = None
    """The tensor of GGUF behind which llama.cpp's converter writes this one; None: where it comes."""

    @property
    def is_turned(self) -> bool:
        """Whether GGUF has it as a stack by head, each matrix transposed."""
        return isinstance(self.rows, OfHeads) and self.rows.turned


def in_layer(hf: str, gguf: str, rows: Rows | None = None, values: Values | None = None) -> Tensor:
    """A module `hf` of each layer, under Llama's name of layers."""
    return Tensor(f"model.layers.{{i}}.{hf}", f"blk.{{i}}.{gguf}", rows, values)


def experts(
    block: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> tuple[Tensor, ...]:
    """The experts in module `block` of a layer, one module each."""
    names = {"ffn_gate_exps": gate, "ffn_down_exps": down, "ffn_up_exps": up}
    return tuple(in_layer(f"{block}.experts.{{e}}.{hf}", gguf) for gguf, hf in names.items())


def fused_experts(block: str) -> tuple[Tensor, ...]:
    """The experts in module `block` of a layer as transformers 5 holds them: stacks [experts, out, in], gate above up
    in one. Adapters name them; checkpoints have them one by one."""
    stack, blk = f"model.layers.{{i}}.{block}.experts", "blk.{i}"
    return tuple(
        Tensor(f"{stack}.{hf}{suffix}", f"{blk}.{gguf}.weight", rows, exact=True)
        for suffix in ("", ".weight")
        for hf, gguf, rows in (
            ("gate_up_proj", "ffn_gate_exps", Part(0)),
            ("gate_up_proj", "ffn_up_exps", Part(1)),
            ("down_proj", "ffn_down_exps", None),
        )
    )


def router_bias(hf: str, shape: Shape | None = None) -> Tensor:
    """What corrects the experts' gates where they are chosen."""
    return Tensor(f"model.layers.{{i}}.{hf}", "blk.{i}.exp_probs_b.bias", exact=True, shape=shape)


# ---- Llama's names, which most share ----

OUTER = (
    Tensor("model.embed_tokens", "token_embd"),
    Tensor("model.norm", "output_norm"),
    Tensor("lm_head", "output"),
)
NORMS = (in_layer("input_layernorm", "attn_norm"), in_layer("post_attention_layernorm", "ffn_norm"))
ATTENTION = (
    in_layer("self_attn.q_proj", "attn_q"),
    in_layer("self_attn.k_proj", "attn_k"),
    in_layer("self_attn.v_proj", "attn_v"),
    in_layer("self_attn.o_proj", "attn_output"),
)
HEAD_NORMS = (in_layer("self_attn.q_norm", "attn_q_norm"), in_layer("self_attn.k_norm", "attn_k_norm"))
FEED_FORWARD = (
    in_layer("mlp.gate_proj", "ffn_gate"),
    in_layer("mlp.up_proj", "ffn_up"),
    in_layer("mlp.down_proj", "ffn_down"),
)
EXPERTS = (in_layer("mlp.gate", "ffn_gate_inp"), *experts("mlp"), *fused_experts("mlp"))
#: DeepSeek's: behind no gate, of any number.
SHARED_EXPERTS = (
    in_layer("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    in_layer("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    in_layer("mlp.shared_experts.down_proj", "ffn_down_shexp"),
)
SHARED_EXPERT = (
    in_layer("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    in_layer("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    in_layer("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    in_layer("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
)
