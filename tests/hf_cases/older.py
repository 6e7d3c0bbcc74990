"""GPT-2 and what came soon after it: GPT-NeoX, Falcon, BLOOM, MPT."""

from __future__ import annotations

from hf_cases.common import ABSENT, Cases, named, without

NO_SIZES = dict.fromkeys(
    (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
    ),
    ABSENT,
)
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **NO_SIZES}
FALCON = {"max_position_embeddings": 2048, "num_key_value_heads": ABSENT, "intermediate_size": ABSENT}
CASES: Cases = {
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.25}, named("rotary_pct", 0.25)),
    "gpt_neox-in-turn": (
        "GPTNeoX",
        {"rotary_pct": 0.5, "use_parallel_residual": False},
        named("rotary_pct", 0.5),
    ),
    "gpt2": ("GPT2", GPT, named("n_ctx", 128)),
    "gpt_bigcode": ("GPTBigCode", GPT, None),
    "falcon": ("Falcon", FALCON, without("num_kv_heads")),
    "falcon-groups": ("Falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, None),
    "falcon-one-norm": (
        "Falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        None,
    ),
    "bloom": ("Bloom", {**NO_SIZES, "hidden_size": 32, "n_layer": 2, "n_head": 4}, None),
    "bloom-six": (
        "Bloom",
        {**NO_SIZES, "hidden_size": 48, "n_layer": 1, "n_head": 6, "tie_word_embeddings": False},
        named("seq_length", 96),
    ),
    "mpt": (
        "Mpt",
        {**NO_SIZES, "d_model": 32, "n_layers": 2, "n_heads": 4},
        named("architectures", ["MPTForCausalLM"]),
    ),
    "mpt-six": (
        "Mpt",
        {
            **NO_SIZES,
            "d_model": 48,
            "n_layers": 1,
            "n_heads": 6,
            "max_seq_len": 64,
            "attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.3},
        },
        named("architectures", ["MPTForCausalLM"]),
    ),
}
