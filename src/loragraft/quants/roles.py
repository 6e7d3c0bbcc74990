"""What a tensor is, told by its name: its role in the model, its layer, its place in the file.

Source: llama-quant.cpp (`tensor_get_category`, `tensor_allows_quantization`) and llama-model-loader.h (the order) of
llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum, auto


class Category(Enum):
    """The roles that the rules tell apart."""

    OUTPUT = auto()
    TOKEN_EMBD = auto()
    ATTN_QKV = auto()
    ATTN_KV_B = auto()
    ATTN_V = auto()
    ATTN_K = auto()
    ATTN_Q = auto()
    ATTN_OUTPUT = auto()
    FFN_UP = auto()
    FFN_GATE = auto()
    FFN_DOWN = auto()
    OTHER = auto()


_EXACT = {
    "output.weight": Category.OUTPUT,
    "token_embd.weight": Category.TOKEN_EMBD,
    "per_layer_token_embd.weight": Category.TOKEN_EMBD,
}
#: First match wins; so `ffn_up_exps`, `ffn_up_shexp` and the like count as FFN tensors.
_CONTAINS = (
    ("attn_qkv.weight", Category.ATTN_QKV),
    ("attn_kv_b.weight", Category.ATTN_KV_B),
    ("attn_v.weight", Category.ATTN_V),
    ("attn_k.weight", Category.ATTN_K),
    ("attn_q.weight", Category.ATTN_Q),
    ("attn_output.weight", Category.ATTN_OUTPUT),
    ("ffn_up", Category.FFN_UP),
    ("ffn_gate", Category.FFN_GATE),
    ("ffn_down", Category.FFN_DOWN),
)
#: What the rules treat as attention values.
VALUES = frozenset({Category.ATTN_V, Category.ATTN_QKV, Category.ATTN_KV_B})


def category(name: str) -> Category:
    """The role of the tensor called `name`."""
    if name in _EXACT:
        return _EXACT[name]
    return next((role for part, role in _CONTAINS if part in name), Category.OTHER)


#: Parts of names that are never quantized: small, or delicate.
_NEVER = (
    *(
        "_norm.weight",
        "ffn_gate_inp.weight",
        "ffn_gate_tid2eid.weight",
        "altup",
        "laurel",
        "per_layer_model_proj",
    ),
    *(
        "ssm_conv1d",
        "shortconv.conv.weight",
        "indexer.k_proj.weight",
        "indexer.q_proj.weight",
        "attn_rel_b.weight",
    ),
    *(
        f"time_mix_{part}.weight"
        for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1")
    ),
    *(f"time_mix_{part}.weight" for part in ("g2", "decay_w1", "decay_w2", "lerp_fused")),
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger"),
    *("a.rvq.codebook", "mm.a.code_embd"),
)
_NEVER_EXACT = frozenset({"position_embd.weight", "token_types.weight"})
_NEVER_IN_ARCH = {
    "glm5-next": (
        *("hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate"),
        *("indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight"),
        *("ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight"),
    ),
}


def n_dims(shape: Sequence[int]) -> int:
    """ggml's count of axes: those of length 1 on the slow side (the front, here) do not count."""
    return next((len(shape) - i for i, length in enumerate(shape) if length != 1), 1)


def may_quantize(name: str, shape: Sequence[int], arch: str) -> bool:
    """Whether the tensor's type may change at all; `shape` in NumPy order."""
    return (
        n_dims(shape) >= 2
        and name.endswith("weight")
        and name not in _NEVER_EXACT
        and not any(part in name for part in _NEVER)
        and not any(part in name for part in _NEVER_IN_ARCH.get(arch, ()))
    )


def layer_of(name: str) -> int:
    """The number in `blk.<number>.`, or -1."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def output_order(names: Iterable[str]) -> list[str]:
    """llama-quantize's order of tensors: by block, then by the name's bytes (llama-model-loader.h)."""
    return sorted(names, key=lambda name: (layer_of(name), name.encode("utf-8", "surrogateescape")))


#: Tensors that are multiplied with the same input, under the name of what they would be in one.
_FUSED = (
    (re.compile(r"(blk\.\d+\.)attn_[qkv]\.weight"), "attn_qkv"),
    (re.compile(r"(blk\.\d+\.)ffn_(?:gate|up)(_exps|_shexp)?\.weight"), "ffn_gate_up"),
)


def scale_group(name: str) -> tuple[str, ...]:
    """What the tensors that share a per-tensor scale have in common: fused GEMMs want one for all that they multiply
    with the same input (ModelOpt's `preprocess_linear_fusion`)."""
    for pattern, fused in _FUSED:
        if found := pattern.fullmatch(name):
            return (fused, *(part or "" for part in found.groups()))
    return (name,)
