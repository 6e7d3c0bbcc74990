"""Every key of a config.json is read by its class' record, harmless, or named in a note.

transformers itself ignores what its configuration class does not know, so nothing here changes the result; but a
checkpoint with such keys may have been made for another program than transformers.
"""

from __future__ import annotations

from loragraft.archs import ConfigClass
from loragraft.archs.config import Config
from loragraft.units import names_text

#: Read for every model, whatever its class.
_ALWAYS = frozenset(
    [
        "architectures",
        "compression_config",
        "model_type",
        "quantization_config",
        "tie_word_embeddings",
        "vocab_size",
    ]
)
#: Names, types, training, memory, sampling, and what StarCoder2's files say twice: nothing that logits depend on.
_HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _from_model_config
    _model_name_or_path _name_or_path activation_function add_cross_attention attention_dropout
    attention_softmax_in_fp32 attn_implementation auto_map bad_words_ids begin_suppress_tokens
    cache_implementation chunk_size_feed_forward cross_attention_hidden_size custom_pipelines diversity_penalty
    do_sample dtype early_stopping embedding_dropout encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task gradient_checkpointing hidden_dropout id2label
    initializer_range is_decoder is_encoder_decoder is_llama_config label2id language layer_norm_epsilon
    length_penalty max_length max_new_tokens max_sequence_length min_length mlp_type model_max_length name
    no_repeat_ngram_size norm_type num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_router_logits output_scores prefix pretraining_tp problem_type pruned_heads
    remove_invalid_values repetition_penalty resid_pdrop residual_dropout return_dict return_dict_in_generate
    rope_interleaved router_aux_loss_coef router_jitter_noise scale_attention_softmax_in_fp32 scale_attn_weights
    seq_length suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    use_flash_attention use_flash_attn
    """.split()  # noqa: SIM905
)


def unread_notes(config_class: ConfigClass, config: Config) -> list[str]:
    """Notes on keys that say something (not null, false or empty) and that nothing reads."""
    known = _ALWAYS | _HARMLESS | config_class.config_keys
    unread = [
        key
        for key, value in config.values.items()
        if key not in known and value and not key.endswith("_token_id") and "unsloth" not in key
    ]
    name = config.path.name
    notes = []
    if unread:
        listed = names_text(sorted(unread), 8)
        notes.append(f"{name}: transformers' {config_class.hf_class} does not read {listed}: left out")
    custom = config.get("auto_map")
    if isinstance(custom, dict) and "AutoModelForCausalLM" in custom:
        notes.append(
            f"{name}: auto_map names code of the checkpoint's own; it is taken for a {config_class.hf_class}"
        )
    return notes
