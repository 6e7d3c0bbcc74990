"""What GGUF's `<arch>.*` keys mean where nothing reads them: harmless, off, or a feature that would be missing.

Source: gguf-py's constants.Keys.
"""

from __future__ import annotations

#: About other uses of the model, about its file, or what its tensors' shapes say.
HARMLESS = frozenset(
    """
    classifier.output_labels decoder_start_token_id expert_shared_count expert_shared_feed_forward_length pooling_type
    rope.scaling.finetuned tensor_data_layout vocab_size
    """.split()  # noqa: SIM905
)
#: Values, beside 0 and false, that say what the graphs do anyway.
USUAL: dict[str, tuple[float, ...]] = {
    "attention.causal": (1,),
    "attention.output_scale": (1,),
    "embedding_scale": (1,),
    "expert_gating_func": (1,),  # softmax
    "expert_group_count": (1,),
    "expert_group_scale": (1,),
    "expert_group_used_count": (1,),
    "expert_weights_scale": (1,),
    "interleave_moe_layer_step": (1,),
    "logit_scale": (1,),
    "moe_every_n_layers": (1,),
    "residual_scale": (1,),
    "rope.scaling.alpha": (1,),
    "rope.scaling.yarn_ext_factor": (1, -1),
}
#: Where 0 or false is not "off".
NEVER_OFF = frozenset(["attention.causal"])
#: The rest of what GGUF defines.
FEATURES = frozenset(
    """
    activation_sparsity_scale attention.clamp_kqv attention.decay_lora_rank attention.gate_lora_rank
    attention.group_norm_epsilon attention.group_norm_groups attention.iclr_lora_rank attention.key_length_mla
    attention.key_length_swa attention.kv_lora_rank attention.max_alibi_bias attention.q_lora_rank
    attention.relative_buckets_count attention.scale attention.shared_kv_layers attention.temperature_length
    attention.temperature_scale attention.value_length_mla attention.value_length_swa
    attention.value_residual_mix_lora_rank attn_logit_softcapping decoder_block_count embedding_length_out
    embedding_length_per_layer_input expert_chunk_feed_forward_length expert_weights_norm experts_per_group
    features_length final_logit_softcapping full_attention_interval leading_dense_block_count moe_latent_size
    n_deepstack_layers nextn_predict_layers rescale_every_n_layers rope.dimension_count_swa rope.dimension_sections
    rope.freq_base_swa rope.scaling.yarn_log_multiplier router_logit_softcapping swiglu_clamp_exp swiglu_clamp_shexp
    swin_norm time_decay_extra_dim time_mix_extra_dim token_shift_count use_parallel_residual
    """.split()  # noqa: SIM905
)
FEATURE_GROUPS = (
    "altup.",
    "attention.indexer.",
    "convnext.",
    "kda.",
    "posnet.",
    "shortconv.",
    "ssm.",
    "wkv.",
)
