"""Mamba-2 (Dao and Gu 2024, arXiv 2405.21060) in every layer, without attention and feed-forward networks."""

from __future__ import annotations

from typing import Any

from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import Decoder, Mamba2
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Layer
from loragraft.archs.keys import FILE_TYPE, Computed, Count, GgufModel, Layers, usual
from loragraft.archs.mamba_layers import LONGEST, UNBOUNDED, mamba_tensors
from loragraft.archs.metadata import MAX_LAYERS, MetadataKeys
from loragraft.archs.recurrence import read_recurrence
from loragraft.archs.tensors import Tensor
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value


def _inner(config: Config) -> Metadata:
    inner = config.integer("expand") * config.hidden_size
    heads = config.integer("num_heads")
    if inner != heads * config.integer("head_dim"):
        raise CheckpointError(
            config.path,
            "num_heads times head_dim is not expand times hidden_size",
            found=heads * config.integer("head_dim"),
            expected=inner,
        )
    return {"ssm.inner_size": Value.u32(inner)}


def _inner_back(model: GgufModel) -> dict[str, Any]:
    sizes = model.h.recurrence
    assert sizes is not None
    inner = sizes.heads * sizes.value_dim
    if inner % model.h.width:
        raise UnsupportedError(
            "mamba2.ssm.inner_size",
            "cannot be exported",
            found=inner,
            expected=f"a multiple of {model.h.width}",
        )
    return {
        "head_dim": sizes.value_dim,
        "expand": inner // model.h.width,
        "use_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in model.shapes),
    }


MAMBA2 = ConfigClass(
    "mamba2",
    "Mamba2ForCausalLM",
    keys=(
        Computed(frozenset(), lambda config: {"context_length": Value.u32(LONGEST)}),
        Count("embedding_length", usual.WIDTH),
        Computed(
            frozenset(),
            lambda config: {"feed_forward_length": Value.u32(0), "attention.head_count": Value.u32(0)},
        ),
        Layers(),
        Count("ssm.conv_kernel", ("conv_kernel",)),
        Computed(frozenset(["expand", "head_dim", "use_conv_bias"]), _inner, _inner_back),
        Count("ssm.state_size", ("state_size",)),
        Count("ssm.time_step_rank", ("num_heads",)),
        Count("ssm.group_count", ("n_groups",)),
        usual.rms_norm("layer_norm_epsilon"),
        FILE_TYPE,
    ),
    defaults={
        "hidden_size": 4096,
        "num_hidden_layers": 64,
        "layer_norm_epsilon": 1e-5,
        "state_size": 128,
        "conv_kernel": 4,
        "expand": 2,
        "num_heads": 128,
        "head_dim": 64,
        "n_groups": 8,
        "time_step_limit": UNBOUNDED[0],
    },
    requires={"hidden_act": ("silu",), "time_step_limit": UNBOUNDED},
    biases={"use_bias": frozenset(["ssm_in", "ssm_out"])},
    ignores=frozenset(
        """
        chunk_size rescale_prenorm_residual residual_in_fp32 time_step_floor time_step_max time_step_min time_step_rank
        """.split()  # noqa: SIM905
    ),
    experts=False,
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    keys.cover("attention.head_count", "feed_forward_length")
    layer = Layer(heads=0, kv_heads=0, key_dim=0, value_dim=0, rope=None, window=None, ff=0, mixer="mamba")
    return Hparams(
        arch=keys.arch,
        layers=(layer,) * keys.count("block_count", most=MAX_LAYERS),
        context=keys.count("context_length"),
        width=keys.count("embedding_length"),
        norm_eps=keys.number("attention.layer_norm_rms_epsilon", least=0.0),
        experts=0,
        experts_used=0,
        recurrence=read_recurrence(keys),
    )


ARCH = Arch(
    name="mamba2",
    classes=(MAMBA2,),
    tensors=(
        Tensor("backbone.embeddings", "token_embd"),
        Tensor("backbone.norm_f", "output_norm"),
        Tensor("lm_head", "output"),
        Tensor("backbone.layers.{i}.norm", "blk.{i}.attn_norm"),
        *mamba_tensors("mixer", "backbone"),
    ),
    hparams=hyperparameters,
    build=Decoder(attention=Mamba2(), feed_forward=None),
)
