"""Nemotron 3 (NVIDIA, arXiv 2512.20856): Nemotron-H with routed experts, plain ones, beside a shared one. Some models
have them on a narrower vector (`moe_latent_size`)."""

from __future__ import annotations

from loragraft.archs import nemotron_h
from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import Decoder, Routed, by_mixer, routed_if_there, squared_relu
from loragraft.archs.keys import Count, Flag, Number, usual
from loragraft.archs.qwen3_next import is_predictor
from loragraft.archs.tensors import Tensor

NEMOTRON_H_MOE = ConfigClass(
    "nemotron_h",
    "NemotronHForCausalLM",
    keys=nemotron_h.keys(
        Count("expert_feed_forward_length", ("moe_intermediate_size",)),
        Count("expert_shared_feed_forward_length", ("moe_shared_expert_intermediate_size",)),
        Count("expert_shared_count", ("n_shared_experts",)),
        Flag("expert_weights_norm", "norm_topk_prob"),
        Number("expert_weights_scale", "routed_scaling_factor"),
        Count("moe_latent_size", ("moe_latent_size",), optional=True),
        before=(*usual.EXPERTS, *usual.GROUPS),
    ),
    defaults={
        **nemotron_h.DEFAULTS,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    },
    requires=nemotron_h.REQUIRES,
    biases={
        **nemotron_h.BIASES,
        "mlp_bias": nemotron_h.BIASES["mlp_bias"]
        | {"ffn_up_shexp", "ffn_down_shexp", "ffn_latent_down", "ffn_latent_up"},
    },
    ignores=nemotron_h.IGNORES | {"moe_shared_expert_overlap"},
    left_out=is_predictor,
    experts=True,
    when=nemotron_h.has_experts,
)


def _expert_tensors(root: str) -> tuple[Tensor, ...]:
    mixer, blk = f"{root}.layers.{{i}}.mixer", "blk.{i}"
    rows = (("down_proj", "ffn_down"), ("up_proj", "ffn_up"))
    return (
        Tensor(f"{mixer}.gate", f"{blk}.ffn_gate_inp"),
        Tensor(f"{mixer}.gate.e_score_correction_bias", f"{blk}.exp_probs_b.bias", exact=True),
        *(Tensor(f"{mixer}.experts.{{e}}.{hf}", f"{blk}.{gguf}_exps") for hf, gguf in rows),
        *(Tensor(f"{mixer}.experts.{hf}", f"{blk}.{gguf}_exps.weight", exact=True) for hf, gguf in rows),
        *(Tensor(f"{mixer}.shared_experts.{hf}", f"{blk}.{gguf}_shexp") for hf, gguf in rows),
        Tensor(f"{mixer}.fc1_latent_proj", f"{blk}.ffn_latent_down"),
        Tensor(f"{mixer}.fc2_latent_proj", f"{blk}.ffn_latent_up"),
    )


ARCH = Arch(
    name="nemotron_h_moe",
    classes=(NEMOTRON_H_MOE,),
    tensors=(*nemotron_h.TENSORS, *(tensor for root in nemotron_h.ROOTS for tensor in _expert_tensors(root))),
    hparams=nemotron_h.hyperparameters,
    build=Decoder(
        attention=by_mixer(
            **nemotron_h.PARTS,
            mlp=routed_if_there(
                nemotron_h.PLAIN, Routed(normalize=True, gating="sigmoid", plain=squared_relu)
            ),
        ),
        feed_forward=None,
    ),
)
