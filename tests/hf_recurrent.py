"""Configurations of models with recurrent layers, for `make_hf_configs.py`."""

from __future__ import annotations

from typing import Any

from hf_configs import Edit

LFM2 = {
    "layer_types": ["conv", "full_attention", "conv"],
    "num_hidden_layers": 3,
    "block_auto_adjust_ff_dim": False,
    "pad_token_id": None,
}

CASES: dict[str, tuple[str, dict[str, Any], Edit | None]] = {
    "lfm2": ("Lfm2", LFM2, None),
    "lfm2-adjusted": (
        "Lfm2",
        {
            **LFM2,
            "conv_L_cache": 4,
            "block_auto_adjust_ff_dim": True,
            "block_ffn_dim_multiplier": 1.5,
            "block_multiple_of": 16,
            "tie_word_embeddings": False,
        },
        None,
    ),
    "lfm2-bias": ("Lfm2", {**LFM2, "conv_bias": True}, None),
}
