"""GPT-2 (Radford et al. 2019) and GPTBigCode (SantaCoder, StarCoder; arXiv 2305.06161): learned positions, LayerNorm,
q, k and v in one tensor; the first with weights stored [in, out], the second with one key-value head."""

from __future__ import annotations

from dataclasses import replace

from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Plain, gelu, layer_norm
from loragraft.archs.hparams import Hparams, read_decoder
from loragraft.archs.keys import FILE_TYPE, Computed, Count, FeedForward, HiddenAct, Layers, Number
from loragraft.archs.keys.usual import EPSILON
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import Tensor
from loragraft.formats.gguf.values import Value

_LINEARS = frozenset(["attn_qkv", "attn_output", "ffn_up", "ffn_down"])
_UNREAD = frozenset(
    """
    attn_pdrop embd_pdrop inference_runner max_batch_size max_sequence_length n_ctx num_key_value_heads pad_key_length
    pre_allocate_kv_cache reorder_and_upcast_attn summary_activation summary_first_dropout summary_proj_to_labels
    summary_type summary_use_proj validate_runner_input hidden_size intermediate_size max_position_embeddings
    num_attention_heads num_hidden_layers
    """.split()  # noqa: SIM905
)
_DEFAULTS = {"layer_norm_epsilon": 1e-5, "n_positions": 1024, "tie_word_embeddings": True}


GPT2 = ConfigClass(
    "gpt2",
    "GPT2LMHeadModel",
    keys=(
        Layers(),
        Count("context_length", ("n_positions",)),
        Count("embedding_length", ("n_embd",)),
        FeedForward(),
        Count("attention.head_count", ("n_head",)),
        Number(EPSILON, "layer_norm_epsilon"),
        FILE_TYPE,
        HiddenAct("gelu_new", "activation_function"),
    ),
    defaults=_DEFAULTS,
    requires={
        "add_cross_attention": (False,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (True,),
    },
    ignores=_UNREAD - {"hidden_size", "num_hidden_layers"},
    biases={"": _LINEARS},
)
GPT_BIGCODE = ConfigClass(
    "gpt_bigcode",
    "GPTBigCodeForCausalLM",
    keys=(
        Count("context_length", ("n_positions",)),
        Count("embedding_length", ("n_embd",)),
        FeedForward(),
        Layers(),
        Count("attention.head_count", ("n_head",)),
        Computed(frozenset(), lambda config: {"attention.head_count_kv": Value.u32(1)}),
        Number(EPSILON, "layer_norm_epsilon"),
        FILE_TYPE,
        HiddenAct("gelu_pytorch_tanh", "activation_function"),
    ),
    defaults=_DEFAULTS,
    requires={
        "multi_query": (True,),
        "add_cross_attention": (False,),
        "scale_attn_weights": (True,),
    },
    ignores=_UNREAD - {"hidden_size", "num_hidden_layers"},
    biases={"": _LINEARS},
)


def _tensors(*, transposed: bool) -> tuple[Tensor, ...]:
    """Old checkpoints have no `transformer.` before the names."""
    layer = (
        ("ln_1", "attn_norm"),
        ("attn.c_attn", "attn_qkv"),
        ("attn.c_proj", "attn_output"),
        ("ln_2", "ffn_norm"),
        ("mlp.c_fc", "ffn_up"),
        ("mlp.c_proj", "ffn_down"),
    )
    tensors = [Tensor("lm_head", "output")]
    for prefix in ("transformer.", ""):
        tensors += [
            Tensor(f"{prefix}wte", "token_embd"),
            Tensor(f"{prefix}wpe", "position_embd"),
            Tensor(f"{prefix}ln_f", "output_norm"),
        ]
        for hf, gguf in layer:
            turned = transposed and not gguf.endswith("norm")
            tensors.append(Tensor(f"{prefix}h.{{i}}.{hf}", f"blk.{{i}}.{gguf}", transposed=turned))
    return tuple(tensors)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    return read_decoder(keys).with_layers(lambda index, own: replace(own, rope=None))


_BUILD = Decoder(attention=Attention(pairs="halves"), feed_forward=Plain(gelu), norm=layer_norm)
ARCH = Arch(
    name="gpt2",
    classes=(GPT2,),
    tensors=_tensors(transposed=True),
    hparams=hyperparameters,
    build=_BUILD,
)
BIGCODE = Arch(
    name="starcoder",
    classes=(GPT_BIGCODE,),
    tensors=_tensors(transposed=False),
    hparams=hyperparameters,
    build=_BUILD,
)
